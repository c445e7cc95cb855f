"""Networks whose convolutions and linear layers compute in int8, or round as if they did while they are trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch

from two_stream.recognizer import Recognizer
from two_stream.surgery.base import Alteration
from two_stream.surgery.int8_graph import convert, has_vnni, hushed, insert_observers, kept_layers, use_engine
from two_stream.surgery.ranges import NARROW, NARROWER, layer_config

_VALUES, _SCALE, _ZERO = "#int8", "#scale", "#zero"
"""ends of the names under which a file keeps a quantised weight"""
_PACKED, _DTYPE = "._packed_params._packed_params", "._packed_params.dtype"
_NONE = "#none"
_FEW = 16
"""more numbers than a range has"""


@dataclass(frozen=True)
class Int8(Alteration):
    """Backbone and linear layers in int8: per-channel or per-tensor weights, activations of a calibrated range.

    What a network is built with again needs no calibration: scales and zero points are part of its state.
    """

    kind: ClassVar[str] = "int8"

    keep: tuple[str, ...] = ()
    """patterns of layers that stay in float"""
    observer: str = "histogram"
    """how ranges of activations were found"""
    per_channel: bool = True
    """a scale per output channel of a weight"""
    engine: str = "auto"
    """what packs the weights and computes: an engine of torch"""
    fake: bool = False
    """rounded in float: a network in quantisation-aware training"""
    decay: float = 0.999
    """of the moving average of ranges"""

    @property
    def cpu_only(self) -> bool:
        """Whether it computes on a CPU alone; while it is trained it computes anywhere."""
        return not self.fake

    def apply(self, model: Recognizer) -> None:
        """Change the layers in place; without calibration their scales are 1."""
        self.observe(model)
        if not self.fake:
            self.compute(model)

    def observe(self, model: Recognizer) -> None:
        """Put observers, or rounding, around the layers.

        Raises:
            SettingsError: The backbone has no graph of layers, or `keep` names no layer.
        """
        kept = sorted(kept_layers(model, self.keep))
        training = model.training
        with hushed():
            model.train(self.fake)
            insert_observers(model, self._config(), kept, fake=self.fake)
        model.train(training)

    def compute(self, model: Recognizer) -> None:
        """Turn an observed model's layers into int8."""
        use_engine(self.engine)
        with hushed():
            convert(model)

    def _config(self) -> Any:
        """Kernels for x86 add two products in 16 bits where the CPU has no VNNI: half the weights are safe there.

        Half the activations are not: a layer's outputs reach beyond the range that was measured.
        """
        largest = NARROWER if use_engine(self.engine) == "onednn" and not has_vnni() else NARROW
        return layer_config(
            self.observer, per_channel=self.per_channel, largest=largest, decay=self.decay, fake=self.fake
        )

    def describe(self) -> dict[str, Any]:
        """Return the fields."""
        return {**asdict(self), "keep": list(self.keep)}

    @classmethod
    def read(cls, values: dict[str, Any]) -> Int8:
        """Return what `describe` described."""
        return cls(**{**values, "keep": tuple(values["keep"])})

    def tensors(self, state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Write quantised weights as bytes with their scales; the packed ones of linear layers as torch 1 did."""
        made: dict[str, torch.Tensor] = {}
        if self.fake:  # layers that share a range have it under several names, which a file cannot
            return {key: value.clone() if value.numel() < _FEW else value for key, value in state.items()}
        for key, value in state.items():
            if key.endswith(_DTYPE):
                continue
            if key.endswith(_PACKED):
                weight, bias = value
                made |= _encoded(f"{key.removesuffix(_PACKED)}.weight", weight)
                made |= _encoded(f"{key.removesuffix(_PACKED)}.bias", bias)
            else:
                made |= _encoded(key, value)
        return made

    def state(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """Return the state of the tensors of a file; torch still reads linear layers that are not packed."""
        made: dict[str, Any] = {}
        for key, value in tensors.items():
            if key.endswith(_NONE):
                made[key.removesuffix(_NONE)] = None
            elif key.endswith(_VALUES):
                name = key.removesuffix(_VALUES)
                made[name] = _quantised(value, tensors[name + _SCALE], tensors[name + _ZERO])
            elif not key.endswith((_SCALE, _ZERO)):
                made[key] = value
        return made


def _encoded(key: str, value: torch.Tensor | None) -> dict[str, torch.Tensor]:
    if value is None:
        return {key + _NONE: torch.zeros(0)}
    if not value.is_quantized:
        return {key: value}
    per_channel = value.qscheme() in (torch.per_channel_affine, torch.per_channel_symmetric)
    scale = (
        value.q_per_channel_scales() if per_channel else torch.tensor(value.q_scale(), dtype=torch.float64)
    )
    zero = value.q_per_channel_zero_points() if per_channel else torch.tensor(value.q_zero_point())
    return {key + _VALUES: value.int_repr(), key + _SCALE: scale, key + _ZERO: zero}


def _quantised(values: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
    """Return a quantised weight of the bytes; axis 0 is that of the output channels."""
    if scale.ndim:
        return torch._make_per_channel_quantized_tensor(values, scale, zero, 0)
    return torch._make_per_tensor_quantized_tensor(values, float(scale), int(zero))
