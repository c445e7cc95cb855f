"""3D SqueezeNet.

Sources: Iandola et al., "SqueezeNet" (arXiv 1602.07360); in 3D, with BatchNorm and simple bypass, by Köpüklü et al.,
"Resource Efficient 3D Convolutional Neural Networks" (arXiv 1904.02422).
"""

from __future__ import annotations

import torch
from torch import nn

from two_stream.backbones.base import BACKBONES, Backbone, init_convolutions, split_temporal_stride
from two_stream.config.backbones import SqueezeNet
from two_stream.types import Modality

POOLED_BEFORE = {"1.0": (0, 2, 4, 7), "1.1": (0, 2, 4, 6)}
"""Fire modules (counted from 0) with max pooling before them; that of the first one belongs to the stem."""
FIRES = ((16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (48, 192), (64, 256), (64, 256))
"""Channels squeezed to, and of each of the two expanding convolutions."""


class Fire(nn.Module):
    """1×1×1 convolution to a few channels, then 1×1×1 and 3×3×3 in parallel; with `bypass`, the input is added."""

    def __init__(self, inputs: int, squeezed: int, expanded: tuple[int, int], bypass: bool = False) -> None:
        super().__init__()
        self.squeeze = nn.Conv3d(inputs, squeezed, 1)
        self.squeeze_bn = nn.BatchNorm3d(squeezed)
        self.expand1x1 = nn.Conv3d(squeezed, expanded[0], 1)
        self.expand1x1_bn = nn.BatchNorm3d(expanded[0])
        self.expand3x3 = nn.Conv3d(squeezed, expanded[1], 3, padding=1)
        self.expand3x3_bn = nn.BatchNorm3d(expanded[1])
        self.relu = nn.ReLU(inplace=True)
        self.bypass = bypass

    def forward(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        """Return the output of the module for a map `(B, C, T, H, W)`."""
        y = self.relu(self.squeeze_bn(self.squeeze(x_BCTHW)))
        y = torch.cat((self.expand1x1_bn(self.expand1x1(y)), self.expand3x3_bn(self.expand3x3(y))), dim=1)
        out_BCTHW: torch.Tensor = self.relu(y + x_BCTHW if self.bypass else y)
        return out_BCTHW


@BACKBONES.register(SqueezeNet)
class SqueezeNet3D(Backbone):
    """Stem with pooling, and four stages of fire modules; the later stages start with pooling."""

    def __init__(self, options: SqueezeNet, modality: Modality, stack: int = 1) -> None:
        super().__init__(options, modality, stack)
        first, *strides = split_temporal_stride(options.temporal_stride, 4)
        kernel, stem = (7, 96) if options.version == "1.0" else (3, 64)
        inputs = max(1, int(stem * options.width))
        self.stem = nn.Sequential(
            nn.Conv3d(self.inputs, inputs, kernel, stride=(1, 2, 2), padding=kernel // 2),
            nn.BatchNorm3d(inputs),
            nn.ReLU(inplace=True),
            nn.MaxPool3d(3, stride=(first, 2, 2), padding=1),
        )
        stage = 0
        for number, (squeezed, expanded) in enumerate(FIRES):
            if number in POOLED_BEFORE[options.version]:
                stage += 1
                pool = [nn.MaxPool3d(3, stride=(strides.pop(0), 2, 2), padding=1)] if number else []
                self.add_module(f"layer{stage}", nn.Sequential(*pool))
            width = max(1, int(expanded * options.width))
            fire = Fire(
                inputs, max(1, int(squeezed * options.width)), (width, width), bypass=inputs == 2 * width
            )
            self._layer(stage).append(fire)
            self.last_inputs, inputs = inputs, 2 * width
        self.channels = (inputs,)
        self.temporal_stride = (options.temporal_stride,)
        self.spatial_stride = (32,)
        init_convolutions(self)

    def _layer(self, number: int) -> nn.Sequential:
        layer = self.get_submodule(f"layer{number}")
        assert isinstance(layer, nn.Sequential)
        return layer

    def stages(self) -> list[tuple[str, nn.Module]]:
        """Return the stages stem, layer1 … layer4 and, with FRAB, reduction."""
        names = ("stem", "layer1", "layer2", "layer3", "layer4", "reduction")
        return [(name, self.get_submodule(name)) for name in names if name in self._modules]

    def append_block(self, channels: int) -> None:
        """Add a fire module from 512 to `channels` channels."""
        self.reduction = _narrowing(self.channels[0], channels)
        self.reduced = ("reduction.",)
        self.channels = (channels,)

    def replace_last_block(self, channels: int) -> None:
        """Replace the last fire module by the module of `append_block`."""
        layer = self._layer(4)
        layer[-1] = _narrowing(self.last_inputs, channels)
        self.reduced = (f"layer4.{len(layer) - 1}.",)
        self.channels = (channels,)


def _narrowing(inputs: int, channels: int) -> Fire:
    """Return a fire module without bypass; like the other modules, it squeezes to an eighth of its output channels."""
    half = channels // 2
    block = Fire(inputs, max(1, channels // 8), (half, channels - half))
    init_convolutions(block)
    return block
