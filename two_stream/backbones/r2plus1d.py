"""R(2+1)D: residual networks with every 3D convolution split into one over space and one over time.

Sources: Tran et al., "A Closer Look at Spatiotemporal Convolutions for Action Recognition" (arXiv 1711.11248); the
weights trained on 65 million videos: Ghadiyaram et al., "Large-Scale Weakly-Supervised Pre-training for Video Action
Recognition" (arXiv 1905.00561). Parameter names follow torchvision's `VideoResNet`.

Where the published codebases differ, `R2Plus1d` has an option. One difference is not reproduced: in the port of
IG-65M's weights, BatchNorm has a momentum of .9. In torch's convention, this discards nine tenths of the statistics at
every step; in Caffe2's convention, it keeps them. Here, the momentum is torch's default, .1. The momentum does not
affect evaluation.
"""

from __future__ import annotations

import torch
from torch import nn

from two_stream.backbones.base import BACKBONES, split_temporal_stride
from two_stream.backbones.blocks import ResidualBlock, Stride, conv1x1x1
from two_stream.backbones.resnet3d import ResidualNet
from two_stream.config.backbones import R2Plus1d
from two_stream.types import MODALITY_CHANNELS, InputSpec, Modality

KINETICS_MEAN = (0.43216, 0.394666, 0.37645)
KINETICS_STD = (0.22803, 0.22145, 0.216989)
"""Statistics of RGB values 0..1, as for the weights of torchvision and IG-65M; flow uses the first two numbers."""


def middle_channels(inputs: int, outputs: int, time: int = 3, space: int = 3) -> int:
    """Return the number of inner channels for which two convolutions have as many weights as one 3D convolution."""
    return inputs * outputs * time * space**2 // (inputs * space**2 + outputs * time)


class Conv2Plus1D(nn.Sequential):
    """1×3×3 convolution to `middle` channels, BatchNorm, ReLU and 3×1×1 convolution."""

    def __init__(self, inputs: int, middle: int, outputs: int, stride: Stride = (1, 1, 1)) -> None:
        t, h, w = stride
        super().__init__(
            nn.Conv3d(inputs, middle, (1, 3, 3), stride=(1, h, w), padding=(0, 1, 1), bias=False),
            nn.BatchNorm3d(middle),
            nn.ReLU(inplace=True),
            nn.Conv3d(middle, outputs, (3, 1, 1), stride=(t, 1, 1), padding=(1, 0, 0), bias=False),
        )


class BasicBlock2Plus1D(ResidualBlock):
    """Residual block of two (2+1)D convolutions; `middles` contains the number of inner channels of each."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        middles: tuple[int, int],
        stride: Stride,
        downsample: nn.Module | None,
    ) -> None:
        super().__init__(downsample)
        first, second = middles
        self.conv1 = nn.Sequential(
            Conv2Plus1D(inputs, first, outputs, stride), nn.BatchNorm3d(outputs), nn.ReLU(inplace=True)
        )
        self.conv2 = nn.Sequential(Conv2Plus1D(outputs, second, outputs), nn.BatchNorm3d(outputs))

    def body(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        """Return the output of the body, without the shortcut."""
        y_BCTHW: torch.Tensor = self.conv2(self.conv1(x_BCTHW))
        return y_BCTHW


class Bottleneck2Plus1D(ResidualBlock):
    """1×1×1 convolution to `planes` channels, (2+1)D convolution, and 1×1×1 convolution to the output channels."""

    def __init__(
        self,
        inputs: int,
        planes: int,
        outputs: int,
        middle: int,
        stride: Stride,
        downsample: nn.Module | None,
    ) -> None:
        super().__init__(downsample)
        self.conv1 = nn.Sequential(conv1x1x1(inputs, planes), nn.BatchNorm3d(planes), nn.ReLU(inplace=True))
        self.conv2 = nn.Sequential(
            Conv2Plus1D(planes, middle, planes, stride), nn.BatchNorm3d(planes), nn.ReLU(inplace=True)
        )
        self.conv3 = nn.Sequential(conv1x1x1(planes, outputs), nn.BatchNorm3d(outputs))

    def body(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        """Return the output of the body, without the shortcut."""
        y_BCTHW: torch.Tensor = self.conv3(self.conv2(self.conv1(x_BCTHW)))
        return y_BCTHW


@BACKBONES.register(R2Plus1d)
class R2Plus1D(ResidualNet):
    """R(2+1)D with basic blocks up to depth 34, and with bottlenecks (expansion 4) for larger depths."""

    def __init__(self, options: R2Plus1d, modality: Modality, stack: int = 1) -> None:
        super().__init__(options, modality, stack)
        places = 4 if options.stem_pool else 3
        *pool, t2, t3, t4 = split_temporal_stride(options.temporal_stride, places)
        widths = [max(1, int(width * options.width)) for width in (64, 128, 256, 512)]
        stem = self._make_stem(widths[0])
        if options.stem_pool:
            stem.append(nn.MaxPool3d(3, stride=(*pool, 2, 2), padding=1))
        expansion = 4 if options.depth >= 50 else 1
        self.build(stem, widths[0], [width * expansion for width in widths], [1, t2, t3, t4])
        self.temporal_stride = (options.temporal_stride,)
        self.spatial_stride = (32 if options.stem_pool else 16,)

    @classmethod
    def default_input(cls, options: R2Plus1d, modality: Modality) -> InputSpec:
        """Return the default input: 32 consecutive frames, crops of 112² from 128×170, standardised values."""
        del options
        channels = MODALITY_CHANNELS[modality]
        return InputSpec(
            modality=modality,
            clip_length=32,
            stride=1,
            resize=(128, 170),
            crop=112,
            value_range=(0.0, 1.0),
            mean=KINETICS_MEAN[:channels],
            std=KINETICS_STD[:channels],
        )

    def _make_stem(self, outputs: int) -> nn.Sequential:
        options, time = self.options, self.options.stem_kernel
        if options.stem_middle is None:
            middle = middle_channels(3, outputs, time, space=7)  # RGB's 3 channels for flow too, as published
        else:
            middle = max(1, int(options.stem_middle * options.width))
        stem = nn.Sequential(
            nn.Conv3d(
                self.inputs,
                middle,
                (1, 7, 7),
                stride=(1, 2, 2),
                padding=(0, 3, 3),
                bias=False,
            ),
            nn.BatchNorm3d(middle),
            nn.ReLU(inplace=True),
            nn.Conv3d(middle, outputs, (time, 1, 1), padding=(time // 2, 0, 0), bias=False),
            nn.BatchNorm3d(outputs),
            nn.ReLU(inplace=True),
        )
        self._set_eps(stem)
        return stem

    def make_block(
        self, inputs: int, outputs: int, stride: Stride = (1, 1, 1), project: bool = False
    ) -> ResidualBlock:
        """Return a basic block or a bottleneck."""
        shortcut = self.make_shortcut(inputs, outputs, stride, project)
        whole_block = self.options.midplanes == "block"
        block: ResidualBlock
        if self.options.depth >= 50:
            planes = max(1, outputs // 4)
            middle = middle_channels(inputs if whole_block else planes, planes)
            block = Bottleneck2Plus1D(inputs, planes, outputs, middle, stride, shortcut)
        else:
            first = middle_channels(inputs, outputs)
            second = first if whole_block else middle_channels(outputs, outputs)
            block = BasicBlock2Plus1D(inputs, outputs, (first, second), stride, shortcut)
        self._set_eps(block)
        return block

    def _set_eps(self, module: nn.Module) -> None:
        for part in module.modules():
            if isinstance(part, nn.BatchNorm3d):
                part.eps = self.options.norm_eps
