"""Dilated residual convolutions over the tokens.

Source: Abu Farha and Gall, "MS-TCN: Multi-Stage Temporal Convolutional Network for Action Segmentation" (arXiv
1903.01945), the dilated residual layers of one stage, which classify every step; this head returns one vector per clip.
With `causal`, the convolutions are padded only on the left, as in Bai et al. (arXiv 1803.01271).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from two_stream.config.heads import TcnHead
from two_stream.heads.base import HEADS, Head


class DilatedResidual(nn.Module):
    """`x + dropout(W relu(dilated convolution of x))`, with a kernel of 3 steps and zeros as padding."""

    def __init__(self, hidden: int, dilation: int, dropout: float, causal: bool) -> None:
        super().__init__()
        self.padding = (2 * dilation, 0) if causal else (dilation, dilation)
        self.dilated = nn.Conv1d(hidden, hidden, 3, dilation=dilation)
        self.mix = nn.Conv1d(hidden, hidden, 1)
        self.dropout = nn.Dropout(dropout)

    def change(self, dilated_BDT: torch.Tensor) -> torch.Tensor:
        """Return what is added to the input, for the output of the dilated convolution."""
        change_BDT: torch.Tensor = self.dropout(self.mix(torch.relu(dilated_BDT)))
        return change_BDT

    def forward(self, x_BDT: torch.Tensor) -> torch.Tensor:
        """Return `(B, D, T)`."""
        return x_BDT + self.change(self.dilated(F.pad(x_BDT, self.padding)))


@HEADS.register(TcnHead)
class Tcn(Head):
    """Linear layer and dilated residual layers; returns the mean over time, or the last step if causal.

    Clips can have any length. The output of a causal head depends on the newest `2^(layers + 1) - 1` tokens.
    """

    def __init__(self, options: TcnHead, *, features: int, tokens: int) -> None:
        super().__init__(options, features=features, tokens=tokens)
        self.embed = nn.Conv1d(features, options.hidden, 1)
        self.layers = nn.ModuleList(
            DilatedResidual(options.hidden, 2**place, options.dropout, options.causal)
            for place in range(options.layers)
        )
        self.features = options.hidden

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """Return `(B, hidden)`."""
        x_BDT = self.embed(x_BTD.transpose(1, 2))
        for layer in self.layers:
            x_BDT = layer(x_BDT)
        z_BD: torch.Tensor = x_BDT[:, :, -1] if self.options.causal else x_BDT.mean(2)
        return z_BD
