"""The interface of clip sources, and its implementations for frame folders and for video files.

A source returns frames with given numbers (1-based) as uint8 `(T, H, W, C)`, resized as the network requires. Flow
frame n is the flow between images n and n + 1, whether it is stored or computed on the fly.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import islice, pairwise
from pathlib import Path

import numpy as np

from two_stream.data.catalog import Record
from two_stream.errors import SettingsError, VideoError
from two_stream.types import Frames, InputSpec, Modality, VideoRecord
from two_stream.video.decoding.backend_pyav import frame_times
from two_stream.video.decoding.base import NO_TIMES
from two_stream.video.decoding.reader import Video, open_video
from two_stream.video.extraction.one_video import ExtractOptions, frame_size, resize_frame
from two_stream.video.flow import FlowEstimator, to_gray
from two_stream.video.frames import Region, fit_frame, read_frames, recorded_rate, recorded_times
from two_stream.video.rate import FrameTimes, shown_numbers
from two_stream.video.sources import folder_ids, video_files


class ClipSource(ABC):
    """Reads frames of a data set's videos in one modality."""

    def __init__(self, modality: Modality) -> None:
        self.modality = modality

    @abstractmethod
    def read(
        self, video_id: str, numbers: Sequence[int], resize: tuple[int, int], region: Region | None = None
    ) -> Frames:
        """Return the frames with these numbers (1-based, in any order); a repeated frame is read only once.

        Args:
            video_id: Id of the video in the split list.
            numbers: Frame numbers of the modality.
            resize: Height and width of whole frames.
            region: Part of the frames to return, and its size; None returns whole frames.

        Returns:
            uint8 `(len(numbers), H, W, C)`, contiguous; height and width are those of the region, otherwise
            `resize`; C is 3 for RGB, 2 for flow.

        Raises:
            VideoError: Missing, damaged or too short, with the file's name.
        """

    def count(self, record: VideoRecord) -> int:
        """Return the number of frames from which clips of a video are chosen: the number in the split list."""
        return record.num_frames

    def times(self, video_id: str) -> FrameTimes:
        """Return when the images of a video appear.

        Raises:
            SettingsError: The source records no times, and `data.fps` is not set.
        """
        raise SettingsError(f"{video_id}: {_NO_RATE}")

    def has_flow(self, pairs: Sequence[tuple[int, int]]) -> bool:
        """Return whether `read_between` can return the flow between these images; stored flow is of adjacent images."""
        return all(last == first + 1 for first, last in pairs)

    def read_between(
        self,
        video_id: str,
        pairs: Sequence[tuple[int, int]],
        resize: tuple[int, int],
        region: Region | None = None,
    ) -> Frames:
        """Return the flow from the first to the second image of each pair (numbers from 1); see `read`."""
        return self.read(video_id, [first for first, _ in pairs], resize, region)


_NO_RATE = (
    "`model.input.fps` needs the time of each frame, but neither `two-stream extract` nor a file `fps` recorded the "
    "frame rate; set `data.fps`"
)


class SeenSource(ClipSource):
    """A source whose videos are seen at a given number of frames per second; frames are numbered by position.

    `video/rate.py` explains which image a position shows. Flow frame n is the flow between the images that positions n
    and n + 1 show.
    """

    def __init__(self, source: ClipSource, fps: float) -> None:
        super().__init__(source.modality)
        self.source, self.fps = source, fps
        self._last: tuple[str, list[int]] = ("", [])

    def count(self, record: VideoRecord) -> int:
        """Return the number of positions, for flow without the last one; see `images` for the errors."""
        return len(self.images(record)) - (self.modality == "flow")

    def images(self, record: VideoRecord) -> list[int]:
        """Return the number (from 1) of the image that each position shows.

        Raises:
            VideoError: The video has fewer images than the split list says, or is too short for flow.
            SettingsError: The times of the images are unknown, or flow is stored at another frame rate.
        """
        times, flow = self.source.times(record.id), self.modality == "flow"
        if isinstance(times, Sequence) and len(times) < record.num_frames:
            images = (
                f"has {len(times)} images, but the split list says {record.num_frames} {self.modality} frames"
            )
            raise VideoError(record.id, images)
        numbers = list(shown_numbers(times, self.fps, record.num_frames + flow))
        if len(numbers) <= flow:
            raise VideoError(record.id, f"is too short for flow at {self.fps:g} frames per second")
        if flow and not self.source.has_flow(list(pairwise(numbers))):
            raise SettingsError(
                f"{record.id}: its stored flow belongs to another frame rate than `model.input.fps` {self.fps:g}; run "
                f"`two-stream extract --fps {self.fps:g}` and prepare again, or set `data.source: videos`"
            )
        self._last = record.id, numbers
        return numbers

    def read(
        self, video_id: str, numbers: Sequence[int], resize: tuple[int, int], region: Region | None = None
    ) -> Frames:
        """See `ClipSource.read`; `numbers` are positions from 1."""
        name, shown = self._last
        last = max(numbers) + (self.modality == "flow")
        if name != video_id or len(shown) < last:
            shown = list(islice(shown_numbers(self.source.times(video_id), self.fps), last))
        if self.modality == "rgb":
            return self.source.read(video_id, [shown[number - 1] for number in numbers], resize, region)
        pairs = [(shown[number - 1], shown[number]) for number in numbers]
        return self.source.read_between(video_id, pairs, resize, region)


def read_clip(
    source: ClipSource,
    record: VideoRecord,
    numbers: Sequence[int],
    spec: InputSpec,
    region: Region | None = None,
) -> Frames:
    """Return the frames with these numbers for a network, as uint8 `(len(numbers), H, W, spec.channels)`.

    If `spec.stack` is larger than 1, each returned frame contains the flow fields of `stacked_numbers`. See also
    `ClipSource.read`.
    """
    if spec.stack == 1:
        return source.read(record.id, numbers, spec.resize, region)
    count = source.count(record)
    fields = [field for number in numbers for field in stacked_numbers(number, spec.stack, count)]
    frames = source.read(record.id, fields, spec.resize, region)
    _, height, width, channels = frames.shape
    stacks = frames.reshape(len(numbers), spec.stack, height, width, channels).transpose(0, 2, 3, 1, 4)
    return np.ascontiguousarray(stacks.reshape(len(numbers), height, width, spec.channels))


def stacked_numbers(number: int, stack: int, last: int) -> list[int]:
    """Return the numbers of `stack` adjacent flow fields from `number` on, shifted back at the end of a video.

    If the video has fewer fields, the last field is repeated.
    """
    first = max(1, min(number, last - stack + 1))
    return [min(first + place, last) for place in range(stack)]


class FrameFolders(ClipSource):
    """Frame folders written by `two-stream extract`, or published frame folders."""

    def __init__(
        self,
        record: Record,
        modality: Modality,
        *,
        scaled_decoding: bool = False,
        fps: float | None = None,
    ) -> None:
        """`fps` is the rate of folders that do not record one."""
        super().__init__(modality)
        self.fps = fps
        self.root = record.frames_root(modality)
        self.patterns = record.frame_patterns
        self.scaled_decoding = scaled_decoding

    def read(
        self, video_id: str, numbers: Sequence[int], resize: tuple[int, int], region: Region | None = None
    ) -> Frames:
        """See `ClipSource.read`."""
        return read_frames(
            self.folder(video_id),
            numbers,
            self.modality,
            self.patterns,
            resize,
            region,
            scaled_decoding=self.scaled_decoding,
        )

    def times(self, video_id: str) -> FrameTimes:
        """See `ClipSource.times`; what the folder records is preferred to `fps`."""
        folder = self.folder(video_id)
        if not folder.is_dir():
            raise VideoError(folder, "no such folder of frames")
        found = recorded_times(folder)[:-1] or recorded_rate(folder) or self.fps
        if found is None:
            raise SettingsError(f"{folder}: {_NO_RATE}")
        return found

    def folder(self, video_id: str) -> Path:
        """Return the folder of a video: `root/id`, or a folder with the same name in the root or in a class folder.

        An id with a class (`class/video`) never matches the folder of another class. If no folder exists, `root/id`
        is returned.

        Raises:
            VideoError: The id names no class, and several class folders contain it.
        """
        direct = self.root / video_id
        if direct.is_dir():
            return direct
        name = Path(video_id).name
        if name != video_id:
            return self.root / name if (self.root / name).is_dir() else direct
        found = [parent / name for parent in self._class_folders if (parent / name).is_dir()]
        if len(found) > 1:
            raise VideoError(direct, f"several frame folders with this name ({_some(found, self.root)})")
        return found[0] if found else direct

    @cached_property
    def _class_folders(self) -> list[Path]:
        return sorted(path for path in self.root.iterdir() if path.is_dir())


class VideoFiles(ClipSource):
    """Video files; flow is computed on the fly.

    Images are first resized as in extraction, so that sharpness and displacements in pixels are the same as with
    `FrameFolders`.
    """

    def __init__(self, record: Record, modality: Modality, backend: str, algorithm: str) -> None:
        super().__init__(modality)
        self.root = record.videos_root()
        self.backend = backend
        self.algorithm = algorithm
        self.size = ExtractOptions(short_side=record.short_side)

    def read(
        self, video_id: str, numbers: Sequence[int], resize: tuple[int, int], region: Region | None = None
    ) -> Frames:
        """See `ClipSource.read`."""
        with open_video(self.path(video_id), self.backend) as video:
            frames = self.stored(video, sorted(set(numbers)))
            made = {number: fit_frame(frame, resize, region) for number, frame in frames}
        return np.stack([made[number] for number in numbers])

    def times(self, video_id: str) -> FrameTimes:
        """See `ClipSource.times`; the times are those of the file.

        Raises:
            VideoError: The file has neither time stamps nor a frame rate.
        """
        path = self.path(video_id)
        times = frame_times(path)
        if times is None:
            raise VideoError(path, NO_TIMES)
        return times

    def has_flow(self, pairs: Sequence[tuple[int, int]]) -> bool:  # noqa: ARG002
        """Return true, because flow is computed."""
        return True

    def read_between(
        self,
        video_id: str,
        pairs: Sequence[tuple[int, int]],
        resize: tuple[int, int],
        region: Region | None = None,
    ) -> Frames:
        """See `ClipSource.read_between`."""
        with open_video(self.path(video_id), self.backend) as video:
            flows = self._flow(video, sorted(set(pairs)))
            made = {pair: fit_frame(flow, resize, region) for pair, flow in flows}
        return np.stack([made[pair] for pair in pairs])

    def stored(self, video: Video, wanted: Sequence[int], gap: int = 1) -> Iterator[tuple[int, Frames]]:
        """Yield (number, frame) for ascending distinct numbers, with the same frames that extraction would write.

        Flow is computed from each image to the one that is `gap` images later.
        """
        if self.modality == "rgb":
            return self._rgb(video, wanted)
        return ((first, flow) for (first, _), flow in self._flow(video, [(n, n + gap) for n in wanted]))

    def path(self, video_id: str) -> Path:
        """Return the path of a video's file.

        Raises:
            VideoError: There is no such video under the root, or there are several.
        """
        return find_video(self.index, self.root, video_id)

    @cached_property
    def index(self) -> dict[str, list[Path]]:
        """The index of the video files below the root; see `index_videos`."""
        return index_videos(self.root)

    def _rgb(self, video: Video, wanted: Sequence[int]) -> Iterator[tuple[int, Frames]]:
        height, width = frame_size(video.height, video.width, self.size)
        for index, picture in video.pick(number - 1 for number in wanted):
            yield index + 1, resize_frame(picture, height, width)

    def _flow(
        self, video: Video, pairs: Sequence[tuple[int, int]]
    ) -> Iterator[tuple[tuple[int, int], Frames]]:
        """Yield (pair, flow) for pairs of image numbers, of which both the first and the second ones ascend."""
        height, width = frame_size(video.height, video.width, self.size)
        estimator = FlowEstimator(self.algorithm)
        waiting, gray = deque(pairs), dict[int, Frames]()
        for index, picture in video.pick({number - 1 for pair in pairs for number in pair}):
            gray[index + 1] = to_gray(resize_frame(picture, height, width))
            while waiting and waiting[0][1] == index + 1:
                first, last = waiting.popleft()
                yield (first, last), estimator(gray[first], gray[last])
            gray = {number: one for number, one in gray.items() if waiting and number >= waiting[0][0]}


def index_videos(root: Path) -> dict[str, list[Path]]:
    """Index the video files below a folder by id (see `folder_ids`), by path without suffix, and by name."""
    files = video_files(root)[0]
    index: dict[str, list[Path]] = {}
    for video_id, path in zip(folder_ids(root, files), files):
        for key in {video_id, path.relative_to(root).with_suffix("").as_posix(), path.stem}:
            index.setdefault(key, []).append(path)
    return index


def find_video(index: dict[str, list[Path]], root: Path, video_id: str) -> Path:
    """Find a video by its id, or else by its name, with the rules of `FrameFolders.folder`.

    An id with a class matches the file in this class folder, or else a file outside the class folders. An id without a
    class matches a file in any class folder, if there is only one such file.

    Raises:
        VideoError: There is no such video, or there are several.
    """
    name = Path(video_id).name
    outside = [path for path in index.get(name, []) if path.parent == root]
    found = (index.get(video_id) or outside) if name != video_id else (outside or index.get(name, []))
    if len(found) == 1:
        return found[0]
    if not found:
        raise VideoError(root / video_id, "no video file with this name")
    raise VideoError(root / video_id, f"several video files with this name ({_some(found, root)})")


def _some(paths: Sequence[Path], root: Path) -> str:
    return ", ".join(path.relative_to(root).as_posix() for path in paths[:3])
