"""Differences between the video transformers of `transformers`: parts, order of tokens, and input.

Sources: Tong et al., "VideoMAE" (arXiv 2203.12602); Bertasius et al., "Is Space-Time Attention All You Need for Video
Understanding?" (TimeSformer, arXiv 2102.05095); Arnab et al., "ViViT" (arXiv 2103.15691); Assran et al., "V-JEPA 2"
(arXiv 2506.09985).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from two_stream.errors import SettingsError

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass
class TransformerParts:
    """A network of `transformers` without its pooling, its classifier and the parts that only pre-training uses."""

    embed: nn.Module
    """module that maps `(B, T, C, H, W)` to tokens"""
    layers: list[nn.Module]
    norm: nn.Module


@dataclass(frozen=True)
class Architecture:
    """One family of networks."""

    config: str
    """name of the library's configuration class"""
    build: Callable[[Any, Callable[[Any], Any]], TransformerParts]
    """function that returns the parts for a configuration; its second argument is a function that builds a model of
    class `model` from a configuration"""
    model: str
    """name of the library's model class"""
    stride: int
    """usual distance between frames of a clip"""
    frames: str = "num_frames"
    """key of the clip length in the configuration"""
    side: str = "image_size"
    """key of the image side in the configuration"""
    channels: str = "num_channels"
    """key of the number of channels in the configuration"""
    prefix: int = 0
    """number of leading tokens that do not belong to a position in the clip"""
    time_last: bool = False
    """whether time varies fastest in the order of the tokens; otherwise, width varies fastest, then height, then
    time"""
    value_range: tuple[float, float] = (0.0, 1.0)
    mean: tuple[float, ...] = IMAGENET[0]
    std: tuple[float, ...] = IMAGENET[1]
    crop_share: float = 224 / 256
    """fraction of the frame's height that the crop covers"""

    def patch(self, config: Any) -> tuple[int, int]:
        """Return the number of frames and the side in pixels of one token.

        Raises:
            SettingsError: Patches are not square.
        """
        size = getattr(config, "tubelet_size", 1)
        time, *space = (
            size if isinstance(size, (list, tuple)) else (size, config.patch_size, config.patch_size)
        )
        if len(set(space)) != 1:
            raise SettingsError(f"`backbone.config`: expected square patches, got {space}")
        return int(time), int(space[0])


class SinusoidStem(nn.Module):
    """VideoMAE's tubelet embedding and fixed position embeddings, which are computed faster than in `transformers`."""

    positions: torch.Tensor

    def __init__(self, patches: nn.Module, places: int, width: int) -> None:
        super().__init__()
        self.patch_embeddings = patches
        place = torch.arange(places, dtype=torch.float64)[:, None]
        dimension = torch.arange(width, dtype=torch.float64)
        angle = place / 10000 ** (2 * (dimension // 2) / width)
        table = torch.where(dimension % 2 == 0, angle.sin(), angle.cos())
        self.register_buffer("positions", table.float()[None], persistent=False)

    def forward(self, x_BTCHW: torch.Tensor) -> torch.Tensor:
        """Return tokens `(B, positions, width)`."""
        tokens: torch.Tensor = self.patch_embeddings(x_BTCHW)
        return tokens + self.positions.to(tokens.dtype)


def _videomae(config: Any, make: Callable[[Any], Any]) -> TransformerParts:
    whole = config.num_frames
    config.num_frames = (
        config.tubelet_size
    )  # the library's table of positions takes seconds; ours replaces it
    net = make(config)
    config.num_frames = whole
    places = (whole // config.tubelet_size) * (config.image_size // config.patch_size) ** 2
    embed = SinusoidStem(net.embeddings.patch_embeddings, places, config.hidden_size)
    return TransformerParts(embed, list(net.encoder.layer), net.layernorm or nn.Identity())


def _timesformer(config: Any, make: Callable[[Any], Any]) -> TransformerParts:
    if config.attention_type == "space_only":
        raise SettingsError(
            "`backbone.config`: attention_type space_only has no tokens over time; use `backbone.kind: timm`, or "
            "attention_type divided_space_time"
        )
    net = make(config)
    return TransformerParts(net.embeddings, list(net.encoder.layer), net.layernorm)


def _vivit(config: Any, make: Callable[[Any], Any]) -> TransformerParts:
    net = make(config)
    return TransformerParts(net.embeddings, list(net.layers), net.layernorm)


def _vjepa2(config: Any, make: Callable[[Any], Any]) -> TransformerParts:
    encoder = make(config).encoder
    return TransformerParts(encoder.embeddings, list(encoder.layer), encoder.layernorm)


ARCHITECTURES = {
    "videomae": Architecture("VideoMAEConfig", _videomae, "VideoMAEModel", 4),
    "timesformer": Architecture(
        "TimesformerConfig",
        _timesformer,
        "TimesformerModel",
        8,
        prefix=1,
        time_last=True,
        mean=(0.45, 0.45, 0.45),
        std=(0.225, 0.225, 0.225),
    ),
    "vivit": Architecture(
        "VivitConfig",
        _vivit,
        "VivitModel",
        2,
        prefix=1,
        value_range=(-1.0, 1.0),
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    ),
    "vjepa2": Architecture(
        "VJEPA2Config",
        _vjepa2,
        "VJEPA2Model",
        4,
        frames="frames_per_clip",
        side="crop_size",
        channels="in_chans",
        crop_share=256 / 292,
    ),
}
"""By the name that config.json has as `model_type`."""
