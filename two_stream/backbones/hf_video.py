"""Video transformers of `transformers`; their tokens are returned as a feature map, which every head accepts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from two_stream.backbones.base import (
    BACKBONES,
    READING_ERRORS,
    LibraryBackbone,
    OnMap,
    TokenBlock,
    flow_statistics,
    reason,
    usual_resize,
)
from two_stream.backbones.hf_architectures import ARCHITECTURES, Architecture
from two_stream.backbones.hf_files import configuration, network_class, preprocessing, resolve_architecture
from two_stream.config.backbones import HfVideo
from two_stream.errors import CheckpointError, SettingsError
from two_stream.types import FeatureMap, InputSpec, Modality


class Stem(nn.Module):
    """Turns a clip into tokens."""

    def __init__(self, embed: nn.Module) -> None:
        super().__init__()
        self.embed = embed

    def forward(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        """Return `(B, tokens, C)`."""
        tokens: torch.Tensor = self.embed(x_BCTHW.transpose(1, 2))
        return tokens


class Layer(nn.Module):
    """Wraps an encoder layer, because some of the library's layers return a tuple."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x_BND: torch.Tensor) -> torch.Tensor:
        """Return the tokens."""
        out = self.layer(x_BND)
        y_BND: torch.Tensor = out if isinstance(out, torch.Tensor) else out[0]
        return y_BND


class ToMap(nn.Module):
    """Applies the last norm, removes class tokens, and reshapes the other tokens to time and space."""

    def __init__(self, norm: nn.Module, grid: tuple[int, int, int], prefix: int, time_last: bool) -> None:
        super().__init__()
        self.norm = norm
        self.grid = grid
        self.prefix = prefix
        self.time_last = time_last

    def forward(self, x_BND: torch.Tensor) -> torch.Tensor:
        """Return `(B, C, T, H, W)`."""
        return self.map_of(self.norm(x_BND))

    def map_of(self, x_BND: torch.Tensor) -> torch.Tensor:
        """Return tokens as a map `(B, C, T, H, W)`, without class tokens."""
        tokens = x_BND[:, self.prefix :]
        batch, (time, height, width) = tokens.shape[0], self.grid
        if self.time_last:
            return tokens.reshape(batch, height, width, time, -1).permute(0, 4, 3, 1, 2)
        return tokens.reshape(batch, time, height, width, -1).permute(0, 4, 1, 2, 3)


@BACKBONES.register(HfVideo)
class HfVideoBackbone(LibraryBackbone):
    """Patches, encoder layers and last norm of VideoMAE, TimeSformer, ViViT or V-JEPA 2."""

    options: HfVideo
    attends = True

    def __init__(
        self,
        options: HfVideo,
        modality: Modality,
        make: Callable[[Any], Any] | None = None,
        stack: int = 1,
    ) -> None:
        options = resolve_architecture(options)
        super().__init__(options, modality, stack)
        architecture = _architecture(options)
        config = copy.deepcopy(configuration(options))
        setattr(config, architecture.channels, self.inputs)
        try:
            parts = architecture.build(config, make or network_class(architecture))
        except (ValueError, AttributeError, ZeroDivisionError) as error:  # how the library rejects numbers
            said = f"`backbone.config`: {options.architecture} rejects the configuration ({reason(error)})"
            raise SettingsError(said) from None
        frames, side = (int(getattr(config, name)) for name in (architecture.frames, architecture.side))
        time, space = architecture.patch(config)
        grid = (frames // time, side // space, side // space)
        self.stem = Stem(parts.embed)
        self.depth = len(parts.layers)
        for index, layer in enumerate(parts.layers, start=1):
            self.add_module(f"block{index}", Layer(layer))
        self.norm = ToMap(parts.norm, grid, architecture.prefix, architecture.time_last)
        self.channels = (int(config.hidden_size),)
        self.temporal_stride, self.spatial_stride = (time,), (space,)
        self.fixed = (frames, side)
        self.setting = (f"backbone.config.{architecture.frames}", f"backbone.config.{architecture.side}")

    @classmethod
    def resolved(cls, options: HfVideo) -> HfVideo:
        """Return options that contain the configuration of `model`."""
        return resolve_architecture(options)

    @classmethod
    def default_input(cls, options: HfVideo, modality: Modality) -> InputSpec:
        """Return the clip length and size of the configuration, with pixel values from the model's preprocessing file.

        Without a preprocessing file, the authors' values are used. For flow, the mean is the middle of the range, so
        that zero flow becomes 0.
        """
        options = resolve_architecture(options)
        architecture, config = _architecture(options), configuration(options)
        pixels = preprocessing(options)
        mean, std = pixels.mean, pixels.std
        if modality == "flow":
            mean, std = flow_statistics(pixels.value_range, std)
        crop = int(getattr(config, architecture.side))
        return InputSpec(
            modality=modality,
            clip_length=int(getattr(config, architecture.frames)),
            stride=architecture.stride,
            resize=usual_resize(crop, architecture.crop_share),
            crop=crop,
            value_range=pixels.value_range,
            mean=mean,
            std=std,
        )

    def stages(self) -> list[tuple[str, nn.Module]]:
        """Return the stages stem, block1 … blockN, norm and, with FRAB, reduction."""
        names = ["stem", *(f"block{index + 1}" for index in range(self.depth)), "norm", "reduction"]
        return [(name, self.get_submodule(name)) for name in names if name in self._modules]

    def maps_of_stage(self, name: str, x: Any, clip_BCTHW: torch.Size) -> tuple[torch.Tensor, ...]:
        """Return tokens as a map, without class tokens."""
        del name, clip_BCTHW
        return (self.norm.map_of(x) if x.ndim == 3 else x,)

    def forward(self, x_BCTHW: torch.Tensor) -> list[FeatureMap]:
        """Map a normalised clip to one feature map."""
        self.check_clip(x_BCTHW)
        return super().forward(x_BCTHW)

    def append_block(self, channels: int) -> None:
        """Add LayerNorm, a linear layer to `channels` and a residual MLP after the last norm."""
        self.reduction = OnMap(TokenBlock(self.channels[0], channels))
        self.reduced = ("reduction.",)
        self.channels = (channels,)

    def replace_last_block(self, channels: int) -> None:
        """Replace the last encoder layer by the block of `append_block`; the last norm gets the new width."""
        name = f"block{self.depth}"
        self.add_module(name, TokenBlock(self.channels[0], channels))
        self.norm.norm = nn.LayerNorm(channels)
        self.reduced = (f"{name}.", "norm.")
        self.channels = (channels,)

    def donor(self, state: Mapping[str, torch.Tensor] | None, source: str) -> tuple[HfVideoBackbone, str]:
        """Return the network for RGB with the weights of `model`.

        Raises:
            CheckpointError: They cannot be fetched, are incomplete or do not fit.
        """
        del state, source
        model = str(self.options.model)
        kind = network_class(_architecture(self.options))

        def make(config: Any) -> Any:
            try:
                net, found = kind.from_pretrained(
                    model, config=config, output_loading_info=True, weights_only=True
                )
            except READING_ERRORS as error:
                raise CheckpointError(
                    f"the weights of {model} cannot be read or fetched ({reason(error)}); set `backbone.model` to a "
                    "folder that contains them"
                ) from None
            strange = _strange(found)
            if strange:
                names = ", ".join(sorted(strange)[:3])
                raise CheckpointError(
                    f"{model}: the weights belong to a different network (differences: {names}); use another model"
                )
            return net

        return HfVideoBackbone(self.options, "rgb", make), model


def _architecture(options: HfVideo) -> Architecture:
    assert options.architecture is not None
    return ARCHITECTURES[options.architecture]


def _strange(found: Any) -> list[str]:
    """Return the names of tensors that are missing, have a different shape or belong to unknown layers.

    Poolers, classifiers, decoders and the predictor are ignored.
    """
    missing = [key for key in found["missing_keys"] if not key.startswith(("pooler.", "predictor."))]
    unknown = [key for key in found["unexpected_keys"] if key.startswith(("encoder.layer.", "layers."))]
    return [*missing, *map(str, found["mismatched_keys"]), *unknown]
