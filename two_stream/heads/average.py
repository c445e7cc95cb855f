"""The mean over time."""

from __future__ import annotations

import torch

from two_stream.config.model import AverageHead
from two_stream.heads.base import HEADS, Head


@HEADS.register(AverageHead)
class Average(Head):
    """Mean of the tokens: the classic global average pooling, for clips of any length."""

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """Return `(B, D)`."""
        return x_BTD.mean(1)
