"""What every decoder backend shares: an opened video, read by index through one forward pass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from two_stream.errors import VideoError
from two_stream.video.decoding.clock import Clock

Image = NDArray[np.uint8]
"""A picture `(H, W, 3)` in RGB order, or `(H, W)`."""
Picture = Callable[[], Image]
"""Converts the frame just decoded to RGB; valid until the next frame is asked for."""


class Decoded(NamedTuple):
    """A frame as a backend gives it."""

    picture: Picture
    stamp: float | None = None
    """when the file says that it appears, in seconds of the file's own clock"""
    lasts: float | None = None
    """for how many seconds, where the file says so"""


_SUFFIXES = (
    ".3g2 .3gp .264 .265 .asf .avi .divx .dv .f4v .flv .gif .h264 .h265 .hevc .ivf .m2ts .m2v .m4v .mjpeg .mjpg "
    ".mkv .mov .mp4 .mpeg .mpg .mts .mxf .obu .ogm .ogv .rm .rmvb .ts .vob .webm .wmv .y4m"
)
VIDEO_SUFFIXES = frozenset(_SUFFIXES.split())
"""Suffixes (lower case) by which a folder's videos are told from its other files."""


class Video(ABC):
    """An opened video file. Frames count from 0 in order of presentation; only frames that really decode count.

    Attributes:
        path: The file.
        width: Pixels per row of a delivered frame, after rotation.
        height: Rows of a delivered frame, after rotation.
        fps: Average frames per second, None where the file does not say.
        codec: Name of the video codec, for example "h264".
        header_frames: Frames the header announces, None where it announces none. Often wrong.
        damage: Why decoding stopped early, which frames are marked corrupt, or where the file is cut or holed; None as
            far as was decoded. It is final once `num_frames` was asked for or `frames()` ran to its end.
    """

    def __init__(self, path: Path, codec: str, fps: float | None, header_frames: int | None) -> None:
        self.path = path
        self.codec = codec
        self.fps = fps
        self.header_frames = header_frames
        self.width = 0
        self.height = 0
        self.damage: str | None = None
        self._count: int | None = None
        self._times: NDArray[np.float64] | None = None

    @abstractmethod
    def _walk(self) -> Generator[Decoded]:
        """Decode from the first frame on; sets `damage` instead of raising."""

    @property
    def num_frames(self) -> int:
        """Frames that really decode. The first request decodes the whole file, without converting pixels."""
        return self.count()

    def count(self, beat: Callable[[], None] | None = None) -> int:
        """Count the frames that really decode, calling `beat` after each; see `num_frames`."""
        if self._count is None:
            self._count = self._count_frames(beat or silent)
        return self._count

    def _count_frames(self, beat: Callable[[], None]) -> int:
        count = 0
        for _ in self._ticking(self._walk()):
            count += 1
            beat()
        return count

    @property
    def times(self) -> NDArray[np.float64] | None:
        """Seconds `(num_frames + 1,)` at which each frame appears, the first at 0, and at which the last one ends.

        By the file's time stamps; by its rate for frames that have none. None where the file tells neither.
        """
        self.count()
        return self._times

    def _ticking(self, walk: Iterable[Decoded]) -> Iterator[tuple[float | None, Picture]]:
        """Go through the whole file and know its times at the end."""
        clock = Clock(self.fps)
        for picture, stamp, lasts in walk:
            yield clock.tick(stamp, lasts), picture
        self._times = clock.edges()

    def frames(self) -> Iterator[Image]:
        """Decode every frame in order; each is uint8 `(H, W, 3)`, RGB. One frame is held at a time."""
        return (picture for _, picture in self.timed_frames())

    def timed_frames(self) -> Iterator[tuple[float | None, Image]]:
        """Decode every frame in order and say when it appears, in seconds from the first; see `times` and `frames`."""
        number = 0
        for number, (seconds, picture) in enumerate(self._ticking(self._walk()), start=1):  # noqa: B007 - used after the loop
            yield seconds, picture()
        self._count = number

    def read(self, indices: Sequence[int]) -> Image:
        """Return the frames at 0-based `indices` (any order, repeats allowed) as uint8 `(N, H, W, 3)`, RGB.

        Raises:
            VideoError: An index is negative, or the video ends before it.
        """
        places = _places(indices)
        out = np.empty((len(indices), self.height, self.width, 3), np.uint8)
        for number, picture in self.pick(places):
            out[places[number]] = picture
        return out

    def pick(self, indices: Iterable[int]) -> Iterator[tuple[int, Image]]:
        """Yield (index, picture) of the frames at distinct 0-based `indices`, ascending, one held at a time.

        Frames are decoded from the start up to the largest index, so that no seek can miss; where an index of
        the file is at hand, or cheaply made, a backend may start at a key frame that it proves to be right.

        Raises:
            VideoError: An index is negative, or the video ends before it.
        """
        wanted = sorted({int(index) for index in indices})
        if wanted and wanted[0] < 0:
            raise VideoError(self.path, f"frame {wanted[0]} asked for, frames count from 0")
        if wanted:
            yield from self._pick(wanted)

    def _pick(self, wanted: list[int]) -> Iterator[tuple[int, Image]]:
        """Yield the wanted frames (ascending, distinct, at least one) from a walk from the first frame."""
        places = set(wanted)
        number = -1
        with closing(self._walk()) as walk:
            for number, decoded in enumerate(walk):
                if number in places:
                    yield number, decoded.picture()
                if number == wanted[-1]:
                    return
        reason = f" ({self.damage})" if self.damage else ""
        raise VideoError(
            self.path,
            f"frame {wanted[-1]} asked for (counting from 0), only {number + 1} frames decode{reason}",
        )

    def close(self) -> None:  # noqa: B027 - a backend with nothing to release keeps it
        """Release what the backend holds; reading again opens the file anew."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def silent() -> None:
    """Nobody listens."""


def _places(indices: Sequence[int]) -> dict[int, list[int]]:
    """Map each distinct index to the rows it fills."""
    places: dict[int, list[int]] = {}
    for row, index in enumerate(indices):
        places.setdefault(int(index), []).append(row)
    return places


def turned(picture: NDArray[Any], quarter_turns: int) -> NDArray[Any]:
    """Turn a picture counter-clockwise by quarter turns, contiguous in memory."""
    return np.ascontiguousarray(np.rot90(picture, quarter_turns)) if quarter_turns else picture


def existing_file(path: Path) -> None:
    """Refuse everything that is not a regular file with something in it, before any decoder sees it.

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
