"""Residual blocks of the 3D ResNet family. Parameter names follow the codebase 3D-ResNets."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import nn
from torch.nn import functional as F

Stride = tuple[int, int, int]


def conv3x3x3(inputs: int, outputs: int, stride: Stride = (1, 1, 1), groups: int = 1) -> nn.Conv3d:
    """Return a 3×3×3 convolution that keeps the size if the stride is 1."""
    return nn.Conv3d(inputs, outputs, 3, stride=stride, padding=1, groups=groups, bias=False)


def conv1x1x1(inputs: int, outputs: int, stride: Stride = (1, 1, 1)) -> nn.Conv3d:
    """Return a pointwise convolution."""
    return nn.Conv3d(inputs, outputs, 1, stride=stride, bias=False)


class PaddedIdentity(nn.Module):
    """Shortcut A: every `stride`-th value, with zero channels appended.

    The published code stops the gradient of this shortcut (`.data`); this implementation does not.
    """

    def __init__(self, outputs: int, stride: Stride) -> None:
        super().__init__()
        self.outputs = outputs
        self.stride = stride

    def forward(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        """Return `(B, outputs, T/s, H/s, W/s)`."""
        t, h, w = self.stride
        x_BCTHW = x_BCTHW[:, :, ::t, ::h, ::w]
        return F.pad(x_BCTHW, (0, 0, 0, 0, 0, 0, 0, self.outputs - x_BCTHW.shape[1]))


class Projection(nn.Sequential):
    """Shortcut B: 1×1×1 convolution and BatchNorm."""

    def __init__(self, inputs: int, outputs: int, stride: Stride) -> None:
        super().__init__(conv1x1x1(inputs, outputs, stride), nn.BatchNorm3d(outputs))


class ResidualBlock(nn.Module, ABC):
    """Sum of shortcut and body, followed by ReLU. `downsample` is the shortcut if the shape changes."""

    def __init__(self, downsample: nn.Module | None) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    @abstractmethod
    def body(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        """Return the output of the body, without the shortcut."""

    def forward(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        """Return the output of the block for a map `(B, C, T, H, W)`."""
        y_BCTHW: torch.Tensor = self.relu(self.summed(x_BCTHW))
        return y_BCTHW

    def summed(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        """Return shortcut plus body, before the ReLU."""
        shortcut = x_BCTHW if self.downsample is None else self.downsample(x_BCTHW)
        out = self.body(x_BCTHW)
        out += shortcut
        return out


class BasicBlock(ResidualBlock):
    """Two 3×3×3 convolutions."""

    def __init__(
        self, inputs: int, outputs: int, stride: Stride = (1, 1, 1), downsample: nn.Module | None = None
    ) -> None:
        super().__init__(downsample)
        self.conv1 = conv3x3x3(inputs, outputs, stride)
        self.bn1 = nn.BatchNorm3d(outputs)
        self.conv2 = conv3x3x3(outputs, outputs)
        self.bn2 = nn.BatchNorm3d(outputs)

    def body(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        """Return the output of the body, without the shortcut."""
        x_BCTHW = self.relu(self.bn1(self.conv1(x_BCTHW)))
        y_BCTHW: torch.Tensor = self.bn2(self.conv2(x_BCTHW))
        return y_BCTHW


class Bottleneck(ResidualBlock):
    """1×1×1, 3×3×3 and 1×1×1 convolutions; the 3×3×3 convolution has `middle` channels in `groups` groups."""

    def __init__(
        self,
        inputs: int,
        middle: int,
        outputs: int,
        stride: Stride = (1, 1, 1),
        downsample: nn.Module | None = None,
        groups: int = 1,
    ) -> None:
        super().__init__(downsample)
        self.conv1 = conv1x1x1(inputs, middle)
        self.bn1 = nn.BatchNorm3d(middle)
        self.conv2 = conv3x3x3(middle, middle, stride, groups)
        self.bn2 = nn.BatchNorm3d(middle)
        self.conv3 = conv1x1x1(middle, outputs)
        self.bn3 = nn.BatchNorm3d(outputs)

    def body(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        """Return the output of the body, without the shortcut."""
        x_BCTHW = self.relu(self.bn1(self.conv1(x_BCTHW)))
        x_BCTHW = self.relu(self.bn2(self.conv2(x_BCTHW)))
        y_BCTHW: torch.Tensor = self.bn3(self.conv3(x_BCTHW))
        return y_BCTHW


class PreActivationBlock(BasicBlock):
    """Two 3×3×3 convolutions, each preceded by BatchNorm and ReLU; no ReLU follows the sum."""

    def __init__(
        self, inputs: int, outputs: int, stride: Stride = (1, 1, 1), downsample: nn.Module | None = None
    ) -> None:
        super().__init__(inputs, outputs, stride, downsample)
        self.bn1 = nn.BatchNorm3d(inputs)

    def body(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        """Return the output of the body, without the shortcut."""
        x_BCTHW = self.conv1(self.relu(self.bn1(x_BCTHW)))
        y_BCTHW: torch.Tensor = self.conv2(self.relu(self.bn2(x_BCTHW)))
        return y_BCTHW

    def forward(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        """Return the output of the block for a map `(B, C, T, H, W)`."""
        return self.summed(x_BCTHW)


class PreActivationBottleneck(Bottleneck):
    """The convolutions of `Bottleneck`, each preceded by BatchNorm and ReLU; no ReLU follows the sum."""

    def __init__(
        self,
        inputs: int,
        middle: int,
        outputs: int,
        stride: Stride = (1, 1, 1),
        downsample: nn.Module | None = None,
    ) -> None:
        super().__init__(inputs, middle, outputs, stride, downsample)
        self.bn1 = nn.BatchNorm3d(inputs)
        self.bn3 = nn.BatchNorm3d(middle)

    def body(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        """Return the output of the body, without the shortcut."""
        x_BCTHW = self.conv1(self.relu(self.bn1(x_BCTHW)))
        x_BCTHW = self.conv2(self.relu(self.bn2(x_BCTHW)))
        y_BCTHW: torch.Tensor = self.conv3(self.relu(self.bn3(x_BCTHW)))
        return y_BCTHW

    def forward(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        """Return the output of the block for a map `(B, C, T, H, W)`."""
        return self.summed(x_BCTHW)
