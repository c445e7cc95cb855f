"""Concatenation of the tokens."""

from __future__ import annotations

import torch
from torch import nn

from two_stream.config.heads import ConcatHead
from two_stream.heads.base import HEADS, Head


class Concatenation(nn.Module):
    """Concatenates tokens, feature-major as in the published code; applies dropout and an optional linear layer."""

    def __init__(self, features: int, tokens: int, outputs: int | None, dropout: float) -> None:
        super().__init__()
        self.features = outputs or features * tokens
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(features * tokens, outputs) if outputs else nn.Identity()

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """Return `(B, features)`."""
        z_BD: torch.Tensor = self.linear(self.dropout(x_BTD.transpose(1, 2).flatten(1)))
        return z_BD


@HEADS.register(ConcatHead)
class Concat(Head):
    """Concatenation of the tokens, with or without the linear layer of the paper."""

    fixed_length = True

    def __init__(self, options: ConcatHead, *, features: int, tokens: int) -> None:
        super().__init__(options, features=features, tokens=tokens)
        self.join = Concatenation(features, tokens, options.features, options.dropout)
        self.features = self.join.features

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """Return `(B, features)`."""
        self.check_tokens(x_BTD)
        z_BD: torch.Tensor = self.join(x_BTD)
        return z_BD
