"""Inception-I3D.

Source: Carreira and Zisserman, "Quo Vadis, Action Recognition? A New Model and the Kinetics Dataset" (arXiv
1705.07750). Parameter names inside `Unit` and `InceptionModule` follow piergiaj's PyTorch port, whose weights are
public.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from two_stream.backbones.base import BACKBONES, Backbone, init_convolutions, split_temporal_stride
from two_stream.config.backbones import I3d
from two_stream.errors import SettingsError
from two_stream.types import MODALITY_CHANNELS, InputSpec, Modality

Triple = tuple[int, int, int]
Branches = tuple[int, int, int, int, int, int]
"""Channels of an inception module: 1×1×1; before and after 3×3×3; the same, smaller; 1×1×1 after pooling."""

STEM = (64, 64, 192)
MODULES: dict[str, dict[str, Branches]] = {
    "mixed3": {"b": (64, 96, 128, 16, 32, 32), "c": (128, 128, 192, 32, 96, 64)},
    "mixed4": {
        "b": (192, 96, 208, 16, 48, 64),
        "c": (160, 112, 224, 24, 64, 64),
        "d": (128, 128, 256, 24, 64, 64),
        "e": (112, 144, 288, 32, 64, 64),
        "f": (256, 160, 320, 32, 128, 128),
    },
    "mixed5": {"b": (256, 160, 320, 32, 128, 128), "c": (384, 192, 384, 48, 128, 128)},
}
"""Stages and their modules: `mixed4.b` is Mixed_4b of the paper's figure 3."""


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return TensorFlow's SAME padding of one dimension: the zeros on each side, and 0 or 1 additional zero at the end.

    The output has `ceil(size / stride)` positions.
    """
    missing = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return missing // 2, missing % 2


def _same_paddings(
    x_BCTHW: torch.Tensor, kernel: Sequence[int], stride: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Return the padding of both sides of each dimension, and the additional padding in the order of `F.pad`."""
    sizes = x_BCTHW.shape[2:]
    pads = [same_padding(*dimension) for dimension in zip(sizes, kernel, stride, strict=True)]
    behind = [number for _, more in reversed(pads) for number in (0, more)]
    return [both for both, _ in pads], behind


class SameConv3d(nn.Conv3d):
    """Convolution with SAME padding, without dilation. A padded copy of the clip is made only for uneven padding."""

    def forward(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        """Map `(B, C, T, H, W)` to `ceil(size / stride)` positions in each dimension."""
        both, behind = _same_paddings(x_BCTHW, self.kernel_size, self.stride)
        if any(behind):
            x_BCTHW = F.pad(x_BCTHW, behind)
        return F.conv3d(x_BCTHW, self.weight, self.bias, self.stride, both, groups=self.groups)


class SamePad3d(nn.Module):
    """The padding of a `SameConv3d` as a separate layer, for networks that are rewritten layer by layer."""

    def __init__(self, kernel: Triple, stride: Triple) -> None:
        super().__init__()
        self.kernel = kernel
        self.stride = stride

    def forward(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        """Pad a map `(B, C, T, H, W)` with zeros."""
        both, behind = _same_paddings(x_BCTHW, self.kernel, self.stride)
        sides = [side for number in reversed(both) for side in (number, number)]
        return F.pad(x_BCTHW, [side + more for side, more in zip(sides, behind, strict=True)])


class SameMaxPool3d(nn.Module):
    """Max pooling with SAME padding.

    piergiaj's port pads with zeros, and TensorFlow with minus infinity. Every pooling layer of this network follows a
    ReLU, so both give the same maximum. Where possible, torch's own padding is used, which needs no copy.
    """

    def __init__(self, kernel: Triple, stride: Triple) -> None:
        super().__init__()
        self.kernel = kernel
        self.stride = stride

    def forward(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        """Map `(B, C, T, H, W)` to `ceil(size / stride)` positions in each dimension."""
        both, behind = _same_paddings(x_BCTHW, self.kernel, self.stride)
        # with ceil_mode a last window may extend past the end; only a stride of 1 needs the additional padding
        steps = [s for s in reversed(self.stride) for _ in range(2)]
        behind = [more if step == 1 else 0 for more, step in zip(behind, steps, strict=True)]
        if any(behind):
            x_BCTHW = F.pad(x_BCTHW, behind, value=float("-inf"))
        return F.max_pool3d(x_BCTHW, self.kernel, self.stride, both, ceil_mode=True)


class Unit(nn.Module):
    """Convolution with SAME padding, BatchNorm and ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: Triple = (1, 1, 1)) -> None:
        super().__init__()
        self.conv3d = SameConv3d(inputs, outputs, kernel, stride=stride, bias=False)
        self.bn = nn.BatchNorm3d(outputs, eps=1e-3, momentum=0.01)

    def forward(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        """Return the output of the unit for a map `(B, C, T, H, W)`."""
        return F.relu(self.bn(self.conv3d(x_BCTHW)), inplace=True)


class InceptionModule(nn.Module):
    """Four parallel branches: a 1×1×1 unit, two pairs of 1×1×1 and 3×3×3 units, and max pooling with a 1×1×1 unit."""

    def __init__(self, inputs: int, branches: Branches) -> None:
        super().__init__()
        plain, narrow1, wide1, narrow2, wide2, pooled = branches
        self.b0 = Unit(inputs, plain)
        self.b1a = Unit(inputs, narrow1)
        self.b1b = Unit(narrow1, wide1, 3)
        self.b2a = Unit(inputs, narrow2)
        self.b2b = Unit(narrow2, wide2, 3)
        self.b3a = SameMaxPool3d((3, 3, 3), (1, 1, 1))
        self.b3b = Unit(inputs, pooled)

    def forward(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        """Return the concatenated outputs of the branches, which keep the size."""
        branches = (
            self.b0(x_BCTHW),
            self.b1b(self.b1a(x_BCTHW)),
            self.b2b(self.b2a(x_BCTHW)),
            self.b3b(self.b3a(x_BCTHW)),
        )
        return torch.cat(branches, dim=1)


def outputs_of(branches: Branches) -> int:
    """Return the number of output channels of a module with these branches."""
    plain, _, wide1, _, wide2, pooled = branches
    return plain + wide1 + wide2 + pooled


def scaled(branches: Branches, width: float) -> Branches:
    """Return the branches with every width multiplied by `width`, rounded down, but at least 1."""
    plain, narrow1, wide1, narrow2, wide2, pooled = (max(1, int(number * width)) for number in branches)
    return plain, narrow1, wide1, narrow2, wide2, pooled


def narrowing_branches(channels: int) -> Branches:
    """Return branches with `channels` outputs in total, in the proportions of the last module's branches.

    Raises:
        SettingsError: Fewer channels than branches.
    """
    if channels < 4:
        raise SettingsError(
            f"i3d: an inception module of {channels} channels is too narrow; set `reduced_channels` to 4 or more"
        )
    last = MODULES["mixed5"]["c"]
    total = outputs_of(last)
    plain, narrow1, wide1, narrow2, wide2, _ = scaled(last, channels / total)
    return plain, narrow1, wide1, narrow2, wide2, channels - plain - wide1 - wide2


@BACKBONES.register(I3d)
class InceptionI3D(Backbone):
    """Three convolutions and nine inception modules; mixed3, mixed4 and mixed5 begin with pooling."""

    def __init__(self, options: I3d, modality: Modality, stack: int = 1) -> None:
        super().__init__(options, modality, stack)
        first, second, third = (max(1, int(width * options.width)) for width in STEM)
        t1, t4, t5 = split_temporal_stride(options.temporal_stride, 3)
        self.stem = nn.Sequential()
        self.stem.add_module("conv1a", Unit(self.inputs, first, 7, (t1, 2, 2)))
        self.stem.add_module("pool2a", SameMaxPool3d((1, 3, 3), (1, 2, 2)))
        self.stem.add_module("conv2b", Unit(first, second))
        self.stem.add_module("conv2c", Unit(second, third, 3))
        pools = (
            SameMaxPool3d((1, 3, 3), (1, 2, 2)),
            SameMaxPool3d((3, 3, 3), (t4, 2, 2)),
            SameMaxPool3d((2, 2, 2), (t5, 2, 2)),
        )
        widths = [third]
        for pool, (name, modules) in zip(pools, MODULES.items(), strict=True):
            stage = nn.Sequential()
            stage.add_module("pool", pool)
            for letter, branches in modules.items():
                branches = scaled(branches, options.width)
                stage.add_module(letter, InceptionModule(widths[-1], branches))
                widths.append(outputs_of(branches))
            self.add_module(name, stage)
        *_, self.last_inputs, last = widths
        self.channels = (last,)
        self.temporal_stride = (options.temporal_stride,)
        self.spatial_stride = (32,)
        init_convolutions(self)

    @classmethod
    def default_input(cls, options: I3d, modality: Modality) -> InputSpec:
        """Return the default input: 64 consecutive frames, crops of 224² from 256×340, and values from -1 to 1."""
        del options
        channels = MODALITY_CHANNELS[modality]
        return InputSpec(
            modality=modality,
            clip_length=64,
            stride=1,
            resize=(256, 340),
            crop=224,
            value_range=(0.0, 1.0),
            mean=(0.5,) * channels,
            std=(0.5,) * channels,
        )

    def stages(self) -> list[tuple[str, nn.Module]]:
        """Return the stages stem, mixed3, mixed4, mixed5 and, with FRAB, reduction."""
        names = ["stem", *MODULES, "reduction"]
        return [(name, self.get_submodule(name)) for name in names if name in self._modules]

    def append_block(self, channels: int) -> None:
        """Add the inception module `reduction` at the end (from 1024 to 512 channels in the published networks)."""
        self.reduction = self._narrowing_module(self.channels[0], channels)
        self.reduced = ("reduction.",)
        self.channels = (channels,)

    def replace_last_block(self, channels: int) -> None:
        """Replace Mixed_5c by a narrower module."""
        self.get_submodule("mixed5").add_module("c", self._narrowing_module(self.last_inputs, channels))
        self.reduced = ("mixed5.c.",)
        self.channels = (channels,)

    def _narrowing_module(self, inputs: int, channels: int) -> InceptionModule:
        module = InceptionModule(inputs, narrowing_branches(channels))
        init_convolutions(module)
        return module
