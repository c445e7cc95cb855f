"""Which cell stands for which layer. What is not listed here is refused by name."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from two_stream.backbones.blocks import PaddedIdentity
from two_stream.backbones.densenet3d import HalvingPool
from two_stream.backbones.i3d import SameConv3d, SameMaxPool3d
from two_stream.backbones.motion_grid import CellMeans
from two_stream.backbones.shufflenet_3d import averaged, shuffled
from two_stream.backbones.x3d import SqueezeExcitation
from two_stream.errors import SettingsError
from two_stream.streaming.network.cells import FrameWise, Start, StreamCell
from two_stream.streaming.network.layers import (
    Convolution,
    Excitation,
    FrameExcitation,
    Picked,
    Pooling,
    SameConvolution,
    Squeeze,
    same_max_pool,
)

LEAVES: tuple[type[nn.Module], ...] = (PaddedIdentity, SqueezeExcitation)
"""Modules with their own rule, in addition to `tracing.LEAVES`."""
IDENTITIES = (nn.Identity, nn.modules.dropout._DropoutNd)
"""Modules that change nothing in evaluation."""
ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.SiLU, nn.Sigmoid, nn.GELU, nn.Hardswish, nn.LeakyReLU, nn.ELU)
FUNCTIONS: tuple[Callable[..., torch.Tensor], ...] = (
    F.relu,
    F.silu,
    F.relu6,
    torch.relu,
    torch.sigmoid,
    shuffled,
)
"""Functions that look at each frame by itself."""
ADDITIONS = (operator.add, operator.iadd, torch.add)
_LOWEST = float("-inf")


@dataclass(frozen=True)
class CellChoice:
    """What the caller of `convert` decides about every layer."""

    squeeze: Squeeze
    start: Start
    window: int
    """frames that the squeeze looks at where it is `clip`"""


def module_cell(
    name: str, part: nn.Module, choice: CellChoice, stride: int, alone: bool
) -> StreamCell | None:
    """Return the cell of a layer; None where it changes nothing.

    Args:
        name: Its name, for messages.
        part: The layer.
        choice: See `CellChoice`.
        stride: Frames per step of what goes in.
        alone: Nobody else reads what goes in, so the layer may overwrite it.

    Raises:
        SettingsError: There is no rule for it.
    """
    if isinstance(part, IDENTITIES):
        return None
    if isinstance(part, SameConv3d):
        return (
            FrameWise(part)
            if _each_frame(part.kernel_size, part.stride)
            else SameConvolution(part, choice.start)
        )
    if isinstance(part, nn.Conv3d):
        return _convolution(name, part, choice.start)
    if isinstance(part, nn.BatchNorm3d):
        if part.track_running_stats:
            return FrameWise(part)
        raise refused(name, part, "it normalises by the batch it sees, and a stream is no batch")
    if isinstance(part, CellMeans):
        return FrameWise(part)
    if isinstance(part, ACTIVATIONS):
        return FrameWise(_settled_activation(part, alone))
    if isinstance(part, SqueezeExcitation):
        if choice.squeeze == "frame":
            return FrameWise(FrameExcitation(part))
        return Excitation(part, max(1, choice.window // stride))
    if isinstance(part, PaddedIdentity):
        step, *space = part.stride
        keep = PaddedIdentity(part.outputs, (1, space[0], space[1]))
        return Picked(step, keep) if step > 1 else FrameWise(part)
    return _pooling(name, part)


def _convolution(name: str, part: nn.Conv3d, start: Start) -> StreamCell:
    if isinstance(part.padding, str) or part.padding_mode != "zeros":
        raise refused(
            name, part, f"its padding is {part.padding!r}, {part.padding_mode}; expected numbers of zeros"
        )
    if _each_frame(part.kernel_size, part.stride) and not part.padding[0]:
        return FrameWise(part)
    return Convolution(part, part.padding[0], part.padding[0], start)


def _pooling(name: str, part: nn.Module) -> StreamCell:
    if isinstance(part, HalvingPool):
        size = (part.time, 2, 2)
        return _pooled(partial(F.avg_pool3d, kernel_size=size), size, size, partial="repeat")
    if isinstance(part, SameMaxPool3d):
        missing = max(part.kernel[0] - part.stride[0], 0)
        if _each_frame(part.kernel, part.stride):
            return FrameWise(part)
        cell = Pooling(same_max_pool(part), part.kernel[0], part.stride[0], fill=_LOWEST)
        cell.front, cell.back = missing // 2, missing - missing // 2
        return cell
    if isinstance(part, nn.MaxPool3d) and not part.return_indices:
        kernel, stride, padding, dilation = map(
            _triple, (part.kernel_size, part.stride, part.padding, part.dilation)
        )
        pool = partial(
            F.max_pool3d,
            kernel_size=kernel,
            stride=stride,
            padding=(0, *padding[1:]),
            dilation=dilation,
            ceil_mode=part.ceil_mode,
        )
        spans = ((kernel[0] - 1) * dilation[0] + 1, *kernel[1:])
        ending = "fill" if part.ceil_mode else "drop"
        return _pooled(pool, spans, stride, padding=padding[0], fill=_LOWEST, partial=ending)
    if isinstance(part, nn.AvgPool3d):
        kernel, stride, padding = map(_triple, (part.kernel_size, part.stride, part.padding))
        if padding[0] and not part.count_include_pad:
            raise refused(
                name, part, "it leaves padding out of its averages, so its first steps differ in weight"
            )
        pool = partial(
            F.avg_pool3d,
            kernel_size=kernel,
            stride=stride,
            padding=(0, *padding[1:]),
            count_include_pad=part.count_include_pad,
        )
        return _pooled(pool, kernel, stride, padding=padding[0])
    raise refused(name, part, "there is no rule for it in `streaming/network/rules.py`")


def _pooled(
    pool: Callable[[torch.Tensor], torch.Tensor],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    **more: Any,
) -> StreamCell:
    if _each_frame(kernel, stride):
        return FrameWise(pool)
    return Pooling(pool, kernel[0], stride[0], **more)


def averaging(time: int) -> StreamCell:
    """Return the cell of `shufflenet_3d.averaged`."""
    function = partial(averaged, time=time)
    return FrameWise(function) if time == 1 else Pooling(function, time, time, partial="repeat")


def thinned(time: int) -> StreamCell:
    """Return the cell that averages runs of `time` steps."""
    return Pooling(partial(F.avg_pool3d, kernel_size=(time, 1, 1)), time, time)


def _settled_activation(part: nn.Module, alone: bool) -> nn.Module:
    """Return the activation, not in place where others read its input too."""
    if alone or not getattr(part, "inplace", False):
        return part
    settings = {"negative_slope": part.negative_slope} if isinstance(part, nn.LeakyReLU) else {}
    settings = {"alpha": part.alpha} if isinstance(part, nn.ELU) else settings
    return type(part)(**settings)


def refused(name: str, part: object, reason: str) -> SettingsError:
    """Return the error of a layer or function that a stream cannot have."""
    what = type(part).__name__ if isinstance(part, nn.Module) else getattr(part, "__name__", str(part))
    return SettingsError(f"this network has no stream: {name} ({what}): {reason}")


def _each_frame(kernel: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    return kernel[0] == 1 and stride[0] == 1


def _triple(size: Any) -> tuple[int, int, int]:
    return (size, size, size) if isinstance(size, int) else tuple(size)
