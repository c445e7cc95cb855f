"""Networks of timm on a stream: frame by frame, shifted (TSM) or inflated."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import fx, nn

from two_stream.backbones.timm_net import TimmBackbone
from two_stream.backbones.timm_time import TemporalShift
from two_stream.backbones.tracing import BackboneTracer
from two_stream.errors import SettingsError
from two_stream.streaming.network.cells import TIME, FrameWise, Start, WindowCell
from two_stream.streaming.network.graph import Builder, GraphReader
from two_stream.streaming.network.rules import CellChoice, thinned


class OnImages(nn.Module):
    """A 2D part applied to every frame of a map `(B, C, n, H, W)`."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        """Return the frames' maps as one."""
        batch, count = x_BCTHW.shape[0], x_BCTHW.shape[TIME]
        y_NCHW: torch.Tensor = self.part(x_BCTHW.transpose(1, TIME).flatten(0, 1))
        return y_NCHW.reshape(batch, count, *y_NCHW.shape[1:]).transpose(1, TIME)


class Shift(WindowCell):
    """TSM's shift: the first channels are the next frame's, the second ones the frame's before."""

    def __init__(self, share: float, start: Start) -> None:
        super().__init__(3, front=1, back=1, start=start)
        self.share = share

    def compute(self, x: torch.Tensor) -> torch.Tensor:
        """Return every frame between the first and the last, shifted."""
        count = int(x.shape[1] * self.share)
        following, preceding, rest = x[:, :count, 2:], x[:, count : 2 * count, :-2], x[:, 2 * count :, 1:-1]
        return torch.cat((following, preceding, rest), dim=1)


class _ShiftTracer(fx.Tracer):
    """Steps into what holds a shift; everything else is one part that sees images."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        del module_qualified_name
        return isinstance(m, TemporalShift) or not any(isinstance(p, TemporalShift) for p in m.modules())


class _ShiftReading(GraphReader):
    """Reads a graph whose layers see images, but for the shifts."""

    def layer(self, node: fx.Node) -> int:
        value, name = self.map(node.args[0], node), str(node.target)
        part = self.module.get_submodule(name)
        if isinstance(part, TemporalShift):
            value = self.builder.add(f"{name}.shift", Shift(part.share, self.choice.start), value)
            part = part.layer
        return self.builder.add(name, FrameWise(OnImages(part)), value)


def image_maps(backbone: TimmBackbone, choice: CellChoice, builder: Builder) -> list[int]:
    """Add a network of timm and return the number of its map.

    Raises:
        SettingsError: Its blocks do more with shifted frames than there are rules for, or it sees no frames but what is
            made of them.
    """
    options = backbone.options
    if options.picture or options.difference != "none":
        made = "picture: true" if options.picture else f"difference: {options.difference}"
        raise SettingsError(
            f"backbone timm has no stream with `{made}`: it sees no single frames; `--mode sliding` sends whole clips"
        )
    if options.tsm or options.inflate:
        value = _mixed(backbone, choice, builder)
    else:
        value = builder.add("images", FrameWise(backbone.forward_map), -1)
    step = backbone.temporal_stride[0]
    if step > 1:
        value = builder.add("frames_averaged", thinned(step), value)
    if "reduction" in backbone._modules:
        value = builder.add("reduction", FrameWise(backbone.reduction), value)
    return [value]


def _mixed(backbone: TimmBackbone, choice: CellChoice, builder: Builder) -> int:
    """Add the stages of a network whose frames see each other."""
    if backbone.layout != "nchw":
        raise SettingsError(
            f"backbone timm has no stream with `tsm` in {backbone.options.name}: its maps have channels last; "
            "use a ResNet, RegNet, EfficientNet or MobileNet"
        )
    names = [name for name in backbone.names if name in backbone._modules]
    stages = nn.Sequential(OrderedDict((name, backbone.get_submodule(name)) for name in names))
    reading = _ShiftReading if backbone.options.tsm else GraphReader
    tracer = _ShiftTracer() if backbone.options.tsm else BackboneTracer()
    try:
        graph = tracer.trace(stages)
    except (fx.proxy.TraceError, TypeError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise SettingsError(f"backbone timm has no stream in {backbone.options.name}: {reason}") from None
    output = graph.output_node()
    output.args = ([output.args[0]],)
    return reading(fx.GraphModule(stages, graph), choice, builder).maps()[0]
