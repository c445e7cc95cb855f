"""A bar that moves at one speed, filmed at several frame rates: where it is tells the time of a frame."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.helpers.videos import make
from two_stream.types import Frames

SPEED, START, WIDTH = 60.0, 20.0, 160
"""pixels per second; pixels from the left at time 0; pixels per row"""
SECONDS = 2
STAMPS = [0, 17, 50, 67, 133, 150, 210, 277, 290, 350, 383, *range(400, 1201, 50), *range(1230, 2001, 70)]
"""milliseconds of the frames of the film of variable rate"""
FILMS = {"24": 24, "25": 25, "30": 30, "60": 60, "variable": None}
"""frames per second of each film"""


def seconds_of(film: str) -> np.ndarray:
    """Return the times of the frames of a film."""
    fps = FILMS[film]
    return np.array(STAMPS) / 1000 if fps is None else np.arange(SECONDS * fps + 1) / fps


def picture(seconds: float) -> np.ndarray:
    """Draw the bar, 8 pixels wide, as it is at a time."""
    left, columns = START + SPEED * seconds - 4, np.arange(WIDTH)
    covered = np.clip(np.minimum(columns + 1, left + 8) - np.maximum(columns, left), 0, 1)
    return np.repeat(np.repeat((20 + 210 * covered)[None, :, None], 32, 0), 3, 2).round().astype(np.uint8)


def film(folder: Path, name: str) -> Path:
    """Write a film into a folder."""
    frames = [picture(seconds) for seconds in seconds_of(name)]
    fps = FILMS[name]
    return make(folder / f"{name}.mp4", frames=frames, stamps=None if fps else STAMPS, fps=fps or 25)


def moments(frames_THWC: Frames) -> np.ndarray:
    """Return the time in seconds at which each picture shows the bar."""
    weights = np.asarray(frames_THWC, np.float64).mean(axis=(1, 3)) - 20
    weights[weights < 40] = 0
    return ((weights * (np.arange(WIDTH) + 0.5)).sum(1) / weights.sum(1) - START) / SPEED


def slack(name: str) -> float:
    """Return half of the longest frame interval of a film, and the error of `moments`, in seconds."""
    return float(np.diff(seconds_of(name)).max()) / 2 + 0.006
