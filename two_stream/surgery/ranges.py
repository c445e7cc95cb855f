"""What range of values a tensor has, from which its int8 scale follows: observers of torch.ao, and one of our own."""

from __future__ import annotations

from typing import Any

import torch
from torch.ao.quantization import FakeQuantize, HistogramObserver, MinMaxObserver, QConfig
from torch.ao.quantization.observer import MovingAveragePerChannelMinMaxObserver, PerChannelMinMaxObserver


class MovingRange(MinMaxObserver):
    """Range of a tensor as a moving average of the ranges seen, with the bias of its start taken out.

    `r = decay * r + (1 - decay) * range`, and `r / (1 - decay^n)` after n of them, as Distiller's quantisation-aware
    training has it. It moves in training mode only: the validation clips must not have a say.
    """

    sums: torch.Tensor
    seen: torch.Tensor

    def __init__(self, decay: float = 0.999, **options: Any) -> None:
        super().__init__(**options)
        self.decay = decay
        self.register_buffer("sums", torch.zeros(2))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, x_orig: torch.Tensor) -> torch.Tensor:
        """Take in a tensor and return it as it is."""
        if self.training and x_orig.numel():
            extremes = torch.stack(torch.aminmax(x_orig.detach().float()))
            self.sums.mul_(self.decay).add_(extremes, alpha=1.0 - self.decay)
            self.seen.add_(1)
            low, high = self.sums / (1.0 - self.decay ** int(self.seen))
            self.min_val.copy_(low)
            self.max_val.copy_(high)
        return x_orig


OBSERVERS: dict[str, type[MinMaxObserver] | type[HistogramObserver]] = {
    "histogram": HistogramObserver,
    "minmax": MinMaxObserver,
    "moving_average": MovingRange,
}
"""How the range of activations is found, by its name in the settings."""
NARROW = 127
"""largest weight: without -128 a symmetric range has as many values on either side, which every engine takes"""
NARROWER = 64
"""largest weight where two products are added in 16 bits: 2 · 255 · 64 = 32,640 fits whatever the activations are"""


def layer_config(
    observer: str, *, per_channel: bool, largest: int = NARROW, decay: float = 0.999, fake: bool = False
) -> QConfig:
    """Return how activations and weights are quantised.

    Args:
        observer: Key of `OBSERVERS`; with `fake` the moving average whatever it says.
        per_channel: A scale per output channel of a weight; else one per weight.
        largest: Largest weight: `NARROW` or `NARROWER`.
        decay: Of the moving average.
        fake: Round in float, for training.
    """
    scheme = torch.per_channel_symmetric if per_channel else torch.per_tensor_symmetric
    signed = {"dtype": torch.qint8, "qscheme": scheme, "quant_min": -largest, "quant_max": largest}
    unsigned = {"dtype": torch.quint8, "quant_min": 0, "quant_max": 255}
    moving = {"decay": decay} if fake or observer == "moving_average" else {}
    if fake:  # weights change with every step, so their range is that of the moment
        weights = MovingAveragePerChannelMinMaxObserver if per_channel else MinMaxNow
        moment = {"averaging_constant": 1.0} if per_channel else {}
        followed = {"observer": MovingRange, **unsigned, **moving}
        return _config(FakeQuantize, followed, FakeQuantize, {"observer": weights, **signed, **moment})
    weight = PerChannelMinMaxObserver if per_channel else MinMaxObserver
    return _config(OBSERVERS[observer], {**unsigned, **moving}, weight, signed)


def _config(activation: Any, options: dict[str, Any], weight: Any, others: dict[str, Any]) -> QConfig:
    return QConfig(activation.with_args(**options), weight.with_args(**others))  # type: ignore[no-untyped-call]


class MinMaxNow(MinMaxObserver):
    """Range of the tensor seen last."""

    def forward(self, x_orig: torch.Tensor) -> torch.Tensor:
        """Take in a tensor and return it as it is."""
        self.reset_min_max_vals()
        found: torch.Tensor = super().forward(x_orig)  # type: ignore[no-untyped-call]
        return found
