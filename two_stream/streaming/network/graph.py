"""Builds the cells of a stream network from a backbone's graph of layers."""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from two_stream.backbones import Backbone
from two_stream.backbones.shufflenet_3d import averaged
from two_stream.backbones.slowfast import SlowFast3D
from two_stream.backbones.timm_net import TimmBackbone
from two_stream.backbones.timm_time import TemporalShift
from two_stream.backbones.tracing import BackboneTracer, traced
from two_stream.errors import SettingsError
from two_stream.streaming.network.cells import TIME, FrameWise, Join, Reach, Start, StreamCell, WindowCell
from two_stream.streaming.network.layers import (
    ADDITIONS,
    FUNCTIONS,
    LEAVES,
    CellChoice,
    Picked,
    make_averaging,
    make_cell,
    make_thinning,
    no_stream_error,
)


@dataclass(frozen=True)
class LayerNode:
    """A cell with its inputs and its reach."""

    name: str
    cell: StreamCell
    inputs: tuple[int, ...]
    """indices of the input nodes; -1 is the stream of frames"""
    reach: Reach


@dataclass(frozen=True)
class _Size:
    """The size of a map or of one of its dimensions, which is unknown in a stream."""

    of: int
    dimension: int | None = None


@dataclass(frozen=True)
class _Parts:
    """A map's channels, divided into equal parts."""

    of: int
    count: int


class Builder:
    """Collects the nodes, which are numbered in the order of execution."""

    def __init__(self) -> None:
        self.nodes: list[LayerNode] = []

    def reach(self, number: int) -> Reach:
        """Return a node's reach."""
        return Reach() if number < 0 else self.nodes[number].reach

    def add(self, name: str, cell: StreamCell, *inputs: int) -> int:
        """Add a node and return its number."""
        reach = cell.reach([self.reach(number) for number in inputs])
        self.nodes.append(LayerNode(name, cell, inputs, reach))
        return len(self.nodes) - 1


def add_backbone(backbone: Backbone, choice: CellChoice, builder: Builder) -> list[int]:
    """Add the cells of a backbone and return the numbers of its maps, one for each pathway.

    Raises:
        SettingsError: The backbone cannot stream.
    """
    if isinstance(backbone, TimmBackbone):
        return [_add_timm(backbone, choice, builder)]
    if backbone.attends:
        raise SettingsError(
            f"backbone {backbone.options.kind} cannot stream, because every frame attends to all frames of its clip"
        )
    if isinstance(backbone, SlowFast3D) and backbone.options.spread:
        raise SettingsError(
            "backbone slowfast cannot stream with `spread: true`, because its slow frames depend on the length of "
            "the clip; set `backbone.spread: false` to use every `alpha`-th frame"
        )
    return GraphReader(traced(backbone, LEAVES), choice, builder).maps()


class GraphReader:
    """Builds the cells of a graph, from input to output."""

    def __init__(self, module: fx.GraphModule, choice: CellChoice, builder: Builder) -> None:
        self.module = module
        self.choice = choice
        self.builder = builder
        self.values: dict[fx.Node, Any] = {}

    def maps(self) -> list[int]:
        """Add all nodes of the graph and return the numbers of its outputs."""
        graph = self.module.graph
        graph.eliminate_dead_code()
        for node in graph.nodes:
            if node.op == "placeholder":
                self.values[node] = -1
            elif node.op == "output":
                return [self.values[each] for each in node.args[0]]
            else:
                self.values[node] = self._value(node)
        raise AssertionError("expected a graph with an output node, found none")

    def _value(self, node: fx.Node) -> Any:
        if node.op == "call_module":
            return self.layer(node)
        if node.op == "call_method":
            return self._method(node)
        if node.op == "call_function":
            return self._function(node)
        raise no_stream_error(node.name, node.target, "expected only layers, methods and functions")

    def _may_overwrite(self, value: int) -> bool:
        """Return whether only one node reads a map and the map is not a view of another map."""
        if value < 0:
            return False
        readers = sum(len(node.users) for node, each in self.values.items() if each == value)
        aliases = sum(each == value for each in self.values.values()) - 1
        cell = self.builder.nodes[value].cell
        is_view = (
            not isinstance(cell.function, nn.Module)
            if isinstance(cell, FrameWise)
            else isinstance(cell, Picked)
        )
        return readers - aliases <= 1 and not is_view

    def layer(self, node: fx.Node) -> int:
        """Add the cell of a module and return the number of its node."""
        value = self.map(node.args[0], node)
        part = self.module.get_submodule(str(node.target))
        stride = self.builder.reach(value).stride
        cell = make_cell(str(node.target), part, self.choice, stride, self._may_overwrite(value))
        if cell is None:
            return value
        return self._done(node, value, cell, value, in_place=bool(getattr(part, "inplace", False)))

    def _done(self, node: fx.Node, changed: int, cell: StreamCell, *inputs: int, in_place: bool) -> int:
        """Add a node. If the clip network overwrites a map in place, later nodes read the result of the new node."""
        name = str(node.target) if node.op == "call_module" else node.name
        number = self.builder.add(name, cell, *inputs)
        if in_place:
            self.values.update({each: number for each, value in self.values.items() if value == changed})
        return number

    def _method(self, node: fx.Node) -> Any:
        value = self.map(node.args[0], node)
        if node.target == "chunk" and node.kwargs.get("dim", node.args[-1]) == 1:
            return _Parts(value, int(node.args[1]))  # type: ignore[arg-type]
        raise no_stream_error(node.name, node.target, "streaming does not support this method")

    def _function(self, node: fx.Node) -> Any:
        target: Any = node.target
        if target is getattr and node.args[1] == "shape":
            return _Size(self.map(node.args[0], node))
        if target is operator.getitem:
            return self._item(node)
        if target in ADDITIONS:
            inputs = [self.map(each, node) for each in node.args[:2]]
            join = Join(torch.add, "a sum")
            return self._done(node, inputs[0], join, *inputs, in_place=target is operator.iadd)
        if target is torch.cat:
            return self._concatenate(node)
        value = self.map(node.args[0], node)
        if target in FUNCTIONS:
            in_place = bool(node.kwargs.get("inplace", False))
            return self._done(node, value, FrameWise(_bound(target, node.args[1:])), value, in_place=in_place)
        if target is averaged:
            return self.builder.add(node.name, make_averaging(int(node.args[1])), value)  # type: ignore[arg-type]
        if target is F.adaptive_avg_pool3d:
            return self._pool_to_slow(node, value)
        raise no_stream_error(node.name, target, "streaming does not support this function")

    def _concatenate(self, node: fx.Node) -> int:
        dimension = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
        if dimension != 1:
            why = f"it concatenates along dimension {dimension}; expected channels (1)"
            raise no_stream_error(node.name, torch.cat, why)
        inputs = [self.map(each, node) for each in node.args[0]]  # type: ignore[union-attr]
        return self.builder.add(node.name, Join(concatenate_channels, "a concatenation"), *inputs)

    def _item(self, node: fx.Node) -> Any:
        value, index = self.values[node.args[0]], node.args[1]  # type: ignore[index]
        if isinstance(value, _Size) and isinstance(index, int):
            return _Size(value.of, index)
        if isinstance(value, _Parts) and isinstance(index, int):
            return self.builder.add(node.name, FrameWise(_part(value.count, index)), value.of)
        everything = slice(None)
        if isinstance(value, int) and isinstance(index, tuple) and index[:2] == (everything, everything):
            steps = index[2]
            if isinstance(steps, slice) and steps.start is None and steps.stop is None and len(index) == 3:
                step = int(steps.step or 1)
                return value if step == 1 else self.builder.add(node.name, Picked(step), value)
        raise no_stream_error(
            node.name,
            operator.getitem,
            f"found the index {index}; expected a slice that selects every n-th time step",
        )

    def _pool_to_slow(self, node: fx.Node, value: int) -> int:
        """Average the fast pathway's map to the rate of the slow pathway."""
        size: Any = node.args[1]
        length = self.values.get(size[0]) if isinstance(size, tuple) else None
        if not isinstance(length, _Size) or length.dimension != 2 or size[1:] != (None, None):
            raise no_stream_error(
                node.name,
                node.target,
                "the layer pools to a fixed number of steps, but a stream has no length",
            )
        ratio = self.builder.reach(length.of).stride // self.builder.reach(value).stride
        return self.builder.add(node.name, make_thinning(ratio), value)

    def map(self, argument: Any, node: fx.Node) -> int:
        """Return the number of the map that is an input of a node."""
        value = self.values.get(argument) if isinstance(argument, fx.Node) else None
        if not isinstance(value, int):
            raise no_stream_error(node.name, node.target, f"expected a map as input, found {argument}")
        return value


def concatenate_channels(*maps: torch.Tensor) -> torch.Tensor:
    """Concatenate maps along the channel dimension."""
    return torch.cat(maps, dim=1)


def _part(count: int, index: int) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x_BCTHW: x_BCTHW.chunk(count, 1)[index]


def _bound(
    function: Callable[..., torch.Tensor], rest: tuple[Any, ...]
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a function of only the map, with the other positional arguments bound; `inplace` is dropped."""
    return (lambda x_BCTHW: function(x_BCTHW, *rest)) if rest else function


class OnImages(nn.Module):
    """Applies a 2D layer to each frame of a map `(B, C, n, H, W)`."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        """Return the maps of the frames, stacked along time."""
        batch, count = x_BCTHW.shape[0], x_BCTHW.shape[TIME]
        y_NCHW: torch.Tensor = self.part(x_BCTHW.transpose(1, TIME).flatten(0, 1))
        return y_NCHW.reshape(batch, count, *y_NCHW.shape[1:]).transpose(1, TIME)


class Shift(WindowCell):
    """The shift of TSM: the first part of the channels is from the next frame, the second from the previous frame."""

    def __init__(self, share: float, start: Start) -> None:
        super().__init__(3, front=1, back=1, start=start)
        self.share = share

    def compute(self, x: torch.Tensor) -> torch.Tensor:
        """Return the shifted maps of all frames except the first and the last."""
        count = int(x.shape[1] * self.share)
        following, preceding, rest = x[:, :count, 2:], x[:, count : 2 * count, :-2], x[:, 2 * count :, 1:-1]
        return torch.cat((following, preceding, rest), dim=1)


class _ShiftTracer(fx.Tracer):
    """Traces modules that contain a shift; each other module is treated as a single layer."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        del module_qualified_name
        return isinstance(m, TemporalShift) or not any(isinstance(p, TemporalShift) for p in m.modules())


class _ShiftReader(GraphReader):
    """Reads a graph whose layers are shifts or process single images."""

    def layer(self, node: fx.Node) -> int:
        value, name = self.map(node.args[0], node), str(node.target)
        part = self.module.get_submodule(name)
        if isinstance(part, TemporalShift):
            value = self.builder.add(f"{name}.shift", Shift(part.share, self.choice.start), value)
            part = part.layer
        return self.builder.add(name, FrameWise(OnImages(part)), value)


def _add_timm(backbone: TimmBackbone, choice: CellChoice, builder: Builder) -> int:
    """Add a network of timm (frame by frame, with TSM or inflated) and return the number of its map."""
    options = backbone.options
    if options.picture or options.difference != "none":
        setting = "picture: true" if options.picture else f"difference: {options.difference}"
        raise SettingsError(
            f"backbone timm cannot stream with `{setting}`, because streaming does not support this input; "
            "use `--mode sliding`, which computes clips"
        )
    if options.tsm or options.inflate:
        value = _add_temporal_timm(backbone, choice, builder)
    else:
        value = builder.add("images", FrameWise(backbone.forward_map), -1)
    step = backbone.temporal_stride[0]
    if step > 1:
        value = builder.add("frames_averaged", make_thinning(step), value)
    if "reduction" in backbone._modules:
        value = builder.add("reduction", FrameWise(backbone.reduction), value)
    return value


def _add_temporal_timm(backbone: TimmBackbone, choice: CellChoice, builder: Builder) -> int:
    """Add the stages of a network whose layers use several frames."""
    if backbone.layout != "nchw":
        raise SettingsError(
            f"backbone timm cannot stream with `tsm` in {backbone.options.name}, because the feature maps of "
            "this network are channels-last; use a ResNet, RegNet, EfficientNet or MobileNet"
        )
    names = [name for name in backbone.names if name in backbone._modules]
    stages = nn.Sequential(OrderedDict((name, backbone.get_submodule(name)) for name in names))
    try:
        graph = (_ShiftTracer() if backbone.options.tsm else BackboneTracer()).trace(stages)
    except (fx.proxy.TraceError, TypeError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise SettingsError(f"backbone timm: {backbone.options.name} cannot stream ({reason})") from None
    output = graph.output_node()
    output.args = ([output.args[0]],)
    reader = _ShiftReader if backbone.options.tsm else GraphReader
    return reader(fx.GraphModule(stages, graph), choice, builder).maps()[0]
