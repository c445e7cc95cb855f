"""Video networks of torchvision without their classifiers: MViT, Video Swin, S3D, R3D-18 and MC3-18.

Sources: Fan et al., "Multiscale Vision Transformers" (arXiv 2104.11227); Li et al., "MViTv2" (2112.01526); Liu et al.,
"Video Swin Transformer" (2106.13230); Xie et al., "Rethinking Spatiotemporal Feature Learning" (S3D, 1712.04851); Tran
et al., "A Closer Look at Spatiotemporal Convolutions" (1711.11248).
"""

from __future__ import annotations

from typing import Any, NamedTuple

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
    """A block of MViT for tokens of a fixed grid `(T, H, W)`; `outputs` is the grid after the block."""

    def __init__(self, block: nn.Module, grid: tuple[int, ...], outputs: tuple[int, ...]) -> None:
        super().__init__()
        self.block = block
        self.grid = grid
        self.outputs = outputs

    def forward(self, x_BND: torch.Tensor) -> torch.Tensor:
        """Return tokens, fewer than the input if the block pools its queries."""
        y_BND: torch.Tensor = self.block(x_BND, self.grid)[0]
        return y_BND


class LastNorm(nn.Module):
    """Applies the last norm and returns a map; with `class_token`, only the class token as a map of one position."""

    def __init__(self, norm: nn.Module, grid: tuple[int, ...] = (), class_token: bool = False) -> None:
        super().__init__()
        self.norm = norm
        self.grid = (1, 1, 1) if class_token else grid
        self.class_token = class_token

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `(B, T, H, W, C)`, or with `grid` the tokens `(B, 1 + T*H*W, C)`, to `(B, C, T, H, W)`."""
        x = self.norm(x)
        if self.grid:
            x = x[:, :1] if self.class_token else x[:, 1:]
            x = x.reshape(x.shape[0], *self.grid, x.shape[-1])
        return x.permute(0, 4, 1, 2, 3)


class TorchvisionFamily(NamedTuple):
    """Clip of the published accuracy (stride at 30 frames per second), and the structure of a network."""

    frames: int
    stride: int
    strides: tuple[int, int]
    """frames and pixels per position of the last map"""
    parts: tuple[str, ...]
    """attributes before the classifier, in order"""
    last: str
    """path of the last block"""


_MVIT = TorchvisionFamily(16, 4, (2, 32), ("stem", "blocks", "norm"), "blocks.15")
_SWIN = TorchvisionFamily(32, 2, (2, 32), ("patch_embed", "features", "norm"), "features.6.1")
_RESNET = TorchvisionFamily(16, 2, (8, 16), ("stem", "layer1", "layer2", "layer3", "layer4"), "layer4.1")
FAMILIES = {
    **dict.fromkeys(MVIT, _MVIT),
    **dict.fromkeys(("swin3d_t", "swin3d_s", "swin3d_b"), _SWIN),
    "s3d": TorchvisionFamily(128, 2, (8, 32), ("features",), "features.15"),
    "r3d_18": _RESNET,
    "mc3_18": _RESNET._replace(strides=(1, 16)),
}


@BACKBONES.register(TorchvisionVideo)
class TorchvisionBackbone(SizedBackbone):
    """A network of `torchvision.models.video`, up to its last norm; stages have torchvision's names."""

    options: TorchvisionVideo
    setting = ("backbone.frames", "backbone.image_size")

    def __init__(self, options: TorchvisionVideo, modality: Modality, stack: int = 1) -> None:
        super().__init__(options, modality, stack)
        family = FAMILIES[options.name]
        net, width = _build(options, self.inputs)
        self.paths: dict[str, str] = {}
        for part in family.parts:
            module = getattr(net, part)
            self.add_module(part, module)
            inner = [name for name, _ in module.named_children()] if part in ("blocks", "features") else []
            self.paths |= {f"{part}{name}": f"{part}.{name}" for name in inner} or {part: part}
        self.grids: dict[str, tuple[int, ...]] = {
            name: getattr(part, "outputs", ()) for name, part in self.stages()
        }
        """grid of MViT's tokens after each stage"""
        self.attends = "norm" in family.parts
        mvit = options.name in MVIT
        self.fixed = (options.frames, options.image_size) if mvit else (None, None)
        if options.class_token:  # after the last block, only the class token is used
            self.saliency_stage = "blocks14"
        time, space = (options.frames, options.image_size) if options.class_token else family.strides
        self.temporal_stride, self.spatial_stride, self.channels = (time,), (space,), (width,)

    @classmethod
    def default_input(cls, options: TorchvisionVideo, modality: Modality) -> InputSpec:
        """Return size, mean and std of torchvision's Kinetics-400 weights, and the clip of their published accuracy.

        A frame whose short side torchvision resizes is resized to 4:3. For flow, zero motion becomes 0, and std is
        averaged over R, G and B.
        """
        from torchvision.models import get_model_weights

        found: Any = get_model_weights(options.name)["KINETICS400_V1"].transforms()
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
        """Check the size of a clip: that of MViT's positions, or large enough for S3D's five poolings."""
        super().check_input(spec)
        if self.options.name == "s3d" and (spec.clip_length < 5 or min(spec.size) < 17):
            raise SettingsError("s3d: `input.clip_length` must be 5 or more, and `input.crop` 17 or more")

    def num_tokens(self, clip_length: int) -> tuple[int, ...]:
        """Return the number of time steps; S3D's last pooling leaves out an odd one."""
        return (
            ((clip_length + 3) // 4 // 2,) if self.options.name == "s3d" else super().num_tokens(clip_length)
        )

    def stages(self) -> list[tuple[str, nn.Module]]:
        """Return the stages in torchvision's order and, with FRAB, reduction."""
        stages = [(name, self.get_submodule(path)) for name, path in self.paths.items()]
        return stages + ([("reduction", self.reduction)] if "reduction" in self._modules else [])

    def maps_of_stage(self, name: str, x: Any, clip_BCTHW: torch.Size) -> tuple[torch.Tensor, ...]:
        """Return MViT's tokens without the class token, or Swin's map with the channels last, as a map."""
        del clip_BCTHW
        if self.options.name in MVIT and x.ndim == 3:
            x = x[:, 1:].reshape(x.shape[0], *self.grids[name], -1).permute(0, 4, 1, 2, 3)
        elif FAMILIES[self.options.name] is _SWIN and name not in ("norm", "reduction"):
            x = x.permute(0, 4, 1, 2, 3)
        return (x,)

    def forward(self, x_BCTHW: torch.Tensor) -> list[FeatureMap]:
        """Map a normalised clip to one feature map."""
        if self.options.name in MVIT:
            self.check_clip(x_BCTHW)
        return super().forward(x_BCTHW)

    def _block(self, inputs: int, outputs: int) -> nn.Module:
        return TokenBlock(inputs, outputs) if self.attends else pointwise_block(inputs, outputs, volumes=True)

    def append_block(self, channels: int) -> None:
        """Add a 1×1×1 convolution, BatchNorm and ReLU; for a transformer, LayerNorm, a linear layer and an MLP."""
        block = self._block(self.channels[0], channels)
        self.reduction = OnMap(block) if self.attends else block
        self.reduced, self.channels = ("reduction.",), (channels,)

    def replace_last_block(self, channels: int) -> None:
        """Replace the last block by the block of `append_block`; a last norm gets the new width."""
        last = FAMILIES[self.options.name].last
        _replace(self, last, self._block(input_width(self.get_submodule(last)), channels))
        self.reduced, self.channels = (f"{last}.",), (channels,)
        if self.attends:
            _replace(self, "norm.norm", nn.LayerNorm(channels))
            self.reduced += ("norm.",)


def _replace(net: nn.Module, path: str, new: nn.Module) -> None:
    parent, _, key = path.rpartition(".")
    net.get_submodule(parent).register_module(key, new)


def _build(options: TorchvisionVideo, channels: int) -> tuple[Any, int]:
    """Return torchvision's network with random weights for this number of input channels, and the last width."""
    from torchvision.models import video

    net = getattr(video, options.name)(num_classes=1)
    layers: list[tuple[str, Any]] = list(net.named_modules())
    width = int(next(part.weight.shape[1] for _, part in reversed(layers) if hasattr(part, "weight")))
    if channels != 3:
        name = next(name for name, part in layers if isinstance(part, nn.Conv3d))
        old: Any = net.get_submodule(name)
        shape = (old.kernel_size, old.stride, old.padding)
        _replace(net, name, nn.Conv3d(channels, old.out_channels, *shape, bias=old.bias is not None))
    if options.name in MVIT:
        _divide_mvit(net, options)
    elif FAMILIES[options.name] is _SWIN:
        net.norm = LastNorm(net.norm)
    elif "stem" in FAMILIES[options.name].parts:
        init_convolutions(net.stem)
        # torchvision's subclasses differ only in `__init__`; streams and int8 read types
        for part in net.modules():
            if isinstance(part, nn.Conv3d):
                part.__class__ = nn.Conv3d
    return net, width


def _divide_mvit(net: Any, options: TorchvisionVideo) -> None:
    """Fix MViT's grid of tokens; v1 gets absolute positions of this size, and v2 interpolates its relative ones."""
    grid: tuple[int, ...] = (options.frames // 2, options.image_size // 4, options.image_size // 4)
    encoding = net.pos_encoding
    encoding.temporal_size, encoding.spatial_size = grid[0], grid[1:]
    for name, count in (("temporal_pos", grid[0]), ("spatial_pos", grid[1] * grid[2])):
        old = getattr(encoding, name)
        if old is not None and len(old) != count:
            new = nn.init.trunc_normal_(torch.empty(count, old.shape[1]), std=0.02)
            setattr(encoding, name, nn.Parameter(new))
    net.stem = MvitStem(net)
    net.stem.outputs = grid
    for index, block in enumerate(net.blocks):
        inputs = grid
        if block.pool_skip is not None:
            grid = tuple(size // step for size, step in zip(grid, block.pool_skip.pool.stride, strict=True))
        net.blocks[index] = MvitBlock(block, inputs, grid)
    net.norm = LastNorm(net.norm, grid, options.class_token)
