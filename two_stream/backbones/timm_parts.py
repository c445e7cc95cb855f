"""Divides a network of timm into stages from the input to the last feature map, and finds its last block.

Networks of known families are divided, so that single stages can be frozen, be recomputed or have their own learning
rate. Any other network is one stage.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from two_stream.errors import SettingsError

Layout = Literal["nchw", "nhwc", "tokens"]


@dataclass
class TimmParts:
    """A network of timm without its classifier."""

    stages: list[tuple[str, nn.Module]]
    """named stages, which run one after another on images `(N, C, H, W)`"""
    layout: Layout = "nchw"
    """axes of the output: `(N, C, H, W)`, `(N, H, W, C)` or `(N, tokens, C)`"""
    stride: int = 32
    """pixels per position of the last feature map"""
    prefix: int = 0
    """number of leading tokens that do not belong to a position in the image (class token, registers)"""
    last: nn.Module | None = None
    """container whose last child is the last block; None if the last block is not known"""
    after: tuple[str, ...] = ()
    """stages after the last block that have the same width"""


def take_apart(net: Any, twin: Callable[[], Any], side: int) -> TimmParts:
    """Divide a network into stages.

    Args:
        net: Made by `timm.create_model(…, num_classes=0)`; some of its parts are taken out.
        twin: Builds the same network again, for unknown families.
        side: Image size to try such a network with.

    Raises:
        SettingsError: Its features are not a map to which a time dimension can be added.
    """
    from timm.models import convnext, densenet, efficientnet, mobilenetv3, regnet, resnet, vgg
    from timm.models import swin_transformer as swin
    from timm.models import vision_transformer as vit

    families: list[tuple[Any, Callable[[Any], TimmParts]]] = [
        (resnet.ResNet, _resnet),
        (convnext.ConvNeXt, _convnext),
        (regnet.RegNet, _regnet),
        (efficientnet.EfficientNet, _efficientnet),
        (mobilenetv3.MobileNetV3, _efficientnet),
        (vit.VisionTransformer, _vit),
        (swin.SwinTransformer, _swin),
        (vgg.VGG, _features),
        (densenet.DenseNet, _features),
    ]
    for family, divide in families:
        if (
            type(net).forward_features is family.forward_features
        ):  # a subclass with another order is not divided
            return divide(net)
    return _whole(net, twin, side)


class VitStem(nn.Module):
    """Patch embedding, positions and prefix tokens of a VisionTransformer; its other parts are removed."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        for name in ("blocks", "norm", "fc_norm", "head_drop", "head"):
            setattr(net, name, nn.Identity())
        net.attn_pool = None
        self.net = net

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        """Return tokens `(N, prefix + positions, C)`."""
        tokens = self.net._pos_embed(self.net.patch_embed(x_NCHW))
        y: torch.Tensor = self.net.norm_pre(self.net.patch_drop(tokens))
        return y


class Whole(nn.Module):
    """A network as a single stage."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        """Return timm's features."""
        features: torch.Tensor = self.net.forward_features(x_NCHW)
        return features


def _resnet(net: Any) -> TimmParts:
    stem = nn.Sequential(net.conv1, net.bn1, net.act1, net.maxpool)
    layers = [(f"layer{index}", net.get_submodule(f"layer{index}")) for index in (1, 2, 3, 4)]
    return TimmParts([("stem", stem), *layers], stride=_stride(net), last=net.layer4)


def _convnext(net: Any) -> TimmParts:
    stages = [(f"stage{index}", stage) for index, stage in enumerate(net.stages, start=1)]
    parts = TimmParts([("stem", net.stem), *stages], stride=_stride(net), last=net.stages[-1].blocks)
    if next(net.norm_pre.parameters(), None) is not None:
        parts.stages.append(("norm", net.norm_pre))
        parts.last = None
    return parts


def _regnet(net: Any) -> TimmParts:
    stages = [(f"stage{index}", net.get_submodule(f"s{index}")) for index in (1, 2, 3, 4)]
    parts = TimmParts([("stem", net.stem), *stages], stride=_stride(net), last=net.s4)
    if next(net.final_conv.parameters(), None) is not None:
        parts.stages.append(("last", net.final_conv))
        parts.after = ("last",)
    return parts


def _efficientnet(net: Any) -> TimmParts:
    """Divide EfficientNet, MobileNetV2 (with a convolution at the end) or MobileNetV3 (without it)."""
    from timm.models.mobilenetv3 import MobileNetV3

    stages = [(f"stage{index}", stage) for index, stage in enumerate(net.blocks, start=1)]
    stem = nn.Sequential(net.conv_stem, net.bn1)
    parts = TimmParts([("stem", stem), *stages], stride=_stride(net), last=net.blocks[-1])
    if type(net).forward_features is not MobileNetV3.forward_features:
        parts.stages.append(("last", nn.Sequential(net.conv_head, net.bn2)))
        parts.after = ("last",)
    return parts


def _vit(net: Any) -> TimmParts:
    blocks, norm = [nn.Sequential(block) for block in net.blocks], net.norm
    named = [(f"block{index}", block) for index, block in enumerate(blocks, start=1)]
    stride = int(net.patch_embed.feat_ratio())  # a hybrid has convolutions before its patches
    return TimmParts(
        [("stem", VitStem(net)), *named, ("norm", norm)],
        "tokens",
        stride=stride,
        prefix=net.num_prefix_tokens,
        last=blocks[-1],
        after=("norm",),
    )


def _swin(net: Any) -> TimmParts:
    stages = [(f"stage{index}", stage) for index, stage in enumerate(net.layers, start=1)]
    last = net.layers[-1].blocks
    parts = [("stem", net.patch_embed), *stages, ("norm", net.norm)]
    return TimmParts(parts, "nhwc", stride=_stride(net), last=last, after=("norm",))


def _features(net: Any) -> TimmParts:
    """Divide VGG or DenseNet, which are one sequence of layers."""
    return TimmParts([("features", net.features)], stride=_stride(net))


def _stride(net: Any) -> int:
    return int(net.feature_info[-1]["reduction"])


def _whole(net: Any, twin: Callable[[], Any], side: int) -> TimmParts:
    """Return a network as one stage, after running it on the meta device to find its output shape."""
    what = type(net).__name__
    with torch.device("meta"), torch.inference_mode(False), torch.enable_grad():
        trial = twin()
        weights: dict[str, torch.Tensor] = dict(trial.named_parameters())
        channels = next(weight for weight in weights.values() if weight.ndim == 4).shape[1]
        out = trial.forward_features(torch.empty(1, channels, side, side))
        if not isinstance(out, torch.Tensor) or out.ndim not in (3, 4):
            raise SettingsError(
                f"timm's {what} does not return a single feature map; choose a network that returns a map or tokens"
            )
        gradients = torch.autograd.grad(out.sum(), list(weights.values()), allow_unused=True)
    used = {name for name, gradient in zip(weights, gradients, strict=True) if gradient is not None}
    for name in weights.keys() - used:  # belong to the head
        net.get_parameter(name).requires_grad_(False)
    stages: list[tuple[str, nn.Module]] = [("net", Whole(net))]
    if out.ndim == 4:
        first = out.shape[1] == net.num_features
        return TimmParts(stages, "nchw" if first else "nhwc", stride=side // out.shape[2 if first else 1])
    prefix = int(getattr(net, "num_prefix_tokens", 0))
    places = round((out.shape[1] - prefix) ** 0.5)
    if places**2 + prefix != out.shape[1]:
        raise SettingsError(
            f"timm's {what} returns {out.shape[1]} tokens, which do not form a square map; choose another network"
        )
    return TimmParts(stages, "tokens", stride=side // places, prefix=prefix)
