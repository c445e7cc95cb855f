"""C3D with BatchNorm.

Sources: Tran et al., "Learning Spatiotemporal Features with 3D Convolutional Networks" (arXiv 1412.0767); with
BatchNorm in Köpüklü et al., "Resource Efficient 3D Convolutional Neural Networks" (arXiv 1904.02422).

The two fully connected layers are implemented as convolutions over the full size of the last feature map. For a clip of
16 frames, the result equals that of linear layers; a longer clip yields about one token per 16 frames.
"""

from __future__ import annotations

from torch import nn

from two_stream.backbones.base import BACKBONES, Backbone, init_convolutions, split_temporal_stride
from two_stream.config.backbones import C3d
from two_stream.errors import SettingsError
from two_stream.types import Modality

GROUPS = ((64,), (128,), (256, 256), (512, 512), (512, 512))
"""Channels of the convolutions before each pooling."""


class Connected(nn.Sequential):
    """Fully connected layer: a convolution over the full height and width, ReLU and dropout."""

    def __init__(self, inputs: int, outputs: int, side: int) -> None:
        super().__init__(nn.Conv3d(inputs, outputs, (1, side, side)), nn.ReLU(inplace=True), nn.Dropout(0.5))


@BACKBONES.register(C3d)
class C3D(Backbone):
    """Five groups of convolutions with pooling, followed by two fully connected layers."""

    def __init__(self, options: C3d, modality: Modality, stack: int = 1) -> None:
        super().__init__(options, modality, stack)
        inputs = self.inputs
        strides = [1, *split_temporal_stride(options.temporal_stride, 4)]
        for number, widths in enumerate(GROUPS, start=1):
            group = nn.Sequential()
            for width in widths:
                width = max(1, int(width * options.width))
                group += nn.Sequential(
                    nn.Conv3d(inputs, width, 3, padding=1), nn.BatchNorm3d(width), nn.ReLU(inplace=True)
                )
                inputs = width
            group.append(_pool(number, strides[number - 1]))
            self.add_module(f"group{number}", group)
        connected = max(1, int(4096 * options.width))
        self.fc6 = Connected(inputs, connected, options.side)
        self.fc7 = Connected(connected, connected, 1)
        self.channels = (connected,)
        self.temporal_stride = (options.temporal_stride,)
        self.spatial_stride = (32 * options.side,)
        init_convolutions(self)

    def num_tokens(self, clip_length: int) -> tuple[int, ...]:
        """Return the number of tokens of a clip, about one for every `temporal_stride` frames.

        Raises:
            SettingsError: The clip is too short for a token.
        """
        *middle, last = split_temporal_stride(self.options.temporal_stride, 4)
        steps = clip_length - 1
        for stride in middle:
            steps //= stride
        if steps < 1:
            raise SettingsError(
                f"c3d: a clip of {clip_length} frames is shorter than a token of {self.options.temporal_stride} "
                "frames; use `input.clip_length` "
                f"{self.options.temporal_stride} or more, or a smaller `backbone.temporal_stride`"
            )
        return (-(-steps // last),)

    def stages(self) -> list[tuple[str, nn.Module]]:
        """Return the stages group1 … group5, fc6, fc7 (not with FRMB) and, with FRAB, reduction."""
        names = (*(f"group{number}" for number in range(1, 6)), "fc6", "fc7", "reduction")
        return [(name, self.get_submodule(name)) for name in names if name in self._modules]

    def append_block(self, channels: int) -> None:
        """Add a fully connected layer from 4096 to `channels` channels."""
        self.reduction = self._narrowing(channels)
        self.reduced = ("reduction.",)
        self.channels = (channels,)

    def replace_last_block(self, channels: int) -> None:
        """Replace the last layer by a layer with `channels` outputs."""
        self.fc7 = self._narrowing(channels)
        self.reduced = ("fc7.",)
        self.channels = (channels,)

    def _narrowing(self, channels: int) -> Connected:
        block = Connected(self.channels[0], channels, 1)
        init_convolutions(block)
        return block


def _pool(number: int, time: int) -> nn.MaxPool3d:
    """Return the pooling after a group; the first pooling keeps the frame rate, the last one pads the borders."""
    if number == 1:
        return nn.MaxPool3d(2, stride=(1, 2, 2))
    if number == len(GROUPS):
        return nn.MaxPool3d((1, 2, 2), stride=(time, 2, 2), padding=(0, 1, 1))
    return nn.MaxPool3d((time, 2, 2))
