"""LSTM over the tokens."""

from __future__ import annotations

import torch
from torch import nn

from two_stream.config.heads import LstmHead
from two_stream.heads.base import HEADS, Head


@HEADS.register(LstmHead)
class Lstm(Head):
    """The output of an LSTM at its last step (at both ends if bidirectional), for clips of any length."""

    def __init__(self, options: LstmHead, *, features: int, tokens: int) -> None:
        super().__init__(options, features=features, tokens=tokens)
        self.lstm = nn.LSTM(
            features,
            options.hidden,
            num_layers=options.layers,
            batch_first=True,
            bidirectional=options.bidirectional,
        )
        self.features = options.hidden * (2 if options.bidirectional else 1)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """Return `(B, features)`: the forward output at the last step, and the backward output at the first step."""
        out_BTD, _ = self.lstm(x_BTD)
        if not self.options.bidirectional:
            last: torch.Tensor = out_BTD[:, -1]
            return last
        hidden = self.options.hidden
        return torch.cat((out_BTD[:, -1, :hidden], out_BTD[:, 0, hidden:]), dim=1)
