"""The order theme of the embedded data set: classes that differ in the order of events only.

Both discs stand still and shine in three colours, one after another, each for about a third of the video. A class is
the order of the colours, named by their first letters: `rgb`, `rbg`, `grb`, `gbr`, `brg`, `bgr`. Every colour is as
likely in every class, so neither one frame nor all of them in no order say anything: what sees frames one by one and
averages them is left with chance. Played backwards, a class is another one (`rgb` is `bgr`).
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from two_stream.data.demo.drawing import Image, Look, scrolled, stamp

CLASSES = tuple("".join(order) for order in itertools.permutations("rgb"))
COLOURS = {"r": (225, 45, 45), "g": (45, 190, 60), "b": (50, 80, 225)}
_JITTER = 0.06
"""how far a change of colour may lie from its third, in parts of the video"""
_TINT = 0.65
"""share of the colour in a disc's picture"""


def pictures(name: str, look: Look, draw: np.random.Generator, shape: tuple[int, int, int]) -> list[Image]:
    """Draw the frames of one video; see `motion.pictures`."""
    frames, height, width = shape
    changes = np.array([1 / 3, 2 / 3]) + draw.uniform(-_JITTER, _JITTER, 2)
    where = draw.uniform(0.0, 1.0, (2, 3))  # of each disc: height, size, angle
    scroll = draw.uniform(0, 64, 2)
    made = []
    for frame in range(frames):
        picture = scrolled(look.background, scroll + frame * np.asarray(look.drift), width, height)
        shining = colour_at(name, frame / frames, changes)
        for side, (y, size, angle) in enumerate(where):
            x = width * (0.25 + 0.5 * side)
            diameter = (0.34 + 0.24 * size) * height
            stamp(picture, _tinted(look.discs[side], shining), x, y * height, diameter, 360.0 * angle)
        made.append(np.asarray(np.rint(picture), np.uint8))
    return made


def colour_at(name: str, time: float, changes: NDArray[np.float64]) -> str:
    """Return the letter of the colour that a class shows.

    Args:
        name: The class.
        time: Part of the video that is over, from 0 to below 1.
        changes: Times of the two changes, ascending.
    """
    return name[int(np.searchsorted(changes, time, side="right"))]


def _tinted(disc: Image, colour: str) -> Image:
    tinted = disc.astype(np.float64)
    tinted[..., :3] = (1.0 - _TINT) * tinted[..., :3] + _TINT * np.asarray(COLOURS[colour])
    return tinted.astype(np.uint8)
