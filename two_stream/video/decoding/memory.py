"""Videos that are not single files: arrays, folders of images, and parts of videos."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from two_stream.errors import VideoError
from two_stream.video.decoding.base import Decoded, Image, Video
from two_stream.video.decoding.reader import open_video
from two_stream.video.frames import FLAGS, join_decoded, list_file_names, read_picture

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

    def __init__(self, path: Path, count: int, fps: float | None = None) -> None:
        super().__init__(path, "images", fps, count)
        if not count:
            raise VideoError(path, "contains no frames")
        self.height, self.width = self._picture(0).shape[:2]

    def _picture(self, index: int) -> Image:
        raise NotImplementedError

    @property
    def damage(self) -> str | None:
        """None, because there is no container that may be damaged."""
        return None

    def _walk(self) -> Generator[Decoded]:
        for index in range(self.header_frames or 0):
            yield Decoded(lambda index=index: self._picture(index))  # type: ignore[misc]
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
    """Images of a folder, in the order of the numbers in their names; images of flow (`flow_…`) are ignored."""

    def __init__(self, folder: Path, fps: float | None = None) -> None:
        files = (path for path in folder.iterdir() if path.suffix.lower() in _IMAGES)
        self._files = sorted(
            (path for path in files if not path.name.startswith((".", "flow_"))), key=_number
        )
        if not self._files and stored_flow(folder):
            raise VideoError(folder, "contains stored flow but no images; use a flow run")
        super().__init__(folder, len(self._files), fps)

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
            raise VideoError(
                whole.path, "has neither timestamps nor a frame rate, so a part cannot be found by time"
            )
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
