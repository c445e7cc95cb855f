"""Cells for the layers of a network: convolution, pooling, squeeze-and-excitation and more."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from two_stream.backbones.blocks import PaddedIdentity
from two_stream.backbones.densenet3d import HalvingPool
from two_stream.backbones.i3d import SameConv3d, SameMaxPool3d, same_padding
from two_stream.backbones.motion_grid import CellMeans
from two_stream.backbones.shufflenet_3d import averaged, shuffled
from two_stream.backbones.x3d import SqueezeExcitation
from two_stream.errors import SettingsError
from two_stream.streaming.network.cells import TIME, FrameWise, Start, StreamCell, WindowCell

Squeeze = Literal["frame", "clip"]
"""What squeeze-and-excitation averages over: each frame separately, or a window as long as the clip."""
LEAVES: tuple[type[nn.Module], ...] = (PaddedIdentity, SqueezeExcitation)
"""Modules with their own cell, in addition to `tracing.LEAVES`."""
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
"""Functions that process each frame separately."""
ADDITIONS = (operator.add, operator.iadd, torch.add)
_LOWEST = float("-inf")


@dataclass(frozen=True)
class CellChoice:
    """Options of `convert` that apply to all layers."""

    squeeze: Squeeze
    start: Start
    window: int
    """number of frames that squeeze-and-excitation averages over if `squeeze` is `clip`"""


class Convolution(WindowCell):
    """A 3D convolution. The cell pads in time, the convolution in space."""

    def __init__(self, conv: nn.Conv3d, padding: int, start: Start) -> None:
        span = (conv.kernel_size[0] - 1) * conv.dilation[0] + 1
        super().__init__(span, conv.stride[0], front=padding, back=padding, start=start)
        self.conv = conv
        assert not isinstance(conv.padding, str)
        self.space = (0, *conv.padding[1:])

    def compute(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve."""
        conv = self.conv
        return F.conv3d(x, conv.weight, conv.bias, conv.stride, self.space, conv.dilation, conv.groups)


class SameConvolution(Convolution):
    """A convolution with TensorFlow's SAME padding, for clips whose length is a multiple of the stride."""

    def __init__(self, conv: SameConv3d, start: Start) -> None:
        super().__init__(conv, 0, start)
        missing = max(self.span - self.step, 0)
        self.front, self.back = missing // 2, missing - missing // 2

    def compute(self, x: torch.Tensor) -> torch.Tensor:
        """Pad height and width according to their sizes, and convolve."""
        conv = self.conv
        both, end = _space_padding(x, conv.kernel_size, conv.stride)
        x = F.pad(x, end) if any(end) else x
        return F.conv3d(x, conv.weight, conv.bias, conv.stride, both, groups=conv.groups)


class Pooling(WindowCell):
    """Max or average pooling.

    Args:
        pool: Function that pools, with padding in space only.
        span: Number of steps in a window.
        step: Number of steps from one window to the next.
        padding: Number of steps of padding at both ends of the stream.
        fill: Value of the padding.
        partial: Whether an incomplete last window is dropped, filled with `fill`, or filled by repeating its last step.
    """

    def __init__(
        self,
        pool: Callable[[torch.Tensor], torch.Tensor],
        span: int,
        step: int,
        *,
        padding: int = 0,
        fill: float = 0.0,
        partial: Literal["drop", "fill", "repeat"] = "drop",
    ) -> None:
        super().__init__(span, step, front=padding, back=padding, fill=fill)
        self.pool = pool
        self.partial = partial

    def compute(self, x: torch.Tensor) -> torch.Tensor:
        """Pool."""
        return self.pool(x)

    def close(self, x: torch.Tensor) -> torch.Tensor:
        """Return the last input steps, completed to a full window."""
        x = super().close(x)
        missing = (self.span - x.shape[TIME]) % self.step
        if self.partial == "drop" or not missing:
            return x
        end = x.narrow(TIME, x.shape[TIME] - 1, 1)
        shape = [missing if i == TIME else size for i, size in enumerate(x.shape)]
        more = end.expand(shape) if self.partial == "repeat" else x.new_full(shape, self.fill)
        return torch.cat((x, more), TIME)


class Picked(WindowCell):
    """Every `step`-th time step, with an optional function applied to it."""

    def __init__(self, step: int, function: Callable[[torch.Tensor], torch.Tensor] | None = None) -> None:
        super().__init__(1, step)
        self.function = function

    def compute(self, x: torch.Tensor) -> torch.Tensor:
        """Select the steps and apply the function."""
        picked = x[:, :, :: self.step]
        return picked if self.function is None else self.function(picked)


class Excitation(WindowCell):
    """Squeeze-and-excitation of each frame with the mean over the window that starts with the frame.

    At the end of the stream, the last full window is used for the remaining frames. A clip as long as the window
    therefore has the same result as in the clip network.
    """

    def __init__(self, part: SqueezeExcitation, window: int) -> None:
        super().__init__(window)
        self.part = part
        self._mean: torch.Tensor | None = None

    def _means(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[TIME] == self.span:
            return x.mean((2, 3, 4)).unsqueeze(TIME)
        return x.mean((3, 4)).unfold(TIME, self.span, 1).mean(-1)

    def compute(self, x: torch.Tensor) -> torch.Tensor:
        """Scale all frames except the last `span - 1`."""
        means_BCT = self._means(x)
        return excite(self.part, x.narrow(TIME, 0, means_BCT.shape[TIME]), means_BCT)

    def push(self, inputs: list[torch.Tensor | None], last: bool) -> torch.Tensor | None:
        """Return the frames whose windows are complete, and at the end of the stream all remaining frames."""
        done = super().push(inputs, False)
        rest = self._kept
        if not last or rest is None:
            return done
        mean_BC1 = rest.mean((3, 4)).mean(TIME, keepdim=True) if self._mean is None else self._mean
        closing = excite(self.part, rest, mean_BC1)
        return closing if done is None else torch.cat((done, closing), TIME)

    def emit(self, x: torch.Tensor) -> torch.Tensor:
        """Scale the frames, and keep the mean of the last window."""
        means_BCT = self._means(x)
        self._mean = means_BCT[:, :, -1:]
        return excite(self.part, x.narrow(TIME, 0, means_BCT.shape[TIME]), means_BCT)

    def reset(self) -> None:
        """Forget the stream."""
        super().reset()
        self._mean = None


class FrameExcitation(nn.Module):
    """Squeeze-and-excitation of each frame with its own mean over space."""

    def __init__(self, part: SqueezeExcitation) -> None:
        super().__init__()
        self.part = part

    def forward(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        """Return the scaled map."""
        return excite(self.part, x_BCTHW, x_BCTHW.mean((3, 4)))


def excite(part: SqueezeExcitation, x_BCTHW: torch.Tensor, means_BCT: torch.Tensor) -> torch.Tensor:
    """Scale channels by weights that are computed from `means_BCT`."""
    weight = torch.relu(part.fc1(means_BCT[..., None, None]))
    scaled_BCTHW: torch.Tensor = x_BCTHW * torch.sigmoid(part.fc2(weight))
    return scaled_BCTHW


def make_cell(name: str, part: nn.Module, choice: CellChoice, stride: int, alone: bool) -> StreamCell | None:
    """Return the cell for a layer; None if the layer changes nothing.

    Args:
        name: Name of the layer, for error messages.
        part: The layer.
        choice: Options of the conversion.
        stride: Number of frames per step of the input.
        alone: Whether no other layer reads the input, so that the layer may overwrite it.

    Raises:
        SettingsError: Streaming does not support the layer.
    """
    if isinstance(part, IDENTITIES):
        return None
    if isinstance(part, SameConv3d):
        each = _is_frame_wise(part.kernel_size, part.stride)
        return FrameWise(part) if each else SameConvolution(part, choice.start)
    if isinstance(part, nn.Conv3d):
        return _make_convolution(name, part, choice.start)
    if isinstance(part, nn.BatchNorm3d):
        if part.track_running_stats:
            return FrameWise(part)
        raise no_stream_error(
            name, part, "the layer normalises with statistics of the batch, but a stream has no batch"
        )
    if isinstance(part, CellMeans):
        return FrameWise(part)
    if isinstance(part, ACTIVATIONS):
        if not alone and getattr(part, "inplace", False):
            part = copy.copy(part)
            part.inplace = False
        return FrameWise(part)
    if isinstance(part, SqueezeExcitation):
        if choice.squeeze == "frame":
            return FrameWise(FrameExcitation(part))
        return Excitation(part, max(1, choice.window // stride))
    if isinstance(part, PaddedIdentity):
        step, *space = part.stride
        keep = PaddedIdentity(part.outputs, (1, space[0], space[1]))
        return Picked(step, keep) if step > 1 else FrameWise(part)
    return _make_pooling(name, part)


def _make_convolution(name: str, part: nn.Conv3d, start: Start) -> StreamCell:
    if isinstance(part.padding, str) or part.padding_mode != "zeros":
        padding = f"its padding is {part.padding!r}, {part.padding_mode}; expected numbers of zeros"
        raise no_stream_error(name, part, padding)
    if _is_frame_wise(part.kernel_size, part.stride) and not part.padding[0]:
        return FrameWise(part)
    return Convolution(part, part.padding[0], start)


def _make_pooling(name: str, part: nn.Module) -> StreamCell:
    if isinstance(part, HalvingPool):
        size = (part.time, 2, 2)
        return _pool_cell(partial(F.avg_pool3d, kernel_size=size), size, size, partial="repeat")
    if isinstance(part, SameMaxPool3d):
        missing = max(part.kernel[0] - part.stride[0], 0)
        if _is_frame_wise(part.kernel, part.stride):
            return FrameWise(part)
        cell = Pooling(_make_same_max_pool(part), part.kernel[0], part.stride[0], fill=_LOWEST)
        cell.front, cell.back = missing // 2, missing - missing // 2
        return cell
    if isinstance(part, nn.MaxPool3d) and not part.return_indices:
        kernel, stride, padding, dilation = map(
            _triple, (part.kernel_size, part.stride, part.padding, part.dilation)
        )
        options: dict[str, Any] = {"dilation": dilation, "ceil_mode": part.ceil_mode}
        pool = partial(F.max_pool3d, kernel_size=kernel, stride=stride, padding=(0, *padding[1:]), **options)
        spans = ((kernel[0] - 1) * dilation[0] + 1, *kernel[1:])
        ending = "fill" if part.ceil_mode else "drop"
        return _pool_cell(pool, spans, stride, padding=padding[0], fill=_LOWEST, partial=ending)
    if isinstance(part, nn.AvgPool3d):
        kernel, stride, padding = map(_triple, (part.kernel_size, part.stride, part.padding))
        if padding[0] and not part.count_include_pad:
            why = (
                "the averages leave out padding, so the first steps would have different weights; expected "
                "`count_include_pad=True`"
            )
            raise no_stream_error(name, part, why)
        options = {"count_include_pad": part.count_include_pad}
        pool = partial(F.avg_pool3d, kernel_size=kernel, stride=stride, padding=(0, *padding[1:]), **options)
        return _pool_cell(pool, kernel, stride, padding=padding[0])
    raise no_stream_error(name, part, "streaming does not support this layer")


def _pool_cell(
    pool: Callable[[torch.Tensor], torch.Tensor],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    **more: Any,
) -> StreamCell:
    return FrameWise(pool) if _is_frame_wise(kernel, stride) else Pooling(pool, kernel[0], stride[0], **more)


def _make_same_max_pool(part: SameMaxPool3d) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a function for max pooling with SAME padding in space and no padding in time."""

    def pool(x: torch.Tensor) -> torch.Tensor:
        both, end = _space_padding(x, part.kernel, part.stride)
        x = F.pad(x, end, value=_LOWEST) if any(end) else x
        return F.max_pool3d(x, part.kernel, part.stride, both)

    return pool


def _space_padding(
    x: torch.Tensor, kernel: Sequence[int], stride: Sequence[int]
) -> tuple[tuple[int, int, int], list[int]]:
    """Return a layer's padding on both sides, and the additional padding at the end in the order of `F.pad`."""
    (high, low), (left, right) = (same_padding(x.shape[i], kernel[i - 2], stride[i - 2]) for i in (3, 4))
    return (0, high, left), [0, right, 0, low]


def make_averaging(time: int) -> StreamCell:
    """Return the cell for `shufflenet_3d.averaged`."""
    function = partial(averaged, time=time)
    return FrameWise(function) if time == 1 else Pooling(function, time, time, partial="repeat")


def make_thinning(time: int) -> StreamCell:
    """Return a cell that averages consecutive groups of `time` steps."""
    return Pooling(partial(F.avg_pool3d, kernel_size=(time, 1, 1)), time, time)


def no_stream_error(name: str, part: object, reason: str) -> SettingsError:
    """Return the error for a layer or function that streaming does not support."""
    what = type(part).__name__ if isinstance(part, nn.Module) else getattr(part, "__name__", str(part))
    return SettingsError(f"this network cannot stream: {name} ({what}): {reason}")


def _is_frame_wise(kernel: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    return kernel[0] == 1 and stride[0] == 1


def _triple(size: Any) -> tuple[int, int, int]:
    return (size, size, size) if isinstance(size, int) else tuple(size)
