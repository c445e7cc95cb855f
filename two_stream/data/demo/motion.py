"""The motion theme of the embedded data set: classes that differ in motion and its order only.

A disc's state is its height in the frame, its size and its angle, each uniform and independent in every frame of every
class, so that one frame says nothing about the class. A class moves one of them along its cycle, its partner the other
way round:

    rise, fall              height at a steady pace; a disc that leaves at the top returns at the bottom
    climb, sink             height: slowly up and quickly down again, against slowly down and quickly up
    swell, shrink           size: grows slowly and shrinks quickly, against shrinks slowly and grows quickly
    wheels_in, wheels_out   angle: both discs turn, their upper edges towards each other, against apart

Played backwards, a class is its partner; shuffled, the two cannot be told apart. No class changes when mirrored, so
flips in training and mirrored test crops are sound.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from two_stream.data.demo.drawing import Image, Look, scrolled, stamp

CLASSES = ("rise", "fall", "climb", "sink", "swell", "shrink", "wheels_in", "wheels_out")
PAIRS = (("rise", "fall"), ("climb", "sink"), ("swell", "shrink"), ("wheels_in", "wheels_out"))
"""classes that become each other when played backwards"""
_SLOW = 0.75
"""part of a cycle that `climb` and `swell` spend on the slow way"""


def pictures(name: str, look: Look, draw: np.random.Generator, shape: tuple[int, int, int]) -> list[Image]:
    """Draw the frames of one video.

    Args:
        name: The class.
        look: What videos of the source share.
        draw: Decides everything else.
        shape: (frames, height, width).
    """
    frames, height, width = shape
    period = draw.uniform(10.0, 13.0)  # frames: a clip of 12 shows about one cycle, wherever it starts
    start = draw.uniform(0.0, 1.0, (2, 4))  # of each disc: height, size, angle, place in the cycle
    aside = draw.uniform(-0.03, 0.03, 2) * width
    scroll = draw.uniform(0, 64, 2)
    made = []
    for frame in range(frames):
        picture = scrolled(look.background, scroll + frame * np.asarray(look.drift), width, height)
        for side in (0, 1):
            y, size, angle = state(name, side, start[side], frame / period)
            x = width * (0.25 + 0.5 * side) + aside[side]
            stamp(picture, look.discs[side], x, y * height, size * height, 360.0 * angle)
        made.append(np.asarray(np.rint(picture), np.uint8))
    return made


def state(name: str, side: int, start: NDArray[np.float64], time: float) -> tuple[float, float, float]:
    """Return height (0 to 1, wrapping), diameter (part of the frame's height) and angle (turns) of a disc.

    Args:
        name: The class.
        side: 0 left, 1 right.
        start: Four numbers, uniform in 0..1: height, size, angle, place in the cycle.
        time: In cycles since the first frame.
    """
    y, size, angle, phase = (float(value) for value in start)
    kind = next(pair for pair in PAIRS if name in pair)[0]
    forward = 1.0 if name == kind else -1.0
    if kind == "rise":
        y -= forward * time
    elif kind == "climb":
        y -= 0.5 * _to_and_fro(phase + forward * time)
    elif kind == "swell":
        size = _to_and_fro(phase + forward * time)
    else:
        angle += forward * (1.0 if side == 0 else -1.0) * 0.6 * time
    return y % 1.0, 0.34 + 0.24 * size, angle % 1.0


def _to_and_fro(phase: float) -> float:
    """Return 0 to 1 slowly and back quickly; uniform over a cycle."""
    phase %= 1.0
    return phase / _SLOW if phase < _SLOW else (1.0 - phase) / (1.0 - _SLOW)
