"""3D MobileNet.

Sources: Howard et al., "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications" (arXiv
1704.04861); in 3D by Köpüklü et al., "Resource Efficient 3D Convolutional Neural Networks" (arXiv 1904.02422).
"""

from __future__ import annotations

import torch
from torch import nn

from two_stream.backbones.base import BACKBONES, Backbone, init_convolutions, split_temporal_stride
from two_stream.config.backbones import MobileNet
from two_stream.types import Modality

Stride = tuple[int, int, int]

LAYERS = (
    # channels, blocks, halves the size
    (64, 1, True),
    (128, 2, True),
    (256, 2, True),
    (512, 6, True),
    (1024, 2, False),
)


class SeparableConvolution(nn.Module):
    """Depthwise 3×3×3 convolution followed by a 1×1×1 convolution, each with BatchNorm and ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: Stride = (1, 1, 1)) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(inputs, inputs, 3, stride=stride, padding=1, groups=inputs, bias=False)
        self.bn1 = nn.BatchNorm3d(inputs)
        self.conv2 = nn.Conv3d(inputs, outputs, 1, bias=False)
        self.bn2 = nn.BatchNorm3d(outputs)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        """Return the output of the block for a map `(B, C, T, H, W)`."""
        x_BCTHW = self.relu(self.bn1(self.conv1(x_BCTHW)))
        y_BCTHW: torch.Tensor = self.relu(self.bn2(self.conv2(x_BCTHW)))
        return y_BCTHW


@BACKBONES.register(MobileNet)
class MobileNet3D(Backbone):
    """Stem and five layers of separable convolutions."""

    def __init__(self, options: MobileNet, modality: Modality, stack: int = 1) -> None:
        super().__init__(options, modality, stack)
        inputs = max(1, int(32 * options.width))
        self.stem = nn.Sequential(
            nn.Conv3d(self.inputs, inputs, 3, stride=(1, 2, 2), padding=1, bias=False),
            nn.BatchNorm3d(inputs),
            nn.ReLU(inplace=True),
        )
        strides = iter(split_temporal_stride(options.temporal_stride, 4))
        for index, (channels, blocks, halves) in enumerate(LAYERS, start=1):
            outputs = max(1, int(channels * options.width))
            stride = (next(strides), 2, 2) if halves else (1, 1, 1)
            first = SeparableConvolution(inputs, outputs, stride)
            rest = [SeparableConvolution(outputs, outputs) for _ in range(blocks - 1)]
            self.add_module(f"layer{index}", nn.Sequential(first, *rest))
            inputs = outputs
        self.channels = (inputs,)
        self.temporal_stride = (options.temporal_stride,)
        self.spatial_stride = (32,)
        init_convolutions(self)

    def stages(self) -> list[tuple[str, nn.Module]]:
        """Return the stages stem, layer1 … layer5 and, with FRAB, reduction."""
        names = ["stem", *(f"layer{index}" for index in range(1, 6)), "reduction"]
        return [(name, self.get_submodule(name)) for name in names if name in self._modules]

    def append_block(self, channels: int) -> None:
        """Add a separable convolution from 1024 to `channels` channels."""
        self.reduction = self._narrowing(channels)
        self.reduced = ("reduction.",)
        self.channels = (channels,)

    def replace_last_block(self, channels: int) -> None:
        """Replace the last separable convolution by a separable convolution to `channels` channels."""
        layer = self.get_submodule("layer5")
        assert isinstance(layer, nn.Sequential)
        layer[-1] = self._narrowing(channels)
        self.reduced = (f"layer5.{len(layer) - 1}.",)
        self.channels = (channels,)

    def _narrowing(self, channels: int) -> SeparableConvolution:
        block = SeparableConvolution(self.channels[0], channels)
        init_convolutions(block)
        return block
