"""Video networks of torchvision without their classifiers: MViT, Video Swin, S3D, R3D-18 and MC3-18.

Sources: Fan et al., "Multiscale Vision Transformers" (arXiv 2104.11227); Li et al., "MViTv2" (2112.01526); Liu et al.,
"Video Swin Transformer" (2106.13230); Xie et al., "Rethinking Spatiotemporal Feature Learning" (S3D, 1712.04851); Tran
et al., "A Closer Look at Spatiotemporal Convolutions" (1711.11248).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from two_stream.backbones.base import (
    BACKBONES,
    OnMap,
    SizedBackbone,
    TokenBlock,
    flow_statistics,
    init_convolutions,
    input_width,
    pointwise_block,
    usual_resize,
)
from two_stream.config.backbones import MVIT, TorchvisionVideo
from two_stream.errors import SettingsError
from two_stream.types import FeatureMap, InputSpec, Modality

Stages = list[tuple[str, nn.Module]]


class MvitStem(nn.Module):
    """MViT's patch embedding, class token and absolute positions (v1)."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.conv_proj = net.conv_proj
        self.pos_encoding = net.pos_encoding

    def forward(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        """Return tokens `(B, 1 + positions, C)`, with the class token first."""
        y_BND: torch.Tensor = self.pos_encoding(self.conv_proj(x_BCTHW).flatten(2).transpose(1, 2))
        return y_BND


class MvitBlock(nn.Module):
    """A block of MViT for tokens of a fixed grid."""

    def __init__(self, block: nn.Module, grid: tuple[int, int, int]) -> None:
        super().__init__()
        self.block = block
        self.grid = grid

    def forward(self, x_BND: torch.Tensor) -> torch.Tensor:
        """Return tokens, fewer than the input if the block pools its queries."""
        y_BND: torch.Tensor = self.block(x_BND, self.grid)[0]
        return y_BND


class LastNorm(nn.Module):
    """Applies the last norm and returns a map; with `class_token`, only the class token as a map of one position."""

    def __init__(
        self, norm: nn.Module, grid: tuple[int, int, int] | None = None, class_token: bool = False
    ) -> None:
        super().__init__()
        self.norm = norm
        self.grid = (1, 1, 1) if class_token else grid
        self.class_token = class_token

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `(B, T, H, W, C)`, or with `grid` the tokens `(B, 1 + T*H*W, C)`, to `(B, C, T, H, W)`."""
        x = self.norm(x)
        if self.grid is not None:
            x = x[:, :1] if self.class_token else x[:, 1:]
            x = x.reshape(x.shape[0], *self.grid, x.shape[-1])
        return x.movedim(-1, 1)


def _mvit(net: Any, options: TorchvisionVideo) -> Stages:
    grid = (options.frames // 2, options.image_size // 4, options.image_size // 4)
    stages: Stages = [("stem", MvitStem(net))]
    for index, block in enumerate(net.blocks, start=1):
        stages.append((f"block{index}", MvitBlock(block, grid)))
        if block.pool_skip is not None:
            t, h, w = block.pool_skip.pool.stride
            grid = (grid[0] // t, grid[1] // h, grid[2] // w)
    return [*stages, ("norm", LastNorm(net.norm, grid, options.class_token))]


def _swin(net: Any, options: TorchvisionVideo) -> Stages:
    del options
    # a slice keeps torchvision's names of layers
    layers = [net.features[:1], *(net.features[index : index + 2] for index in (1, 3, 5))]
    stages = [(f"stage{index}", layer) for index, layer in enumerate(layers, start=1)]
    return [("stem", net.patch_embed), *stages, ("norm", LastNorm(net.norm))]


def _s3d(net: Any, options: TorchvisionVideo) -> Stages:
    del options
    bounds = {"stem": (0, 5), "layer1": (5, 7), "layer2": (7, 13), "layer3": (13, 16)}
    return [(name, net.features[first:end]) for name, (first, end) in bounds.items()]


def _resnet(net: Any, options: TorchvisionVideo) -> Stages:
    del options
    init_convolutions(net.stem)
    for part in net.modules():
        if isinstance(part, nn.Conv3d):
            part.__class__ = nn.Conv3d  # torchvision's subclasses only differ in `__init__`; streams and int8 read types
    return [(name, net.get_submodule(name)) for name in ("stem", "layer1", "layer2", "layer3", "layer4")]


@dataclass(frozen=True)
class TorchvisionFamily:
    """What torchvision's metadata does not state for code to read."""

    frames: int
    """clip length of the published accuracy"""
    stride: int
    """distance between frames for the published frame rate, in videos of 30 frames per second"""
    strides: tuple[int, int]
    """frames and pixels per position of the last map"""
    divide: Callable[[Any, TorchvisionVideo], Stages]
    last: str
    """last block"""


_MVIT = TorchvisionFamily(16, 4, (2, 32), _mvit, "block16")
_SWIN = TorchvisionFamily(32, 2, (2, 32), _swin, "stage4.6.1")
FAMILIES = {
    "mvit_v1_b": _MVIT,
    "mvit_v2_s": _MVIT,
    "swin3d_t": _SWIN,
    "swin3d_s": _SWIN,
    "swin3d_b": _SWIN,
    "s3d": TorchvisionFamily(128, 2, (8, 32), _s3d, "layer3.15"),
    "r3d_18": TorchvisionFamily(16, 2, (8, 16), _resnet, "layer4.1"),
    "mc3_18": TorchvisionFamily(16, 2, (1, 16), _resnet, "layer4.1"),
}


@BACKBONES.register(TorchvisionVideo)
class TorchvisionBackbone(SizedBackbone):
    """A network of `torchvision.models.video`, up to its last norm."""

    options: TorchvisionVideo
    setting = ("backbone.frames", "backbone.image_size")

    def __init__(self, options: TorchvisionVideo, modality: Modality, stack: int = 1) -> None:
        super().__init__(options, modality, stack)
        family = FAMILIES[options.name]
        mvit = options.name in MVIT
        net = _build(options, self.inputs)
        stages = family.divide(net, options)
        for name, stage in stages:
            self.add_module(name, stage)
        self.names = [name for name, _ in stages]
        self.attends = self.names[-1] == "norm"
        self.fixed = (options.frames, options.image_size) if mvit else (None, None)
        self.temporal_stride, self.spatial_stride = ((stride,) for stride in family.strides)
        if options.class_token:
            self.temporal_stride, self.spatial_stride = (options.frames,), (options.image_size,)
        classifier = next(part for part in reversed(list(net.modules())) if hasattr(part, "weight"))
        self.channels = (int(classifier.weight.shape[1]),)

    @classmethod
    def default_input(cls, options: TorchvisionVideo, modality: Modality) -> InputSpec:
        """Return size, mean and std of torchvision's Kinetics-400 weights, and the clip of their published accuracy.

        A frame whose short side torchvision resizes is resized to 4:3. For flow, zero motion becomes 0, and std is
        averaged over R, G and B.
        """
        from torchvision.models import get_model_weights

        found: Any = get_model_weights(options.name).DEFAULT.transforms()  # type: ignore[attr-defined]
        mean, std = tuple(found.mean), tuple(found.std)
        if modality == "flow":
            mean, std = flow_statistics((0.0, 1.0), std)
        family, mvit = FAMILIES[options.name], options.name in MVIT
        crop = options.image_size if mvit else int(found.crop_size[0])
        sides = tuple(found.resize_size)
        return InputSpec(
            modality=modality,
            clip_length=options.frames if mvit else family.frames,
            stride=family.stride,
            resize=sides if len(sides) == 2 else usual_resize(crop, found.crop_size[0] / sides[0]),
            crop=crop,
            value_range=(0.0, 1.0),
            mean=mean,
            std=std,
        )

    def check_input(self, spec: InputSpec) -> None:
        """Check the clip's length and size.

        Raises:
            SettingsError: They do not fit MViT's position embeddings, or nothing would be left after S3D's pooling.
        """
        super().check_input(spec)
        if self.num_tokens(spec.clip_length)[0] < 1 or (self.options.name == "s3d" and min(spec.size) < 17):
            raise SettingsError(
                f"backbone {self.options.name} pools a clip of {spec.clip_length} frames of {min(spec.size)} pixels to "
                "nothing; set `input.clip_length` to 5 or more and `input.crop` to 17 or more"
            )

    def num_tokens(self, clip_length: int) -> tuple[int, ...]:
        """Return the number of time steps; S3D's last pooling leaves out an odd frame."""
        if self.options.name == "s3d":
            return ((clip_length + 3) // 4 // 2,)
        return super().num_tokens(clip_length)

    def stages(self) -> list[tuple[str, nn.Module]]:
        """Return the stages in torchvision's order and, with FRAB, reduction."""
        names = [*self.names, "reduction"]
        return [(name, self.get_submodule(name)) for name in names if name in self._modules]

    def forward(self, x_BCTHW: torch.Tensor) -> list[FeatureMap]:
        """Map a normalised clip to one feature map."""
        if self.fixed != (None, None):
            self.check_clip(x_BCTHW)
        return super().forward(x_BCTHW)

    def append_block(self, channels: int) -> None:
        """Add a 1×1×1 convolution, BatchNorm and ReLU; for a transformer, LayerNorm, a linear layer and an MLP."""
        width = self.channels[0]
        block = OnMap(TokenBlock(width, channels)) if self.attends else None
        self.reduction = block or pointwise_block(width, channels, volumes=True)
        self.reduced = ("reduction.",)
        self.channels = (channels,)

    def replace_last_block(self, channels: int) -> None:
        """Replace the last block by the block of `append_block`; a last norm gets the new width."""
        home = FAMILIES[self.options.name].last
        parent, _, key = home.rpartition(".")
        width = input_width(self.get_submodule(home))
        new = TokenBlock(width, channels) if self.attends else pointwise_block(width, channels, volumes=True)
        self.get_submodule(parent).register_module(key, new)
        if self.attends:
            self.norm.norm = nn.LayerNorm(channels)
        self.reduced = (f"{home}.", *(("norm.",) if self.attends else ()))
        self.channels = (channels,)


def _build(options: TorchvisionVideo, channels: int) -> Any:
    """Return torchvision's network with random weights for clips with this number of channels."""
    from torchvision.models import video
    from torchvision.ops import StochasticDepth

    net = getattr(video, options.name)(num_classes=1)
    if options.name in MVIT:
        _resize_positions(net.pos_encoding, options.frames // 2, options.image_size // 4)
    if options.drop_path is not None:
        depths = [part for part in net.modules() if isinstance(part, StochasticDepth)]
        largest = depths[-1].p
        for part in depths:
            part.p *= options.drop_path / largest
    if channels != 3:
        name, old = next((name, part) for name, part in net.named_modules() if isinstance(part, nn.Conv3d))
        parent, _, key = name.rpartition(".")
        new = nn.Conv3d(
            channels, old.out_channels, old.kernel_size, old.stride, old.padding, bias=old.bias is not None
        )
        net.get_submodule(parent).register_module(key, new)
    return net


def _resize_positions(encoding: Any, time: int, side: int) -> None:
    """Set the grid of MViT's tokens; v1 gets new absolute positions, and v2 interpolates its relative ones."""
    encoding.temporal_size, encoding.spatial_size = time, (side, side)
    for name, count in (("temporal_pos", time), ("spatial_pos", side * side)):
        old = getattr(encoding, name)
        if old is not None and len(old) != count:
            new = torch.empty(count, old.shape[1])
            setattr(encoding, name, nn.Parameter(nn.init.trunc_normal_(new, std=0.02)))
