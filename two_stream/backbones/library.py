"""What the backbones of other libraries share: blocks that narrow their features, taking over a donor's weights."""

from __future__ import annotations

import pickle
from collections.abc import Mapping

import torch
from safetensors import SafetensorError
from torch import nn

from two_stream.backbones.base import Backbone
from two_stream.config.backbones import HfVideo, TimmNet
from two_stream.errors import CheckpointError, SettingsError
from two_stream.types import InputSpec


class LibraryBackbone(Backbone):
    """A network of timm or transformers: built without weights; `load_pretrained` fills it at a training's start."""

    options: TimmNet | HfVideo
    fixed: tuple[int | None, int | None] = (None, None)
    """Frames and side of the only clips the network takes; none where it takes any."""
    setting: tuple[str, str] = ("", "")
    """What to change for other clips: the setting of the frames and that of the side."""

    def check_input(self, spec: InputSpec) -> None:
        """Refuse clips of another length or size than the network's positions have.

        Raises:
            SettingsError: Naming both numbers and the setting to change.
        """
        given = (("input.clip_length", spec.clip_length), ("input.crop", spec.crop))
        for (name, value), wanted, setting in zip(given, self.fixed, self.setting, strict=True):
            if wanted is not None and value != wanted:  # a rectangle is no square's side either
                raise SettingsError(
                    f"`{name}` is {value}, but this {self.options.kind} network takes {wanted} only; "
                    f"leave it out or set `{setting}` too"
                )

    def check_clip(self, x_BCTHW: torch.Tensor) -> None:
        """Refuse a clip of another shape before the library does, less clearly.

        Raises:
            SettingsError: Naming both shapes.
        """
        frames, side = self.fixed
        wanted = (frames or x_BCTHW.shape[2], side or x_BCTHW.shape[3], side or x_BCTHW.shape[4])
        if tuple(x_BCTHW.shape[2:]) != wanted:
            raise SettingsError(
                f"a clip of {'×'.join(map(str, x_BCTHW.shape[2:]))} came in; this {self.options.kind} network "
                f"takes {'×'.join(map(str, wanted))} only"
            )

    def load_pretrained(
        self, state: Mapping[str, torch.Tensor] | None = None, source: str = "the given tensors"
    ) -> str:
        """Take over the library's published weights.

        Two-channel networks start from RGB weights: the first convolution is averaged over RGB and repeated
        (Wang et al., arXiv 1507.02159), as `cross_modality` does. What FRAB or FRMB put in keeps its fresh values.

        Args:
            state: Tensors under the library's names; none lets the library read or fetch them.
            source: What to call the tensors.

        Returns:
            Where they came from.

        Raises:
            CheckpointError: They cannot be fetched or do not fit.
        """
        donor, source = self.donor(state, source)
        given = donor.state_dict()
        for key, own in self.state_dict().items():
            if self.reduced and key.startswith(self.reduced):
                continue
            value = given.get(key, torch.empty(0))
            if value.shape != own.shape and value.ndim == own.ndim and value.shape[1] == 3 != own.shape[1]:
                value = value.mean(1, keepdim=True).expand_as(own)
            if value.shape != own.shape:
                raise CheckpointError(
                    f"{source}: {key} is {tuple(value.shape)} there, {tuple(own.shape)} here"
                )
            own.copy_(value)
        return source

    def donor(self, state: Mapping[str, torch.Tensor] | None, source: str) -> tuple[Backbone, str]:
        """Return the same network for RGB with its published weights, and where they came from."""
        raise NotImplementedError


class TokenBlock(nn.Module):
    """LayerNorm and a linear layer to another width, then a transformer's residual MLP; on `(…, channels)`."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(inputs)
        self.proj = nn.Linear(inputs, outputs)
        self.norm2 = nn.LayerNorm(outputs)
        self.mlp = nn.Sequential(nn.Linear(outputs, 4 * outputs), nn.GELU(), nn.Linear(4 * outputs, outputs))
        for layer in (self.proj, self.mlp[0], self.mlp[2]):
            assert isinstance(layer, nn.Linear)
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(…, inputs)` to `(…, outputs)`."""
        x = self.proj(self.norm1(x))
        y: torch.Tensor = x + self.mlp(self.norm2(x))
        return y


class OnMap(nn.Module):
    """Applies a module for `(…, channels)` to a map `(B, C, T, H, W)`."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        """Return the map with its new width."""
        y_BCTHW: torch.Tensor = self.body(x_BCTHW.movedim(1, -1)).movedim(-1, 1)
        return y_BCTHW


def pointwise_block(inputs: int, outputs: int, *, stride: int = 1, volumes: bool = False) -> nn.Sequential:
    """Return 1×1 convolution, BatchNorm, ReLU for images, or for maps `(B, C, T, H, W)` where `volumes`."""
    convolution: nn.Conv2d | nn.Conv3d
    norm: nn.BatchNorm2d | nn.BatchNorm3d
    if volumes:
        convolution = nn.Conv3d(inputs, outputs, 1, stride=(1, stride, stride), bias=False)
        norm = nn.BatchNorm3d(outputs)
    else:
        convolution = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
        norm = nn.BatchNorm2d(outputs)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(convolution, norm, nn.ReLU(inplace=True))


def flow_statistics(
    value_range: tuple[float, float], std: tuple[float, ...]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation for flow images: no motion becomes 0, the scale is RGB's on average."""
    middle, scale = sum(value_range) / 2, sum(std) / len(std)
    return (middle, middle), (scale, scale)


def usual_resize(crop: int, share: float) -> tuple[int, int]:
    """Return the size of a 4:3 frame of whose height a crop takes `share`."""
    height = round(crop / share)
    return height, round(height * 4 / 3)


READING_ERRORS = (OSError, RuntimeError, KeyError, ValueError, pickle.UnpicklingError, SafetensorError)
"""How hub, network, damaged files and misfits show themselves in other libraries."""


def reason(error: BaseException) -> str:
    """Return what an error of another library says, in one line of moderate length."""
    if isinstance(error, pickle.UnpicklingError):
        return "the file holds more than tensors, so it is not read; save it as safetensors"
    said = " ".join(str(error).split()) or type(error).__name__
    return said if len(said) <= 200 else f"{said[:199]}…"
