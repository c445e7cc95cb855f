"""Packed clips: WebDataset tar shards with an index of all frames, on a disk or in object storage.

The shards `ROOT/<modality>/000000.tar` and so on contain one sample per video: `key.json`, followed by the frames. They
can be read sequentially with `tar` and the webdataset library. The file `index.npz` next to the shards contains the
position of every frame, so that a clip can be read without the rest of its shard. Shuffling, sampling and resuming
therefore work as with frame folders. `data/packing.py` writes the shards and the index.
"""

from __future__ import annotations

import io
import itertools
import math
import os
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray

from two_stream.data.options import ENCODINGS
from two_stream.data.sources.files import ClipSource
from two_stream.errors import DataError, SettingsError, VideoError
from two_stream.runtime.files import read_arrays
from two_stream.runtime.text import json_text, parse_json
from two_stream.types import MODALITY_CHANNELS, Frames, Modality
from two_stream.video.frames import FLAGS, Region, assemble_frames, decode_picture, join_decoded
from two_stream.video.rate import FrameTimes

INDEX = "index.npz"
FORMAT = 1
"""version of the index; other versions are rejected"""
MOST_PIXELS = 2**26
"""largest number of pixels of one image"""
MOST_BYTES = 2**28
"""largest number of bytes of one stored image"""
_BRIDGED = 4
"""largest gap between requested frames, in frames, that is read too instead of starting another read"""


@dataclass(frozen=True)
class Packed:
    """The position of a video's frames in the shards."""

    shard: int
    """index of the shard in `names`"""
    frames: int
    """number of frames"""
    first: int
    """index of the video's first entry in `starts` and `sizes`, which have one entry per video (raw) or per stored
    image"""
    times: FrameTimes | None = None
    """when its images appear; None if unknown"""


@dataclass(frozen=True)
class ShardIndex:
    """Content of `index.npz`.

    `starts`, `sizes` and `crcs` are arrays of the file. The array `places` has one row (shard, frames, first) for each
    video, and `meta` is JSON text (as bytes) with the keys `format`, `settings`, `shards` (name, bytes and sha256 of
    each) and `ids`.
    """

    settings: dict[str, Any]
    """how the frames were packed: modality, encoding, resize, quality, exact, source and versions"""
    names: list[str]
    """file name of each shard"""
    lengths: list[int]
    """size of each shard in bytes"""
    videos: dict[str, Packed]
    """position of each video, by id"""
    starts: NDArray[np.int64]
    """position of each entry's first byte in its shard"""
    sizes: NDArray[np.int64]
    """size of each entry in bytes"""
    crcs: NDArray[np.uint32] | None = None
    """CRC-32 of each stored image (raw: of each frame), in the order of the videos; None in old indexes"""

    def dump(self, shards: Sequence[dict[str, Any]]) -> bytes:
        """Return the content of an index file; `shards` contains the name, bytes and sha256 of each shard."""
        meta = {"format": FORMAT, "settings": self.settings, "shards": list(shards), "ids": list(self.videos)}
        meta["times"] = [video.times for video in self.videos.values()]
        places = np.array([(v.shard, v.frames, v.first) for v in self.videos.values()], np.int64).reshape(
            -1, 3
        )
        checks: dict[str, Any] = {} if self.crcs is None else {"crcs": self.crcs}
        file = io.BytesIO()
        np.savez_compressed(
            file,
            meta=np.frombuffer(json_text(meta).encode(), np.uint8),
            places=places,
            starts=self.starts,
            sizes=self.sizes,
            **checks,
        )
        return file.getvalue()


def parse_index(content: bytes, name: str) -> ShardIndex:
    """Read the content of an index file.

    Raises:
        DataError: Damaged, or written by a different version.
    """
    try:
        arrays = read_arrays(io.BytesIO(content))
        meta = parse_json(arrays["meta"].tobytes())
        places, starts, sizes = arrays["places"], arrays["starts"], arrays["sizes"]
        if meta["format"] != FORMAT:
            raise DataError(
                f"{name}: found format {meta['format']}, expected {FORMAT}; pack the data set again"
            )
        stored = meta.get("times") or [None] * len(places)  # missing in shards of an earlier version
        found = ShardIndex(
            settings=dict(meta["settings"]),
            names=[str(shard["name"]) for shard in meta["shards"]],
            lengths=[int(shard["bytes"]) for shard in meta["shards"]],
            videos={
                str(key): Packed(int(shard), int(count), int(first), _times_of(times))
                for key, (shard, count, first), times in zip(meta["ids"], places, stored, strict=True)
            },
            starts=starts,
            sizes=sizes,
            crcs=arrays.get("crcs"),
        )
        _check_places(found, places)
        return found
    except (ValueError, KeyError, TypeError, OSError, OverflowError, RecursionError) as error:
        raise DataError(
            f"{name}: not an index of shards, or damaged ({error}); pack the data set again"
        ) from None


def _times_of(value: Any) -> FrameTimes | None:
    """Read the times of a video; raise `ValueError` or `TypeError` if they are wrong."""
    if value is None:
        return None
    times = float(value) if isinstance(value, (int, float)) else [float(time) for time in value]
    ordered = 0 < times < math.inf if isinstance(times, float) else times == sorted(times)
    if not ordered:
        raise ValueError("the times of a video are not in order")
    return times


def _check_places(index: ShardIndex, places: NDArray[np.int64]) -> None:
    """Check that every entry is inside a shard; `places` `(N, 3)` contains each video's shard, frames and first entry.

    Raises:
        ValueError: An entry is out of range, or the arrays do not fit each other.
    """

    def check(wrong: NDArray[np.bool_], owner: NDArray[np.int64], where: str) -> None:
        if wrong.any():
            raise ValueError(
                f"video {list(index.videos)[owner[int(wrong.argmax())]]!r} has a position outside {where}"
            )

    odd = next((name for name in index.names if not re.fullmatch(r"\w[\w.-]*", name)), None)
    if odd is not None:
        raise ValueError(f"shard {odd!r}: expected a file name")
    starts, sizes, entries = index.starts, index.sizes, len(index.starts)
    if entries != len(sizes) or {starts.ndim, sizes.ndim} != {1}:
        raise ValueError(f"found {entries} start positions and {len(sizes)} sizes: expected equal numbers")
    if {array.dtype for array in (places, starts, sizes)} != {np.dtype(np.int64)}:
        raise ValueError("expected positions that are 64-bit integers")
    if len(index.videos) != len(places):
        raise ValueError(
            f"found {len(places)} positions for {len(index.videos)} videos: expected one per video"
        )
    settings = index.settings
    if settings["encoding"] not in ENCODINGS or settings["modality"] not in MODALITY_CHANNELS:
        raise ValueError(
            f"unknown modality {settings['modality']!r:.40} or encoding {settings['encoding']!r:.40}"
        )
    raw, flow = settings["encoding"] == "raw", settings["modality"] == "flow"
    picture = 1
    if raw or settings["resize"] is not None:
        height, width = map(int, settings["resize"])
        if not (1 <= height <= MOST_PIXELS and 1 <= width <= MOST_PIXELS // height):
            raise ValueError(f"images of {height} × {width} pixels are too small or too large")
        picture = height * width * MODALITY_CHANNELS["flow" if flow else "rgb"]
    shard, frames, first = places.T
    videos = np.arange(len(places))
    outside = (shard < 0) | (shard >= len(index.names)) | (frames < 1) | (first < 0) | (first >= entries)
    count = np.ones_like(frames) if raw else frames.clip(0, entries + 1) * (2 if flow else 1)
    check(outside | (count > entries - first), videos, "the index")
    if count.sum() > entries:
        raise ValueError(f"found {entries} entries for {count.sum()} images: expected one per image")
    crcs = index.crcs
    pictures = int(frames.sum()) if raw else entries
    if crcs is not None and (crcs.dtype != np.dtype(np.uint32) or crcs.shape != (pictures,)):
        raise ValueError(
            f"found checksums of shape {crcs.shape} for {pictures} images: expected one per image"
        )
    owner = np.repeat(videos, count)
    rows = np.arange(len(owner)) + np.repeat(first - np.cumsum(count) + count, count)
    starts, sizes = starts[rows], sizes[rows]
    short = (starts < 0) | (sizes < 0) | (sizes > np.array(index.lengths, np.int64)[shard[owner]] - starts)
    short[1:] |= (owner[1:] == owner[:-1]) & (starts[1:] < starts[:-1] + sizes[:-1])
    check(short | (sizes // picture < frames[owner] if raw else sizes > MOST_BYTES), owner, "its shard")


class ShardSource(ClipSource):
    """Reads frames from packed shards, which `two-stream pack` writes."""

    def __init__(
        self,
        location: str,
        modality: Modality,
        *,
        scaled_decoding: bool = False,
        fps: float | None = None,
    ) -> None:
        """Read the index.

        Args:
            location: Folder or URL that contains `rgb/` and `flow/`.
            modality: Which of them.
            scaled_decoding: See `DataOptions`; has an effect if stored images are larger than the input.
            fps: Frames per second of videos whose times are not in the index.

        Raises:
            DataError: The index is missing or damaged.
            SettingsError: The kind of URL is unknown or its library is not installed.
        """
        super().__init__(modality)
        self.storage = shard_storage(location, modality)
        self.scaled_decoding = scaled_decoding
        self.fps = fps
        self.index = load_index(self.storage)
        held = self.index.settings["modality"]
        if held != modality:
            raise DataError(
                f"{self.storage.where(INDEX)}: contains {held}, expected {modality}; pack the {modality} frames"
            )
        self._sound: set[int] = set()
        before = itertools.accumulate((video.frames for video in self.index.videos.values()), initial=0)
        self._first_crc = dict(zip(self.index.videos, before))
        """raw frames: index of each video's first checksum"""

    def read(
        self, video_id: str, numbers: Sequence[int], resize: tuple[int, int], region: Region | None = None
    ) -> Frames:
        """See `ClipSource.read`.

        Raises:
            VideoError: The video is not packed, too short, or its shard is missing or cut; names the shard.
            SettingsError: The frames were packed at a different size.
        """
        video = self._video(video_id, numbers, resize)
        picture = (
            self._raw(video, numbers, self._first_crc[video_id])
            if self.index.settings["encoding"] == "raw"
            else None
        )
        if picture is None:
            picture = self._encoded(video, numbers, resize if self.scaled_decoding else None)
        return assemble_frames(f"{self._name(video)}:{video_id}", numbers, picture, resize, region)

    def times(self, video_id: str) -> FrameTimes:
        """See `ClipSource.times`; the times in the index are preferred to `fps`."""
        found = self._packed(video_id).times or self.fps
        return super().times(video_id) if found is None else found

    def _packed(self, video_id: str) -> Packed:
        video = self.index.videos.get(video_id)
        if video is None:
            raise VideoError(
                self.storage.where(INDEX),
                f"video {video_id!r} is not among the {len(self.index.videos)} packed videos; pack "
                "again with the current split lists",
            )
        return video

    def _video(self, video_id: str, numbers: Sequence[int], resize: tuple[int, int]) -> Packed:
        packed = self.index.settings["resize"]
        if packed is not None and tuple(packed) != tuple(resize):
            raise SettingsError(
                f"{self.storage.location}: the packed frames have {packed[0]}×{packed[1]} pixels "
                "(height × width), but the model requires "
                f"{resize[0]}×{resize[1]}; pack again with --resize {resize[0]} {resize[1]}"
            )
        video = self._packed(video_id)
        wrong = [number for number in numbers if not 1 <= number <= video.frames]
        if wrong:
            raise VideoError(
                f"{self._name(video)}:{video_id}",
                f"frame {wrong[0]} was requested, but only {video.frames} frames are packed",
            )
        self._check(video.shard)
        return video

    def _check(self, shard: int) -> None:
        """Check the size of a shard before it is read for the first time."""
        if shard in self._sound:
            return
        name, expected = self.index.names[shard], self.index.lengths[shard]
        try:
            size = self.storage.size(name)
        except OSError as error:
            raise VideoError(self.storage.where(name), f"the shard is missing ({_reason(error)})") from None
        if size != expected:
            what = "truncated shard" if size < expected else "changed shard"
            raise VideoError(
                self.storage.where(name),
                f"{what}: found {size} bytes, expected {expected}; copy or pack the shard again",
            )
        self._sound.add(shard)

    def _raw(self, video: Packed, numbers: Sequence[int], first_crc: int) -> Callable[[int], Frames]:
        height, width = self.index.settings["resize"]
        shape = (int(height), int(width), MODALITY_CHANNELS[self.modality])
        size = int(np.prod(shape))
        start = int(self.index.starts[video.first])
        frames: dict[int, Frames] = {}
        for first, last in frame_ranges(numbers):
            content = self._read(video, start + (first - 1) * size, (last - first + 1) * size)
            block = np.frombuffer(content, np.uint8).reshape(-1, *shape)
            frames.update(zip(range(first, last + 1), block))

        def picture(number: int) -> Frames:
            self._compare(video, number, frames[number].data, first_crc + number - 1)
            return frames[number]

        return picture

    def _compare(self, video: Packed, number: int, content: bytes | memoryview, place: int) -> None:
        """Compare the bytes of a frame with their checksum, so that damaged pixels are never used."""
        if self.index.crcs is not None and zlib.crc32(content) != self.index.crcs[place]:
            raise VideoError(
                self._name(video),
                f"damaged shard: the checksum of frame {number} is wrong; copy or pack the shard again",
            )

    def _encoded(
        self, video: Packed, numbers: Sequence[int], wanted: tuple[int, int] | None
    ) -> Callable[[int], Frames]:
        """Read the images of these frames (flow: x and y in turn), and decode each image when it is needed."""
        each = 1 if self.modality == "rgb" else 2
        found: dict[int, list[bytes]] = {}
        for first, last in frame_ranges(numbers):
            rows = slice(video.first + (first - 1) * each, video.first + last * each)
            starts, sizes = self.index.starts[rows], self.index.sizes[rows]
            begin = int(starts[0])
            content = self._read(video, begin, int(starts[-1] + sizes[-1]) - begin)
            parts = [content[s - begin : s - begin + n] for s, n in zip(starts.tolist(), sizes.tolist())]
            for place, number in enumerate(range(first, last + 1)):
                found[number] = parts[place * each : (place + 1) * each]

        def picture(number: int) -> Frames:
            name = f"{self._name(video)}: frame {number}"
            for place, part in enumerate(found[number], start=video.first + (number - 1) * each):
                self._compare(video, number, part, place)
            flags = FLAGS[self.modality]
            return join_decoded([decode_picture(part, name, flags, wanted) for part in found[number]], name)

        return picture

    def _read(self, video: Packed, start: int, count: int) -> bytes:
        name = self.index.names[video.shard]
        try:
            content = self.storage.read(name, start, count)
        except OSError as error:
            raise VideoError(self.storage.where(name), f"cannot be read ({_reason(error)})") from None
        if len(content) != count:
            raise VideoError(
                self.storage.where(name),
                "truncated shard: a frame in the index is after the end of the shard; copy or pack "
                "the shard again",
            )
        return content

    def _name(self, video: Packed) -> str:
        return self.storage.where(self.index.names[video.shard])


def shard_storage(location: str, modality: Modality) -> Storage:
    """Return the storage of a modality's shards under a folder or URL."""
    return Storage(f"{location.rstrip('/')}/{modality}")


def load_index(storage: Storage) -> ShardIndex:
    """Read the index of a folder of shards.

    Raises:
        DataError: The index is missing or damaged.
    """
    try:
        content = storage.read(INDEX, 0, storage.size(INDEX))
    except OSError as error:
        raise DataError(
            f"{storage.where(INDEX)}: the index of shards cannot be read ({_reason(error)}); run "
            "`two-stream pack`, which "
            "writes the index when all shards are complete"
        ) from None
    return parse_index(content, storage.where(INDEX))


def shard_facts(location: str, modality: Modality) -> dict[str, Any]:
    """Return the location of packed frames and how they were packed, to be recorded in runs and score files.

    Raises:
        DataError: There is no index.
    """
    settings = load_index(shard_storage(location, modality)).settings
    kept = ("encoding", "resize", "quality", "exact", "source", "decoder", "flow", "code_version")
    return {"location": location, **{key: settings[key] for key in kept if settings.get(key) is not None}}


def frame_ranges(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield (first, last) of ranges that contain all given numbers; ranges separated by a small gap are joined."""
    distinct = sorted(set(numbers))
    first = last = distinct[0] if distinct else 0
    for number in distinct[1:]:
        if number - last > _BRIDGED:
            yield first, last
            first = number
        last = number
    if distinct:
        yield first, last


def key_of(video_id: str) -> str:
    """Return the key of a video in a shard, without the dots at which WebDataset would end the key."""
    key = video_id.replace("%", "%25").replace(".", "%2E")
    return f"%5F{key[1:]}" if key.startswith("__") else key


def _reason(error: OSError) -> str:
    return (error.strerror or " ".join(str(error).split()) or type(error).__name__).lower()


T = TypeVar("T")

_OPEN_FILES = 64
"""files kept open per process; a data set may have more shards than a process may open files"""


PROTOCOLS = ("file", "s3", "gs", "az", "http", "https", "memory")
"""supported kinds of URL; memory is fsspec's in-process storage"""


def is_url(location: str) -> bool:
    """Return whether a location is a URL rather than a path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", location) is not None


class Storage:
    """A folder, or a URL opened with fsspec, from which byte ranges of files are read.

    A `Storage` can be sent to worker processes.
    """

    def __init__(self, location: str) -> None:
        """Set the location, a path or a URL such as `s3://bucket/folder`, without opening it."""
        self.location = location
        self.remote = is_url(location)
        self._pid = 0
        self._files: dict[str, BinaryIO] = {}
        self._system: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pid": 0, "_files": {}, "_system": None}

    def where(self, name: str) -> str:
        """Return the full path or URL of a file."""
        return f"{self.location}/{name}" if self.remote else str(Path(self.location).expanduser() / name)

    def size(self, name: str) -> int:
        """Return the size of a file in bytes; see `read` for the errors."""
        self._open_after_fork()
        if self.remote:
            return int(_call_storage(lambda: self._system.info(self.where(name))["size"]))
        return Path(self.where(name)).stat().st_size

    def read(self, name: str, start: int, count: int) -> bytes:
        """Return a range of bytes of a file; there are fewer bytes if the file ends earlier.

        Raises:
            OSError: Missing, or the storage cannot be reached.
            SettingsError: The kind of URL is unknown or its library is not installed.
        """
        self._open_after_fork()
        if self.remote:
            end = start + count
            return bytes(_call_storage(lambda: self._system.cat_file(self.where(name), start=start, end=end)))
        file = self._opened(name)
        file.seek(start)
        content = file.read(count)
        while 0 < len(content) < count:  # a single read may return fewer bytes
            more = file.read(count - len(content))
            if not more:
                break
            content += more
        return content

    def _opened(self, name: str) -> BinaryIO:
        if name not in self._files:
            while len(self._files) >= _OPEN_FILES:
                self._files.pop(next(iter(self._files))).close()
            self._files[name] = Path(self.where(name)).open("rb", buffering=0)  # noqa: SIM115 - it stays open
        return self._files[name]

    def _open_after_fork(self) -> None:
        """Open files again after a fork, because the child process shares file positions with its parent."""
        if self._pid == os.getpid():
            return
        self._files = {}
        self._pid = os.getpid()
        if self.remote:
            self._system = self._filesystem()

    def _filesystem(self) -> Any:
        kind = self.location.split(":", 1)[0].lower()
        if kind not in PROTOCOLS:  # some of fsspec's run commands or log in to other hosts
            raise SettingsError(
                f"{self.location}: {kind} URLs are not supported; expected {', '.join(PROTOCOLS)}"
            )
        try:
            return import_module("fsspec.core").url_to_fs(self.location)[0]
        except ImportError as error:
            what = " ".join(str(error).split())
            raise SettingsError(f"{self.location}: {what}; pip install two-stream[shards]") from None
        except ValueError as error:
            raise SettingsError(f"{self.location}: {' '.join(str(error).split())}") from None


def _call_storage(call: Callable[[], T]) -> T:
    """Call a function of a storage library, and convert the library's errors to OSError."""
    try:
        return call()
    except OSError:
        raise
    except Exception as error:  # any error of the library; the caller names the file
        raise OSError(f"{type(error).__name__}: {' '.join(str(error).split())}") from error
