"""Base classes of backbones, their registry by the `kind` in the settings, and common parts of library backbones."""

from __future__ import annotations

import pickle
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from math import ceil
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from two_stream.config.backbones import BackboneOptions, HfVideo, TimmNet
from two_stream.errors import CheckpointError, SettingsError
from two_stream.registry import Registry
from two_stream.types import MODALITY_CHANNELS, FeatureMap, InputSpec, Modality

BACKBONES: Registry[type[Backbone]] = Registry("backbone", BackboneOptions)

Maps = TypeVar("Maps", torch.Tensor, tuple[torch.Tensor, torch.Tensor])
"""Output of a stage: a map, or one per pathway."""

ACTIVITYNET_MEAN = (114.7748, 107.7354, 99.4750)
"""RGB means in 0..255 that the networks of kenshohara's family subtract, without division."""
FLOW_MEAN = (127.5, 127.5)
"""Grey level without motion in a flow image."""


class Backbone(nn.Module, ABC):
    """A 3D network without classifier: `x_BCTHW -> [FeatureMap]`, one map per pathway.

    A subclass is built from its options, the modality and the number of flow fields per frame. The method `stages`
    returns the parts of the network in the order of the forward pass.
    """

    channels: tuple[int, ...]
    """Number of channels of each pathway's feature map."""
    temporal_stride: tuple[int, ...]
    """Number of clip frames per time step of each pathway's feature map."""
    spatial_stride: tuple[int, ...]
    """Number of pixels per position of each pathway's feature map."""
    pathways: tuple[str, ...] = ("main",)
    modalities: tuple[Modality, ...] = ("rgb", "flow")
    """Supported modalities; other modalities cause an error when the network is built."""
    reductions: tuple[str, ...] = ("none", "frab", "frmb")
    """Supported values of `ModelOptions.reduction`; other values cause an error."""
    attends: bool = False
    """Whether every frame attends to other frames of its clip; such a network cannot stream or compute in int8."""
    gradient_checkpointing: bool = False
    saliency_stage: str = ""
    """Stage whose maps show where a class was found; empty: the feature maps of the backbone."""

    def __init__(self, options: Any, modality: Modality, stack: int = 1) -> None:
        super().__init__()
        self.options = options
        self.modality = modality
        self.inputs = MODALITY_CHANNELS[modality] * stack
        """Number of channels of a clip; see `InputSpec.channels`."""
        self.reduced: tuple[str, ...] = ()
        """Prefixes of the parameters that `append_block` or `replace_last_block` added."""

    @classmethod
    def default_input(cls, options: Any, modality: Modality) -> InputSpec:
        """Return the input for which the published weights were trained.

        By default, this is the input of kenshohara's networks: 16 consecutive frames, crops of 112² from frames of
        128×170, and pixel values 0..255 minus a mean.
        """
        del options
        mean = ACTIVITYNET_MEAN if modality == "rgb" else FLOW_MEAN
        return InputSpec(
            modality=modality,
            clip_length=16,
            stride=1,
            resize=(128, 170),
            crop=112,
            value_range=(0.0, 255.0),
            mean=mean,
            std=(1.0,) * MODALITY_CHANNELS[modality],
        )

    @classmethod
    def resolved(cls, options: Any) -> Any:
        """Return options that build the same network without external files or downloads."""
        return options

    def check_input(self, spec: InputSpec) -> None:
        """Check that the network accepts an input; most networks accept any input.

        Raises:
            SettingsError: Clip length or crop does not fit the network.
        """

    @abstractmethod
    def stages(self) -> list[tuple[str, nn.Module]]:
        """Return the named parts from input to output, used for freezing, checkpointing and layer decay."""

    @abstractmethod
    def append_block(self, channels: int) -> None:
        """Add a block of the backbone's own type that reduces the features to `channels` (FRAB)."""

    @abstractmethod
    def replace_last_block(self, channels: int) -> None:
        """Replace the last block by a block that reduces the features to `channels` (FRMB)."""

    def num_tokens(self, clip_length: int) -> tuple[int, ...]:
        """Return the number of time steps of each pathway's feature map for a clip of `clip_length` frames."""
        return tuple(ceil(clip_length / stride) for stride in self.temporal_stride)

    def forward(self, x_BCTHW: torch.Tensor) -> list[FeatureMap]:
        """Map a normalised clip to one feature map per pathway; by default run the stages in order."""
        for _, stage in self.stages():
            x_BCTHW = self.run_stage(stage, x_BCTHW)
        return [FeatureMap(x_BCTHW, self.pathways[0])]

    def maps_of_stage(self, name: str, x: Any, clip_BCTHW: torch.Size) -> tuple[torch.Tensor, ...]:
        """Return the output of a stage as maps `(B, C, T, H, W)`, one per pathway.

        Args:
            name: Name of the stage.
            x: The output: maps, or tensors in the layout of another library.
            clip_BCTHW: Shape of the clips.
        """
        del name, clip_BCTHW
        return x if isinstance(x, tuple) else (x,)

    def run_stage(self, stage: nn.Module, x: Maps) -> Maps:
        """Run one stage; if checkpointing is on, its activations are recomputed in the backward pass."""
        if not (self.gradient_checkpointing and torch.is_grad_enabled() and self.training):
            out: Maps = stage(x)
            return out
        contexts = partial(_recompute_contexts, stage)
        again: Maps = checkpoint(stage, x, use_reentrant=False, context_fn=contexts)
        return again


def _recompute_contexts(stage: nn.Module) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    return nullcontext(), _statistics_kept(stage)


@contextmanager
def _statistics_kept(stage: nn.Module) -> Iterator[None]:
    """Keep BatchNorm's running statistics unchanged, so that checkpointing does not count a batch twice."""
    norms = [m for m in stage.modules() if isinstance(m, _BatchNorm) and m.training]
    kept = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, momentum, counter in kept:
            norm.momentum, norm.num_batches_tracked = momentum, counter


def split_temporal_stride(total: int, places: int) -> list[int]:
    """Return `places` temporal strides whose product is `total`: first strides of 2, then strides of 1."""
    halvings = total.bit_length() - 1
    return [2 if place < halvings else 1 for place in range(places)]


def init_convolutions(module: nn.Module) -> None:
    """Initialise convolutions with He's method (fan-out, ReLU), and BatchNorm as the identity."""
    for part in module.modules():
        if isinstance(part, nn.Conv3d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.BatchNorm3d):
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)


class SizedBackbone(Backbone):
    """A network that may accept only one clip length and size, because its position embeddings are of this size."""

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


class LibraryBackbone(SizedBackbone):
    """A network of timm or transformers, built with random weights; `load_pretrained` loads published weights."""

    options: TimmNet | HfVideo

    def load_pretrained(
        self, state: Mapping[str, torch.Tensor] | None = None, source: str = "the given tensors"
    ) -> str:
        """Load the library's published weights.

        If the clips do not have three channels, RGB weights are used as with `cross_modality`: the weights of the first
        convolution are averaged over R, G and B and repeated (Wang et al., arXiv 1507.02159). Blocks of FRAB or FRMB
        keep their random weights.

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
        y_BCTHW: torch.Tensor = self.body(x_BCTHW.permute(0, 2, 3, 4, 1)).permute(0, 4, 1, 2, 3)
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


def input_width(block: nn.Module) -> int:
    """Return the number of input channels of a block's first layer.

    Raises:
        SettingsError: The block has no weights.
    """
    for part in block.modules():
        if isinstance(part, (nn.Conv2d, nn.Conv3d)):
            return part.in_channels
        weight = part._parameters.get("weight")
        if weight is not None:
            return int(weight.shape[-1])
    raise SettingsError("the last block has no weights, so its width is unknown; use `reduction: frab`")


def flow_statistics(
    value_range: tuple[float, float], std: tuple[float, ...]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation for flow: zero flow becomes 0, and the deviations of R, G, B are averaged."""
    middle, scale = sum(value_range) / 2, sum(std) / len(std)
    return (middle, middle), (scale, scale)


def usual_resize(crop: int, share: float) -> tuple[int, int]:
    """Return `(height, width)` of a 4:3 frame whose height times `share` is `crop`."""
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
