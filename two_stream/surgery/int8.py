"""Networks whose convolutions and linear layers compute in int8, or round to int8 values during training.

The conversion is in `int8_graph`, which uses torch.ao and is imported only if a network is quantized.
"""

from __future__ import annotations

import os
import platform
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from importlib import import_module
from typing import Any, ClassVar

import torch
from torch import nn

from two_stream.errors import SettingsError
from two_stream.recognizer import Recognizer
from two_stream.runtime.device import cpu_flags
from two_stream.surgery import Alteration

NARROW = 127
"""largest quantized weight; without -128, the range is symmetric, which all engines support"""
NARROWER = 64
"""largest quantized weight if two products are added in 16 bits, because 2 · 255 · 64 = 32,640 fits into 16 bits"""
ENGINES = ("onednn", "qnnpack")
"""Engines of torch that compute these networks correctly.

The engines fbgemm and x86 of torch 2.14 compute depthwise 3×3×3 convolutions with per-channel scales incorrectly: the
error is up to 58 of 255 steps and differs each time.
"""
_VNNI = {"avx512_vnni", "avx_vnni", "amx_int8"}
"""CPU flags for instructions that add four products of bytes without overflow"""
_CAPPED = {
    "SSE41": "",
    "AVX": "",
    "AVX2": "",
    "AVX512_CORE": "",
    "AVX2_VNNI": "avx_vnni",
    "AVX2_VNNI_2": "avx_vnni",
}
"""values of `ONEDNN_MAX_CPU_ISA` for which oneDNN does not use VNNI, or only 256-bit VNNI; other values allow all
kinds"""
_VALUES, _SCALE, _ZERO = "#int8", "#scale", "#zero"
"""suffixes of the names of the tensors with which a file stores a quantized weight"""
_PACKED, _DTYPE = "._packed_params._packed_params", "._packed_params.dtype"
_NONE = "#none"
_FEW = 16
"""tensors with fewer values can be the state of a range, which layers can share"""


@dataclass(frozen=True)
class Int8(Alteration):
    """A backbone and linear layers in int8: per-channel or per-tensor weights, and calibrated activation ranges.

    Such a network can be rebuilt without calibration, because scales and zero points are part of its state.
    """

    kind: ClassVar[str] = "int8"

    keep: tuple[str, ...] = ()
    observer: str = "histogram"
    per_channel: bool = True
    """whether weights have one scale per output channel instead of one per tensor"""
    engine: str = "auto"
    """torch engine that packs the weights and computes the layers"""
    fake: bool = False
    """whether to compute in float with rounded values, for quantization-aware training"""
    decay: float = 0.999
    """decay of the moving average of the ranges"""

    @property
    def cpu_only(self) -> bool:
        """Whether the network runs only on a CPU; during quantization-aware training it runs on all devices."""
        return not self.fake

    def apply(self, model: Recognizer) -> None:
        """Change the layers in place. Without calibration, the scales of the layers are 1."""
        self.observe(model)
        if not self.fake:
            self.convert(model)

    def observe(self, model: Recognizer) -> None:
        """Insert observers around the layers, or rounding if `fake` is true.

        Raises:
            SettingsError: torch.ao.quantization is missing, the backbone cannot be traced, or `keep` matches no layer.
        """
        check_torch_ao()
        from two_stream.surgery.int8_graph import insert_observers, layer_config

        kept = sorted(kept_layers(model, self.keep))
        training = model.training
        # kernels for x86 add two products in 16 bits where the CPU has no VNNI: half the weights are safe there; half
        # the activations would not be, since a layer's outputs can exceed the calibrated range
        largest = NARROWER if use_engine(self.engine) == "onednn" and not has_vnni() else NARROW
        with _silenced():
            model.train(self.fake)
            config = layer_config(
                self.observer, per_channel=self.per_channel, largest=largest, decay=self.decay, fake=self.fake
            )
            insert_observers(model, config, _linear_layers(model), kept, fake=self.fake)
        model.train(training)

    def convert(self, model: Recognizer) -> None:
        """Convert the layers of an observed model to int8.

        Raises:
            SettingsError: torch.ao.quantization or an engine is missing.
        """
        check_torch_ao()
        from two_stream.surgery.int8_graph import convert

        use_engine(self.engine)
        with _silenced():
            convert(model)

    def describe(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {**asdict(self), "keep": list(self.keep)}

    @classmethod
    def read(cls, values: dict[str, Any]) -> Int8:
        """Return the alteration from the values that `describe` returned."""
        return cls(**{**values, "keep": tuple(values["keep"])})

    def tensors(self, state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Convert the state to plain tensors: quantized weights become bytes, scales and zero points."""
        made: dict[str, torch.Tensor] = {}
        if self.fake:
            # layers that share a range list it under several names, which safetensors does not allow
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
        """Convert the tensors of a file to the state.

        Linear weights are not packed again; torch can load them unpacked.
        """
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


def check_torch_ao() -> None:
    """Check that the installed torch can quantize.

    Raises:
        SettingsError: torch.ao.quantization is missing.
    """
    try:
        with _silenced():
            import_module("torch.ao.quantization.quantize_fx")
    except ImportError:
        raise SettingsError(
            f"torch {torch.__version__} has no torch.ao.quantization, which int8 networks require; install an "
            "older torch (docs/compression.md lists the tested versions)"
        ) from None


def use_engine(wanted: str = "auto") -> str:
    """Set the engine for which torch packs int8 weights in this process, and return its name.

    If `wanted` is `auto` or an engine that this machine does not have, an available engine of `ENGINES` is used.

    Raises:
        SettingsError: The installed torch has no suitable engine.
    """
    supported = torch.backends.quantized.supported_engines
    arm = platform.machine() in ("aarch64", "arm64")
    found = [name for name in (wanted, *(reversed(ENGINES) if arm else ENGINES)) if name in supported]
    if not found or found[0] not in ENGINES:
        raise SettingsError(
            f"the installed torch has no suitable int8 engine, found {', '.join(supported)}; install a torch with "
            f"{' or '.join(ENGINES)}"
        )
    torch.backends.quantized.engine = found[0]
    return str(found[0])


def has_vnni() -> bool:
    """Return whether oneDNN adds products of bytes without overflow, given the CPU and `ONEDNN_MAX_CPU_ISA`."""
    cap = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA", "")
    usable = _CAPPED.get(cap.upper())
    return bool(cpu_flags() & (_VNNI if usable is None else {usable}))


def _linear_layers(model: Recognizer) -> list[str]:
    """Return the names of the linear layers after the backbone, except those inside torch modules such as an LSTM."""
    return [
        name
        for name, part in model.named_modules()
        if type(part) is nn.Linear and name.partition(".")[0] in ("heads", "classifier")
    ]


def kept_layers(model: Recognizer, patterns: Sequence[str]) -> set[str]:
    """Return the layers that match patterns, which are names of layers or modules with the wildcards `*` and `?`.

    Layers of the backbone are named as in the backbone (`stem.0`). Other layers are named as in the model
    (`heads.0.linear`, `classifier`).

    Raises:
        SettingsError: A pattern matches no layer, or the patterns leave no layer to quantize.
    """
    kinds = (nn.Conv3d, nn.Linear)
    inside = [name for name, part in model.backbone.named_modules() if isinstance(part, kinds)]
    names = [*inside, *_linear_layers(model)]
    kept: set[str] = set()
    for pattern in patterns:
        found = {
            name
            for name in names
            if name == pattern or name.startswith(f"{pattern}.") or fnmatchcase(name, pattern)
        }
        if not found:
            tops = dict.fromkeys(name.partition(".")[0] for name in names)
            raise SettingsError(
                f"`compress.keep`: {pattern!r} matches no layer; expected a stage ({', '.join(tops)}), a layer such as "
                f"{names[0]}, or a pattern with *"
            )
        kept |= found
    if kept == set(names):
        raise SettingsError(
            "`compress.keep` keeps every layer in float, so nothing is left to quantize; use "
            "patterns that match fewer layers"
        )
    return kept


@contextmanager
def _silenced() -> Iterator[None]:
    """Context manager that hides warnings of torch.ao about its removal and about scales without calibration."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


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
    """Return a quantized weight from its bytes. With per-channel scales, axis 0 is the axis of the output channels."""
    if scale.ndim:
        return torch._make_per_channel_quantized_tensor(values, scale, zero, 0)
    return torch._make_per_tensor_quantized_tensor(values, float(scale), int(zero))
