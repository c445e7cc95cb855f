"""The base class of all decoder backends: an open video whose frames are read by index in one forward pass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from two_stream.errors import VideoError
from two_stream.runtime.console import warn
from two_stream.video.decoding.integrity import find_file_damage

Image = NDArray[np.uint8]
"""An image `(H, W, 3)` in RGB order, or `(H, W)`."""

_SUFFIXES = (
    ".3g2 .3gp .264 .265 .asf .avi .divx .dv .f4v .flv .gif .h264 .h265 .hevc .ivf .m2ts .m2v .m4v .mjpeg .mjpg "
    ".mkv .mov .mp4 .mpeg .mpg .mts .mxf .obu .ogm .ogv .rm .rmvb .ts .vob .webm .wmv .y4m"
)
VIDEO_SUFFIXES = frozenset(_SUFFIXES.split())
"""Suffixes (lower case) of the files in a folder that count as videos."""


FAR = 5_000
"""number of frames before the first requested one from which on decoding all of them is worth a warning"""
_warned: set[Path] = set()
NO_TIMES = "has neither time stamps nor a frame rate, so its frames cannot be chosen by time"
"""reason of a `VideoError`"""


class Decoded(NamedTuple):
    """A decoded frame, before its conversion to RGB."""

    picture: Callable[[], Image]
    """function that converts the frame to RGB; valid until the next frame is decoded"""
    stamp: float | None = None
    """presentation time in seconds, from the timestamps of the file"""
    lasts: float | None = None
    """duration in seconds, if the file states it"""


class Video(ABC):
    """An open video file. Frames that can be decoded are numbered from 0, in the order of presentation.

    Attributes:
        path: The file.
        width: Pixels per row of a returned frame, after rotation.
        height: Rows of a returned frame, after rotation.
        fps: Average frames per second, None if the file does not state it.
        codec: Name of the video codec, for example "h264".
        header_frames: Number of frames stated in the header, None if it is not stated. The number in the header is
            often wrong.
    """

    def __init__(self, path: Path, codec: str, fps: float | None, header_frames: int | None) -> None:
        self.path = path
        self.codec = codec
        self.fps = fps
        self.header_frames = header_frames
        self.width = 0
        self.height = 0
        self._stopped: str | None = None
        """why decoding stopped early"""
        self._suspicion: str | None = None
        """signs of damage in frames that decoded"""
        self._at_end = False
        self._count: int | None = None
        self._times: NDArray[np.float64] | None = None

    @abstractmethod
    def _walk(self) -> Generator[Decoded]:
        """Decode from the first frame; set `_at_end` after the last frame, or `_stopped` after an error."""

    @property
    def damage(self) -> str | None:
        """Why decoding stopped early, where parts of the file are missing, or which frames are marked as corrupt.

        The value is None if no damage was found in the frames decoded so far. The value is final after `num_frames` has
        been computed or all `frames()` have been read.
        """
        if self._stopped or not self._at_end:
            return self._stopped
        return self._file_damage or self._suspicion

    @cached_property
    def _file_damage(self) -> str | None:
        """Damage of the container file; computed only when needed, because some formats are read a second time."""
        return find_file_damage(self.path)

    @property
    def num_frames(self) -> int:
        """Number of frames that can be decoded; the first access decodes the whole file, without converting pixels."""
        return self.count()

    def count(self, beat: Callable[[], None] | None = None) -> int:
        """Count the frames that can be decoded, and call `beat` after each frame; see `num_frames`."""
        if self._count is None:
            self._count = self._count_frames(beat or ignore_beat)
        return self._count

    def _count_frames(self, beat: Callable[[], None]) -> int:
        count = 0
        for _ in self._timed(self._walk()):
            count += 1
            beat()
        return count

    @property
    def times(self) -> NDArray[np.float64] | None:
        """Times `(num_frames + 1,)` at which each frame appears and the last frame ends, in seconds from the start.

        Times are computed from timestamps, and from the frame rate for frames without a timestamp. The value is None if
        the file has neither timestamps nor a frame rate.
        """
        self.count()
        return self._times

    def _timed(self, walk: Iterable[Decoded]) -> Iterator[tuple[float | None, Callable[[], Image]]]:
        """Yield each frame's time and the function that returns its image; store the times after the last frame."""
        clock = Clock(self.fps)
        for picture, stamp, lasts in walk:
            yield clock.tick(stamp, lasts), picture
        self._times = clock.edges()

    def frames(self) -> Iterator[Image]:
        """Decode every frame in order, as RGB images, uint8 `(H, W, 3)`. Only one frame is in memory at a time."""
        return (picture for _, picture in self.timed_frames())

    def timed_frames(self) -> Iterator[tuple[float | None, Image]]:
        """Yield (time, image) of every frame in order; times are in seconds from the first frame.

        See `times` and `frames`.
        """
        number = 0
        for number, (seconds, picture) in enumerate(self._timed(self._walk()), start=1):  # noqa: B007 - used after the loop
            yield seconds, picture()
        self._count = number

    def read(self, indices: Sequence[int]) -> Image:
        """Return the RGB frames at `indices` (0-based, any order, repeats allowed) as uint8 `(N, H, W, 3)`.

        Raises:
            VideoError: An index is negative, or the video ends before it.
        """
        wanted = np.asarray(indices, np.int64)
        out = np.empty((len(wanted), self.height, self.width, 3), np.uint8)
        for number, picture in self.pick(wanted):
            out[wanted == number] = picture
        return out

    def pick(self, indices: Iterable[int]) -> Iterator[tuple[int, Image]]:
        """Yield (index, image) for each distinct index (0-based), in ascending order, one image at a time.

        Frames are decoded from the start of the video up to the largest index, because seeking may return wrong frames.
        If the file has a frame index, a backend can start at a key frame and verify the result.

        Raises:
            VideoError: An index is negative, or the video ends before it.
        """
        wanted = sorted({int(index) for index in indices})
        if wanted and wanted[0] < 0:
            raise VideoError(self.path, f"frame {wanted[0]} was requested, but frames are counted from 0")
        if wanted:
            yield from self._pick(wanted)

    def _pick(self, wanted: list[int]) -> Iterator[tuple[int, Image]]:
        """Yield the requested frames (ascending, distinct, at least one), decoding from the first frame."""
        if wanted[0] >= FAR and self.path not in _warned:
            _warned.add(self.path)
            warn(
                f"{self.path}: every part of this file is decoded from its start, because its time stamps do not allow "
                "seeking; reading a long recording in parts takes long, so extract its frames (`two-stream extract`)"
            )
        places = set(wanted)
        number = -1
        with closing(self._walk()) as walk:
            for number, decoded in enumerate(walk):
                if number in places:
                    yield number, decoded.picture()
                if number == wanted[-1]:
                    return
        reason = f" ({self.damage})" if self.damage else ""
        message = (
            f"frame {wanted[-1]} was requested (from 0), but only {number + 1} frames can be decoded{reason}"
        )
        raise VideoError(self.path, message)

    def close(self) -> None:  # noqa: B027 - a backend with nothing to release inherits it
        """Release the resources of the backend; the file is opened again when it is read."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def ignore_beat() -> None:
    """Do nothing; used when progress is not monitored."""


def rotate_picture(picture: NDArray[Any], quarter_turns: int) -> NDArray[Any]:
    """Rotate an image counter-clockwise by quarter turns, and return a contiguous array."""
    return np.ascontiguousarray(np.rot90(picture, quarter_turns)) if quarter_turns else picture


def check_file(path: Path) -> None:
    """Raise an error unless the path is a regular file with content.

    A decoder would wait forever for a named pipe or a device.

    Raises:
        VideoError: No such file, a folder, not a regular file, empty, or not readable.
    """
    try:
        if path.is_dir():
            raise VideoError(path, "is a directory, not a video file")
        if not path.exists():
            raise VideoError(path, "no such file")
        if not path.is_file():
            raise VideoError(path, "expected a regular file, found a device or pipe")
        if path.stat().st_size == 0:
            raise VideoError(path, "empty file (0 bytes)")
        with path.open("rb"):
            pass
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        what = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise VideoError(path, f"the file cannot be opened ({what.lower()})") from None


class Clock:
    """Computes the time of each frame, in seconds from the first frame. Times never decrease.

    A frame without a timestamp appears when the previous frame ends; this time may be computed from `fps`. If
    timestamps jump backwards, the time continues from the previous frame.
    """

    def __init__(self, fps: float | None) -> None:
        self._apart = 1 / fps if fps else None
        self._seconds: list[float | None] = []
        self._stamp: float | None = None
        self._zero: float | None = None
        self._lasts: float | None = None
        self._trusts_durations = False

    def tick(self, stamp: float | None, lasts: float | None = None) -> float | None:
        """Return the time of the next frame, given its timestamp and duration; None if it cannot be computed."""
        before = self._seconds[-1] if self._seconds else None
        now = 0.0 if not self._seconds else self._end()
        if stamp is not None and (now is not None or self._zero is not None):
            if self._zero is None or (self._stamp is not None and stamp < self._stamp):
                self._zero = stamp - (now or 0.0)
            self._stamp = stamp
            now = stamp - self._zero
        if now is not None and before is not None:
            now = max(now, before)
            if self._lasts:  # many files state an arbitrary duration
                self._trusts_durations = abs(now - before - self._lasts) <= self._lasts / 10
        self._seconds.append(now)
        self._lasts = lasts if lasts and lasts > 0 else None
        return now

    def _end(self) -> float | None:
        """Return the time at which the latest frame ends."""
        last = self._seconds[-1]
        before = self._seconds[-2] if len(self._seconds) > 1 else None
        gap = None if last is None or before is None else last - before
        stated = self._lasts if gap is None or self._trusts_durations else None
        apart = stated or gap or self._apart
        return None if last is None or apart is None else last + apart

    def edges(self) -> NDArray[np.float64] | None:
        """Return the times `(N + 1,)` at which each frame appears and the last frame ends; None if they are unknown."""
        if not self._seconds or None in self._seconds:
            return None
        end = self._end()
        return np.asarray([*self._seconds, end if end is not None else self._seconds[-1]], np.float64)


def uneven_times(edges: NDArray[np.float64] | None, fps: float | None = None) -> list[float]:
    """Return the frame times of a video with a variable rate, or an empty list if the rate is nearly constant.

    With `fps` (0 if unknown), the list is empty only if this rate gives the time of every frame.
    """
    if edges is None:
        return []
    apart = edges[-1] / (len(edges) - 1)
    even = np.abs(edges - apart * np.arange(len(edges))) <= apart / 2
    if fps is not None:
        even = np.abs(edges[:-1] * fps - np.arange(len(edges) - 1)) <= 1e-6 * fps
    return [] if even.all() else edges.round(6).tolist()
