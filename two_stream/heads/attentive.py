"""Attentive pooling: learned queries attend to the tokens.

Source: Bardes et al., V-JEPA (arXiv 2404.08471), and Assran et al., V-JEPA 2 (arXiv 2506.09985), which adds
self-attention blocks. With one query and the same weights, the head equals `VJEPA2AttentivePooler` of the transformers library.
"""

from __future__ import annotations

import torch
from torch import nn

from two_stream.config.heads import AttentiveHead
from two_stream.heads.attention import AttentionBlock, initialise, make_embedding
from two_stream.heads.base import HEADS, Head


@HEADS.register(AttentiveHead)
class Attentive(Head):
    """Self-attention blocks and a cross-attention block, for clips of any length.

    There are no positions, so the output does not depend on the order of the tokens. V-JEPA pools tokens in which the
    backbone has encoded the time.
    """

    def __init__(self, options: AttentiveHead, *, features: int, tokens: int) -> None:
        super().__init__(options, features=features, tokens=tokens)
        hidden = options.hidden or features
        self.embed = make_embedding("attentive", features, hidden, options.heads)
        self.queries = nn.Parameter(torch.empty(1, options.queries, hidden))
        shape = hidden, options.heads, hidden * options.feed_forward, options.dropout
        self.blocks = nn.Sequential(*(AttentionBlock(*shape) for _ in range(options.blocks)))
        self.cross = AttentionBlock(*shape, cross=True)
        self.features = options.queries * hidden
        initialise(self)

    def _tokens(self, x_BTD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the tokens after self-attention and the queries."""
        x_BTD = self.blocks(self.embed(x_BTD))
        return x_BTD, self.queries.expand(x_BTD.shape[0], -1, -1).to(x_BTD.dtype)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """Return `(B, queries * hidden)`, the outputs of the queries one after another."""
        z_BQD: torch.Tensor = self.cross(*self._tokens(x_BTD))
        return z_BQD.flatten(1)

    @torch.no_grad()
    def attention(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """Return how much the queries attend to each time token, on average, `(B, heads, T)`."""
        x_BTD, query_BQD = self._tokens(x_BTD)
        return self.cross.attention.weights(query_BQD, self.cross.norm1(x_BTD)).mean(2)
