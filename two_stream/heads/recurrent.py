"""LSTM or GRU over the tokens."""

from __future__ import annotations

import torch
from torch import nn

from two_stream.config.heads import GruHead, LstmHead
from two_stream.heads.base import HEADS, Head


class Recurrent(Head):
    """The output of a recurrent network at its last step (at both ends if bidirectional), for clips of any length."""

    layer: type[nn.LSTM] | type[nn.GRU]
    states: tuple[str, ...]
    """names of the states, each `(layers, B, hidden)`"""

    def __init__(self, options: LstmHead | GruHead, *, features: int, tokens: int) -> None:
        super().__init__(options, features=features, tokens=tokens)
        both, width = options.bidirectional, options.hidden
        network = self.layer(features, width, options.layers, batch_first=True, bidirectional=both)
        self.add_module(options.kind, network)
        self.features = width * (2 if both else 1)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """Return `(B, features)`: the forward output at the last step, and the backward output at the first step."""
        out_BTD, _ = self.run(x_BTD, None)
        if not self.options.bidirectional:
            return out_BTD[:, -1]
        hidden = self.options.hidden
        return torch.cat((out_BTD[:, -1, :hidden], out_BTD[:, 0, hidden:]), dim=1)

    def run(
        self, x_BTD: torch.Tensor, states: tuple[torch.Tensor, ...] | None
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Return the outputs of all steps `(B, T, hidden)` and the new states; without states, start with zeros."""
        only = len(self.states) == 1  # the state of torch's GRU is not in a tuple
        out_BTD, new = self.get_submodule(self.options.kind)(x_BTD, states[0] if only and states else states)
        return out_BTD, (new,) if only else new


@HEADS.register(LstmHead)
class Lstm(Recurrent):
    """LSTM, with the equations of `torch.nn.LSTM`."""

    layer = nn.LSTM
    states = ("hidden", "cell")


@HEADS.register(GruHead)
class Gru(Recurrent):
    """GRU. Source: Cho et al. (arXiv 1406.1078), in the variant of `torch.nn.GRU`, which resets after the product."""

    layer = nn.GRU
    states = ("hidden",)
