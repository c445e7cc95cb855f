"""3D ResNet and 3D ResNeXt.

Sources: Hara, Kataoka, Satoh, "Learning Spatio-Temporal Features with 3D Residual Networks" (arXiv 1708.07632)
and "Can Spatiotemporal 3D CNNs Retrace the History of 2D CNNs and ImageNet?" (arXiv 1711.09577).
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace

from torch import nn

from two_stream.backbones.base import BACKBONES, Backbone, init_convolutions, split_temporal_stride
from two_stream.backbones.blocks import (
    BasicBlock,
    Bottleneck,
    PaddedIdentity,
    PreActivationBlock,
    PreActivationBottleneck,
    Projection,
    ResidualBlock,
    Stride,
)
from two_stream.config.backbones import Csn, R2Plus1d, ResNet3d, ResNeXt3d, Slow
from two_stream.errors import SettingsError
from two_stream.types import InputSpec, Modality

LAYERS = {
    10: (1, 1, 1, 1),
    18: (2, 2, 2, 2),
    26: (1, 2, 4, 1),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
}
"""Blocks in each of the four layers, by depth."""


class ResidualNet(Backbone):
    """Stem, four layers of residual blocks and, with FRAB, an additional block `reduction`."""

    def __init__(
        self, options: ResNet3d | ResNeXt3d | R2Plus1d | Csn | Slow, modality: Modality, stack: int = 1
    ) -> None:
        super().__init__(options, modality, stack)
        self.shortcut = "B" if isinstance(options, (Csn, Slow)) else options.shortcut

    def build(self, stem: nn.Sequential, inputs: int, widths: list[int], strides: list[int]) -> None:
        """Build the stem and the layers; `widths` and the temporal `strides` have one entry per layer."""
        self.stem = stem
        self.last: tuple[int, Stride] = (inputs, (1, 1, 1))
        for index, (width, blocks, t) in enumerate(zip(widths, LAYERS[self.options.depth], strides), start=1):
            stride = (t, 1, 1) if index == 1 else (t, 2, 2)
            self.last = (width, (1, 1, 1)) if blocks > 1 else (inputs, stride)
            first = self.make_block(inputs, width, stride)
            rest = [self.make_block(width, width) for _ in range(blocks - 1)]
            self.add_module(f"layer{index}", nn.Sequential(first, *rest))
            inputs = width
        self.channels = (inputs,)
        init_convolutions(self)

    @abstractmethod
    def make_block(
        self, inputs: int, outputs: int, stride: Stride = (1, 1, 1), project: bool = False
    ) -> ResidualBlock:
        """Return a block of the network's type; with `project`, a shortcut that changes the shape is a `Projection`."""

    def make_shortcut(self, inputs: int, outputs: int, stride: Stride, project: bool) -> nn.Module | None:
        """Return the shortcut of a block; None for the identity."""
        if inputs == outputs and stride == (1, 1, 1):
            return None
        if self.shortcut == "B" or project:
            return Projection(inputs, outputs, stride)
        return PaddedIdentity(outputs, stride)

    def stages(self) -> list[tuple[str, nn.Module]]:
        """Return the stages stem, layer1 … layer4 and, with FRAB, reduction."""
        names = ["stem", "layer1", "layer2", "layer3", "layer4"]
        names += ["reduction"] if "reduction" in self._modules else []
        return [(name, self.get_submodule(name)) for name in names]

    def append_block(self, channels: int) -> None:
        """Add the block `reduction` after layer4 (from 2048 to 512 channels in the published networks)."""
        self.reduction = self._narrowing_block(self.channels[0], channels, (1, 1, 1))
        self.reduced = ("reduction.",)
        self.channels = (channels,)

    def replace_last_block(self, channels: int) -> None:
        """Replace the last block of layer4 by a narrower block with the same input and stride."""
        layer = self.get_submodule("layer4")
        assert isinstance(layer, nn.Sequential)
        inputs, stride = self.last
        layer[-1] = self._narrowing_block(inputs, channels, stride)
        self.reduced = (f"layer4.{len(layer) - 1}.",)
        self.channels = (channels,)

    def _narrowing_block(self, inputs: int, channels: int, stride: Stride) -> ResidualBlock:
        block = self.make_block(inputs, channels, stride, project=True)
        init_convolutions(block)
        return block


@BACKBONES.register(ResNet3d)
class ResNet3D(ResidualNet):
    """3D ResNet with basic blocks up to depth 34, and with bottlenecks for larger depths."""

    def __init__(self, options: ResNet3d, modality: Modality, stack: int = 1) -> None:
        super().__init__(options, modality, stack)
        pool, *strides = split_temporal_stride(options.temporal_stride, 4)
        widths = [int(width * options.width) for width in (64, 128, 256, 512)]
        inputs, kernel = widths[0], options.stem_kernel
        stem = [
            nn.Conv3d(
                self.inputs,
                inputs,
                (kernel, 7, 7),
                stride=(options.stem_stride, 2, 2),
                padding=(kernel // 2, 3, 3),
                bias=False,
            ),
            nn.BatchNorm3d(inputs),
            nn.ReLU(inplace=True),
        ]
        if options.stem_pool:
            stem.append(nn.MaxPool3d(3, stride=(pool, 2, 2), padding=1))
        self.bottleneck = options.depth >= 50
        expansion = options.expansion if self.bottleneck else 1
        self.build(nn.Sequential(*stem), inputs, [width * expansion for width in widths], [1, *strides])
        without_pool = 1 if options.stem_pool else pool
        self.temporal_stride = (options.temporal_stride * options.stem_stride // without_pool,)
        self.spatial_stride = (32 if options.stem_pool else 16,)

    def make_block(
        self, inputs: int, outputs: int, stride: Stride = (1, 1, 1), project: bool = False
    ) -> ResidualBlock:
        """Return a basic block or a bottleneck, with activations before or after the convolutions."""
        shortcut = self.make_shortcut(inputs, outputs, stride, project)
        if self.bottleneck:
            bottleneck = PreActivationBottleneck if self.options.preactivation else Bottleneck
            return bottleneck(inputs, max(1, outputs // self.options.expansion), outputs, stride, shortcut)
        basic = PreActivationBlock if self.options.preactivation else BasicBlock
        return basic(inputs, outputs, stride, shortcut)


@BACKBONES.register(ResNeXt3d)
class ResNeXt3D(ResidualNet):
    """3D ResNeXt: bottlenecks (expansion 2) with a grouped 3×3×3 convolution."""

    def __init__(self, options: ResNeXt3d, modality: Modality, stack: int = 1) -> None:
        super().__init__(options, modality, stack)
        pool, *strides = split_temporal_stride(options.temporal_stride, 4)
        inputs = options.stem_channels
        stem = nn.Sequential(
            nn.Conv3d(self.inputs, inputs, 7, stride=(1, 2, 2), padding=3, bias=False),
            nn.BatchNorm3d(inputs),
            nn.ReLU(inplace=True),
            nn.MaxPool3d(3, stride=(pool, 2, 2), padding=1),
        )
        widths = [int(width * options.width) for width in (256, 512, 1024, 2048)]
        self.build(stem, inputs, widths, [1, *strides])
        self.temporal_stride = (options.temporal_stride,)
        self.spatial_stride = (32,)

    @classmethod
    def default_input(cls, options: ResNeXt3d, modality: Modality) -> InputSpec:
        """Return the default input of `Backbone`, but with 64 frames, as in the paper."""
        return replace(super().default_input(options, modality), clip_length=64)

    def make_block(
        self, inputs: int, outputs: int, stride: Stride = (1, 1, 1), project: bool = False
    ) -> ResidualBlock:
        """Return a grouped bottleneck; with 32 groups, its inner width is half of its output width."""
        groups = self.options.cardinality
        middle = groups * (outputs // 64)  # cardinality × (planes / 32), with planes half the output width
        if middle == 0:
            raise SettingsError(
                f"resnext3d: a block of {outputs} channels is too narrow; expected 64 or more"
            )
        shortcut = self.make_shortcut(inputs, outputs, stride, project)
        return Bottleneck(inputs, middle, outputs, stride, shortcut, groups)
