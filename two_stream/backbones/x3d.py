"""X3D: a tiny image network expanded step by step in duration, frame rate, frame size, depth and width.

Source: Feichtenhofer, "X3D: Expanding Architectures for Efficient Video Recognition" (arXiv 2004.04730); layer sizes
as in PySlowFast. The last layer before the classifier belongs to the head (`head: {kind: average, features: 2048}`).
"""

from __future__ import annotations

from math import ceil

import torch
from torch import nn
from torch.nn import functional as F

from two_stream.backbones.base import BACKBONES, Backbone, init_convolutions
from two_stream.backbones.blocks import Projection, ResidualBlock
from two_stream.config.backbones import X3d
from two_stream.types import MODALITY_CHANNELS, InputSpec, Modality

LAYERS = ((1, 12), (2, 24), (5, 48), (3, 96))
"""Blocks and channels of each layer before depth and width multiply them."""
EXPANSION = 2.25
"""Inner width of a block, relative to its output."""
SQUEEZE = 0.0625
"""Inner width of squeeze-and-excitation, relative to the block's."""


def rounded(width: float, divisor: int = 8) -> int:
    """Return the multiple of `divisor` that is nearest to `width`, but at least nine tenths of `width`."""
    near = max(divisor, int(width + divisor / 2) // divisor * divisor)
    return near + divisor if near < 0.9 * width else near


class SqueezeExcitation(nn.Module):
    """Scales each channel by a function of its mean over the clip (Hu et al., arXiv 1709.01507)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = rounded(channels * SQUEEZE)
        self.fc1 = nn.Conv3d(channels, inner, 1)
        self.fc2 = nn.Conv3d(inner, channels, 1)

    def forward(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        """Return the scaled map."""
        weight = torch.relu(self.fc1(x_BCTHW.mean((2, 3, 4), keepdim=True)))
        scaled_BCTHW: torch.Tensor = x_BCTHW * torch.sigmoid(self.fc2(weight))
        return scaled_BCTHW


class X3DBlock(ResidualBlock):
    """1×1×1 and depthwise 3×3×3 convolution, squeeze-and-excitation (with `squeeze`), swish, 1×1×1 convolution."""

    def __init__(self, inputs: int, outputs: int, stride: int, squeeze: bool) -> None:
        steps = (1, stride, stride)
        super().__init__(Projection(inputs, outputs, steps) if inputs != outputs or stride != 1 else None)
        middle = int(EXPANSION * outputs)
        self.conv1 = nn.Conv3d(inputs, middle, 1, bias=False)
        self.bn1 = nn.BatchNorm3d(middle)
        self.conv2 = nn.Conv3d(middle, middle, 3, stride=steps, padding=1, groups=middle, bias=False)
        self.bn2 = nn.BatchNorm3d(middle)
        self.squeeze = SqueezeExcitation(middle) if squeeze else None
        self.conv3 = nn.Conv3d(middle, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm3d(outputs)

    def body(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        """Return the output of the body, without the shortcut."""
        x_BCTHW = self.relu(self.bn1(self.conv1(x_BCTHW)))
        x_BCTHW = self.bn2(self.conv2(x_BCTHW))
        if self.squeeze is not None:
            x_BCTHW = self.squeeze(x_BCTHW)
        y_BCTHW: torch.Tensor = self.bn3(self.conv3(F.silu(x_BCTHW)))
        return y_BCTHW


@BACKBONES.register(X3d)
class X3D(Backbone):
    """Stem over space and then over time, four layers and a pointwise convolution; outputs one token per frame."""

    def __init__(self, options: X3d, modality: Modality, stack: int = 1) -> None:
        super().__init__(options, modality, stack)
        inputs = rounded(LAYERS[0][1] * options.width)
        self.stem = nn.Sequential(
            nn.Conv3d(
                self.inputs,
                inputs,
                (1, 3, 3),
                stride=(1, 2, 2),
                padding=(0, 1, 1),
                bias=False,
            ),
            nn.Conv3d(inputs, inputs, (5, 1, 1), padding=(2, 0, 0), groups=inputs, bias=False),
            nn.BatchNorm3d(inputs),
            nn.ReLU(inplace=True),
        )
        for index, (blocks, width) in enumerate(LAYERS, start=1):
            outputs = rounded(width * options.width)
            layer = [
                X3DBlock(inputs if place == 0 else outputs, outputs, 2 if place == 0 else 1, place % 2 == 0)
                for place in range(ceil(blocks * options.depth))
            ]
            self.add_module(f"layer{index}", nn.Sequential(*layer))
            inputs = outputs
        last = int(EXPANSION * inputs)
        self.last = nn.Sequential(
            nn.Conv3d(inputs, last, 1, bias=False), nn.BatchNorm3d(last), nn.ReLU(inplace=True)
        )
        self.last_inputs, self.channels = inputs, (last,)
        self.temporal_stride = (1,)
        self.spatial_stride = (32,)
        init_convolutions(self)

    @classmethod
    def default_input(cls, options: X3d, modality: Modality) -> InputSpec:
        """Return the input of X3D-M: 16 frames with stride 5, and crops of 224² from 256×340."""
        del options
        channels = MODALITY_CHANNELS[modality]
        return InputSpec(
            modality=modality,
            clip_length=16,
            stride=5,
            resize=(256, 340),
            crop=224,
            value_range=(0.0, 1.0),
            mean=(0.45,) * channels,
            std=(0.225,) * channels,
        )

    def stages(self) -> list[tuple[str, nn.Module]]:
        """Return the stages stem, layer1 … layer4, last (not with FRMB) and, with FRAB, reduction."""
        names = ("stem", "layer1", "layer2", "layer3", "layer4", "last", "reduction")
        return [(name, self.get_submodule(name)) for name in names if name in self._modules]

    def append_block(self, channels: int) -> None:
        """Add a block after the last convolution that reduces the features to `channels`."""
        self.reduction = _block(self.channels[0], channels)
        self.reduced = ("reduction.",)
        self.channels = (channels,)

    def replace_last_block(self, channels: int) -> None:
        """Replace the last block and the convolution after it by the block of `append_block`."""
        layer = self.get_submodule("layer4")
        assert isinstance(layer, nn.Sequential)
        layer[-1] = _block(self.last_inputs, channels)
        del self.last
        self.reduced = (f"layer4.{len(layer) - 1}.", "last.")
        self.channels = (channels,)


def _block(inputs: int, channels: int) -> X3DBlock:
    block = X3DBlock(inputs, channels, 1, squeeze=True)
    if block.downsample is None:
        block.downsample = Projection(inputs, channels, (1, 1, 1))
    init_convolutions(block)
    return block
