"""The order theme of the embedded data set: classes that differ in the order of events only.

Both discs stand still and shine in one of four colours, one colour after another, round and round. A class is the
order of the colours; there are six, named by their first letters from red on, such as `rgby`: red, green, blue,
yellow. Every colour is as likely in any frame of any class, so neither one frame nor all of them in no order say
anything: what sees frames one by one and averages them is left with chance. Played backwards, a class is another one
(`rgby` is `rybg`).
"""

from __future__ import annotations

import itertools

import numpy as np

from two_stream.data.demo_drawing import Image, Look, scrolled, stamp

CLASSES = tuple("r" + "".join(rest) for rest in itertools.permutations("gby"))
COLOURS = {"r": (225, 45, 45), "g": (45, 190, 60), "b": (50, 80, 225), "y": (230, 200, 40)}
_TINT = 0.65
"""share of the colour in a disc's picture"""


def pictures(name: str, look: Look, draw: np.random.Generator, shape: tuple[int, int, int]) -> list[Image]:
    """Draw the frames of one video; see `demo_motion.pictures`."""
    frames, height, width = shape
    period = draw.uniform(10.0, 13.0)  # frames: a clip of 12 shows about one round, wherever it starts
    begin = draw.uniform()
    where = draw.uniform(0.0, 1.0, (2, 3))  # of each disc: height, size, angle
    scroll = draw.uniform(0, 64, 2)
    made = []
    for frame in range(frames):
        picture = scrolled(look.background, scroll + frame * np.asarray(look.drift), width, height)
        shining = colour_at(name, begin + frame / period)
        for side, (y, size, angle) in enumerate(where):
            x = width * (0.25 + 0.5 * side)
            diameter = (0.34 + 0.24 * size) * height
            stamp(picture, _tinted(look.discs[side], shining), x, y * height, diameter, 360.0 * angle)
        made.append(np.asarray(np.rint(picture), np.uint8))
    return made


def colour_at(name: str, time: float) -> str:
    """Return the letter of the colour that a class shows at a time, in rounds."""
    return name[int(time % 1.0 * len(name))]


def _tinted(disc: Image, colour: str) -> Image:
    tinted = disc.astype(np.float64)
    tinted[..., :3] = (1.0 - _TINT) * tinted[..., :3] + _TINT * np.asarray(COLOURS[colour])
    return tinted.astype(np.uint8)
