"""The single-pathway ResNets of PySlowFast: Slow, and I3D as an inflated ResNet.

Sources: Feichtenhofer et al., "SlowFast Networks for Video Recognition" (arXiv 1812.03982); Wang et al., "Non-local
Neural Networks" (arXiv 1711.07971) for the inflated ResNet with a temporal kernel in every other block.
"""

from __future__ import annotations

from torch import nn

from two_stream.backbones.base import BACKBONES
from two_stream.backbones.blocks import ResidualBlock, Stride
from two_stream.backbones.resnet3d import LAYERS, ResidualNet
from two_stream.backbones.slowfast import FactoredBottleneck
from two_stream.config.backbones import Slow
from two_stream.types import MODALITY_CHANNELS, InputSpec, Modality

KERNELS: dict[str, tuple[int, tuple[tuple[int, ...], ...]]] = {
    "slow": (1, ((1,), (1,), (3,), (3,))),
    "i3d": (5, ((3,), (3, 1), (3, 1), (1, 3))),
}
"""Length in time of the kernels of the stem, and of the blocks of each layer, repeated as needed."""


@BACKBONES.register(Slow)
class SlowNet(ResidualNet):
    """A ResNet of factored bottlenecks; the variant `i3d` halves the number of frames after the first layer."""

    def __init__(self, options: Slow, modality: Modality, stack: int = 1) -> None:
        super().__init__(options, modality, stack)
        inputs = max(1, int(64 * options.width))
        kernel, self.kernels = KERNELS[options.variant]
        stem = nn.Sequential(
            nn.Conv3d(
                self.inputs,
                inputs,
                (kernel, 7, 7),
                stride=(1, 2, 2),
                padding=(kernel // 2, 3, 3),
                bias=False,
            ),
            nn.BatchNorm3d(inputs),
            nn.ReLU(inplace=True),
            nn.MaxPool3d((1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1)),
        )
        self.pending = [
            kernels[place % len(kernels)]
            for kernels, blocks in zip(self.kernels, LAYERS[options.depth], strict=True)
            for place in range(blocks)
        ]
        self.last_kernel = self.pending[-1]
        widths = [4 * max(1, int(width * options.width)) for width in (64, 128, 256, 512)]
        self.build(stem, inputs, widths, [1, 1, 1, 1])
        halved = options.variant == "i3d"
        if halved:
            self.pool = nn.MaxPool3d((2, 1, 1), ceil_mode=True)
        self.temporal_stride = (2 if halved else 1,)
        self.spatial_stride = (32,)

    @classmethod
    def default_input(cls, options: Slow, modality: Modality) -> InputSpec:
        """Return the input of 8×8 networks: 8 frames with stride 8, and 256² crops as in PySlowFast's evaluation."""
        del options
        channels = MODALITY_CHANNELS[modality]
        return InputSpec(
            modality=modality,
            clip_length=8,
            stride=8,
            resize=(256, 340),
            crop=256,
            value_range=(0.0, 1.0),
            mean=(0.45,) * channels,
            std=(0.225,) * channels,
        )

    def stages(self) -> list[tuple[str, nn.Module]]:
        """Return the stages stem, layer1, pool (i3d), layer2 … layer4 and, with FRAB, reduction."""
        names = ("stem", "layer1", "pool", "layer2", "layer3", "layer4", "reduction")
        return [(name, self.get_submodule(name)) for name in names if name in self._modules]

    def make_block(
        self, inputs: int, outputs: int, stride: Stride = (1, 1, 1), project: bool = False
    ) -> ResidualBlock:
        """Return a factored bottleneck; its inner width is a quarter of its output width."""
        kernel = self.pending.pop(0) if self.pending else self.last_kernel
        block = FactoredBottleneck(inputs, max(1, outputs // 4), outputs, kernel, stride)
        if project and block.downsample is None:
            block.downsample = self.make_shortcut(inputs, outputs, (1, 2, 2), project)
        return block
