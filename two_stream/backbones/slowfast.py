"""SlowFast: a wide network on few frames and a thin network on many frames.

Source: Feichtenhofer et al., "SlowFast Networks for Video Recognition" (arXiv 1812.03982); layer sizes as in
PySlowFast's 8×8 ResNet-50. FRAB, FRMB and early fusion follow Kalfaoglu et al. (arXiv 2008.01232).
"""

from __future__ import annotations

from math import ceil

import torch
from torch import nn
from torch.nn import functional as F

from two_stream.backbones.base import BACKBONES, Backbone, init_convolutions
from two_stream.backbones.blocks import Bottleneck, Projection, ResidualBlock, Stride
from two_stream.config.backbones import SlowFast
from two_stream.types import MODALITY_CHANNELS, FeatureMap, InputSpec, Modality

Pair = tuple[torch.Tensor, torch.Tensor]
"""Slow and fast."""

LAYERS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
"""Blocks in each of the four layers, by depth."""
SLOW_KERNELS = (1, 1, 3, 3)
"""Length in time of each layer's first convolution; the fast pathway has 3 everywhere."""
FAST_SHARE = 4
"""The paper's reduction leaves the fast pathway a fourth of the slow one's channels: 512 and 128."""


class FactoredBottleneck(ResidualBlock):
    """`kernel`×1×1, 1×3×3 (with the stride) and 1×1×1 convolutions, with `middle` inner channels."""

    def __init__(self, inputs: int, middle: int, outputs: int, kernel: int, stride: Stride) -> None:
        narrow = inputs != outputs or stride != (1, 1, 1)
        super().__init__(Projection(inputs, outputs, stride) if narrow else None)
        self.conv1 = nn.Conv3d(inputs, middle, (kernel, 1, 1), padding=(kernel // 2, 0, 0), bias=False)
        self.bn1 = nn.BatchNorm3d(middle)
        self.conv2 = nn.Conv3d(middle, middle, (1, 3, 3), stride=stride, padding=(0, 1, 1), bias=False)
        self.bn2 = nn.BatchNorm3d(middle)
        self.conv3 = nn.Conv3d(middle, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm3d(outputs)

    def body(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        """Return the output of the body, without the shortcut."""
        x_BCTHW = self.relu(self.bn1(self.conv1(x_BCTHW)))
        x_BCTHW = self.relu(self.bn2(self.conv2(x_BCTHW)))
        y_BCTHW: torch.Tensor = self.bn3(self.conv3(x_BCTHW))
        return y_BCTHW


class SlowFastStage(nn.Module):
    """One stage of both pathways, with an optional `lateral` connection from the fast to the slow pathway."""

    def __init__(self, slow: nn.Module, fast: nn.Module, lateral: nn.Module | None = None) -> None:
        super().__init__()
        self.slow = slow
        self.fast = fast
        self.lateral = lateral

    def forward(self, x: Pair) -> Pair:
        """Run the stage on the maps of the slow and the fast pathway."""
        slow, fast = self.slow(x[0]), self.fast(x[1])
        if self.lateral is not None:
            slow = torch.cat((slow, self.lateral(fast)), dim=1)
        return slow, fast


@BACKBONES.register(SlowFast)
class SlowFast3D(Backbone):
    """A slow and a fast pathway over one clip; `fusion` determines whether each pathway has its own head."""

    def __init__(self, options: SlowFast, modality: Modality, stack: int = 1) -> None:
        super().__init__(options, modality, stack)
        slow, fast = int(64 * options.width), int(8 * options.width)
        self.stem = SlowFastStage(self._stem(slow, kernel=1), self._stem(fast, kernel=5), self._lateral(fast))
        slow_inputs, fast_inputs = slow + 2 * fast, fast
        for index, blocks in enumerate(LAYERS[options.depth], start=1):
            scale = 2 ** (index - 1)
            stride = 1 if index == 1 else 2
            kernel = SLOW_KERNELS[index - 1]
            slow_layer = self._layer(slow_inputs, slow * scale, blocks, kernel, stride)
            fast_layer = self._layer(fast_inputs, fast * scale, blocks, 3, stride)
            slow_inputs, fast_inputs = 4 * slow * scale, 4 * fast * scale
            lateral = self._lateral(fast_inputs) if index < 4 else None
            self.add_module(f"layer{index}", SlowFastStage(slow_layer, fast_layer, lateral))
            slow_inputs += 2 * fast_inputs if index < 4 else 0
        self._describe(slow_inputs, fast_inputs)
        init_convolutions(self)

    def _stem(self, channels: int, kernel: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv3d(
                self.inputs,
                channels,
                (kernel, 7, 7),
                stride=(1, 2, 2),
                padding=(kernel // 2, 3, 3),
                bias=False,
            ),
            nn.BatchNorm3d(channels),
            nn.ReLU(inplace=True),
            nn.MaxPool3d((1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1)),
        )

    def _lateral(self, channels: int) -> nn.Sequential:
        """Return a convolution that reduces the fast map to the slow frame rate and doubles its channels."""
        kernel, alpha = self.options.fusion_kernel, self.options.alpha
        return nn.Sequential(
            nn.Conv3d(
                channels,
                2 * channels,
                (kernel, 1, 1),
                stride=(alpha, 1, 1),
                padding=(kernel // 2, 0, 0),
                bias=False,
            ),
            nn.BatchNorm3d(2 * channels),
            nn.ReLU(inplace=True),
        )

    @staticmethod
    def _layer(inputs: int, middle: int, blocks: int, kernel: int, stride: int) -> nn.Sequential:
        outputs = 4 * middle
        first = FactoredBottleneck(inputs, middle, outputs, kernel, (1, stride, stride))
        rest = [FactoredBottleneck(outputs, middle, outputs, kernel, (1, 1, 1)) for _ in range(blocks - 1)]
        return nn.Sequential(first, *rest)

    def _describe(self, slow: int, fast: int) -> None:
        """Set the number of channels and the stride of the outputs."""
        self.widths = (slow, fast)
        slow_stride = self.options.fast_stride * self.options.alpha
        if self.options.fusion == "early":
            self.pathways = ("joined",)
            self.channels, self.temporal_stride, self.spatial_stride = (slow + fast,), (slow_stride,), (32,)
        else:
            self.pathways = ("slow", "fast")
            self.channels = (slow, fast)
            self.temporal_stride = (slow_stride, self.options.fast_stride)
            self.spatial_stride = (32, 32)

    @classmethod
    def default_input(cls, options: SlowFast, modality: Modality) -> InputSpec:
        """Return the input of PySlowFast's weights, also for flow: values 0..1, mean .45, standard deviation .225."""
        channels = MODALITY_CHANNELS[modality]
        return InputSpec(
            modality=modality,
            clip_length=32 * options.fast_stride,
            stride=2 if options.fast_stride == 1 else 1,
            resize=(256, 340),
            crop=224,
            value_range=(0.0, 1.0),
            mean=(0.45,) * channels,
            std=(0.225,) * channels,
        )

    def num_tokens(self, clip_length: int) -> tuple[int, ...]:
        """Return the number of time steps of the slow map and, with late fusion, of the fast map."""
        fast = ceil(clip_length / self.options.fast_stride)
        slow = ceil(fast / self.options.alpha)
        return (slow,) if self.options.fusion == "early" else (slow, fast)

    def stages(self) -> list[tuple[str, nn.Module]]:
        """Return the stages stem, layer1 … layer4 and, with FRAB, reduction; each stage contains both pathways."""
        names = ["stem", "layer1", "layer2", "layer3", "layer4"]
        names += ["reduction"] if "reduction" in self._modules else []
        return [(name, self.get_submodule(name)) for name in names]

    def forward(self, x_BCTHW: torch.Tensor) -> list[FeatureMap]:
        """Map a clip to the slow and the fast map, or with early fusion to one map at the slow frame rate."""
        fast = x_BCTHW[:, :, :: self.options.fast_stride]
        x: Pair = (self._slow_frames(fast), fast)
        for _, stage in self.stages():
            x = self.run_stage(stage, x)
        if self.options.fusion == "late":
            return [FeatureMap(map_, name) for map_, name in zip(x, self.pathways, strict=True)]
        slow, fast = x
        fast = F.adaptive_avg_pool3d(fast, (slow.shape[2], None, None))
        return [FeatureMap(torch.cat((slow, fast), dim=1), self.pathways[0])]

    def _slow_frames(self, fast_BCTHW: torch.Tensor) -> torch.Tensor:
        alpha, length = self.options.alpha, fast_BCTHW.shape[2]
        if not self.options.spread:
            return fast_BCTHW[:, :, ::alpha]
        numbers = torch.linspace(0, length - 1, ceil(length / alpha)).long()
        return fast_BCTHW.index_select(2, numbers.to(fast_BCTHW.device))

    def append_block(self, channels: int) -> None:
        """Add a block after layer4 of the slow pathway that reduces it to `channels`.

        With early fusion, also add a block that reduces the fast pathway to a quarter of `channels`.
        """
        slow, fast = self.widths
        narrowed = self._fast_channels(channels)
        self.reduction = SlowFastStage(
            _narrowing(slow, channels), _narrowing(fast, narrowed) if narrowed else nn.Identity()
        )
        self.reduced = ("reduction.",)
        self._describe(channels, narrowed or fast)

    def replace_last_block(self, channels: int) -> None:
        """Replace the last block of layer4 by a narrower block, in the same pathways as `append_block`."""
        slow, fast = self.widths
        narrowed = self._fast_channels(channels)
        self.reduced = (self._replace_last("slow", _narrowing(slow, channels)),)
        if narrowed:
            self.reduced += (self._replace_last("fast", _narrowing(fast, narrowed)),)
        self._describe(channels, narrowed or fast)

    def _replace_last(self, pathway: str, block: nn.Module) -> str:
        """Replace the last block of a pathway and return the prefix of its parameters."""
        layer = self.get_submodule(f"layer4.{pathway}")
        assert isinstance(layer, nn.Sequential)
        layer[-1] = block
        return f"layer4.{pathway}.{len(layer) - 1}."

    def _fast_channels(self, channels: int) -> int:
        """Return the number of channels of the reduced fast pathway; 0 if it has its own head and is not reduced."""
        return max(1, channels // FAST_SHARE) if self.options.fusion == "early" else 0


def _narrowing(inputs: int, channels: int) -> Bottleneck:
    """Return the published reduction block: a full 3×3×3 bottleneck instead of SlowFast's factored bottleneck."""
    block = Bottleneck(
        inputs, max(1, channels // 2), channels, downsample=Projection(inputs, channels, (1, 1, 1))
    )
    init_convolutions(block)
    return block
