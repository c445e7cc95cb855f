"""Channel-separated networks, with depthwise convolutions over space and time and pointwise convolutions over channels.

Source: Tran et al., "Video Classification with Channel-Separated Convolutional Networks" (arXiv 1904.02811); layer
sizes as in the codebase compressed-video-classification.
"""

from __future__ import annotations

import torch
from torch import nn

from two_stream.backbones.base import BACKBONES, split_temporal_stride
from two_stream.backbones.blocks import ResidualBlock, Stride, conv1x1x1, conv3x3x3
from two_stream.backbones.resnet3d import ResidualNet
from two_stream.config.backbones import Csn
from two_stream.types import Modality


class SeparatedBottleneck(ResidualBlock):
    """1×1×1 convolution to `middle` channels, another 1×1×1 in mode `ip`, depthwise 3×3×3, and 1×1×1."""

    def __init__(
        self,
        inputs: int,
        middle: int,
        outputs: int,
        stride: Stride,
        downsample: nn.Module | None,
        preserved: bool,
    ) -> None:
        super().__init__(downsample)
        self.conv1 = conv1x1x1(inputs, middle)
        self.bn1 = nn.BatchNorm3d(middle)
        mixing = [conv1x1x1(middle, middle)] if preserved else []
        self.conv2 = nn.Sequential(*mixing, conv3x3x3(middle, middle, stride, groups=middle))
        self.bn2 = nn.BatchNorm3d(middle)
        self.conv3 = conv1x1x1(middle, outputs)
        self.bn3 = nn.BatchNorm3d(outputs)

    def body(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        """Return the output of the body, without the shortcut."""
        x_BCTHW = self.relu(self.bn1(self.conv1(x_BCTHW)))
        x_BCTHW = self.relu(self.bn2(self.conv2(x_BCTHW)))
        y_BCTHW: torch.Tensor = self.bn3(self.conv3(x_BCTHW))
        return y_BCTHW


@BACKBONES.register(Csn)
class ChannelSeparatedNet(ResidualNet):
    """A ResNet of separated bottlenecks; its stem keeps the frame rate."""

    def __init__(self, options: Csn, modality: Modality, stack: int = 1) -> None:
        super().__init__(options, modality, stack)
        inputs = max(1, int(64 * options.width))
        stem = nn.Sequential(
            nn.Conv3d(
                self.inputs,
                inputs,
                (3, 7, 7),
                stride=(1, 2, 2),
                padding=(1, 3, 3),
                bias=False,
            ),
            nn.BatchNorm3d(inputs),
            nn.ReLU(inplace=True),
            nn.MaxPool3d((1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1)),
        )
        widths = [4 * max(1, int(width * options.width)) for width in (64, 128, 256, 512)]
        self.build(stem, inputs, widths, [1, *split_temporal_stride(options.temporal_stride, 3)])
        self.temporal_stride = (options.temporal_stride,)
        self.spatial_stride = (32,)

    def make_block(
        self, inputs: int, outputs: int, stride: Stride = (1, 1, 1), project: bool = False
    ) -> ResidualBlock:
        """Return a separated bottleneck; its inner width is a quarter of its output width."""
        shortcut = self.make_shortcut(inputs, outputs, stride, project)
        middle = max(1, outputs // 4)
        return SeparatedBottleneck(inputs, middle, outputs, stride, shortcut, self.options.mode == "ip")
