"""Keeps the frames that are decoded from video files, and their flow, for later epochs and runs (`data.cache`).

The folder of the cache contains one folder per way of reading (modality, decoder, flow algorithm, size), and in it one
file per video. A frame has a fixed place in the file and is preceded by its CRC-32, so workers and runs can write to
the same file at the same time, and a frame that was not written completely counts as missing. A video file that has
changed gets a new file in the cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from two_stream.data.sources.files import ClipSource, VideoFiles
from two_stream.runtime.console import warn
from two_stream.types import Frames
from two_stream.video.decoding.reader import backend_version, open_video
from two_stream.video.frames import Region, fit_frame
from two_stream.video.rate import FrameTimes

_MAGIC = b"two-stream frames 1\n"
_HEADER = len(_MAGIC) + 12
"""bytes before the first frame: the magic, then height, width and channels as uint32"""
_RECOUNT = 2**28
"""bytes that a process writes before it measures the folder again, because other processes write to it too"""


class FrameCache:
    """A folder with the frames of many videos, whose size is limited.

    Args:
        folder: Folder of the cache; it is created.
        limit: Size in bytes at which the cache stops growing. With several processes, it is exceeded by less than 256
            MiB for each.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self._used, self._written = -1, 0
        self._closed = False

    def read(self, name: str, numbers: Sequence[int]) -> dict[int, Frames]:
        """Return those of the frames (numbers from 1) that the cache contains."""
        found = {}
        try:
            with (self.folder / name).open("rb") as file:
                shape = _read_shape(file)
                if shape is not None:
                    for number in sorted(set(numbers)):
                        frame = _read_frame(file, number, shape)
                        if frame is not None:
                            found[number] = frame
        except OSError:
            return {}  # missing, or removed by the user
        return found

    def write(self, name: str, frames: dict[int, Frames]) -> None:
        """Add frames of equal shape to a video's file, unless the cache or the disk is full."""
        if not frames or self._is_full():
            return
        path = self.folder / name
        shape = np.asarray(next(iter(frames.values())).shape, "<u4")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)), "r+b") as file:
                if _read_shape(file) != tuple(shape):
                    file.truncate(0)
                    file.seek(0)
                    file.write(_MAGIC + shape.tobytes())
                for number, frame in frames.items():
                    content = np.ascontiguousarray(frame).tobytes()
                    file.seek(_place(number, len(content)))
                    file.write(_checksum(content) + content)
                    self._used += len(content)
                    self._written += len(content)
        except OSError as error:
            self._close(f"{path}: cannot be written ({error.strerror})")

    def _is_full(self) -> bool:
        if self._used < 0 or self._written >= _RECOUNT:
            self._used, self._written = _size(self.folder), 0
        if not self._closed and self._used >= self.limit:
            self._close(f"{self.folder}: the cache has reached its limit of {self.limit / 1e9:g} GB")
        return self._closed

    def _close(self, reason: str) -> None:
        self._closed = True
        warn(
            f"{reason}; the remaining frames are computed in every epoch. Free some space, raise "
            "`data.cache_gigabytes`, or remove old files from the cache"
        )


class CachedVideos(ClipSource):
    """Video files whose decoded frames are kept in a cache; the frames are the same as without the cache."""

    def __init__(self, videos: VideoFiles, cache: FrameCache) -> None:
        super().__init__(videos.modality)
        self.videos, self.cache = videos, cache

    def read(
        self, video_id: str, numbers: Sequence[int], resize: tuple[int, int], region: Region | None = None
    ) -> Frames:
        """See `ClipSource.read`."""
        made = self._fitted(video_id, numbers, 1, resize, region)
        return np.stack([made[number] for number in numbers])

    def times(self, video_id: str) -> FrameTimes:
        """See `ClipSource.times`."""
        return self.videos.times(video_id)

    def has_flow(self, pairs: Sequence[tuple[int, int]]) -> bool:
        """Return true, because flow is computed."""
        return self.videos.has_flow(pairs)

    def read_between(
        self,
        video_id: str,
        pairs: Sequence[tuple[int, int]],
        resize: tuple[int, int],
        region: Region | None = None,
    ) -> Frames:
        """See `ClipSource.read_between`; flow over each number of images has its own file."""
        made: dict[tuple[int, int], Frames] = {}
        for gap in sorted({last - first for first, last in pairs}):
            firsts = [first for first, last in pairs if last - first == gap]
            found = self._fitted(video_id, firsts, gap, resize, region)
            made |= {(first, first + gap): frame for first, frame in found.items()}
        return np.stack([made[pair] for pair in pairs])

    def _fitted(
        self, video_id: str, numbers: Sequence[int], gap: int, resize: tuple[int, int], region: Region | None
    ) -> dict[int, Frames]:
        """Return frames by number; flow is computed between images that are `gap` apart."""
        # a direct crop is interpolated from the frame of the video, every other crop from the resized frame
        kept = None if region is not None and region.direct else resize
        path = self.videos.path(video_id)
        name = self._name(path, kept, gap)
        made = self.cache.read(name, numbers)
        missing = sorted(set(numbers) - made.keys())
        if missing:
            with open_video(path, self.videos.backend) as video:
                found = self.videos.stored(video, missing, gap)
                frames = {number: fit_frame(frame, kept) for number, frame in found}
            self.cache.write(name, frames)
            made |= frames
        return {number: fit_frame(frame, resize, region) for number, frame in made.items()}

    def _name(self, path: Path, kept: tuple[int, int] | None, gap: int) -> str:
        """Return the name of a video's file: a hash of how it is read, and one of the video's path and state."""
        videos, state = self.videos, path.stat()
        how = [videos.modality, videos.backend, backend_version(videos.backend), videos.size.short_side, kept]
        how += [videos.algorithm] if videos.modality == "flow" else []
        how += [gap] if gap != 1 else []
        what = [str(path.absolute()), state.st_size, state.st_mtime_ns]
        return "/".join(hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24] for facts in (how, what))


def _size(folder: Path) -> int:
    """Return the bytes that the files of the cache occupy; files with gaps occupy less than their length."""
    total = 0
    for path in folder.glob("*/*"):
        try:
            state = path.stat()
        except OSError:  # removed meanwhile
            continue
        total += min(state.st_size, getattr(state, "st_blocks", 2**62) * 512)
    return total


def _read_shape(file: BinaryIO) -> tuple[int, int, int] | None:
    header = file.read(_HEADER)
    if len(header) < _HEADER or not header.startswith(_MAGIC):
        return None
    height, width, channels = np.frombuffer(header, "<u4", 3, len(_MAGIC)).tolist()
    return height, width, channels


def _read_frame(file: BinaryIO, number: int, shape: tuple[int, int, int]) -> Frames | None:
    size = shape[0] * shape[1] * shape[2]
    file.seek(_place(number, size))
    record = file.read(4 + size)
    if len(record) < 4 + size or record[:4] != _checksum(record[4:]):
        return None
    return np.frombuffer(record, np.uint8, size, 4).reshape(shape)


def _place(number: int, size: int) -> int:
    return _HEADER + (number - 1) * (4 + size)


def _checksum(content: bytes) -> bytes:
    """Return the CRC-32; it is never 0, which a gap in the file reads as."""
    return (zlib.crc32(content) or 1).to_bytes(4, "little")
