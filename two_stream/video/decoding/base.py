"""An opened video, read by frame index in one forward pass: what all decoder backends share."""

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
from two_stream.video.decoding.integrity import find_file_damage

Image = NDArray[np.uint8]
"""An image `(H, W, 3)` in RGB order, or `(H, W)`."""

_SUFFIXES = (
    ".3g2 .3gp .264 .265 .asf .avi .divx .dv .f4v .flv .gif .h264 .h265 .hevc .ivf .m2ts .m2v .m4v .mjpeg .mjpg "
    ".mkv .mov .mp4 .mpeg .mpg .mts .mxf .obu .ogm .ogv .rm .rmvb .ts .vob .webm .wmv .y4m"
)
VIDEO_SUFFIXES = frozenset(_SUFFIXES.split())
"""Suffixes (lower case) of the files in a folder that count as videos."""


class Decoded(NamedTuple):
    """A frame as a backend returns it."""

    picture: Callable[[], Image]
    """converts the frame to RGB; valid until the next frame is decoded"""
    stamp: float | None = None
    """presentation time in seconds, by the file's timestamps"""
    lasts: float | None = None
    """duration in seconds, if the file states it"""


class Video(ABC):
    """An opened video file. Frames count from 0 in presentation order; only frames that really decode count.

    Attributes:
        path: The file.
        width: Pixels per row of a returned frame, after rotation.
        height: Rows of a returned frame, after rotation.
        fps: Average frames per second, None if the file does not state it.
        codec: Name of the video codec, for example "h264".
        header_frames: Number of frames by the header, None if it has none. Often wrong.
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
        """Decode from the first frame. Sets `_at_end` after the last frame, or `_stopped` instead of raising."""

    @property
    def damage(self) -> str | None:
        """Why decoding stopped early, where the file is truncated or has gaps, or which frames are marked corrupt.

        None if nothing was found in what was decoded so far; final after `num_frames`, or once `frames()` is exhausted.
        """
        if self._stopped or not self._at_end:
            return self._stopped
        return self._file_damage or self._suspicion

    @cached_property
    def _file_damage(self) -> str | None:
        """Computed only on request: the check reads transport streams and unpacks GIFs once more."""
        return find_file_damage(self.path)

    @property
    def num_frames(self) -> int:
        """Number of frames that really decode. The first request decodes the whole file, without converting pixels."""
        return self.count()

    def count(self, beat: Callable[[], None] | None = None) -> int:
        """Count the frames that really decode, calling `beat` after each; see `num_frames`."""
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
        """Seconds `(num_frames + 1,)` at which each frame appears, from 0, and at which the last one ends.

        Taken from timestamps, or from the frame rate for frames without one. None if the file has neither.
        """
        self.count()
        return self._times

    def _timed(self, walk: Iterable[Decoded]) -> Iterator[tuple[float | None, Callable[[], Image]]]:
        """Walk through the whole file and store its times at the end."""
        clock = Clock(self.fps)
        for picture, stamp, lasts in walk:
            yield clock.tick(stamp, lasts), picture
        self._times = clock.edges()

    def frames(self) -> Iterator[Image]:
        """Decode every frame in order; each is uint8 `(H, W, 3)`, RGB. One frame is in memory at a time."""
        return (picture for _, picture in self.timed_frames())

    def timed_frames(self) -> Iterator[tuple[float | None, Image]]:
        """Decode every frame in order, with its time in seconds from the first; see `times` and `frames`."""
        number = 0
        for number, (seconds, picture) in enumerate(self._timed(self._walk()), start=1):  # noqa: B007 - used after the loop
            yield seconds, picture()
        self._count = number

    def read(self, indices: Sequence[int]) -> Image:
        """Return the frames at 0-based `indices` (any order, repeats allowed) as uint8 `(N, H, W, 3)`, RGB.

        Raises:
            VideoError: An index is negative, or the video ends before it.
        """
        wanted = np.asarray(indices, np.int64)
        out = np.empty((len(wanted), self.height, self.width, 3), np.uint8)
        for number, picture in self.pick(wanted):
            out[wanted == number] = picture
        return out

    def pick(self, indices: Iterable[int]) -> Iterator[tuple[int, Image]]:
        """Yield (index, image) of the frames at 0-based `indices`, each once, ascending, one in memory at a time.

        Frames are decoded from the start up to the largest index, so no seek can miss. If an index of the file exists
        or is cheap to make, a backend may start at a key frame that it verifies.

        Raises:
            VideoError: An index is negative, or the video ends before it.
        """
        wanted = sorted({int(index) for index in indices})
        if wanted and wanted[0] < 0:
            raise VideoError(self.path, f"frame {wanted[0]} requested; frames are counted from 0")
        if wanted:
            yield from self._pick(wanted)

    def _pick(self, wanted: list[int]) -> Iterator[tuple[int, Image]]:
        """Yield the requested frames (ascending, distinct, at least one) from a walk from the first frame."""
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
            f"frame {wanted[-1]} requested (counting from 0), but only {number + 1} frames decode{reason}"
        )
        raise VideoError(self.path, message)

    def close(self) -> None:  # noqa: B027 - a backend with nothing to release inherits it
        """Release the backend's resources; reading opens the file again."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def ignore_beat() -> None:
    """Do nothing; used where progress is not monitored."""


def rotate_picture(picture: NDArray[Any], quarter_turns: int) -> NDArray[Any]:
    """Rotate an image counter-clockwise by quarter turns; the result is contiguous in memory."""
    return np.ascontiguousarray(np.rot90(picture, quarter_turns)) if quarter_turns else picture


def check_file(path: Path) -> None:
    """Reject everything but a regular file with content, before a decoder sees it.

    A named pipe or a device would block a decoder for ever.

    Raises:
        VideoError: No such file, a folder, not a regular file, empty, or not readable.
    """
    try:
        if path.is_dir():
            raise VideoError(path, "is a directory, not a video file")
        if not path.exists():
            raise VideoError(path, "no such file")
        if not path.is_file():
            raise VideoError(path, "is not a regular file")
        if path.stat().st_size == 0:
            raise VideoError(path, "empty file (0 bytes)")
        with path.open("rb"):
            pass
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        what = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise VideoError(path, f"cannot be opened ({what.lower()})") from None


class Clock:
    """Seconds from the first frame, computed from timestamps in presentation order. They never decrease.

    A frame without a stamp comes one frame after the previous one. If stamps step back, time continues from there.
    `fps` is for frames without a stamp.
    """

    def __init__(self, fps: float | None) -> None:
        self._apart = 1 / fps if fps else None
        self._seconds: list[float | None] = []
        self._stamp: float | None = None
        self._zero: float | None = None
        self._lasts: float | None = None
        self._trusts_durations = False

    def tick(self, stamp: float | None, lasts: float | None = None) -> float | None:
        """Return when a frame appears, by its stamp and duration in seconds; None if neither stamp nor rate says."""
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
        """Return when the newest frame ends."""
        last = self._seconds[-1]
        before = self._seconds[-2] if len(self._seconds) > 1 else None
        gap = None if last is None or before is None else last - before
        stated = self._lasts if gap is None or self._trusts_durations else None
        apart = stated or gap or self._apart
        return None if last is None or apart is None else last + apart

    def edges(self) -> NDArray[np.float64] | None:
        """Return `(N + 1,)`: when each frame appears, and when the last one ends; None if that is not known."""
        if not self._seconds or None in self._seconds:
            return None
        end = self._end()
        return np.asarray([*self._seconds, end if end is not None else self._seconds[-1]], np.float64)


def uneven_times(edges: NDArray[np.float64] | None) -> list[float]:
    """Return the times of a video of variable rate; empty if each frame is within half a frame of a steady rate."""
    if edges is None:
        return []
    apart = edges[-1] / (len(edges) - 1)
    even = np.abs(edges - apart * np.arange(len(edges))) <= apart / 2
    return [] if even.all() else edges.round(6).tolist()
