"""The recognizer: preprocessing, backbone, temporal head, dropout and classifier."""

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
    """Maps clips of pixel values 0..255 (uint8 or float) to logits; includes the preprocessing.

    Attributes:
        options: Resolved options, from which the network can be rebuilt on any machine.
        num_classes: Number of classes, K.
        spec: Input that the network expects; all preprocessing values come from it.
        backbone, heads, dropout, classifier: Parts of the network. Each pathway has one head; the output vectors of the
            heads are concatenated.
        standards: `Standard` module of each pathway; empty unless `options.standardize` is set.
        stored: Layout of the cached features that `forward` receives instead of clips; None for clips.
    """

    input_scale: torch.Tensor
    input_shift: torch.Tensor

    def __init__(self, options: ModelOptions, num_classes: int, backbone: Backbone | None = None) -> None:
        """Build the network, with a backbone from `build_backbone` or a new one.

        Raises:
            SettingsError: The options are wrong or contradict each other.
        """
        super().__init__()
        if num_classes < 1:
            raise SettingsError(f"num_classes is {num_classes}: expected 1 or more")
        options = resolve_options(options)
        self.options = options
        self.num_classes = num_classes
        self.spec = input_spec(options)
        self.backbone = build_backbone(options) if backbone is None else backbone
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
        """changes made to the layers after they were built from the options (`two_stream.surgery`)"""
        self._frozen: list[nn.Module] = []

    def _register_normalisation(self) -> None:
        """Register `(p / 255 * (hi - lo) + lo - mean) / std` as one factor and one offset per channel."""
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
        """Device of the network, read from its buffers because an int8 network has no parameters."""
        return self.input_scale.device

    @property
    def cpu_only(self) -> bool:
        """Whether the network computes in int8, which is supported on CPUs only."""
        return any(alteration.cpu_only for alteration in self.alterations)

    @property
    def head(self) -> Head:
        """The head of the first pathway; most backbones have only one pathway."""
        return self._heads()[0]

    def normalised(self, clip_BCTHW: torch.Tensor) -> torch.Tensor:
        """Return the float32 input of the backbone for pixel values 0..255 (uint8 or float).

        Raises:
            SettingsError: The clip does not have the shape `(B, C, T, H, W)` with this modality's channels.
        """
        if clip_BCTHW.ndim != 5 or clip_BCTHW.shape[1] != self.spec.channels:
            raise SettingsError(
                f"the clip has shape {tuple(clip_BCTHW.shape)}; {self.spec.modality} requires "
                f"(batch, {self.spec.channels}, frames, height, width)"
            )
        x = clip_BCTHW.to(self.input_scale.dtype, memory_format=self.memory_format)
        if x is clip_BCTHW:  # do not modify the caller's tensor
            return x * self.input_scale + self.input_shift
        return x.mul_(self.input_scale).add_(self.input_shift)

    def features_of_normalised(self, x_BCTHW: torch.Tensor) -> list[torch.Tensor]:
        """Return the tokens `x_BTD` of each pathway for an already normalised clip."""
        return self._pooled(self.maps_of_normalised(x_BCTHW))

    def maps_of_normalised(self, x_BCTHW: torch.Tensor) -> list[torch.Tensor]:
        """Return the backbone's map of each pathway for an already normalised clip."""
        if self.options.modality == "rgbdiff":
            x_BCTHW = differences(x_BCTHW, max(1, self.spec.segments))
        return [feature.tensor for feature in self.backbone(x_BCTHW)]

    def _pooled(self, views: list[torch.Tensor]) -> list[torch.Tensor]:
        """Return the heads' input tokens for feature maps `(B, C, T, H, W)` or tokens `(B, T, D)`.

        Unless a head needs feature maps, both inputs give the same tokens, because the order of standardisation and
        spatial mean does not matter.
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
        """Return the tokens `x_BTD` of each pathway, which are the input of its head."""
        return self.features_of_normalised(self.normalised(clip_BCTHW))

    def forward_normalised(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        """Return the logits `(B, K)` of an already normalised clip, for comparisons with other code."""
        return self.logits_of_maps(self.maps_of_normalised(x_BCTHW))

    def logits_of_maps(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """Return the logits `(B, K)` for the backbone's feature maps `(B, C, T, H, W)` of each pathway."""
        return self._classified_places(maps) if self.options.dense else self._classified(self._pooled(maps))

    def _aggregated(self, tokens: list[torch.Tensor]) -> torch.Tensor:
        vectors = [head(x_BTD) for head, x_BTD in zip(self._heads(), tokens, strict=True)]
        return vectors[0] if len(vectors) == 1 else torch.cat(vectors, dim=1)

    def _classified(self, tokens: list[torch.Tensor]) -> torch.Tensor:
        logits_BK: torch.Tensor = self.classifier(self.dropout(self._aggregated(tokens)))
        return logits_BK

    def _classified_places(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """Return the logits of every position, with negative logits set to 0, averaged over positions."""
        places_BND = torch.cat([x.flatten(2).transpose(1, 2) for x in maps], dim=-1)
        logits_BNK = torch.relu(self.classifier(self.dropout(places_BND)))
        return logits_BNK.mean(1)

    def forward(self, clip_BCTHW: torch.Tensor) -> torch.Tensor:
        """Return the logits `(B, K)` of clips with pixel values 0..255, or of features (`use_cached_features`)."""
        if self.stored is not None:
            return self.forward_stored(clip_BCTHW, self.stored)
        return self.forward_normalised(self.normalised(clip_BCTHW))

    def features_to_store(self, x_BCTHW: torch.Tensor, *, maps: bool = False) -> list[torch.Tensor]:
        """Return the features of an already normalised clip for a feature cache.

        Args:
            x_BCTHW: As for `forward_normalised`.
            maps: Return feature maps `(B, C, T, H, W)` per pathway, which every head accepts; otherwise their spatial
                mean `(B, T, D)`, for heads that do not need maps.
        """
        found = self.maps_of_normalised(x_BCTHW)
        return found if maps else [space_mean(x) for x in found]

    def forward_stored(self, features_BD: torch.Tensor, layout: FeatureLayout) -> torch.Tensor:
        """Return the logits `(B, K)` of cached features, one row per view."""
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

    def vectors_of_normalised(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        """Return `z_BD`, see `forward_vectors`, for an already normalised clip."""
        return self._aggregated(self.features_of_normalised(x_BCTHW))

    def forward_vectors(self, clips: torch.Tensor) -> torch.Tensor:
        """Return `z_BD`, the classifier's input in evaluation: the concatenated vectors of the heads.

        Args:
            clips: As for `forward`.
        """
        if self.stored is None:
            return self._aggregated(self.forward_features(clips))
        return self._aggregated(self._pooled(_unpacked(clips, self.stored)))

    def use_cached_features(self, layout: FeatureLayout, source: object = "the feature cache") -> None:
        """Make `forward` take cached features instead of clips; the backbone is not run.

        Raises:
            SettingsError: See `check_stored`.
        """
        self.check_stored(layout, source)
        self.stored = layout

    def check_stored(self, layout: FeatureLayout, source: object = "the feature cache") -> None:
        """Check that cached features fit the model.

        Args:
            layout: Layout of a row.
            source: Where the rows come from, for messages.

        Raises:
            SettingsError: The head needs maps but tokens are cached, or the features come from a different backbone.
        """
        if self.options.dense:
            raise SettingsError(
                f"{source}: a model with `model.dense` has no head, so it cannot use cached features; train on the "
                "videos"
            )
        if not layout.maps and any(head.needs_maps for head in self._heads()):
            raise SettingsError(
                f"{source}: head {self.options.head.kind} needs feature maps, but the cache contains spatial means; "
                "write the cache with `two-stream features --maps`, or set `model.head.over: time`"
            )
        tokens = self.backbone.num_tokens(self.spec.clip_length)
        wanted = list(zip(tokens, self.backbone.channels, strict=True))
        given = [(s[1], s[0]) if layout.maps else s for s in layout.shapes]
        if given != wanted:
            raise SettingsError(
                f"{source}: contains {layout}; expected the output of the model's backbone, tokens (T, D) of "
                f"{' and '.join(f'{count}×{width}' for count, width in wanted)}"
            )

    @torch.no_grad()
    def attention(self, clip_BCTHW: torch.Tensor) -> list[torch.Tensor]:
        """Return `Head.attention`, the weights of the time steps `(B, heads, T)`, for each pathway.

        Raises:
            SettingsError: The head has no attention.
        """
        for head in self._heads():
            head.check_attention()
        was_training = self.training
        self.eval()
        try:
            return self.attention_of_maps(self.maps_of_normalised(self.normalised(clip_BCTHW)))
        finally:
            self.train(was_training)

    @torch.no_grad()
    def attention_of_maps(self, maps: list[torch.Tensor]) -> list[torch.Tensor]:
        """Return `attention` for the backbone's feature maps; the network must be in evaluation mode."""
        return [head.attention(x_BTD) for head, x_BTD in zip(self._heads(), self._pooled(maps), strict=True)]

    def stages(self) -> list[tuple[str, nn.Module]]:
        """Return the named parts from the input to the classifier; freezing and layer-wise decay apply to them."""
        return [*self.backbone.stages(), ("head", self.heads), ("classifier", self.classifier)]

    def freeze_until(self, name: str) -> None:
        """Freeze the weights and statistics of every stage up to and including `name`.

        Frozen stages need no memory for their activations. The name `backbone` means the last stage of the backbone.
        With the name `head`, only the classifier is trained (a linear probe).

        Raises:
            SettingsError: There is no such stage, or nothing would be left to train.
        """
        names = [stage for stage, _ in self.stages()]
        if name == "backbone":
            name = self.backbone.stages()[-1][0]
        if name not in names[:-1]:
            raise SettingsError(
                f"`freeze_until` is {name!r}: expected one of {', '.join(names[:-1])}, or backbone"
            )
        self._frozen = [stage for _, stage in self.stages()[: names.index(name) + 1]]
        for stage in self._frozen:
            stage.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Recognizer:
        """Set training or evaluation mode; frozen stages stay in evaluation mode, so their statistics do not change."""
        super().train(mode)
        for stage in self._frozen:
            stage.eval()
        return self

    def hold(self, modules: Iterable[nn.Module]) -> None:
        """Keep modules in evaluation mode, so that their statistics do not change; their weights are still trained."""
        self._frozen += modules
        self.train(self.training)

    def set_gradient_checkpointing(self, on: bool) -> None:
        """Recompute each backbone stage in the backward pass, which needs less memory and about a third more time."""
        self.backbone.gradient_checkpointing = on

    def channels_last(self) -> Recognizer:
        """Use the memory format `channels_last_3d` for weights and clips, which makes convolutions faster."""
        self.memory_format = torch.channels_last_3d
        for weight in (*self.parameters(), *self.buffers()):
            if weight.ndim in _CHANNELS_LAST:  # 2D convolutions use channels_last
                weight.data = weight.data.contiguous(memory_format=_CHANNELS_LAST[weight.ndim])
        return self


def differences(x_BCTHW: torch.Tensor, segments: int = 1) -> torch.Tensor:
    """Return the RGB difference of a clip, the input of the backbone for `modality: rgbdiff`.

    The difference of frame t is `x[t] - x[t - 1]`, with frames that are `spec.stride` frames of the video apart. The
    first frame of the clip, or of each segment, has no predecessor and gets the difference of the second frame, so T
    frames give T differences and no frame outside the clip is read. Frames are normalised before, so the mean cancels:
    a change of the pixel value by p is `p / 255 * (hi - lo) / std`, between `-(hi - lo) / std` and `(hi - lo) / std`.
    There are three channels for each time step, as in RGB, so networks start from RGB weights without a change; TSN
    stacks differences as channels and averages and repeats the first layer's weights instead.

    Source: Wang et al., "Temporal Segment Networks" (arXiv 1608.00859), section 3.2.

    Args:
        x_BCTHW: Normalised clips; T is at least 2 for each segment.
        segments: Number of equal parts of the clip, between which no difference is computed.
    """
    x = x_BCTHW.reshape(*x_BCTHW.shape[:2], segments, -1, *x_BCTHW.shape[3:])
    change = x[:, :, :, 1:] - x[:, :, :, :-1]
    return torch.cat((change[:, :, :, :1], change), dim=3).reshape(x_BCTHW.shape)


def _unpacked(features_BD: torch.Tensor, layout: FeatureLayout) -> list[torch.Tensor]:
    """Split rows of cached features into the tokens or maps of each pathway."""
    parts = torch.split(features_BD, layout.sizes, dim=1)
    return [part.reshape(-1, *shape) for part, shape in zip(parts, layout.shapes, strict=True)]


def resolve_options(options: ModelOptions) -> ModelOptions:
    """Return options that build the model without external files or downloads.

    If the backbone reads its architecture from a folder or hub, the returned options contain the architecture and the
    input.

    Raises:
        SettingsError: The folder or hub cannot be read.
    """
    backbone = BACKBONES[options.backbone.kind].resolved(options.backbone)
    if backbone == options.backbone:
        return options
    given = input_spec(options)
    spec = {name: getattr(given, name) for name in InputOptions.model_fields}
    return options.model_copy(update={"backbone": backbone, "input": InputOptions(**spec)})


def input_spec(options: ModelOptions) -> InputSpec:
    """Return the input that a model expects: the backbone's default, changed by `options.input`.

    Raises:
        SettingsError: Contradicting values, for example a crop larger than the frame.
    """
    usual = BACKBONES[options.backbone.kind].default_input(options.backbone, options.reads)
    given = {name: value for name, value in options.input.model_dump().items() if value is not None}
    if given.get("segments") == "frames":
        given["segments"] = given.get("clip_length", usual.clip_length)
    spec = replace(usual, **given)
    if spec.segments and spec.clip_length % spec.segments:
        raise SettingsError(
            f"`input.clip_length` {spec.clip_length} is not a multiple of `input.segments` {spec.segments}; expected "
            "the same number of frames for every segment"
        )
    if options.modality == "rgbdiff" and spec.clip_length < 2 * max(1, spec.segments):
        raise SettingsError(
            f"`model.modality: rgbdiff` needs two frames of each segment or more, but `input.clip_length` is "
            f"{spec.clip_length} and `input.segments` is {spec.segments}; increase `input.clip_length`"
        )
    fields = len(usual.mean)  # the statistics of one flow field apply to each field of a stack
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
            "reduce `input.crop` or increase `input.resize`"
        )
    for name in ("mean", "std"):
        values = getattr(spec, name)
        if len(values) != spec.channels:
            raise SettingsError(
                f"`input.{name}` has {len(values)} numbers; expected {spec.channels}, one per channel of "
                f"{spec.modality}"
            )
    return spec


def build_backbone(options: ModelOptions) -> Backbone:
    """Return an untrained backbone with its reduction block, for resolved options."""
    stack = input_spec(options).stack
    backbone: Backbone = BACKBONES[options.backbone.kind](options.backbone, options.reads, stack=stack)
    if options.reduction == "frab":
        backbone.append_block(options.reduced_channels)
    elif options.reduction == "frmb":
        backbone.replace_last_block(options.reduced_channels)
    return backbone


def create_model(name_or_options: str | ModelOptions, num_classes: int, **options: Any) -> Recognizer:
    """Build a recognizer from its name in the zoo, or from options.

    Args:
        name_or_options: For example `"rgb_resneXt3D64f101_bert10_FRMB"`, or `ModelOptions(...)`.
        num_classes: K, the number of classes.
        **options: Fields of `ModelOptions` to change, for example `modality="flow"`,
            `head={"kind": "lstm"}`, `input={"clip_length": 16}`. A part of the same kind
            keeps its other settings.

    Raises:
        SettingsError: Unknown name (the message suggests similar ones), key or value.
    """
    return Recognizer(zoo.resolve(name_or_options, **options), num_classes)
