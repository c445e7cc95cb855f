"""The mean over time."""

from __future__ import annotations

import torch
from torch import nn

from two_stream.config.heads import AverageHead
from two_stream.heads.base import HEADS, Head


@HEADS.register(AverageHead)
class Average(Head):
    """Mean of the tokens (global average pooling), for clips of any length.

    With `window` above 1, tokens are averaged in every window of `window` adjacent tokens, and then the windows are
    averaged. The first and last tokens therefore have less weight. Kinetics I3D classifies each pair of adjacent tokens
    and averages the logits, which is equivalent to a `window` of 2.
    """

    def __init__(self, options: AverageHead, *, features: int, tokens: int) -> None:
        super().__init__(options, features=features, tokens=tokens)
        self.linear: nn.Linear | None = None
        if options.features is not None:
            self.linear = nn.Linear(features, options.features, bias=False)
            nn.init.kaiming_normal_(self.linear.weight, nonlinearity="relu")
            self.features = options.features

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """Return `(B, features)`."""
        window = min(self.options.window, x_BTD.shape[1])
        runs = x_BTD if window == 1 else x_BTD.unfold(1, window, 1).mean(-1)
        z_BD = runs.mean(1)
        return z_BD if self.linear is None else torch.relu(self.linear(z_BD))
