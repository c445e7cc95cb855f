"""Attentive pooling: learned queries attend to the tokens.

Source: Bardes et al., V-JEPA (arXiv 2404.08471), and Assran et al., V-JEPA 2 (arXiv 2506.09985), which adds
self-attention blocks. With one query and the same weights, the head equals `VJEPA2AttentivePooler` of transformers.
"""

from __future__ import annotations

import torch
from torch import nn

from two_stream.config.heads import AttentiveHead
from two_stream.heads.base import HEADS
from two_stream.heads.transformer import AttentionBlock, AttentionHead


@HEADS.register(AttentiveHead)
class Attentive(AttentionHead):
    """Self-attention blocks and a cross-attention block, for clips of any length.

    There are no positions, so the output does not depend on the order of the tokens. V-JEPA pools tokens in which the
    backbone has encoded the time.
    """

    def __init__(self, options: AttentiveHead, *, features: int, tokens: int) -> None:
        super().__init__(options, features=features, tokens=tokens)
        hidden = self.features
        shape = hidden, options.heads, hidden * options.feed_forward, options.dropout
        self.queries = nn.Parameter(torch.empty(1, options.queries, hidden))
        self.blocks = nn.ModuleList(AttentionBlock(*shape) for _ in range(options.blocks))
        self.cross = AttentionBlock(*shape, cross=True)
        self.features = options.queries * hidden
        self.initialise()

    def _embedded(self, x_BTD: torch.Tensor) -> torch.Tensor:
        x_BTD = self.embed(x_BTD)
        for block in self.blocks:
            x_BTD = block(x_BTD)
        return x_BTD

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """Return `(B, queries * hidden)`, the outputs of the queries one after another."""
        x_BTD = self._embedded(x_BTD)
        z_BQD: torch.Tensor = self.cross(x_BTD, self.queries.repeat(x_BTD.shape[0], 1, 1).to(x_BTD.dtype))
        return z_BQD.flatten(1)

    @torch.no_grad()
    def attention(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """Return how much the queries attend to each time token, on average, `(B, heads, T)`."""
        query_BQD = self.queries.expand(x_BTD.shape[0], -1, -1)
        return self.cross.attention.weights(self.cross.norm1(self._embedded(x_BTD)), query_BQD).mean(2)
