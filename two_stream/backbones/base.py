"""Base class of backbones, and their registry by the `kind` in the settings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from math import ceil
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from two_stream.config.backbones import BackboneOptions
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
    gradient_checkpointing: bool = False

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
