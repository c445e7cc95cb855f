"""From seconds to frames of one video: by its own time stamps where they are at hand, else by its rate."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from two_stream.data.sources.segments import frames_between
from two_stream.errors import VideoError
from two_stream.video.decoding.backend_pyav import frame_times
from two_stream.video.decoding.reader import open_video
from two_stream.video.extraction.one_video import read_extraction_manifest

RATE_FILE = "fps"
"""file in a frame folder, as the scripts of 3D-ResNets-PyTorch write it"""


@dataclass(frozen=True)
class VideoClock:
    """When the frames of a video are shown."""

    count: int
    fps: float | None = None
    times: Sequence[float] | None = None

    def between(self, start: float, end: float) -> range:
        """Return the numbers of the frames from `start` to `end`, in seconds; see `frames_between`."""
        return frames_between(start, end, self.count, fps=self.fps, times=self.times)


@lru_cache(maxsize=8)  # the parts of a video follow each other in the files
def clock_of(
    file: Path | None, folder: Path | None, count: int, fps: float | None, wanted: float | None
) -> VideoClock:
    """Return the clock of a video.

    Args:
        file: The video, where it is at hand.
        folder: Its frame folder, where that is read; the video's time stamps hold if it has as many frames.
        count: Frames.
        fps: Rate in the annotations.
        wanted: Rate that a person has given for the frame folders; goes before everything but time stamps.

    Raises:
        VideoError: Nothing tells the rate.
    """
    if file is not None:
        with suppress(VideoError):
            times = frame_times(file)
            if times is not None and len(times) == count:
                return VideoClock(count, times=times)
    elif folder is not None:
        times = _recorded(folder).get("times", [])  # none where the rate is steady
        if len(times) == count + 1:
            return VideoClock(count, times=times[:-1])
    rate = wanted or fps
    if rate is None and folder is not None:
        rate = _rate_of(folder)
    elif rate is None and file is not None:
        with open_video(file) as video:
            rate = video.fps
    if rate is None:
        where = folder or file
        raise VideoError(where, f"nothing tells the frames per second of {where}; give --fps")
    return VideoClock(count, fps=rate)


def _recorded(folder: Path) -> dict[str, Any]:
    """Return what extraction noted of the video; nothing where the folder is not ours."""
    found = (read_extraction_manifest(folder) or {}).get("video")
    return found if isinstance(found, dict) else {}


def _rate_of(folder: Path) -> float | None:
    found = _recorded(folder).get("fps")
    if found:
        return float(found)
    with suppress(OSError, ValueError):
        rate = float((folder / RATE_FILE).read_text(encoding="utf-8-sig"))
        return rate if rate > 0 else None
    return None
