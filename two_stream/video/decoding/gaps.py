"""Frames that are missing by the time stamps of the others, or by the length that the file states."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

_LOSING = frozenset({"matroska,webm", "mpegts", "mpeg", "flv", "asf", "ogg"})
"""containers in which a lost part leaves a gap; the others list their frames with their times"""
_FEWEST = 12
"""frames that have a rhythm"""


def stated_end(container: InputContainer, stream: VideoStream) -> float | None:
    """Return the second at which the video ends by the header of a Matroska or Flash file."""
    if container.format.name not in ("matroska,webm", "flv"):
        return None
    for key, value in stream.metadata.items():
        if key.upper().startswith("DURATION"):
            with suppress(ValueError):  # anybody may write anything there
                hours, minutes, seconds = map(float, value.split(":"))
                return 3600 * hours + 60 * minutes + seconds
    if len(container.streams) > 1 or container.duration is None:  # sound may go on longer
        return None
    return container.duration / 1e6


def hole(stamps: Sequence[float], end: float | None, kind: str) -> str | None:
    """Say where frames are missing, in words; None where none are.

    A gap counts where the others are equal: a file of variable rate has no rhythm to tell one by.

    Args:
        stamps: When frames appear.
        end: When the last one ends, by the header.
        kind: Name of the container.
    """
    if kind not in _LOSING or not stamps:
        return None
    gaps = np.diff(np.sort(np.asarray(stamps)))
    if end is not None and end - max(stamps) > 2.5 * (gaps.max() if len(gaps) else end):
        return f"the header says that the video ends at {end:.3g} s, its last frame is at {max(stamps):.3g} s"
    if len(stamps) < _FEWEST:
        return None
    usual = float(np.median(gaps))
    odd = np.flatnonzero(np.abs(gaps - usual) > usual / 4 + 0.0015)
    if not len(odd) or len(odd) > max(1, len(gaps) // 50) or gaps.max() <= 2.5 * usual:
        return None
    place = int(gaps.argmax())
    return (
        f"no frame for {gaps[place]:.3g} s after frame {place + 1}, where the others are {usual:.3g} s apart"
    )
