"""Time in 2D networks of timm: temporal shift (TSM) and inflation to 3D.

Sources: Lin et al., "TSM: Temporal Shift Module for Efficient Video Understanding" (arXiv 1811.08383); Carreira and
Zisserman, "Quo Vadis, Action Recognition?" (arXiv 1705.07750) for the inflation.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from two_stream.backbones.i3d import SameConv3d
from two_stream.errors import SettingsError

_SHIFTED = {
    ("resnet", "BasicBlock"): "conv1",
    ("resnet", "Bottleneck"): "conv1",
    ("regnet", "Bottleneck"): "conv1",
    ("convnext", "ConvNeXtBlock"): "conv_dw",
    ("_efficientnet_blocks", "InvertedResidual"): "conv_pw",
    ("_efficientnet_blocks", "EdgeResidual"): "conv_exp",
}
"""First convolution of each residual block that can be shifted, by timm's module and class."""
_PLAIN = {
    ("resnet", "BasicBlock"),
    ("resnet", "Bottleneck"),
    ("regnet", "RegStage"),
    ("regnet", "Bottleneck"),
    ("densenet", "DenseBlock"),
    ("densenet", "DenseLayer"),
    ("densenet", "DenseTransition"),
    ("_efficientnet_blocks", "InvertedResidual"),
    ("_efficientnet_blocks", "DepthwiseSeparableConv"),
    ("_efficientnet_blocks", "EdgeResidual"),
    ("_efficientnet_blocks", "ConvBnAct"),
    ("conv_bn_act", "ConvNormAct"),
    ("drop", "DropPath"),
}
"""Modules of timm whose forward passes work with any number of dimensions."""
_SAME = ("conv2d_same", "Conv2dSame")
"""TensorFlow's SAME padding in timm's networks whose weights come from there; a `SameConv3d` pads the same way."""
_TORCH_PLAIN = (nn.Sequential, nn.Identity, nn.Dropout)


class TemporalShift(nn.Module):
    """A layer whose input takes some channels from adjacent frames: the residual shift of TSM."""

    def __init__(self, layer: nn.Module, share: float) -> None:
        super().__init__()
        self.layer = layer
        self.share = share
        self.frames = 1
        """frames per clip, set before each pass"""

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        """Shift images `(B * T, C, H, W)`, then apply the layer."""
        y: torch.Tensor = self.layer(shifted(x_NCHW, self.frames, self.share))
        return y


def shifted(x_NCHW: torch.Tensor, frames: int, share: float) -> torch.Tensor:
    """Return images whose first channels are from the next frame, and the following ones from the previous frame.

    At the ends of a clip, shifted channels are 0.
    """
    x_BTCHW = x_NCHW.reshape(-1, frames, *x_NCHW.shape[1:])
    count = int(x_BTCHW.shape[2] * share)
    nothing = torch.zeros_like(x_BTCHW[:, :1, :count])
    following = torch.cat([x_BTCHW[:, 1:, :count], nothing], dim=1)
    preceding = torch.cat([nothing, x_BTCHW[:, :-1, count : 2 * count]], dim=1)
    return torch.cat([following, preceding, x_BTCHW[:, :, 2 * count :]], dim=2).flatten(0, 1)


def add_shifts(stages: list[tuple[str, nn.Module]], share: float, name: str) -> None:
    """Insert a shift before the first convolution of every residual block, in place.

    Raises:
        SettingsError: The network has no known residual block.
    """
    blocks = [
        (part, _SHIFTED[_kind(part)])
        for part in _modules(stages)
        if _kind(part) in _SHIFTED and _residual(part)
    ]
    if not blocks:
        raise SettingsError(
            f"`tsm` shifts the residual blocks of ResNet, RegNet, ConvNeXt, EfficientNet and MobileNet (V2, V3), but "
            f"{name} has none of these blocks; remove `tsm`"
        )
    for part, attribute in blocks:
        setattr(part, attribute, TemporalShift(getattr(part, attribute), share))


def inflate(stages: list[tuple[str, nn.Module]], kernel: int, name: str) -> None:
    """Give every convolution, norm and pooling layer of plain 2D stages a time dimension, in place.

    A kernel larger than 1×1 is repeated `kernel` times over time and divided by `kernel`, so that a clip of identical
    frames has the same response as the image. Kernels of 1×1 become 1×1×1, and pooling layers keep the number of
    frames.

    Raises:
        SettingsError: A part requires two dimensions.
    """
    for part in list(_modules(stages)):
        if not (_kind(part) in _PLAIN or type(part) in _TORCH_PLAIN or _replaceable(part)):
            raise SettingsError(
                "`inflate` requires a plain convolutional network (ResNet, VGG, DenseNet, MobileNetV2, RegNetX …), "
                f"but {name} contains {type(part).__name__}, which cannot be inflated; remove `inflate`, or use "
                "`tsm` instead"
            )
    for index, (stage, module) in enumerate(stages):
        stages[index] = (stage, _inflated(module, kernel))


def _inflated(module: nn.Module, kernel: int) -> nn.Module:
    """Return a module's 3D counterpart; containers are changed in place."""
    new = _volume(module, kernel)
    if new is not module:
        return new
    for child_name, child in module.named_children():
        setattr(module, child_name, _inflated(child, kernel))
    return module


def _volume(module: Any, kernel: int) -> nn.Module:
    if isinstance(module, nn.Conv2d):
        return _volume_convolution(module, kernel)
    if isinstance(module, nn.BatchNorm2d):
        norm = nn.BatchNorm3d(module.num_features, module.eps, module.momentum, module.affine)
        norm.load_state_dict({key: value for key, value in module.state_dict().items() if "." not in key})
        activation = getattr(module, "act", None)  # timm's norms may hold the activation behind them
        return norm if activation is None else nn.Sequential(norm, activation)
    if isinstance(module, nn.MaxPool2d):
        sizes = (_flat(module.kernel_size), _flat(module.stride), _flat(module.padding, 0))
        return nn.MaxPool3d(*sizes, ceil_mode=module.ceil_mode)
    if isinstance(module, nn.AvgPool2d):
        sizes = (_flat(module.kernel_size), _flat(module.stride), _flat(module.padding, 0))
        return nn.AvgPool3d(*sizes, ceil_mode=module.ceil_mode, count_include_pad=module.count_include_pad)
    assert isinstance(module, nn.Module)
    return module


def _volume_convolution(old: nn.Conv2d, kernel: int) -> nn.Conv3d:
    length = kernel if max(old.kernel_size) > 1 else 1
    assert not isinstance(old.padding, str)
    same = _kind(old) == _SAME
    new = (SameConv3d if same else nn.Conv3d)(
        old.in_channels,
        old.out_channels,
        _flat(old.kernel_size, length),
        stride=_flat(old.stride),
        padding=0 if same else _flat(old.padding, length // 2),
        dilation=_flat(old.dilation),
        groups=old.groups,
        bias=old.bias is not None,
    )
    with torch.no_grad():
        new.weight.copy_(old.weight.unsqueeze(2).expand_as(new.weight) / length)
        if old.bias is not None and new.bias is not None:
            new.bias.copy_(old.bias)
    return new


def _replaceable(part: nn.Module) -> bool:
    if type(part) is nn.Conv2d:
        return not isinstance(part.padding, str)
    if isinstance(part, nn.Conv2d) and _kind(part) == _SAME:
        return set(part.dilation) == {1}  # a `SameConv3d` has no dilation
    activation = type(part).__module__.startswith(("torch.nn.modules.activation", "timm.layers.activations"))
    return activation or _kind(part) == ("norm_act", "BatchNormAct2d") or type(part) in _TORCH_VOLUMES


_TORCH_VOLUMES = (nn.BatchNorm2d, nn.MaxPool2d, nn.AvgPool2d)


def _flat(size: int | tuple[int, ...], through_time: int = 1) -> tuple[int, int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    return through_time, height, width


def _kind(part: nn.Module) -> tuple[str, str]:
    return type(part).__module__.rsplit(".", maxsplit=1)[-1], type(part).__name__


def _residual(part: nn.Module) -> bool:
    """Whether the shifted branch is added to the unshifted input."""
    return bool(getattr(part, "has_skip", True))


def _modules(stages: list[tuple[str, nn.Module]]) -> Iterator[nn.Module]:
    for _, stage in stages:
        yield from stage.modules()
