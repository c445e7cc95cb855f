"""Videos that are not single files: arrays, folders of images, parts of videos, and videos at another frame rate."""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from two_stream.errors import VideoError
from two_stream.video.decoding.base import NO_TIMES, Decoded, Image, Video
from two_stream.video.decoding.reader import open_video
from two_stream.video.frames import (
    FLAGS,
    join_decoded,
    list_file_names,
    read_picture,
    recorded_rate,
    recorded_times,
)
from two_stream.video.rate import shown_numbers

Source = Path | str | NDArray[np.uint8] | tuple[Any, float, float] | Video
"""A video file, a folder of numbered images, an RGB array `(T, H, W, 3)`, or `(video, start, end)` in seconds.

The text `FILE#START-END` is the same as the tuple, unless there is a file with this name."""
_IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_PART = re.compile(r"(.+)#(\d+(?:\.\d+)?)-(\d+(?:\.\d+)?)")
_FLOW = re.compile(r"flow_([xy])_?(\d+)(?:\.(?:jpe?g|png|webp|bmp))?", re.IGNORECASE)
"""a file of stored flow; the suffix is missing in the published HMDB51 data"""


def open_any(source: Source, backend: str = "pyav") -> Video:
    """Open a video, see `Source`; `backend` decodes files.

    Raises:
        VideoError: The source is missing, empty or has an unexpected form.
    """
    if isinstance(source, Video):
        return source
    if isinstance(source, np.ndarray):
        return ArrayVideo(source)
    if isinstance(source, tuple):
        if len(source) != 3 or not all(isinstance(at, (int, float)) for at in source[1:]):
            raise VideoError(
                "video", f"a tuple is {str(source)[:60]}; expected (video, start, end) in seconds"
            )
        return VideoPart(open_any(source[0], backend), float(source[1]), float(source[2]))
    if not isinstance(source, (str, Path)):
        raise VideoError(
            "video",
            f"found {type(source).__name__}; expected a file, a folder, an array or (video, start, end)",
        )
    part = _PART.fullmatch(str(source))
    if part is not None and not Path(source).exists():
        return VideoPart(open_any(part[1], backend), float(part[2]), float(part[3]))
    return FolderVideo(Path(source)) if Path(source).is_dir() else open_video(source, backend)


def is_frame_file(name: str) -> bool:
    """Return whether a file is an image or a stored flow frame; hidden files are not."""
    return not name.startswith(".") and (name.lower().endswith(_IMAGES) or _FLOW.fullmatch(name) is not None)


def stored_flow(source: Source) -> Path | None:
    """Return the folder if a source is a folder with stored flow, otherwise None."""
    folder = Path(source) if isinstance(source, (str, Path)) else None
    if folder is None or not folder.is_dir():
        return None
    return folder if any(map(_FLOW.fullmatch, list_file_names(folder))) else None


class _Pictures(Video):
    """A video whose frames can be read in any order."""

    _stamps: list[float] | None = None
    """times of the frames and of the end, in seconds, for a variable frame rate"""

    def __init__(self, path: Path, count: int, fps: float | None = None) -> None:
        super().__init__(path, "images", fps, count)
        if not count:
            raise VideoError(path, "contains no frames")
        self.height, self.width = self._picture(0).shape[:2]

    def _picture(self, index: int) -> Image:
        raise NotImplementedError

    def _use_recorded_times(self) -> None:
        """Use the times that the folder records, unless its rate was given."""
        if self.fps is None:
            edges = recorded_times(self.path)
            self._stamps = edges if len(edges) == (self.header_frames or 0) + 1 else None
            self.fps = recorded_rate(self.path)

    @property
    def damage(self) -> str | None:
        """None, because there is no container that may be damaged."""
        return None

    def _walk(self) -> Generator[Decoded]:
        for index in range(self.header_frames or 0):
            stamp = None if self._stamps is None else self._stamps[index]
            yield Decoded(lambda index=index: self._picture(index), stamp)  # type: ignore[misc]
        self._at_end = True

    def _pick(self, wanted: list[int]) -> Iterator[tuple[int, Image]]:
        if wanted[-1] >= (self.header_frames or 0):
            raise VideoError(
                self.path, f"frame {wanted[-1]} was requested, but there are {self.header_frames} frames"
            )
        return ((index, self._picture(index)) for index in wanted)


class ArrayVideo(_Pictures):
    """Frames in memory, uint8 `(T, H, W, 3)` in RGB order."""

    def __init__(self, frames: NDArray[np.uint8], fps: float | None = None) -> None:
        if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or 0 in frames.shape[1:]:
            raise VideoError(
                "array", f"has shape {frames.shape} and type {frames.dtype}; expected uint8 (T, H, W, 3)"
            )
        self._frames = frames
        super().__init__(Path("array"), len(frames), fps)

    def _picture(self, index: int) -> Image:
        return np.asarray(self._frames[index])


class FolderVideo(_Pictures):
    """Images of a folder, in the order of the numbers in their names; images of flow (`flow_…`) are ignored.

    Without `fps`, the times are those that `two-stream extract` recorded in the folder.
    """

    def __init__(self, folder: Path, fps: float | None = None) -> None:
        files = (path for path in folder.iterdir() if path.suffix.lower() in _IMAGES)
        self._files = sorted(
            (path for path in files if not path.name.startswith((".", "flow_"))), key=_number
        )
        if not self._files and stored_flow(folder):
            raise VideoError(folder, "contains stored flow but no images; use a flow run")
        super().__init__(folder, len(self._files), fps)
        self._use_recorded_times()

    def _picture(self, index: int) -> Image:
        path = self._files[index]
        picture = join_decoded([read_picture(path, FLAGS["rgb"])], path)
        if index and picture.shape[:2] != (self.height, self.width):
            raise VideoError(
                path, f"has the size {picture.shape[:2]}, the first image {(self.height, self.width)}"
            )
        return picture


class FlowFolder(_Pictures):
    """Stored flow `(H, W, 2)` of a folder: flow frame n (from 1) has the index n - 1.

    The number of frames is that of the images from which the flow was computed: one more than the flow frames.
    """

    def __init__(self, folder: Path) -> None:
        found: dict[str, dict[int, Path]] = {"x": {}, "y": {}}
        for match in filter(None, map(_FLOW.fullmatch, list_file_names(folder))):
            found[match[1].lower()][int(match[2])] = folder / match[0]
        x, y = found["x"], found["y"]
        numbers = sorted(x.keys() | y.keys())
        lost = [f"{a}_{n}" for n in range(numbers[0], numbers[-1] + 1) for a in "xy" if n not in found[a]]
        if lost:
            raise VideoError(
                folder,
                f"flow frame {lost[0]} is missing; expected x and y of frames {numbers[0]} to {numbers[-1]}",
            )
        self._files = [(x[number], y[number]) for number in numbers]
        super().__init__(folder, len(numbers) + 1)
        self._use_recorded_times()

    def _picture(self, index: int) -> Image:
        paths = self._files[index]
        return join_decoded([read_picture(path, FLAGS["flow"]) for path in paths], paths[1])


def _number(path: Path) -> tuple[int, str]:
    digits = re.findall(r"\d+", path.stem)
    return (int(digits[-1]) if digits else 0, path.name)


class VideoPart(Video):
    """The frames of a video that appear from `start` to before `end`, in seconds; its own times start at 0."""

    def __init__(self, whole: Video, start: float, end: float) -> None:
        super().__init__(whole.path, whole.codec, whole.fps, None)
        self._whole, self.width, self.height = whole, whole.width, whole.height
        if not 0 <= start < end:
            raise VideoError(whole.path, f"a part from {start:g} to {end:g} s; expected 0 <= start < end")
        times = whole.times
        if times is None:
            raise VideoError(whole.path, NO_TIMES)
        self._first, self._end = (int(np.searchsorted(times[:-1], at - 1e-6)) for at in (start, end))
        if self._end <= self._first:
            raise VideoError(
                whole.path, f"no frame from {start:g} to {end:g} s; the video ends at {times[-1]:.2f} s"
            )
        self._count = self._end - self._first
        self._edges: NDArray[np.float64] = times[self._first : self._end + 1] - times[self._first]

    @property
    def times(self) -> NDArray[np.float64]:
        """The times of the whole video, from the start of the part."""
        return self._edges

    @property
    def damage(self) -> str | None:
        """Damage of the whole video."""
        return self._whole.damage

    def _walk(self) -> Generator[Decoded]:
        edges = self._edges
        for number, picture in self._pick(list(range(len(edges) - 1))):
            lasts = float(edges[number + 1] - edges[number])
            yield Decoded(lambda picture=picture: picture, float(edges[number]), lasts)  # type: ignore[misc]
        self._at_end = True

    def _pick(self, wanted: list[int]) -> Iterator[tuple[int, Image]]:
        for number, picture in self._whole.pick([self._first + index for index in wanted]):
            yield number - self._first, picture

    def close(self) -> None:
        """Close the video."""
        self._whole.close()


class SeenVideo(Video):
    """A video that is seen at `fps` frames per second: each of its frames is the nearest one of `whole` in time.

    Attributes:
        whole: The video itself.
        numbers: Number (from 1) of the frame of `whole` that each frame shows.
    """

    def __init__(self, whole: Video, fps: float) -> None:
        super().__init__(whole.path, whole.codec, fps, None)
        self.whole, self.width, self.height = whole, whole.width, whole.height
        edges = whole.times
        if edges is None:
            remedy = "convert it to MP4"
            if isinstance(whole, _Pictures):
                remedy = "write its rate to a file `fps` in the folder, or use `ArrayVideo(frames, fps=…)`"
            raise VideoError(whole.path, f"{NO_TIMES}; {remedy}")
        self.numbers = list(shown_numbers(edges[:-1].tolist(), fps))
        times = np.append(np.arange(len(self.numbers)) / fps, min(len(self.numbers) / fps, edges[-1]))
        self._count, self._ends = len(self.numbers), np.maximum.accumulate(times)

    @property
    def times(self) -> NDArray[np.float64] | None:
        """Times at which each frame appears, and at which the last one or the whole video ends."""
        return self._ends

    @property
    def damage(self) -> str | None:
        """Damage of the whole video."""
        return self.whole.damage

    def _walk(self) -> Generator[Decoded]:
        repeats = Counter(self.numbers)
        for number, decoded in enumerate(self.whole._walk(), start=1):
            for _ in range(repeats[number]):
                yield Decoded(decoded.picture)
        self._at_end = True

    def _pick(self, wanted: list[int]) -> Iterator[tuple[int, Image]]:
        if wanted[-1] >= len(self.numbers):
            shown = f"{len(self.numbers)} frames at {self.fps:g} per second"
            raise VideoError(self.path, f"frame {wanted[-1]} was requested (from 0), but there are {shown}")
        waiting = deque(wanted)
        for index, picture in self.whole.pick(self.numbers[place] - 1 for place in wanted):
            while waiting and self.numbers[waiting[0]] == index + 1:
                yield waiting.popleft(), picture

    def close(self) -> None:
        """Close the video."""
        self.whole.close()


def whole_of(video: Video) -> Video:
    """Return the video itself for a video that is seen at another frame rate."""
    return video.whole if isinstance(video, SeenVideo) else video


def seen(video: Video, fps: float | None) -> Video:
    """Return a video as it is seen at `fps` frames per second; None: the video itself."""
    return video if fps is None else SeenVideo(video, fps)
