"""A network's layers as torch.ao quantises them: observed, rounded in float for training, or computed in int8."""

from __future__ import annotations

import os
import platform
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import fx, nn
from torch.ao.quantization import (
    QConfig,
    QConfigMapping,
    get_default_qat_qconfig_mapping,
    get_default_qconfig_mapping,
)
from torch.ao.quantization.backend_config import (
    BackendConfig,
    BackendPatternConfig,
    DTypeConfig,
    ObservationType,
    get_native_backend_config,
)
from torch.ao.quantization.fx.custom_config import PrepareCustomConfig
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx, prepare_qat_fx

from two_stream.backbones import Backbone
from two_stream.backbones.i3d import SameConv3d, SamePad3d
from two_stream.backbones.tracing import LEAVES, traced
from two_stream.errors import SettingsError
from two_stream.recognizer import Recognizer
from two_stream.runtime.precision import cpu_flags
from two_stream.surgery.int8_moves import FUNCTIONS, MODULES, moved_in_bytes
from two_stream.types import FeatureMap, Modality

_VNNI = {"avx512_vnni", "avx_vnni", "amx_int8"}
"""CPU flags of instructions that add four products of bytes without overflow"""
_CAPPED = {
    "SSE41": "",
    "AVX": "",
    "AVX2": "",
    "AVX512_CORE": "",
    "AVX2_VNNI": "avx_vnni",
    "AVX2_VNNI_2": "avx_vnni",
}
"""values of `ONEDNN_MAX_CPU_ISA` under which oneDNN leaves VNNI out, or uses only that of 256 bits; others keep all"""
LAYERS = (nn.Conv3d, nn.Linear)


class GraphBackbone(Backbone):
    """A backbone as a graph of layers that are quantised or about to be.

    Its stages are where they were, but called layer by layer.
    """

    def __init__(self, backbone: Backbone, graph: fx.GraphModule) -> None:
        super().__init__(backbone.options, backbone.modality)
        self.graph = graph
        self.family = type(backbone)
        self.channels, self.pathways = backbone.channels, backbone.pathways
        self.temporal_stride, self.spatial_stride = backbone.temporal_stride, backbone.spatial_stride
        self.reduced = backbone.reduced
        self._names = [name for name, _ in backbone.stages()]

    @classmethod
    def default_input(cls, options: Any, modality: Modality) -> Any:
        """Not asked for: the network it was made from has its input."""
        raise NotImplementedError((options, modality))

    def num_tokens(self, clip_length: int) -> tuple[int, ...]:
        """Return the steps in time of each pathway's map, as the family counts them."""
        return self.family.num_tokens(self, clip_length)

    def stages(self) -> list[tuple[str, nn.Module]]:
        """Return the stages that hold layers."""
        there = dict(self.graph.named_children())
        return [(name, there[name]) for name in self._names if name in there]

    def forward(self, x_BCTHW: torch.Tensor) -> list[FeatureMap]:
        """Map a normalised clip to one float feature map per pathway."""
        maps = self.graph(x_BCTHW)
        return [FeatureMap(map_, name) for map_, name in zip(maps, self.pathways, strict=True)]

    def append_block(self, channels: int) -> None:
        """Refused."""
        raise SettingsError(f"a quantised network takes no further block ({channels} channels)")

    def replace_last_block(self, channels: int) -> None:
        """Refused."""
        self.append_block(channels)


ENGINES = ("onednn", "qnnpack")
"""Engines of torch that compute our layers; its fbgemm and x86 (torch 2.14) get 3×3×3 convolutions of each channel by
itself wrong with a scale per channel, by up to 58 steps of 255, and differently each time."""


def use_engine(wanted: str = "auto") -> str:
    """Let torch pack int8 weights for an engine, in this whole process, and return its name.

    Args:
        wanted: One of `ENGINES`, or `auto`. A file made for another machine's engine is packed for one of this.

    Raises:
        SettingsError: This torch has neither.
    """
    there = torch.backends.quantized.supported_engines
    arm = platform.machine() in ("aarch64", "arm64")
    found = [name for name in (wanted, *(reversed(ENGINES) if arm else ENGINES)) if name in there]
    if not found or found[0] not in ENGINES:
        raise SettingsError(
            f"this torch computes no int8 that suits ({', '.join(there)}); install one with {' or '.join(ENGINES)}"
        )
    torch.backends.quantized.engine = found[0]
    return str(found[0])


def has_vnni() -> bool:
    """Whether oneDNN adds products of bytes without overflow: the CPU can, and `ONEDNN_MAX_CPU_ISA` lets it."""
    cap = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA", "")
    usable = _CAPPED.get(cap.upper())
    return bool(cpu_flags() & (_VNNI if usable is None else {usable}))


@contextmanager
def hushed() -> Iterator[None]:
    """Keep quiet what torch's quantisation says of its own future and of scales that are not calibrated yet."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def quantisable(model: Recognizer) -> list[str]:
    """Return the names of the layers that can compute in int8, from input to classifier.

    Backbone layers go by their name in the backbone (`stem.0`), the others by that in the model
    (`heads.0.linear`, `classifier`).
    """
    inside = [name for name, part in model.backbone.named_modules() if isinstance(part, LAYERS)]
    return inside + _linear_names(model)


def kept_layers(model: Recognizer, patterns: Sequence[str]) -> set[str]:
    """Return the layers that patterns name: a layer, everything below a name, or `*` and `?` in a name.

    Raises:
        SettingsError: A pattern names none; or they leave nothing to quantise.
    """
    names = quantisable(model)
    kept: set[str] = set()
    for pattern in patterns:
        found = {name for name in names if _fits(name, pattern)}
        if not found:
            tops = dict.fromkeys(name.partition(".")[0] for name in names)
            raise SettingsError(
                f"`compress.keep`: {pattern!r} names no layer; expected a stage ({', '.join(tops)}), a layer such as "
                f"{names[0]}, or a pattern with *"
            )
        kept |= found
    if kept == set(names):
        raise SettingsError("`compress.keep` keeps every layer in float: nothing is left to quantise")
    return kept


def insert_observers(model: Recognizer, config: QConfig, kept: Sequence[str], *, fake: bool) -> None:
    """Put observers (or, with `fake`, rounding) around the layers of a model, in place; BatchNorm is joined to them.

    Args:
        model: In training mode with `fake`, else in evaluation mode.
        config: How activations and weights are quantised.
        kept: Names of layers that stay as they are, exact ones as `kept_layers` gives them.
        fake: For training.

    Raises:
        SettingsError: The backbone cannot be written as a graph of layers.
    """
    _split_padding(model.backbone)
    graph = traced(model.backbone)
    graph.train(model.training)
    spec = model.spec
    example = torch.zeros(1, spec.channels, spec.clip_length, *spec.size)
    mapping = _mapping(config, kept, fake=fake)
    made = prepare_qat_fx if fake else prepare_fx
    custom = PrepareCustomConfig().set_non_traceable_module_classes(list(LEAVES))
    observed = made(graph, mapping, (example,), prepare_custom_config=custom, backend_config=backend_config())
    names = _linear_names(model)
    model.backbone = GraphBackbone(model.backbone, observed)
    for name in names:
        if name in kept:
            continue
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        vector = torch.zeros(1, linear.in_features)
        alone = nn.Sequential(linear).train(model.training)
        plain = _mapping(config, (), fake=fake)
        _replace(model, name, made(alone, plain, (vector,), backend_config=backend_config()))


def convert(model: Recognizer) -> None:
    """Turn what `insert_observers` observed into layers that compute in int8, in place."""
    model.cpu().eval()
    backbone = model.backbone
    assert isinstance(backbone, GraphBackbone)
    backbone.graph = moved_in_bytes(convert_fx(backbone.graph, backend_config=backend_config()))
    observed = [
        (name, part)
        for name, part in model.named_modules()
        if isinstance(part, fx.GraphModule) and not name.startswith("backbone.")
    ]
    for name, part in observed:
        _replace(model, name, convert_fx(part, backend_config=backend_config()))


def backend_config() -> BackendConfig:
    """Return torch's patterns of int8 layers with those of our networks."""
    config = get_native_backend_config()
    for part in (*MODULES, *FUNCTIONS, SamePad3d):
        moved = BackendPatternConfig(part)
        moved.set_observation_type(ObservationType.OUTPUT_SHARE_OBSERVER_WITH_INPUT)
        moved.add_dtype_config(DTypeConfig(input_dtype=torch.quint8, output_dtype=torch.quint8))
        config.set_backend_pattern_config(moved)
    return config


def _mapping(config: QConfig, kept: Sequence[str], *, fake: bool) -> QConfigMapping:
    """Return a mapping with one config for all; operations of a known range (sigmoid) keep torch's."""
    usual = get_default_qat_qconfig_mapping if fake else get_default_qconfig_mapping
    mapping: QConfigMapping = usual("x86").set_global(config)
    for name in kept:
        mapping.set_module_name(name, None)
    return mapping


def _split_padding(backbone: Backbone) -> None:
    """Put convolutions that pad by the size of what comes in behind a padding of their own: torch quantises its own."""
    same = [(name, part) for name, part in backbone.named_modules() if isinstance(part, SameConv3d)]
    for name, part in same:
        kernel, stride = part.kernel_size, part.stride
        alone = all(step == 1 and side % 2 for side, step in zip(kernel, stride, strict=True))
        sides = [side // 2 for side in kernel] if alone else 0
        plain = nn.Conv3d(
            part.in_channels,
            part.out_channels,
            kernel,  # type: ignore[arg-type]
            stride,  # type: ignore[arg-type]
            sides,  # type: ignore[arg-type]
            groups=part.groups,
            bias=False,
        )
        plain.weight, plain.bias = part.weight, part.bias
        _replace(
            backbone,
            name,
            plain if alone else nn.Sequential(SamePad3d(_triple(kernel), _triple(stride)), plain),
        )


def _triple(sides: tuple[int, ...]) -> tuple[int, int, int]:
    time, height, width = sides
    return time, height, width


def _linear_names(model: Recognizer) -> list[str]:
    """Return the linear layers behind the backbone; those inside torch's own modules (LSTM) are not called as such."""
    return [
        name
        for name, part in model.named_modules()
        if type(part) is nn.Linear and name.partition(".")[0] in ("heads", "classifier")
    ]


def _fits(name: str, pattern: str) -> bool:
    return name == pattern or name.startswith(f"{pattern}.") or fnmatchcase(name, pattern)


def _replace(model: nn.Module, name: str, part: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    model.get_submodule(parent).register_module(child, part)
