"""Quantization of a network's layers with torch.ao.

Layers first get observers that measure ranges. The layers then round in float (for training) or compute in int8.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.ao.quantization import (
    FakeQuantize,
    HistogramObserver,
    MinMaxObserver,
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
from torch.ao.quantization.observer import MovingAveragePerChannelMinMaxObserver, PerChannelMinMaxObserver
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx, prepare_qat_fx

from two_stream.backbones import Backbone
from two_stream.backbones.densenet3d import HalvingPool
from two_stream.backbones.i3d import SameConv3d, SameMaxPool3d, SamePad3d
from two_stream.backbones.shufflenet_3d import shuffled
from two_stream.backbones.tracing import LEAVES, traced
from two_stream.errors import SettingsError
from two_stream.recognizer import Recognizer
from two_stream.types import FeatureMap, Modality

_MOVING_MODULES: tuple[type[nn.Module], ...] = (SameMaxPool3d, HalvingPool)
"""modules that move, select or average values, without paddings, because torch pads bytes only in some layouts"""
_MOVING_FUNCTIONS: tuple[Any, ...] = (shuffled, torch.relu)


class MovingRange(MinMaxObserver):
    """Range of a tensor as a bias-corrected moving average of observed ranges.

    Each update computes `r = decay * r + (1 - decay) * range`. The range after n updates is `r / (1 - decay^n)`, as in
    the quantization-aware training of Distiller. The range is updated only in training mode, so validation clips do not
    change it.
    """

    sums: torch.Tensor
    seen: torch.Tensor

    def __init__(self, decay: float = 0.999, **options: Any) -> None:
        super().__init__(**options)
        self.decay = decay
        self.register_buffer("sums", torch.zeros(2))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, x_orig: torch.Tensor) -> torch.Tensor:
        """Update the range and return the tensor unchanged."""
        if self.training and x_orig.numel():
            extremes = torch.stack(torch.aminmax(x_orig.detach().float()))
            self.sums.mul_(self.decay).add_(extremes, alpha=1.0 - self.decay)
            self.seen.add_(1)
            low, high = self.sums / (1.0 - self.decay ** int(self.seen))
            self.min_val.copy_(low)
            self.max_val.copy_(high)
        return x_orig


class LatestRange(MinMaxObserver):
    """Range of the most recent tensor."""

    def forward(self, x_orig: torch.Tensor) -> torch.Tensor:
        """Replace the stored range with the range of the tensor, and return the tensor unchanged."""
        self.reset_min_max_vals()
        found: torch.Tensor = super().forward(x_orig)  # type: ignore[no-untyped-call]
        return found


OBSERVERS: dict[str, type[MinMaxObserver] | type[HistogramObserver]] = {
    "histogram": HistogramObserver,
    "minmax": MinMaxObserver,
    "moving_average": MovingRange,
}
"""Observers that find the range of activations, by name in the settings."""


def layer_config(
    observer: str, *, per_channel: bool, largest: int = 127, decay: float = 0.999, fake: bool = False
) -> QConfig:
    """Return the torch.ao configuration that defines how activations and weights are quantized.

    If `fake` is true, values are rounded in float.

    `observer` is a key of `OBSERVERS`; if `fake` is true, the moving average is used. Weights have one scale per output
    channel or per tensor, and integer values up to `largest`.
    """
    scheme = torch.per_channel_symmetric if per_channel else torch.per_tensor_symmetric
    signed = {"dtype": torch.qint8, "qscheme": scheme, "quant_min": -largest, "quant_max": largest}
    unsigned = {"dtype": torch.quint8, "quant_min": 0, "quant_max": 255}
    moving = {"decay": decay} if fake or observer == "moving_average" else {}
    if fake:  # weights change with every step, so their range is the current one
        weights = MovingAveragePerChannelMinMaxObserver if per_channel else LatestRange
        latest = {"averaging_constant": 1.0} if per_channel else {}
        followed = {"observer": MovingRange, **unsigned, **moving}
        return _config(FakeQuantize, followed, FakeQuantize, {"observer": weights, **signed, **latest})
    weight = PerChannelMinMaxObserver if per_channel else MinMaxObserver
    return _config(OBSERVERS[observer], {**unsigned, **moving}, weight, signed)


def _config(activation: Any, options: dict[str, Any], weight: Any, others: dict[str, Any]) -> QConfig:
    return QConfig(activation.with_args(**options), weight.with_args(**others))  # type: ignore[no-untyped-call]


def start_ranges(model: nn.Module) -> None:
    """Let a model update its moving ranges in evaluation mode, too."""
    for part in model.modules():
        if isinstance(part, MovingRange):
            part.train()


def stop_ranges(model: nn.Module) -> None:
    """Freeze the moving ranges of a model in quantization-aware training."""
    for part in model.modules():
        if isinstance(part, FakeQuantize) and isinstance(part.activation_post_process, MovingRange):
            part.disable_observer()


class GraphBackbone(Backbone):
    """A backbone as a graph of layers that are quantized or prepared for quantization.

    The stages keep their names and order.
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
        """Raise an error, because the original network defines the input."""
        raise NotImplementedError((options, modality))

    def num_tokens(self, clip_length: int) -> tuple[int, ...]:
        """Return the number of time steps of each pathway's map, as for the original backbone."""
        return self.family.num_tokens(self, clip_length)

    def stages(self) -> list[tuple[str, nn.Module]]:
        """Return the stages that contain layers."""
        children = dict(self.graph.named_children())
        return [(name, children[name]) for name in self._names if name in children]

    def forward(self, x_BCTHW: torch.Tensor) -> list[FeatureMap]:
        """Return one float feature map for each pathway."""
        maps = self.graph(x_BCTHW)
        return [FeatureMap(map_, name) for map_, name in zip(maps, self.pathways, strict=True)]

    def append_block(self, channels: int) -> None:
        """Raise an error, because quantized networks cannot be extended."""
        raise SettingsError(
            f"a quantized network cannot be extended with another block ({channels} channels); use the float network"
        )

    def replace_last_block(self, channels: int) -> None:
        """Raise an error, because quantized networks cannot be extended."""
        self.append_block(channels)


def insert_observers(
    model: Recognizer, config: QConfig, linear: Sequence[str], kept: Sequence[str], *, fake: bool
) -> None:
    """Insert observers (or rounding, if `fake` is true) around the layers of a model, in place, and fuse BatchNorm.

    The model must be in training mode if `fake` is true, otherwise in evaluation mode. `linear` are the names of the
    linear layers after the backbone. Layers in `kept` are not changed.

    Raises:
        SettingsError: The backbone cannot be traced as a graph of layers.
    """
    _split_padding(model.backbone)
    graph = traced(model.backbone)
    graph.train(model.training)
    spec = model.spec
    example = torch.zeros(1, spec.channels, spec.clip_length, *spec.size)
    mapping = _mapping(config, kept, fake=fake)
    prepare = prepare_qat_fx if fake else prepare_fx
    custom = PrepareCustomConfig().set_non_traceable_module_classes(list(LEAVES))
    observed = prepare(graph, mapping, (example,), prepare_custom_config=custom, backend_config=_backend())
    model.backbone = GraphBackbone(model.backbone, observed)
    for name in linear:
        if name in kept:
            continue
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        vector = torch.zeros(1, layer.in_features)
        alone = nn.Sequential(layer).train(model.training)
        plain = _mapping(config, (), fake=fake)
        _replace(model, name, prepare(alone, plain, (vector,), backend_config=_backend()))


def convert(model: Recognizer) -> None:
    """Convert the layers with observers or rounding to int8 layers, in place."""
    model.cpu().eval()
    backbone = model.backbone
    assert isinstance(backbone, GraphBackbone)
    backbone.graph = _move_bytes(convert_fx(backbone.graph, backend_config=_backend()))
    observed = [
        (name, part)
        for name, part in model.named_modules()
        if isinstance(part, fx.GraphModule) and not name.startswith("backbone.")
    ]
    for name, part in observed:
        _replace(model, name, convert_fx(part, backend_config=_backend()))


def _backend() -> BackendConfig:
    """Return torch's patterns for int8 layers, plus patterns for the modules of two-stream."""
    config = get_native_backend_config()
    for part in (*_MOVING_MODULES, *_MOVING_FUNCTIONS, SamePad3d):
        moved = BackendPatternConfig(part)
        moved.set_observation_type(ObservationType.OUTPUT_SHARE_OBSERVER_WITH_INPUT)
        moved.add_dtype_config(DTypeConfig(input_dtype=torch.quint8, output_dtype=torch.quint8))
        config.set_backend_pattern_config(moved)
    return config


def _mapping(config: QConfig, kept: Sequence[str], *, fake: bool) -> QConfigMapping:
    """Return a mapping with one configuration for all layers except those in `kept`.

    Operations with a known range, such as sigmoid, keep torch's default configuration.
    """
    default = get_default_qat_qconfig_mapping if fake else get_default_qconfig_mapping
    mapping: QConfigMapping = default("x86").set_global(config)
    for name in kept:
        mapping.set_module_name(name, None)
    return mapping


def _split_padding(backbone: Backbone) -> None:
    """Separate the padding from convolutions whose padding depends on the input, because torch cannot quantize them."""
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
        padding = SamePad3d(kernel, stride)  # type: ignore[arg-type]
        _replace(backbone, name, plain if alone else nn.Sequential(padding, plain))


def _replace(model: nn.Module, name: str, part: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    model.get_submodule(parent).register_module(child, part)


def _move_bytes(graph: fx.GraphModule) -> fx.GraphModule:
    """Remove the conversions to float and back around modules of a converted graph that only move values.

    torch inserts these conversions around modules that it does not know, such as pooling and channel shuffle. Modules
    that move, select or average values can compute on bytes, and their output has the scale of their input.
    """
    for node in list(graph.graph.nodes):
        sources = [arg for arg in node.all_input_nodes if arg.target == "dequantize"]
        if not (sources and _only_moves(graph, node)):
            continue
        outputs = list(node.users) if node.target == "chunk" else [node]
        rounded = {out: [user for user in out.users if _rounds(user)] for out in outputs}
        if not any(rounded.values()):
            continue
        for source in sources:
            node.replace_input_with(source, source.all_input_nodes[0])
        for out, users in rounded.items():
            _restore_floats(graph.graph, out, users)
            for user in users:
                user.replace_all_uses_with(out)
                graph.graph.erase_node(user)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def _only_moves(graph: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(graph.get_submodule(str(node.target)), _MOVING_MODULES)
    if node.op == "call_method":
        return node.target == "chunk"
    slices = node.target is operator.getitem and isinstance(node.args[1], tuple)
    return node.op == "call_function" and (node.target in _MOVING_FUNCTIONS or slices)


def _rounds(node: fx.Node) -> bool:
    """Return whether a node rounds floats to bytes with a scale that can be replaced.

    The inputs of `torch.cat` must share a scale, so their scales cannot be replaced.
    """
    joined = any(user.target is torch.cat for user in node.users)
    return node.target is torch.quantize_per_tensor and not joined


def _restore_floats(graph: fx.Graph, node: fx.Node, rounded: list[fx.Node]) -> None:
    """Convert the bytes to float for nodes that read floats. Nodes that read only the shape keep the bytes."""
    others = [user for user in node.users if user not in rounded and user.target is not getattr]
    if not others:
        return
    with graph.inserting_after(node):
        floats = graph.call_method("dequantize", (node,))
    for user in others:
        user.replace_input_with(node, floats)
