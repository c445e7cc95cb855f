"""The mean over time."""

from __future__ import annotations

import torch

from two_stream.config.model import AverageHead
from two_stream.heads.base import HEADS, Head


@HEADS.register(AverageHead)
class Average(Head):
    """Mean of the tokens: the classic global average pooling, for clips of any length.

    With `window` above 1 it is the mean of the means over every run of so many tokens, which weighs the first and last
    tokens less. Kinetics I3D classifies each pair of tokens and averages the logits, which is the same.
    """

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """Return `(B, D)`."""
        window = min(self.options.window, x_BTD.shape[1])
        runs = x_BTD if window == 1 else x_BTD.unfold(1, window, 1).mean(-1)
        return runs.mean(1)
