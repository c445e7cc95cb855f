"""The frames of a video that is seen at a chosen number of frames per second, whatever the rate at which it was filmed.

Position j (from 0) of such a video stands for the time `t₀ + j / fps`, where t₀ is the time of the first frame. A
position shows the frame that is nearest in time, or the earlier one of two equally near frames. The last position is
not after the last frame.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")
FrameTimes = float | Sequence[float]
"""the constant number of frames per second, or the time of each frame in seconds, in ascending order"""
_SAME = 1e-5
"""seconds; smaller differences are rounding, for example to ticks of 1/90000 s or to the digits of a manifest"""


def seen_at(frames: Iterable[tuple[float, T]], fps: float) -> Iterator[tuple[float, T]]:
    """Yield the time of each position, and the frame that the position shows.

    Args:
        frames: Time in seconds and frame, with times that never decrease. Only two frames are in use at a time.
        fps: Positions per second.
    """
    rest = iter(frames)
    start = next(rest, None)
    if start is None:
        return
    first, (before, shown), position = start[0], start, 0
    for time, frame in itertools.chain([start], rest):
        while (at := first + position / fps) <= time + _SAME:
            yield at, frame if time - at < at - before - _SAME else shown
            position += 1
        if time > before:  # of frames with equal times, the first one is shown
            before, shown = time, frame


def shown_numbers(times: FrameTimes, fps: float, frames: int | None = None) -> Iterator[int]:
    """Yield the number (from 1) of the frame that each position shows.

    Without `frames`, the number of frames of the video, the positions of a constant rate never end.
    """
    seconds: Iterable[float]
    if isinstance(times, Sequence):
        seconds = times
    else:
        rate = times
        seconds = (number / rate for number in itertools.count())
    numbered = zip(itertools.islice(seconds, frames), itertools.count(1))
    return (number for _, number in seen_at(numbered, fps))
