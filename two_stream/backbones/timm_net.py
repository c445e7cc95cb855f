"""2D networks of timm, applied frame by frame, with TSM, or inflated to 3D.

Sources: Wightman, PyTorch Image Models (github.com/huggingface/pytorch-image-models); Wang et al., "Temporal Segment
Networks" (arXiv 1608.00859) for 2D networks with aggregation over frames.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from two_stream.backbones.base import (
    BACKBONES,
    READING_ERRORS,
    LibraryBackbone,
    OnMap,
    TokenBlock,
    flow_statistics,
    input_width,
    pointwise_block,
    reason,
    usual_resize,
)
from two_stream.backbones.timm_time import TemporalShift, add_shifts, inflate
from two_stream.config.backbones import TimmNet
from two_stream.errors import CheckpointError, SettingsError
from two_stream.types import FeatureMap, InputSpec, Modality

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
    """stages after the last block whose layers depend on its width"""


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
    """Return VGG or DenseNet as one stage, because timm builds each of them as one sequence of layers."""
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


_PICTURE_DEVIATION = 0.125
"""5 pixels of the ±20 that stored flow contains, in 0..1"""


@BACKBONES.register(TimmNet)
class TimmBackbone(LibraryBackbone):
    """A network of timm whose frames are processed as images and returned as one feature map."""

    options: TimmNet
    setting = ("", "backbone.image_size")

    def __init__(self, options: TimmNet, modality: Modality, net: Any = None, stack: int = 1) -> None:
        super().__init__(options, modality, stack)
        _check_motion(options, modality, stack)
        if options.picture and modality == "flow":
            self.inputs = 3
        side, fixed = _side(options)
        net = create(options, self.inputs) if net is None else net
        self.seen = 2 if options.difference == "beside" else 1
        """number of images per time step, whose features are concatenated"""
        self.channels = (self.seen * int(net.num_features),)
        parts = take_apart(net, lambda: create(options, self.inputs), side)
        if options.tsm:
            add_shifts(parts.stages, options.tsm, options.name)
        if options.inflate:
            inflate(parts.stages, options.inflate_kernel, options.name)
        for name, stage in parts.stages:
            self.add_module(name, stage)
        self.names = [name for name, _ in parts.stages]
        self.layout, self.prefix, self.after = parts.layout, parts.prefix, parts.after
        self.home: str | None = next(
            (name for name, part in self.named_modules() if part is parts.last), None
        )
        self.spatial_stride = (parts.stride,)
        self.temporal_stride = (options.temporal_stride * (1 if options.difference == "none" else 2),)
        self.fixed = (None, side if fixed else None)

    @classmethod
    def default_input(cls, options: TimmNet, modality: Modality) -> InputSpec:
        """Return the default input: 16 frames with stride 4, with the size, mean and std of timm's weights.

        For flow, zero motion becomes 0, and std is averaged over R, G and B; with `picture`, 5 pixels of motion become
        1. With `difference`, a clip contains a pair of adjacent frames from each of 16 equal parts of the video.
        """
        found = _published(options.name)
        mean, std = tuple(found.mean), tuple(found.std)
        if modality == "flow":
            mean, std = flow_statistics((0.0, 1.0), std)
            std = (_PICTURE_DEVIATION,) * 2 if options.picture else std
        crop, _ = _side(options)
        pairs = options.difference != "none"
        return InputSpec(
            modality=modality,
            clip_length=32 if pairs else 16,
            stride=1 if pairs else 4,
            segments=16 if pairs else 0,
            resize=usual_resize(crop, found.crop_pct or 0.875),
            crop=crop,
            value_range=(0.0, 1.0),
            mean=mean,
            std=std,
        )

    def check_input(self, spec: InputSpec) -> None:
        """Check the image size, and with `difference` check that the clip consists of pairs of frames."""
        super().check_input(spec)
        if self.options.difference != "none" and spec.clip_length % (2 * max(1, spec.segments)):
            raise SettingsError(
                f"`backbone.difference` uses pairs of frames, but `input.clip_length` {spec.clip_length} is not "
                + (
                    f"a multiple of twice `input.segments` {spec.segments}"
                    if spec.segments
                    else "an even number"
                )
            )

    def stages(self) -> list[tuple[str, nn.Module]]:
        """Return the stages in timm's order and, with FRAB, reduction."""
        names = [*self.names, "reduction"]
        return [(name, self.get_submodule(name)) for name in names if name in self._modules]

    def forward_map(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        """Return the network's map `(B, C, T, H, W)`, before it is averaged over frames and reduced by FRAB."""
        if self.options.tsm:
            for part in self.modules():
                if isinstance(part, TemporalShift):
                    part.frames = x_BCTHW.shape[2]
        x = x_BCTHW if self.options.inflate else x_BCTHW.transpose(1, 2).flatten(0, 1)
        for name in self.names:
            if name in self._modules:
                x = self.run_stage(self.get_submodule(name), x)
        return self.maps_of_stage(self.names[-1], x, x_BCTHW.shape)[0]

    def maps_of_stage(self, name: str, x: Any, clip_BCTHW: torch.Size) -> tuple[torch.Tensor, ...]:
        """Return the images' outputs as one map; prefix tokens are left out."""
        if self.options.inflate or name == "reduction":
            return (x,)
        if self.layout == "tokens":
            grid = [size // self.spatial_stride[0] for size in clip_BCTHW[3:]]
            x = x[:, self.prefix :].reshape(x.shape[0], *grid, -1)
        if self.layout != "nchw":
            x = x.permute(0, 3, 1, 2)
        return (x.reshape(clip_BCTHW[0], -1, *x.shape[1:]).transpose(1, 2),)

    def forward(self, x_BCTHW: torch.Tensor) -> list[FeatureMap]:
        """Map a normalised clip to one feature map; frames are processed separately unless inflated."""
        self.check_clip(x_BCTHW)
        x_BCTHW = torch.cat([self.forward_map(images) for images in self._images(x_BCTHW)], 1)
        step = self.options.temporal_stride
        if step > 1:
            x_BCTHW = F.avg_pool3d(x_BCTHW, (step, 1, 1), ceil_mode=True)
        if "reduction" in self._modules:
            x_BCTHW = self.run_stage(self.reduction, x_BCTHW)
        return [FeatureMap(x_BCTHW, self.pathways[0])]

    def _images(self, x_BCTHW: torch.Tensor) -> list[torch.Tensor]:
        """Return the network's input for a normalised clip."""
        if self.modality == "flow":
            return [_picture(x_BCTHW)] if self.options.picture else [x_BCTHW]
        if self.options.difference == "none":
            return [x_BCTHW]
        first, second = x_BCTHW[:, :, ::2], x_BCTHW[:, :, 1::2]
        # twice the difference, within what an image contains: a change of a quarter of the range is a strong one
        change = (2.0 * (second - first)).clamp(-1.0, 1.0)
        return [first, change] if self.options.difference == "beside" else [change]

    def append_block(self, channels: int) -> None:
        """Add a 1×1×1 convolution, BatchNorm and ReLU; for a transformer, add LayerNorm, a linear layer and an MLP."""
        self.reduction: nn.Module
        if self.layout == "nchw":
            self.reduction = pointwise_block(self.channels[0], channels, volumes=True)
        else:
            self.reduction = OnMap(TokenBlock(self.channels[0], channels))
        self.reduced = ("reduction.",)
        self.channels = (channels,)

    def replace_last_block(self, channels: int) -> None:
        """Replace the last block and any convolution after it by a narrower block, which is 2D unless inflated.

        Raises:
            SettingsError: The last block of this network is unknown.
        """
        if self.home is None:
            raise SettingsError(
                f"the last block of {self.options.name} is not known, so it cannot be replaced; use `reduction: frab`"
            )
        container = self.get_submodule(self.home)
        key, old = list(container.named_children())[-1]
        inputs, stride = input_width(old), _block_stride(old)
        new: nn.Module
        if self.layout == "nchw":
            new = pointwise_block(inputs, channels, stride=stride, volumes=self.options.inflate)
        else:
            new = TokenBlock(inputs, channels)
        container.register_module(key, new)
        self.reduced = (f"{self.home}.{key}.", *(f"{name}." for name in self.after))
        for name in self.after:
            if name == "norm":
                self.norm = nn.LayerNorm(channels)
            else:
                delattr(self, name)
        self.channels = (self.seen * channels,)

    def donor(self, state: Mapping[str, torch.Tensor] | None, source: str) -> tuple[TimmBackbone, str]:
        """Return the network for RGB with the tensors `state`, or with timm's weights if `state` is None.

        Raises:
            CheckpointError: They cannot be fetched or do not fit.
        """
        options, last = self.options, CheckpointError("")
        source = f"timm's weights of {options.name}" if state is None else source
        for classes in _classes(options.name, state):
            overlay = (
                None
                if state is None
                else {"state_dict": dict(state), "num_classes": classes, "label_offset": 0}
            )
            try:
                net = create(options, 3, classes=classes, pretrained=True, overlay=overlay)
            except READING_ERRORS as error:
                what = "cannot be fetched" if state is None else "does not fit"
                hint = "; set `backbone.weights` to use a local file" if state is None else ""
                last = CheckpointError(f"{source} {what} ({reason(error)}){hint}")
                continue
            net.reset_classifier(0)
            return TimmBackbone(options, "rgb", net), source
        raise last


def _check_motion(options: TimmNet, modality: Modality, stack: int) -> None:
    """Check that `difference` is used for RGB, and `picture` with one flow field."""
    if options.difference != "none" and modality == "flow":
        raise SettingsError(
            f"`backbone.difference: {options.difference}` is only for RGB; remove `difference` for `model.modality: "
            "flow`"
        )
    if options.picture and modality == "flow" and stack > 1:
        raise SettingsError(
            f"`backbone.picture` uses one flow field, but `input.stack` is {stack}; set `input.stack` to 1"
        )


def _picture(x_BCTHW: torch.Tensor) -> torch.Tensor:
    """Return x, y and magnitude of normalised flow as three channels from -1 to 1, like an image."""
    magnitude_B1THW = torch.linalg.vector_norm(x_BCTHW, dim=1, keepdim=True)
    return torch.cat((x_BCTHW, magnitude_B1THW - 1.0), 1).clamp(-1.0, 1.0)


def _classes(name: str, state: Mapping[str, torch.Tensor] | None) -> list[int | None]:
    """Return the possible numbers of classes of `state`; timm reports missing tensors only if this number is right."""
    if state is None:
        return [None]
    found = _published(name)
    keys = [found.classifier] if isinstance(found.classifier, str) else list(found.classifier or ())
    counts = [len(state[f"{key}.weight"]) for key in keys if f"{key}.weight" in state]
    return [counts[0]] if counts else [0, found.num_classes]


def create(
    options: TimmNet,
    channels: int,
    *,
    classes: int | None = 0,
    pretrained: bool = False,
    overlay: Any = None,
) -> Any:
    """Build a network of timm with a number of classes; 0: no classifier; None: timm's default.

    Raises:
        SettingsError: Unknown name, or an option that this network does not have.
    """
    import timm

    _require_name(options.name)
    more: dict[str, Any] = {} if classes is None else {"num_classes": classes}
    if options.image_size is not None:
        more["img_size"] = options.image_size
    if options.drop_path:
        more["drop_path_rate"] = options.drop_path
    try:
        return timm.create_model(
            options.name,
            pretrained=pretrained,
            in_chans=channels,
            pretrained_cfg_overlay=overlay,
            **more,
        )
    except TypeError as error:
        given = {"img_size": "image_size", "drop_path_rate": "drop_path"}
        name = next((given[key] for key in more if key in str(error)), None)
        if name is None:
            raise
        raise SettingsError(f"timm's {options.name} has no option `{name}`; remove the option") from None


def _require_name(name: str) -> None:
    import timm

    if timm.is_model(name):
        plain, _, tag = name.partition(".")
        if not tag or name in (tags := timm.list_pretrained(f"{plain}.*")):
            return
        raise SettingsError(
            f"timm has no weights {name!r}; its weights for this network: {', '.join(tags) or 'none'}"
        )
    close = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else "see `timm.list_models()`"
    raise SettingsError(f"`backbone.name` {name!r} is not a timm network; {hint}")


def _published(name: str) -> Any:
    """Return timm's metadata for weights with this name."""
    from timm.models import get_pretrained_cfg

    _require_name(name)
    found = get_pretrained_cfg(name)
    if found is None:
        raise SettingsError(f"timm does not specify the input of {name!r}; choose another network")
    return found


def _side(options: TimmNet) -> tuple[int, bool]:
    """Return the default image size, and whether it is fixed."""
    found = _published(options.name)
    return options.image_size or int(found.input_size[-1]), bool(found.fixed_input_size)


def _block_stride(block: nn.Module) -> int:
    strides = [part.stride[-1] for part in block.modules() if isinstance(part, (nn.Conv2d, nn.Conv3d))]
    return max(strides, default=1)
