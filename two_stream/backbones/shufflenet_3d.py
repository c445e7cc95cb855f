"""3D ShuffleNet, first and second version.

Sources: Zhang et al., "ShuffleNet" (arXiv 1707.01083); Ma et al., "ShuffleNet V2" (arXiv 1807.11164); in 3D by Köpüklü
et al., "Resource Efficient 3D Convolutional Neural Networks" (arXiv 1904.02422).
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import fx, nn
from torch.nn import functional as F

from two_stream.backbones.base import BACKBONES, Backbone, init_convolutions, split_temporal_stride
from two_stream.config.backbones import ShuffleNet, ShuffleNetV2
from two_stream.errors import SettingsError
from two_stream.types import Modality

BLOCKS = (4, 8, 4)
"""Blocks in each of the three layers."""
STEM = 24
WIDTHS = {
    1: (144, 288, 567),
    2: (200, 400, 800),
    3: (240, 480, 960),
    4: (272, 544, 1088),
    8: (384, 768, 1536),
}
"""Widths of ShuffleNet's layers, by groups (567 is as published; the paper's table has 576)."""
WIDTHS_V2 = {
    0.25: (32, 64, 128, 1024),
    0.5: (48, 96, 192, 1024),
    1.0: (116, 232, 464, 1024),
    1.5: (176, 352, 704, 1024),
    2.0: (224, 488, 976, 2048),
}
"""Widths of ShuffleNetV2's layers and of its last convolution, by width multiplier."""


@fx.wrap
def shuffled(x_BCTHW: torch.Tensor, groups: int) -> torch.Tensor:
    """Shuffle channels between groups."""
    b, c, *size = x_BCTHW.shape
    return x_BCTHW.reshape(b, groups, c // groups, *size).transpose(1, 2).reshape(b, c, *size)


@fx.wrap
def averaged(x_BCTHW: torch.Tensor, time: int) -> torch.Tensor:
    """Return the shortcut of a strided unit: the average over `time` frames and 3×3 positions.

    A last frame without a pair is not averaged over time.
    """
    if x_BCTHW.shape[2] % time:
        x_BCTHW = torch.cat((x_BCTHW, x_BCTHW[:, :, -1:]), dim=2)
    border = 1
    if min(x_BCTHW.shape[3:]) < 3:  # torch pads no map smaller than the kernel
        x_BCTHW, border = F.pad(x_BCTHW, (1, 1, 1, 1)), 0
    return F.avg_pool3d(x_BCTHW, (time, 3, 3), (time, 2, 2), (0, border, border))


def divisible(channels: int, groups: int) -> int:
    """Return the largest multiple of `groups` up to `channels`, but at least `groups`."""
    return max(groups, channels - channels % groups)


class ShuffleUnit(nn.Module):
    """Grouped 1×1×1 convolution, channel shuffle, depthwise 3×3×3 and grouped 1×1×1 convolution.

    The result is added to the input or, with a stride, concatenated with the average of the input. With `narrow`, the
    unit has no shortcut, so that it can reduce the number of channels.
    """

    def __init__(
        self, inputs: int, outputs: int, groups: int, stride: int | None = None, narrow: bool = False
    ) -> None:
        super().__init__()
        self.groups = groups
        self.time = stride
        self.narrow = narrow
        middle = divisible(outputs // 4, groups) if narrow else outputs // 4
        inner = outputs if stride is None else outputs - inputs
        first = 1 if inputs == STEM else groups
        steps = (1, 1, 1) if stride is None else (stride, 2, 2)
        self.conv1 = nn.Conv3d(inputs, middle, 1, groups=first, bias=False)
        self.bn1 = nn.BatchNorm3d(middle)
        self.conv2 = nn.Conv3d(middle, middle, 3, stride=steps, padding=1, groups=middle, bias=False)
        self.bn2 = nn.BatchNorm3d(middle)
        self.conv3 = nn.Conv3d(middle, inner, 1, groups=groups, bias=False)
        self.bn3 = nn.BatchNorm3d(inner)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        """Return the output of the unit for a map `(B, C, T, H, W)`."""
        y = shuffled(self.relu(self.bn1(self.conv1(x_BCTHW))), self.groups)
        y = self.bn3(self.conv3(self.bn2(self.conv2(y))))
        if self.time is not None:
            y = torch.cat((y, averaged(x_BCTHW, self.time)), dim=1)
        elif not self.narrow:
            y = y + x_BCTHW
        out_BCTHW: torch.Tensor = self.relu(y)
        return out_BCTHW


class InvertedShuffle(nn.Module):
    """ShuffleNetV2's block: half of the channels stay unchanged, and then all channels are shuffled in two groups.

    With a stride or a different number of output channels, both branches process all channels.
    """

    def __init__(self, inputs: int, outputs: int, stride: int | None = None) -> None:
        super().__init__()
        half = outputs // 2
        steps = (1, 1, 1) if stride is None else (stride, 2, 2)
        whole = stride is not None or inputs != outputs
        self.branch1 = (
            nn.Sequential(*_depthwise(inputs, steps), *_pointwise(inputs, half), nn.ReLU(inplace=True))
            if whole
            else None
        )
        self.branch2 = nn.Sequential(
            *_pointwise(inputs if whole else half, half),
            nn.ReLU(inplace=True),
            *_depthwise(half, steps),
            *_pointwise(half, half),
            nn.ReLU(inplace=True),
        )

    def forward(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        """Return the output of the block for a map `(B, C, T, H, W)`."""
        if self.branch1 is None:
            kept, worked = x_BCTHW.chunk(2, dim=1)
            return shuffled(torch.cat((kept, self.branch2(worked)), dim=1), 2)
        return shuffled(torch.cat((self.branch1(x_BCTHW), self.branch2(x_BCTHW)), dim=1), 2)


def _pointwise(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv3d(inputs, outputs, 1, bias=False), nn.BatchNorm3d(outputs)]


def _depthwise(channels: int, stride: tuple[int, int, int]) -> list[nn.Module]:
    convolution = nn.Conv3d(channels, channels, 3, stride=stride, padding=1, groups=channels, bias=False)
    return [convolution, nn.BatchNorm3d(channels)]


class Shuffled(Backbone):
    """Stem and three layers; the first block of each layer halves the size."""

    def build(self, widths: tuple[int, ...], stem: int) -> None:
        """Build stem and layers."""
        pool, *strides = split_temporal_stride(self.options.temporal_stride, 4)
        self.stem = nn.Sequential(
            nn.Conv3d(self.inputs, stem, 3, stride=(1, 2, 2), padding=1, bias=False),
            nn.BatchNorm3d(stem),
            nn.ReLU(inplace=True),
            nn.MaxPool3d(3, stride=(pool, 2, 2), padding=1),
        )
        inputs = stem
        for index, (width, blocks, stride) in enumerate(zip(widths, BLOCKS, strides), start=1):
            first = self.make_block(inputs, width, stride)
            rest = [self.make_block(width, width) for _ in range(blocks - 1)]
            self.add_module(f"layer{index}", nn.Sequential(first, *rest))
            inputs = width
        self.channels = (inputs,)
        self.temporal_stride = (self.options.temporal_stride,)
        self.spatial_stride = (32,)

    @abstractmethod
    def make_block(self, inputs: int, outputs: int, stride: int | None = None) -> nn.Module:
        """Return a block; with a temporal stride, it also halves the height and the width."""

    def stages(self) -> list[tuple[str, nn.Module]]:
        """Return the stages stem, layer1, layer2, layer3, last (V2, not with FRMB) and, with FRAB, reduction."""
        names = ("stem", "layer1", "layer2", "layer3", "last", "reduction")
        return [(name, self.get_submodule(name)) for name in names if name in self._modules]


@BACKBONES.register(ShuffleNet)
class ShuffleNet3D(Shuffled):
    """ShuffleNet: grouped pointwise convolutions."""

    def __init__(self, options: ShuffleNet, modality: Modality, stack: int = 1) -> None:
        super().__init__(options, modality, stack)
        widths = tuple(int(width * options.width) for width in WIDTHS[options.groups])
        try:
            self.build(widths, max(1, int(STEM * options.width)))
        except ValueError:  # torch, of a convolution whose channels do not divide into groups
            raise SettingsError(
                f"shufflenet_3d: layers of {', '.join(map(str, widths))} channels do not divide into {options.groups} "
                f"groups at width {options.width:g}; choose another `width` or `groups`"
            ) from None
        init_convolutions(self)

    def make_block(self, inputs: int, outputs: int, stride: int | None = None) -> nn.Module:
        """Return a unit."""
        return ShuffleUnit(inputs, outputs, self.options.groups, stride)

    def append_block(self, channels: int) -> None:
        """Add a unit without shortcut that reduces the features to `channels`."""
        self.reduction = self._narrowing(channels)
        self.reduced = ("reduction.",)
        self.channels = (channels,)

    def replace_last_block(self, channels: int) -> None:
        """Replace the last unit by a unit without shortcut."""
        layer = self.get_submodule("layer3")
        assert isinstance(layer, nn.Sequential)
        layer[-1] = self._narrowing(channels)
        self.reduced = (f"layer3.{len(layer) - 1}.",)
        self.channels = (channels,)

    def _narrowing(self, channels: int) -> ShuffleUnit:
        groups = self.options.groups
        if channels % groups:
            groups = 1
        unit = ShuffleUnit(self.channels[0], channels, groups, narrow=True)
        init_convolutions(unit)
        return unit


@BACKBONES.register(ShuffleNetV2)
class ShuffleNetV2_3D(Shuffled):  # noqa: N801 - the usual spelling of the version
    """ShuffleNetV2: blocks that split the channels, and a pointwise convolution at the end."""

    def __init__(self, options: ShuffleNetV2, modality: Modality, stack: int = 1) -> None:
        super().__init__(options, modality, stack)
        *widths, last = WIDTHS_V2[options.width]
        self.build(tuple(widths), STEM)
        self.last = nn.Sequential(*_pointwise(self.channels[0], last), nn.ReLU(inplace=True))
        self.last_inputs, self.channels = self.channels[0], (last,)
        init_convolutions(self)

    def make_block(self, inputs: int, outputs: int, stride: int | None = None) -> nn.Module:
        """Return a block."""
        return InvertedShuffle(inputs, outputs, stride)

    def append_block(self, channels: int) -> None:
        """Add a block after the last convolution; each of its two branches has half of `channels`."""
        self.reduction = self._narrowing(self.channels[0], channels)
        self.reduced = ("reduction.",)
        self.channels = (channels,)

    def replace_last_block(self, channels: int) -> None:
        """Replace the last block and the convolution after it by the block of `append_block`."""
        layer = self.get_submodule("layer3")
        assert isinstance(layer, nn.Sequential)
        layer[-1] = self._narrowing(self.last_inputs, channels)
        del self.last
        self.reduced = (f"layer3.{len(layer) - 1}.", "last.")
        self.channels = (channels,)

    def _narrowing(self, inputs: int, channels: int) -> InvertedShuffle:
        if channels % 2:
            raise SettingsError(f"shufflenetv2_3d: `reduced_channels` is {channels}: expected an even number")
        block = InvertedShuffle(inputs, channels)
        init_convolutions(block)
        return block
