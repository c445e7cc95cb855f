"""Backbone, head, dropout and classifier joined; the only file that knows both sides."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from two_stream import zoo
from two_stream.backbones import BACKBONES, Backbone
from two_stream.config.model import InputOptions, ModelOptions
from two_stream.errors import SettingsError
from two_stream.heads import HEADS, Head
from two_stream.heads.base import Standard, space_mean
from two_stream.types import FeatureLayout, InputSpec

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


class Recognizer(nn.Module):
    """Pixels to logits. Owns preprocessing: a clip enters as uint8 (or float) pixel values 0..255.

    Attributes:
        options: What it was built from, settled: enough to build it again anywhere.
        num_classes: K.
        spec: What it expects of a clip; the only source of preprocessing facts.
        backbone, heads, dropout, classifier: Its parts; one head per pathway, their vectors joined.
        standards: What standardises each pathway's tokens before its head; none unless `options.standardize`.
        stored: How the stored features that it takes in place of clips are laid out; None while it takes clips.
    """

    input_scale: torch.Tensor
    input_shift: torch.Tensor

    def __init__(self, options: ModelOptions, num_classes: int) -> None:
        super().__init__()
        if num_classes < 1:
            raise SettingsError(f"num_classes is {num_classes}: expected 1 or more")
        options = resolve_options(options)
        self.options = options
        self.num_classes = num_classes
        self.spec = input_spec(options)
        self.backbone: Backbone = BACKBONES[options.backbone.kind](
            options.backbone, options.modality, stack=self.spec.stack
        )
        if options.reduction == "frab":
            self.backbone.append_block(options.reduced_channels)
        elif options.reduction == "frmb":
            self.backbone.replace_last_block(options.reduced_channels)
        self.backbone.check_input(self.spec)
        head = HEADS[options.head.kind]
        tokens = self.backbone.num_tokens(self.spec.clip_length)
        self.heads = nn.ModuleList(
            head(options.head, features=features, tokens=count)
            for features, count in zip(self.backbone.channels, tokens, strict=True)
        )
        self.standards = nn.ModuleList(
            Standard(features) for features in self.backbone.channels if options.standardize
        )
        self.dropout = nn.Dropout(options.dropout)
        self.classifier = nn.Linear(sum(head.features for head in self._heads()), num_classes)
        nn.init.xavier_uniform_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)
        self._register_normalisation()
        self.memory_format = torch.preserve_format
        self.stored: FeatureLayout | None = None
        self.alterations: list[Any] = []
        """what was done to the layers since they were built from the options (`two_stream.surgery`)"""
        self._frozen: list[nn.Module] = []

    def _register_normalisation(self) -> None:
        """`(p / 255 * (hi - lo) + lo - mean) / std` as one multiplication and one addition per channel."""
        low, high = self.spec.value_range
        mean = torch.tensor(self.spec.mean, dtype=torch.float64)
        std = torch.tensor(self.spec.std, dtype=torch.float64)
        scale, shift = (high - low) / 255.0 / std, (low - mean) / std
        self.register_buffer("input_scale", scale.float().view(1, -1, 1, 1, 1), persistent=False)
        self.register_buffer("input_shift", shift.float().view(1, -1, 1, 1, 1), persistent=False)

    def _heads(self) -> list[Head]:
        return [head for head in self.heads if isinstance(head, Head)]

    @property
    def device(self) -> torch.device:
        """Where it is; an int8 network has no parameters to ask."""
        return self.input_scale.device

    @property
    def cpu_only(self) -> bool:
        """Whether it computes in int8: on a CPU alone, and only as it is."""
        return any(alteration.cpu_only for alteration in self.alterations)

    @property
    def head(self) -> Head:
        """The head of the first (mostly the only) pathway."""
        return self._heads()[0]

    def normalised(self, clip_BCTHW: torch.Tensor) -> torch.Tensor:
        """Turn pixel values 0..255 (uint8 or float) into what the backbone expects, float32.

        Raises:
            SettingsError: The clip has not the shape `(B, C, T, H, W)` with this modality's channels.
        """
        if clip_BCTHW.ndim != 5 or clip_BCTHW.shape[1] != self.spec.channels:
            raise SettingsError(
                f"a clip of shape {tuple(clip_BCTHW.shape)} came in; {self.spec.modality} expects "
                f"(batch, {self.spec.channels}, frames, height, width)"
            )
        x = clip_BCTHW.to(self.input_scale.dtype, memory_format=self.memory_format)
        if x is clip_BCTHW:  # the caller's own tensor stays as it is
            return x * self.input_scale + self.input_shift
        return x.mul_(self.input_scale).add_(self.input_shift)

    def features_of_normalised(self, x_BCTHW: torch.Tensor) -> list[torch.Tensor]:
        """Return the tokens `x_BTD` of each pathway for an already normalised clip."""
        return self._pooled([feature.tensor for feature in self.backbone(x_BCTHW)])

    def _pooled(self, views: list[torch.Tensor]) -> list[torch.Tensor]:
        """Return what the heads sum up, of feature maps `(B, C, T, H, W)` or tokens `(B, T, D)`.

        The mean over space of a standardised map is the standardised mean, so heads that do not look at places get the
        same tokens from either.
        """
        tokens = []
        for place, (head, x) in enumerate(zip(self._heads(), views, strict=True)):
            standard = self.standards[place] if len(self.standards) else None
            if standard is not None and head.needs_maps:
                x = standard(x)
            if x.ndim == 5:
                x = head.pool(x)
            tokens.append(x if standard is None or head.needs_maps else standard(x))
        return tokens

    def forward_features(self, clip_BCTHW: torch.Tensor) -> list[torch.Tensor]:
        """Return the tokens `x_BTD` of each pathway: what the heads sum up."""
        return self.features_of_normalised(self.normalised(clip_BCTHW))

    def forward_normalised(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        """Return the logits `(B, K)` of an already normalised clip, for comparisons with other code."""
        if self.options.dense:
            return self._classified_places(x_BCTHW)
        return self._classified(self.features_of_normalised(x_BCTHW))

    def _summed_up(self, tokens: list[torch.Tensor]) -> torch.Tensor:
        vectors = [head(x_BTD) for head, x_BTD in zip(self._heads(), tokens, strict=True)]
        return vectors[0] if len(vectors) == 1 else torch.cat(vectors, dim=1)

    def _classified(self, tokens: list[torch.Tensor]) -> torch.Tensor:
        logits_BK: torch.Tensor = self.classifier(self.dropout(self._summed_up(tokens)))
        return logits_BK

    def _classified_places(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        """Return the mean over places of what the classifier says above zero (`ModelOptions.dense`)."""
        maps = [feature.tensor.flatten(2).transpose(1, 2) for feature in self.backbone(x_BCTHW)]
        places_BND = torch.cat(maps, dim=-1)
        logits_BNK = torch.relu(self.classifier(self.dropout(places_BND)))
        return logits_BNK.mean(1)

    def forward(self, clip_BCTHW: torch.Tensor) -> torch.Tensor:
        """Return the logits `(B, K)` of clips with pixel values 0..255, or of features (`use_cached_features`)."""
        if self.stored is not None:
            return self.forward_stored(clip_BCTHW, self.stored)
        return self.forward_normalised(self.normalised(clip_BCTHW))

    def features_to_store(self, x_BCTHW: torch.Tensor, *, maps: bool = False) -> list[torch.Tensor]:
        """Return what a feature cache keeps of an already normalised clip: a view goes through the backbone once.

        Args:
            x_BCTHW: As for `forward_normalised`.
            maps: Feature maps `(B, C, T, H, W)` per pathway, from which every head pools its own tokens; else their
                mean over space `(B, T, D)`, which does for heads that do not look at places.
        """
        found = [feature.tensor for feature in self.backbone(x_BCTHW)]
        return found if maps else [space_mean(x) for x in found]

    def forward_stored(self, features_BD: torch.Tensor, layout: FeatureLayout) -> torch.Tensor:
        """Return the logits `(B, K)` of stored features, one row per view, as the layout says."""
        return self._classified(self._pooled(_unpacked(features_BD, layout)))

    def forward_tokens(self, clips: torch.Tensor) -> list[torch.Tensor]:
        """Return the backbone's tokens `x_BTD` per pathway, before they are standardised.

        Args:
            clips: As for `forward`.
        """
        if self.stored is None:
            return self.features_to_store(self.normalised(clips))
        views = _unpacked(clips, self.stored)
        return [space_mean(x) if self.stored.maps else x for x in views]

    def forward_vectors(self, clips: torch.Tensor) -> torch.Tensor:
        """Return `z_BD`, what the classifier sees in evaluation: the heads' vectors joined.

        Args:
            clips: As for `forward`.
        """
        if self.stored is None:
            return self._summed_up(self.forward_features(clips))
        return self._summed_up(self._pooled(_unpacked(clips, self.stored)))

    def use_cached_features(self, layout: FeatureLayout, source: object = "the feature cache") -> None:
        """From now on take stored features in place of clips in `forward`; the backbone is not run.

        Raises:
            SettingsError: See `check_stored`.
        """
        self.check_stored(layout, source)
        self.stored = layout

    def check_stored(self, layout: FeatureLayout, source: object = "the feature cache") -> None:
        """Find out whether stored features can take the place of the backbone's.

        Args:
            layout: What a row holds.
            source: Where the rows come from, for messages.

        Raises:
            SettingsError: The head looks at places and tokens are stored; or the features are another backbone's.
        """
        if self.options.dense:
            raise SettingsError(
                f"{source}: `model.dense` classifies places without a head; train it on the videos"
            )
        if not layout.maps and any(head.needs_maps for head in self._heads()):
            raise SettingsError(
                f"{source}: head {self.options.head.kind} looks at places, and tokens averaged over space are stored; "
                "write the cache with `two-stream features --maps`, or set `model.head.over: time`"
            )
        tokens = self.backbone.num_tokens(self.spec.clip_length)
        wanted = list(zip(tokens, self.backbone.channels, strict=True))
        given = [(s[1], s[0]) if layout.maps else s for s in layout.shapes]
        if given != wanted:
            raise SettingsError(
                f"{source}: holds {layout}; the model's backbone gives tokens of (T, D) "
                f"{' and '.join(f'{count}×{width}' for count, width in wanted)}"
            )

    @torch.no_grad()
    def attention(self, clip_BCTHW: torch.Tensor) -> list[torch.Tensor]:
        """Return, per pathway, the class token's attention to each time step, `(B, heads, T)`.

        Raises:
            SettingsError: The head has no attention.
        """
        reads = [getattr(head, "attention", None) for head in self._heads()]
        if None in reads:
            raise SettingsError(f"head {self.options.head.kind} has no attention; bert and hf_bert have")
        was_training = self.training
        self.eval()
        try:
            tokens = self.forward_features(clip_BCTHW)
            return [read(x_BTD) for read, x_BTD in zip(reads, tokens, strict=True) if read is not None]
        finally:
            self.train(was_training)

    def stages(self) -> list[tuple[str, nn.Module]]:
        """Return the named parts from input to classifier: the unit of freezing and layer decay."""
        return [*self.backbone.stages(), ("head", self.heads), ("classifier", self.classifier)]

    def freeze_until(self, name: str) -> None:
        """Keep the weights and statistics of every stage up to and including `name` as they are.

        Autograd records nothing of them, so they cost a forward pass and no memory for their activations. `backbone`
        stands for its last stage; after `head` only the classifier learns (a linear probe).

        Raises:
            SettingsError: No such stage, or it leaves nothing to train.
        """
        names = [stage for stage, _ in self.stages()]
        if name == "backbone":
            name = self.backbone.stages()[-1][0]
        if name not in names[:-1]:
            raise SettingsError(
                f"freeze_until {name!r}: expected one of {', '.join(names[:-1])}, or backbone"
            )
        self._frozen = [stage for _, stage in self.stages()[: names.index(name) + 1]]
        for stage in self._frozen:
            stage.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Recognizer:
        """Switch to training; frozen stages stay in evaluation mode, so their statistics do not move."""
        super().train(mode)
        for stage in self._frozen:
            stage.eval()
        return self

    def hold(self, modules: Iterable[nn.Module]) -> None:
        """Keep parts in evaluation mode from now on, so that their statistics do not move; they go on learning."""
        self._frozen += modules
        self.train(self.training)

    def set_gradient_checkpointing(self, on: bool) -> None:
        """Recompute each backbone stage in the backward pass: less memory, about a third more time."""
        self.backbone.gradient_checkpointing = on

    def channels_last(self) -> Recognizer:
        """Lay weights and clips out channel by channel (`channels_last_3d`): faster convolutions, same numbers."""
        self.memory_format = torch.channels_last_3d
        for weight in (*self.parameters(), *self.buffers()):
            if weight.ndim in _CHANNELS_LAST:  # those of 2D convolutions have a layout of their own
                weight.data = weight.data.contiguous(memory_format=_CHANNELS_LAST[weight.ndim])
        return self


def _unpacked(features_BD: torch.Tensor, layout: FeatureLayout) -> list[torch.Tensor]:
    """Return each pathway's tokens or maps of stored features."""
    parts = torch.split(features_BD, layout.sizes, dim=1)
    return [part.reshape(-1, *shape) for part, shape in zip(parts, layout.shapes, strict=True)]


def resolve_options(options: ModelOptions) -> ModelOptions:
    """Return options from which the model can be built without a file or network outside; mostly the given ones.

    A backbone that reads its shape from a folder or hub gets it written out, and the input with it.

    Raises:
        SettingsError: What is outside cannot be read.
    """
    backbone = BACKBONES[options.backbone.kind].resolved(options.backbone)
    if backbone == options.backbone:
        return options
    given = input_spec(options)
    spec = {name: getattr(given, name) for name in InputOptions.model_fields}
    return options.model_copy(update={"backbone": backbone, "input": InputOptions(**spec)})


def input_spec(options: ModelOptions) -> InputSpec:
    """Return the input a model expects: its backbone's usual one, with the departures of `options.input`.

    Raises:
        SettingsError: The departures do not fit together, for example a crop larger than the frame.
    """
    usual = BACKBONES[options.backbone.kind].default_input(options.backbone, options.modality)
    given = {name: value for name, value in options.input.model_dump().items() if value is not None}
    if given.get("segments") == "frames":
        given["segments"] = given.get("clip_length", usual.clip_length)
    spec = replace(usual, **given)
    if spec.segments and spec.clip_length % spec.segments:
        raise SettingsError(
            f"`input.clip_length` {spec.clip_length} is no multiple of `input.segments` {spec.segments}; every segment "
            "gives as many frames"
        )
    fields = len(usual.mean)  # statistics of one flow field are those of each of a stack
    spec = replace(
        spec,
        **{
            name: values * spec.stack
            for name in ("mean", "std")
            if len(values := getattr(spec, name)) == fields
        },
    )
    if any(side > frame for side, frame in zip(spec.size, spec.resize, strict=True)):
        raise SettingsError(
            f"`input.crop` {spec.crop} is larger than the resized frame {spec.resize[0]}×{spec.resize[1]}; "
            "set `input.resize` too"
        )
    for name in ("mean", "std"):
        values = getattr(spec, name)
        if len(values) != spec.channels:
            raise SettingsError(
                f"`input.{name}` has {len(values)} numbers; {spec.modality} has {spec.channels} channels"
            )
    return spec


def create_model(name_or_options: str | ModelOptions, num_classes: int, **options: Any) -> Recognizer:
    """Build a recognizer by its name in the zoo or from options.

    Args:
        name_or_options: For example `"rgb_resneXt3D64f101_bert10_FRMB"`, or `ModelOptions(...)`.
        num_classes: K.
        **options: Fields of `ModelOptions` that differ, for example `modality="flow"`,
            `head={"kind": "lstm"}`, `input={"clip_length": 16}`. A part given without another kind keeps the
            rest of its settings.

    Raises:
        SettingsError: Unknown name (with its nearest neighbours), key or value.
    """
    return Recognizer(zoo.resolve(name_or_options, **options), num_classes)
