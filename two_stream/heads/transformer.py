"""Pre-norm transformer encoder with rotary positions over the tokens.

Source: the encoder of ViT (arXiv 2010.11929: pre-norm, GELU, a norm after the last block) with the rotary positions of
RoFormer (arXiv 2104.09864) instead of learned ones, so that the weights fit clips of any length.
"""

from __future__ import annotations

import torch
from torch import nn

from two_stream.config.heads import TransformerHead
from two_stream.heads.attention import AttentionBlock, Encoder
from two_stream.heads.base import HEADS


@HEADS.register(TransformerHead)
class Transformer(Encoder):
    """Transformer encoder; returns the output of the class token (at position 0), or the mean of all outputs."""

    def __init__(self, options: TransformerHead, *, features: int, tokens: int) -> None:
        super().__init__(options, features=features, tokens=tokens)
        shape = self.features, options.heads, self.features * options.feed_forward, options.dropout
        self.dropout = nn.Dropout(options.dropout)
        self.blocks = nn.ModuleList(AttentionBlock(*shape, rotary=True) for _ in range(options.layers))
        self.norm = nn.LayerNorm(self.features, eps=1e-6)
        self.initialise()

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """Return `(B, hidden)`."""
        x_BTD = self.dropout(self._embedded(x_BTD))
        for block in self.blocks:
            x_BTD = block(x_BTD)
        x_BTD = self.norm(x_BTD)
        return x_BTD[:, 0] if self.has_class_token else x_BTD.mean(1)
