"""Random changes of training clips."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from two_stream.config.base import Fraction, NonNegative, Options, Positive

Share = Annotated[float, Field(gt=0.0, le=1.0)]
COLOURS = ("brightness", "contrast", "saturation", "hue", "grayscale", "rand_augment")
"""what acts on colours, so on RGB alone"""


class AugmentOptions(Options):
    """Random changes of a training clip; every frame of a clip gets the same ones."""

    clip: Literal["random", "center", "begin"] = "random"
    """which clip of a video a network trains on (`train_t_crop`)"""
    crop: Literal[
        "multiscale", "random", "center", "corner", "multiscale_random", "resized", "short_side", "full"
    ] = "multiscale"
    """multiscale: corner crops of several scales (the paper's); random: random place, full scale; corner: a box of
    one of `scales` in a corner or the centre; multiscale_random: such a box anywhere; resized: any `area` and
    `ratio`; short_side: random place after scaling the short side by `short_sides`; full: the whole frame brought to
    the network's size, which validation and every centred view then see too"""
    scales: Annotated[tuple[Share, ...], Field(min_length=1)] = (1.0, 0.875, 0.75, 0.66)
    """size of a multi-scale or corner crop relative to the largest box of the input's shape in the resized frame (of a
    square: relative to the frame's short side)"""
    area: tuple[Share, Share] = (0.25, 1.0)
    """smallest and largest area of a resized crop relative to the frame"""
    ratio: tuple[Positive, Positive] = (0.75, 4 / 3)
    """smallest and largest width of a resized crop relative to its height; the network's input counts as a square"""
    short_sides: tuple[Positive, Positive] = (1.0, 1.25)
    """smallest and largest short side of the frame relative to the network's input, for crop short_side"""
    flip: Fraction = 0.5
    """probability of a horizontal flip"""
    brightness: NonNegative = 0.0
    """largest relative change of the brightness; RGB only, as the following"""
    contrast: NonNegative = 0.0
    """largest relative change of the contrast"""
    saturation: NonNegative = 0.0
    """largest relative change of the saturation"""
    hue: Annotated[float, Field(ge=0.0, le=0.5)] = 0.0
    """largest change of the hue, 0.5 is half the colour circle"""
    grayscale: Fraction = 0.0
    """probability of a clip without colour"""
    rand_augment: Annotated[int, Field(ge=0, le=10)] = 0
    """operations that RandAugment (1909.13719) draws for a clip; 0 is off"""
    rand_magnitude: Annotated[int, Field(ge=0, le=30)] = 9
    """strength of RandAugment's operations"""
    erase: Fraction = 0.0
    """probability that a box is erased (1708.04896), in every frame: grey, in flow no motion"""
    erase_area: tuple[Share, Share] = (0.02, 0.33)
    """smallest and largest area of an erased box relative to the clip's"""
    protocol: Literal["standard", "paper"] = "standard"
    """paper: published crop offsets (some boxes truncated) and flow x kept as it is when mirrored"""

    @property
    def whole_frame(self) -> bool:
        """Whether training clips, and with them all centred views, show whole frames."""
        return self.crop == "full"

    @property
    def colours(self) -> tuple[str, ...]:
        """Settings in use that act on colours."""
        return tuple(name for name in COLOURS if getattr(self, name))

    @model_validator(mode="after")
    def _ascending(self) -> AugmentOptions:
        for name in ("area", "ratio", "short_sides", "erase_area"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"`{name}` is {low:g}, {high:g}: expected the smaller number first")
        if self.short_sides[0] < 1.0:
            raise ValueError(
                f"`short_sides` begins with {self.short_sides[0]:g}: expected 1 or more, or the input does not fit"
            )
        return self
