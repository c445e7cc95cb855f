"""Common parts of backbones from other libraries: blocks for FRAB and FRMB, and loading of pretrained weights."""

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
    """A network of timm or transformers, built with random weights; `load_pretrained` loads published weights."""

    options: TimmNet | HfVideo
    fixed: tuple[int | None, int | None] = (None, None)
    """Required number of frames and side of clips; None: any value."""
    setting: tuple[str, str] = ("", "")
    """Settings to change for clips of another size: one for the number of frames, one for the side."""

    def check_input(self, spec: InputSpec) -> None:
        """Check that the clip length and size fit the network's position embeddings.

        Raises:
            SettingsError: They differ; names both numbers and the setting to change.
        """
        given = (("input.clip_length", spec.clip_length), ("input.crop", spec.crop))
        for (name, value), wanted, setting in zip(given, self.fixed, self.setting, strict=True):
            if wanted is not None and value != wanted:  # also true for a rectangle
                raise SettingsError(
                    f"`{name}` is {value}, but this {self.options.kind} network accepts only {wanted}; "
                    f"remove `{name}`, or also set `{setting}`"
                )

    def check_clip(self, x_BCTHW: torch.Tensor) -> None:
        """Check the shape of a clip, to raise a clearer error than the library.

        Raises:
            SettingsError: Names both shapes.
        """
        frames, side = self.fixed
        wanted = (frames or x_BCTHW.shape[2], side or x_BCTHW.shape[3], side or x_BCTHW.shape[4])
        if tuple(x_BCTHW.shape[2:]) != wanted:
            raise SettingsError(
                f"a clip of {'×'.join(map(str, x_BCTHW.shape[2:]))} was passed; this {self.options.kind} network "
                f"expects {'×'.join(map(str, wanted))}"
            )

    def load_pretrained(
        self, state: Mapping[str, torch.Tensor] | None = None, source: str = "the given tensors"
    ) -> str:
        """Load the library's published weights.

        Two-channel networks start from RGB weights, as with `cross_modality`: the weights of the first convolution are
        averaged over R, G and B and repeated (Wang et al., arXiv 1507.02159). Blocks of FRAB or FRMB keep their random
        weights.

        Args:
            state: Tensors under the library's names; None: the library reads or downloads them.
            source: Name of the tensors, for messages.

        Returns:
            Source of the weights.

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
                    f"{source}: {key} has shape {tuple(value.shape)}; expected {tuple(own.shape)} for this network"
                )
            own.copy_(value)
        return source

    def donor(self, state: Mapping[str, torch.Tensor] | None, source: str) -> tuple[Backbone, str]:
        """Return the same network for RGB with published weights, and the source of the weights."""
        raise NotImplementedError


class TokenBlock(nn.Module):
    """LayerNorm, a linear layer to another width and a transformer's residual MLP, for tensors `(…, channels)`."""

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
        """Map `(…, inputs)` to `(…, outputs)`."""
        x = self.proj(self.norm1(x))
        y: torch.Tensor = x + self.mlp(self.norm2(x))
        return y


class OnMap(nn.Module):
    """Applies a module for `(…, channels)` to a map `(B, C, T, H, W)`."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        """Return the map with the new number of channels."""
        y_BCTHW: torch.Tensor = self.body(x_BCTHW.movedim(1, -1)).movedim(-1, 1)
        return y_BCTHW


def pointwise_block(inputs: int, outputs: int, *, stride: int = 1, volumes: bool = False) -> nn.Sequential:
    """Return a 1×1 convolution, BatchNorm and ReLU for images, or with `volumes` for maps `(B, C, T, H, W)`."""
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
    """Return mean and standard deviation for flow: zero flow becomes 0, and the deviations of R, G, B are averaged."""
    middle, scale = sum(value_range) / 2, sum(std) / len(std)
    return (middle, middle), (scale, scale)


def usual_resize(crop: int, share: float) -> tuple[int, int]:
    """Return the size of a 4:3 frame in which a crop has `share` of the height."""
    height = round(crop / share)
    return height, round(height * 4 / 3)


READING_ERRORS = (OSError, RuntimeError, KeyError, ValueError, pickle.UnpicklingError, SafetensorError)
"""Errors of other libraries about the hub, network, damaged files and unsuitable weights."""


def reason(error: BaseException) -> str:
    """Return the message of another library's error as one short line."""
    if isinstance(error, pickle.UnpicklingError):
        return "the file contains more than tensors, which is not allowed; save it as safetensors"
    message = " ".join(str(error).split()) or type(error).__name__
    return message if len(message) <= 200 else f"{message[:199]}…"
