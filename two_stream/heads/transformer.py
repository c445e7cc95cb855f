"""Pre-norm transformer encoder with rotary positions over the tokens.

Source: the encoder of ViT (arXiv 2010.11929: pre-norm, GELU, a norm after the last block) with the rotary positions of
RoFormer (arXiv 2104.09864) instead of learned ones, so that the weights fit clips of any length.
"""

from __future__ import annotations

import torch
from torch import nn

from two_stream.config.heads import TransformerHead
from two_stream.heads.attention import AttentionBlock, initialise, make_embedding
from two_stream.heads.base import HEADS, Head


@HEADS.register(TransformerHead)
class Transformer(Head):
    """Transformer encoder; returns the output of the class token (at position 0), or the mean of all outputs."""

    def __init__(self, options: TransformerHead, *, features: int, tokens: int) -> None:
        super().__init__(options, features=features, tokens=tokens)
        hidden = self.features = options.hidden or features
        self.has_class_token = options.class_token
        self.embed = make_embedding("transformer", features, hidden, options.heads)
        if options.class_token:
            self.class_token = nn.Parameter(torch.empty(1, 1, hidden))
        self.dropout = nn.Dropout(options.dropout)
        width = hidden * options.feed_forward
        self.blocks = nn.Sequential(
            *(
                AttentionBlock(hidden, options.heads, width, options.dropout, rotary=True)
                for _ in range(options.layers)
            )
        )
        self.norm = nn.LayerNorm(hidden, eps=1e-6)
        initialise(self)

    def _embedded(self, x_BTD: torch.Tensor) -> torch.Tensor:
        x_BTD = self.embed(x_BTD)
        if self.options.class_token:
            x_BTD = torch.cat((self.class_token.expand(x_BTD.shape[0], -1, -1).to(x_BTD.dtype), x_BTD), dim=1)
        embedded: torch.Tensor = self.dropout(x_BTD)
        return embedded

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """Return `(B, hidden)`."""
        x_BTD = self.norm(self.blocks(self._embedded(x_BTD)))
        return x_BTD[:, 0] if self.options.class_token else x_BTD.mean(1)

    @torch.no_grad()
    def attention(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """Return how much the last block's class token attends to each time token, `(B, heads, T)`.

        The class token's attention to itself is omitted, so a row sums to less than one. Without a class token, the
        result is the mean over the query tokens.
        """
        *before, last = self.blocks
        x_BTD = self._embedded(x_BTD)
        for block in before:
            x_BTD = block(x_BTD)
        assert isinstance(last, AttentionBlock)
        normed = last.norm1(x_BTD)
        weights_BHTT = last.attention.weights(normed, normed)
        return weights_BHTT[:, :, 0, 1:] if self.options.class_token else weights_BHTT.mean(2)
