"""3D MobileNetV2.

Sources: Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks" (arXiv 1801.04381); in 3D by Köpüklü
et al., "Resource Efficient 3D Convolutional Neural Networks" (arXiv 1904.02422).
"""

from __future__ import annotations

import torch
from torch import nn

from two_stream.backbones.base import BACKBONES, Backbone, init_convolutions, split_temporal_stride
from two_stream.config.backbones import MobileNetV2
from two_stream.types import Modality

Stride = tuple[int, int, int]

LAYERS = (
    # expansion, channels, blocks, halves the size
    (1, 16, 1, False),
    (6, 24, 2, True),
    (6, 32, 3, True),
    (6, 64, 4, True),
    (6, 96, 3, False),
    (6, 160, 3, True),
    (6, 320, 1, False),
)


def unit(
    inputs: int, outputs: int, kernel: int, stride: Stride = (1, 1, 1), groups: int = 1
) -> list[nn.Module]:
    """Return convolution, BatchNorm and ReLU6."""
    return [
        nn.Conv3d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm3d(outputs),
        nn.ReLU6(inplace=True),
    ]


class InvertedResidual(nn.Module):
    """Convolutions 1×1×1 to more channels, depthwise 3×3×3, and 1×1×1 to fewer; identity shortcut if shapes fit."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: Stride = (1, 1, 1)) -> None:
        super().__init__()
        hidden = inputs * expansion
        widen = unit(inputs, hidden, 1) if expansion != 1 else []
        filter_ = unit(hidden, hidden, 3, stride, groups=hidden)
        self.conv = nn.Sequential(*widen, *filter_, *unit(hidden, outputs, 1)[:2])
        self.identity = stride == (1, 1, 1) and inputs == outputs

    def forward(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        """Return the output of the block for a map `(B, C, T, H, W)`."""
        out: torch.Tensor = self.conv(x_BCTHW)
        return x_BCTHW + out if self.identity else out


@BACKBONES.register(MobileNetV2)
class MobileNetV2_3D(Backbone):  # noqa: N801 - the usual spelling of the version
    """Stem, seven layers of inverted residual blocks, and a pointwise convolution to 1280 channels."""

    def __init__(self, options: MobileNetV2, modality: Modality, stack: int = 1) -> None:
        super().__init__(options, modality, stack)
        width = options.width
        inputs = max(1, int(32 * width))
        self.stem = nn.Sequential(*unit(self.inputs, inputs, 3, (1, 2, 2)))
        strides = iter(split_temporal_stride(options.temporal_stride, 4))
        for index, (expansion, channels, blocks, halves) in enumerate(LAYERS, start=1):
            outputs = max(1, int(channels * width))
            stride = (next(strides), 2, 2) if halves else (1, 1, 1)
            first = InvertedResidual(inputs, outputs, expansion, stride)
            rest = [InvertedResidual(outputs, outputs, expansion) for _ in range(blocks - 1)]
            self.add_module(f"layer{index}", nn.Sequential(first, *rest))
            self.layer7_inputs, inputs = inputs, outputs
        last = int(1280 * max(1.0, width))
        self.last = nn.Sequential(*unit(inputs, last, 1))
        self.channels = (last,)
        self.temporal_stride = (options.temporal_stride,)
        self.spatial_stride = (32,)
        init_convolutions(self)

    def stages(self) -> list[tuple[str, nn.Module]]:
        """Return the stages stem, layer1 … layer7, last (not with FRMB) and, with FRAB, reduction."""
        names = ["stem", *(f"layer{index}" for index in range(1, 8)), "last", "reduction"]
        return [(name, self.get_submodule(name)) for name in names if name in self._modules]

    def append_block(self, channels: int) -> None:
        """Add an inverted residual block after the last convolution; its inner width is 1280 channels."""
        self.reduction = InvertedResidual(self.channels[0], channels, expansion=1)
        init_convolutions(self.reduction)
        self.reduced = ("reduction.",)
        self.channels = (channels,)

    def replace_last_block(self, channels: int) -> None:
        """Replace the last block and the pointwise convolution after it by one inverted residual block."""
        block = InvertedResidual(self.layer7_inputs, channels, expansion=6)
        init_convolutions(block)
        self.layer7 = nn.Sequential(block)
        del self.last
        self.reduced = ("layer7.", "last.")
        self.channels = (channels,)
