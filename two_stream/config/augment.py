"""Augmentation of training clips."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from two_stream.config.base import Fraction, NonNegative, Options, Positive

Share = Annotated[float, Field(gt=0.0, le=1.0)]
COLOURS = ("brightness", "contrast", "saturation", "hue", "grayscale", "rand_augment")
"""settings that change colours, for RGB only"""


class AugmentOptions(Options):
    """Augmentation of training clips; all frames of a clip are changed in the same way."""

    clip: Literal["random", "center", "begin"] = "random"
    """position of the training clip in the video (`train_t_crop` of 3D-ResNets)"""
    crop: Literal[
        "multiscale", "random", "center", "corner", "multiscale_random", "resized", "short_side", "full"
    ] = "multiscale"
    """how training clips are cropped. `multiscale`: corner crops of several scales (as in the paper). `random`: the
    largest box at a random position. `corner`: a box of one of `scales` in a corner or the centre. `multiscale_random`:
    a box of one of `scales` at a random position. `resized`: a box with random `area` and `ratio`. `short_side`: a box
    at a random position after the short side is scaled by `short_sides`. `full`: the full frame resized to the
    network's input, also in validation and centred views"""
    scales: Annotated[tuple[Share, ...], Field(min_length=1)] = (1.0, 0.875, 0.75, 0.66)
    """sizes of multi-scale and corner crops, relative to the largest box in the resized frame. The box has the aspect
    ratio of the input; for a square input, its side is the frame's short side"""
    area: tuple[Share, Share] = (0.25, 1.0)
    """smallest and largest area of a resized crop relative to the frame"""
    ratio: tuple[Positive, Positive] = (0.75, 4 / 3)
    """smallest and largest ratio of width to height of a resized crop, relative to the ratio of the network's input"""
    short_sides: tuple[Positive, Positive] = (1.0, 1.25)
    """for `crop: short_side`: smallest and largest short side of the frame, relative to the network's input"""
    flip: Fraction = 0.5
    """probability of a horizontal flip"""
    brightness: NonNegative = 0.0
    """largest relative change of the brightness; RGB only, like contrast, saturation, hue and grayscale"""
    contrast: NonNegative = 0.0
    """largest relative change of the contrast"""
    saturation: NonNegative = 0.0
    """largest relative change of the saturation"""
    hue: Annotated[float, Field(ge=0.0, le=0.5)] = 0.0
    """largest change of the hue; 0.5 is half of the colour circle"""
    grayscale: Fraction = 0.0
    """probability of converting a clip to greyscale"""
    rand_augment: Annotated[int, Field(ge=0, le=10)] = 0
    """number of RandAugment operations (arXiv 1909.13719) per clip; 0 is off"""
    rand_magnitude: Annotated[int, Field(ge=0, le=30)] = 9
    """strength of RandAugment's operations"""
    erase: Fraction = 0.0
    """probability of erasing a box in every frame of a clip (arXiv 1708.04896): the box becomes grey, or zero in
    flow"""
    erase_area: tuple[Share, Share] = (0.02, 0.33)
    """smallest and largest area of an erased box relative to the area of the frame"""
    protocol: Literal["standard", "paper"] = "standard"
    """paper: use the published crop offsets, which truncate some boxes, and do not negate flow x in mirrored clips"""

    @property
    def whole_frame(self) -> bool:
        """Whether training clips and all centred views show full frames."""
        return self.crop == "full"

    @property
    def colours(self) -> tuple[str, ...]:
        """Active settings that change colours."""
        return tuple(name for name in COLOURS if getattr(self, name))

    @model_validator(mode="after")
    def _ascending(self) -> AugmentOptions:
        for name in ("area", "ratio", "short_sides", "erase_area"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"`{name}` is {low:g}, {high:g}: expected the smaller number first")
        if self.short_sides[0] < 1.0:
            raise ValueError(
                f"`short_sides` starts with {self.short_sides[0]:g}: expected 1 or more, so that the crop fits"
            )
        return self
