"""Options of a model: backbone, temporal head, classifier and input."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from two_stream.config.backbones import BackboneOptions, MobileNetV2
from two_stream.config.base import Fraction, Options, Positive, PositiveInt
from two_stream.config.heads import AverageHead, BertHead, HeadOptions


class InputOptions(Options):
    """Departures from the backbone's usual input; what is left out keeps the backbone's own value."""

    clip_length: PositiveInt | None = None
    """frames per clip"""
    stride: PositiveInt | None = None
    """step between neighbouring frames"""
    segments: Annotated[int, Field(ge=0)] | Literal["frames"] | None = None
    """equal parts of the video, of which a clip takes `clip_length / segments` frames each, `stride` apart; frames: a
    part per frame; 0: a clip is one run of frames"""
    stack: PositiveInt | None = None
    """neighbouring flow fields that make one frame of a flow clip, stacked as channels x1, y1, x2, y2, …"""
    resize: tuple[PositiveInt, PositiveInt] | None = None
    """height and width a frame is resized to"""
    crop: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None
    """side of the square crop, or height and width of a rectangle"""
    value_range: tuple[float, float] | None = None
    """what pixel values 0 and 255 become before mean and std"""
    mean: tuple[float, ...] | None = None
    std: tuple[Positive, ...] | None = None

    @field_validator("crop", mode="wrap")
    @classmethod
    def _size(cls, value: Any, check: ValidatorFunctionWrapHandler) -> Any:
        try:
            size = check(value)
        except ValidationError:  # has a complaint for each of the forms
            raise ValueError(
                f"{value!r} is no size; expected the side of a square, or height and width as [144, 192], in pixels"
            ) from None
        # a square has one spelling, so that equal inputs are equal settings
        return size[0] if isinstance(size, tuple) and size[0] == size[1] else size

    @model_validator(mode="after")
    def _consistent(self) -> InputOptions:
        if self.resize is not None and self.crop is not None:
            size = (self.crop, self.crop) if isinstance(self.crop, int) else self.crop
            if size[0] > self.resize[0] or size[1] > self.resize[1]:
                raise ValueError(f"crop {self.crop} is larger than the resized frame {self.resize}")
        return self


class ModelOptions(Options):
    """A recognizer: backbone, reduction, temporal head, classifier."""

    modality: Literal["rgb", "flow"] = "rgb"
    """rgb: 3 channels; flow: 2 channels (x, y)"""
    backbone: BackboneOptions = MobileNetV2()
    """the 3D network below the head"""
    reduction: Literal["none", "frab", "frmb"] = "none"
    """frab: append a block that narrows the features; frmb: replace the last block by one"""
    reduced_channels: PositiveInt = 512
    """width after frab or frmb"""
    head: HeadOptions = BertHead()
    """how time is summed up"""
    standardize: bool = False
    """give every channel of the backbone's tokens mean 0 and deviation 1 before the head; measured over the centred
    clips of the training part when a training begins, then part of the weights"""
    dropout: Fraction = 0.8
    """dropout before the classifier"""
    dense: bool = False
    """classify every place of the map and average what is above zero, as SqueezeNet does; with the average head"""
    input: InputOptions = InputOptions()
    """input of the network where it differs from the backbone's usual one"""

    @model_validator(mode="after")
    def _only_flow_is_stacked(self) -> ModelOptions:
        if self.modality == "rgb" and (self.input.stack or 1) > 1:
            raise ValueError(
                f"`input.stack` is {self.input.stack}, and only flow is stacked; set `modality: flow`, or leave it out"
            )
        return self

    @model_validator(mode="after")
    def _dense_has_no_head(self) -> ModelOptions:
        if self.dense and self.head != AverageHead():
            raise ValueError("dense classifies places before any head: it needs `head: {kind: average}`")
        if self.dense and self.standardize:
            raise ValueError(
                "standardize changes what a head sees, and dense has none; leave one of them out"
            )
        return self
