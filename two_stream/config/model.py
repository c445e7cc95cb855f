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
from two_stream.config.base import Fraction, Options, Positive, PositiveInt, Rate
from two_stream.config.heads import AverageHead, BertHead, HeadOptions
from two_stream.types import Modality


class InputOptions(Options):
    """Changes to the backbone's default input; unset fields keep the default."""

    clip_length: PositiveInt | None = None
    """number of frames per clip"""
    stride: PositiveInt | None = None
    """distance between neighbouring frames of a clip, in video frames"""
    segments: Annotated[int, Field(ge=0)] | Literal["frames"] | None = None
    """number of equal parts of the video. A clip contains `clip_length / segments` frames of each part, at a distance
    of `stride`. `frames`: one segment per frame. 0: no segments, and all frames of a clip are at a distance of
    `stride`"""
    stack: PositiveInt | None = None
    """number of adjacent flow fields per frame of a flow clip, stacked as channels x1, y1, x2, y2, …"""
    fps: Rate | None = None
    """frames per second at which videos are seen, so that `stride` means the same time in every video. Each frame of a
    clip is the frame nearest in time (of two, the earlier). None: every frame of a video, whatever its rate"""
    resize: tuple[PositiveInt, PositiveInt] | None = None
    """height and width to which frames are resized"""
    crop: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None
    """side of a square crop, or height and width"""
    value_range: tuple[float, float] | None = None
    """values to which pixels 0 and 255 are mapped before mean and std are applied"""
    mean: tuple[float, ...] | None = None
    std: tuple[Positive, ...] | None = None

    @field_validator("crop", mode="wrap")
    @classmethod
    def _size(cls, value: Any, check: ValidatorFunctionWrapHandler) -> Any:
        try:
            size = check(value)
        except ValidationError:  # pydantic would report one error for each allowed form
            raise ValueError(
                f"{value!r} is not a size; expected the side of a square, or height and width as [144, 192], in pixels"
            ) from None
        # a square is stored as one number, so that equal inputs are equal settings
        return size[0] if isinstance(size, tuple) and size[0] == size[1] else size

    @model_validator(mode="after")
    def _consistent(self) -> InputOptions:
        if self.resize is not None and self.crop is not None:
            size = (self.crop, self.crop) if isinstance(self.crop, int) else self.crop
            if size[0] > self.resize[0] or size[1] > self.resize[1]:
                raise ValueError(
                    f"`crop` {self.crop} is larger than the resized frame {self.resize}; reduce `crop` or "
                    "increase `resize`"
                )
        return self


class ModelOptions(Options):
    """A recognizer: backbone, reduction, temporal head and classifier."""

    modality: Literal["rgb", "flow", "rgbdiff"] = "rgb"
    """rgb: 3 channels; flow: 2 channels (x, y); rgbdiff: RGB frames, of which the network sees the differences"""
    backbone: BackboneOptions = MobileNetV2()
    """the network before the head"""
    reduction: Literal["none", "frab", "frmb"] = "none"
    """frab: append a block that reduces the number of channels; frmb: replace the last block by such a block"""
    reduced_channels: PositiveInt = 512
    """number of channels after frab or frmb"""
    head: HeadOptions = BertHead()
    """how tokens are aggregated over time"""
    standardize: bool = False
    """standardise every channel of the backbone's tokens before the head. The mean and the standard deviation are
    measured on the centred clips of the training part when training begins, and saved with the weights"""
    dropout: Fraction = 0.8
    """dropout before the classifier"""
    dense: bool = False
    """classify every position of the feature map and average the logits, with negative logits set to 0, as SqueezeNet
    does; requires the average head"""
    input: InputOptions = InputOptions()
    """changes to the backbone's default input"""

    @property
    def reads(self) -> Modality:
        """Modality of the frames that are read: rgb for `rgbdiff`."""
        return "flow" if self.modality == "flow" else "rgb"

    @model_validator(mode="after")
    def _differences_of_frames(self) -> ModelOptions:
        if self.modality == "rgbdiff" and getattr(self.backbone, "difference", "none") != "none":
            raise ValueError(
                "`modality: rgbdiff` and `backbone.difference` both compute differences; remove one of them"
            )
        return self

    @model_validator(mode="after")
    def _only_flow_is_stacked(self) -> ModelOptions:
        if self.reads == "rgb" and (self.input.stack or 1) > 1:
            raise ValueError(
                f"`input.stack` is {self.input.stack}, but only flow is stacked; set `modality: flow`, or remove "
                "`input.stack`"
            )
        return self

    @model_validator(mode="after")
    def _dense_has_no_head(self) -> ModelOptions:
        if self.dense and self.head != AverageHead():
            raise ValueError(
                "`dense` classifies every position, so the head must be `average` with its defaults; set "
                "`head: {kind: average}`, or remove `dense`"
            )
        if self.dense and self.standardize:
            raise ValueError(
                "`standardize` changes the input of the head, but `dense` has no head; remove one of them"
            )
        return self
