"""3D DenseNet.

Sources: Huang et al., "Densely Connected Convolutional Networks" (arXiv 1608.06993); in 3D by Hara, Kataoka, Satoh,
"Can Spatiotemporal 3D CNNs Retrace the History of 2D CNNs and ImageNet?" (arXiv 1711.09577).
"""

from __future__ import annotations

import torch
from torch import nn

from two_stream.backbones.base import BACKBONES, Backbone, init_convolutions, split_temporal_stride
from two_stream.config.backbones import DenseNet
from two_stream.types import Modality

LAYERS = {
    121: (6, 12, 24, 16),
    169: (6, 12, 32, 32),
    201: (6, 12, 48, 32),
    264: (6, 12, 64, 48),
}
"""Layers in each of the four dense blocks, by depth."""
STEM = 64
BOTTLENECK = 4
"""Inner width of a layer, relative to the channels that it adds."""


class DenseLayer(nn.Sequential):
    """1×1×1 and 3×3×3 convolution, each preceded by BatchNorm and ReLU; the output is concatenated with the input."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.add_module("norm1", nn.BatchNorm3d(inputs))
        self.add_module("relu1", nn.ReLU(inplace=True))
        self.add_module("conv1", nn.Conv3d(inputs, BOTTLENECK * growth, 1, bias=False))
        self.add_module("norm2", nn.BatchNorm3d(BOTTLENECK * growth))
        self.add_module("relu2", nn.ReLU(inplace=True))
        self.add_module("conv2", nn.Conv3d(BOTTLENECK * growth, growth, 3, padding=1, bias=False))

    def forward(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        """Map `(B, C, T, H, W)` to `(B, C + growth, T, H, W)`."""
        added: torch.Tensor = super().forward(x_BCTHW)  # type: ignore[no-untyped-call]
        return torch.cat((x_BCTHW, added), dim=1)


class HalvingPool(nn.Module):
    """Average of 2×2 positions, and of pairs of frames if `time` is 2.

    A last frame without a pair is averaged only over positions.
    """

    def __init__(self, time: int) -> None:
        super().__init__()
        self.time = time

    def forward(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        """Halve the height and the width (rounded down), and with `time` 2 also the length (rounded up)."""
        if x_BCTHW.shape[2] % self.time:
            x_BCTHW = torch.cat((x_BCTHW, x_BCTHW[:, :, -1:]), dim=2)
        return nn.functional.avg_pool3d(x_BCTHW, (self.time, 2, 2))


class Transition(nn.Sequential):
    """BatchNorm, ReLU and 1×1×1 convolution, followed by pooling if `time` is given."""

    def __init__(self, inputs: int, outputs: int, time: int | None = None) -> None:
        super().__init__()
        self.add_module("norm", nn.BatchNorm3d(inputs))
        self.add_module("relu", nn.ReLU(inplace=True))
        self.add_module("conv", nn.Conv3d(inputs, outputs, 1, bias=False))
        if time is not None:
            self.add_module("pool", HalvingPool(time))


@BACKBONES.register(DenseNet)
class DenseNet3D(Backbone):
    """Stem, four dense blocks with transitions between them, and a last BatchNorm."""

    def __init__(self, options: DenseNet, modality: Modality, stack: int = 1) -> None:
        super().__init__(options, modality, stack)
        pool, *strides = split_temporal_stride(options.temporal_stride, 4)
        channels = 2 * options.growth if options.growth < STEM // 2 else STEM
        self.stem = nn.Sequential(
            nn.Conv3d(self.inputs, channels, 7, stride=(1, 2, 2), padding=3, bias=False),
            nn.BatchNorm3d(channels),
            nn.ReLU(inplace=True),
            nn.MaxPool3d(3, stride=(pool, 2, 2), padding=1),
        )
        for number, layers in enumerate(LAYERS[options.depth], start=1):
            block = [DenseLayer(channels + place * options.growth, options.growth) for place in range(layers)]
            self.add_module(f"block{number}", nn.Sequential(*block))
            channels += layers * options.growth
            if number < 4:
                self.add_module(
                    f"transition{number}", Transition(channels, channels // 2, strides[number - 1])
                )
                channels //= 2
        self.last = nn.Sequential(nn.BatchNorm3d(channels), nn.ReLU(inplace=True))
        self.channels = (channels,)
        self.temporal_stride = (options.temporal_stride,)
        self.spatial_stride = (32,)
        init_convolutions(self)

    def stages(self) -> list[tuple[str, nn.Module]]:
        """Return stem, block1, transition1 … block4, last (not with FRMB) and, with FRAB or FRMB, reduction."""
        between = [f"{name}{number}" for number in range(1, 5) for name in ("block", "transition")]
        names = ["stem", *between, "last", "reduction"]
        return [(name, self.get_submodule(name)) for name in names if name in self._modules]

    def append_block(self, channels: int) -> None:
        """Add a transition without pooling, to `channels` channels."""
        self._narrow(channels)
        self.reduced = ("reduction.",)

    def replace_last_block(self, channels: int) -> None:
        """Replace the last BatchNorm by a transition, because a dense block cannot reduce its channels."""
        del self.last
        self._narrow(channels)
        self.reduced = ("reduction.", "last.")

    def _narrow(self, channels: int) -> None:
        self.reduction = Transition(self.channels[0], channels)
        init_convolutions(self.reduction)
        self.channels = (channels,)
