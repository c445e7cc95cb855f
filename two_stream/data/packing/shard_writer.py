"""Writes one packed shard: videos one after another into a tar file, and a note of where every frame lies."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import cv2
import numpy as np

from two_stream.data.catalog import Record
from two_stream.data.sources.files import FrameFolders, VideoFiles
from two_stream.data.sources.shards import ENCODINGS, key_of
from two_stream.errors import DataError, SettingsError, VideoError
from two_stream.runtime.files import fsync_dir, write_json
from two_stream.runtime.text import json_text
from two_stream.runtime.workers import Beat
from two_stream.types import MODALITY_CHANNELS, Frames, Modality, VideoRecord
from two_stream.video.decoding.reader import backend_version, open_video
from two_stream.video.extraction.one_video import extraction_settings
from two_stream.video.frames import jpeg_size, read_image_bytes
from two_stream.video.region import fit_frame

_BLOCK = 512
"""a tar file is made of blocks of this size"""
_AT_ONCE = 32
"""frames in memory"""
_NAMES = {"rgb": ("img",), "flow": ("flow_x", "flow_y")}
_BROKEN = (VideoError, DataError, cv2.error)


@dataclass(frozen=True)
class PackOptions:
    """How a data set is packed."""

    encoding: Literal["raw", "original", "jpeg"] = "raw"
    resize: tuple[int, int] = (128, 170)
    """(height, width) of raw and jpeg frames"""
    quality: int = 95
    """of jpeg frames"""
    source: Literal["frames", "videos"] = "frames"
    backend: str = "pyav"
    flow: str = "dis"
    shard_frames: int = 10_000
    """frames after which a new shard begins"""
    processes: int | None = None
    """shards written at a time; None takes all processors, 0 works in this process"""
    patience: float = 600.0
    """seconds without a new frame after which a shard is given up"""
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Check ranges; the message names the flag."""
        if self.encoding not in ENCODINGS:
            raise SettingsError(f"--encoding is {self.encoding!r}: expected one of {', '.join(ENCODINGS)}")
        if self.encoding == "original" and self.source == "videos":
            raise SettingsError(
                "--encoding original keeps the files of frame folders: with --source videos use raw or jpeg"
            )
        if not 1 <= self.quality <= 100:
            raise SettingsError(f"--quality is {self.quality}: expected 1 to 100")
        if any(not 8 <= side <= 16384 for side in self.resize):
            raise SettingsError(f"--resize is {self.resize}: expected HEIGHT WIDTH of 8 to 16384 pixels")
        if self.shard_frames < 1:
            raise SettingsError(f"--shard-frames is {self.shard_frames}: expected 1 or more")
        if self.processes is not None and self.processes < 0:
            raise SettingsError(f"--processes is {self.processes}: expected 0 or more")

    def recorded(self, record: Record, modality: Modality) -> dict[str, Any]:
        """Return what decides the content of the shards, as their index keeps it."""
        videos = self.source == "videos"
        return {
            "dataset": record.name,
            "modality": modality,
            "encoding": self.encoding,
            "resize": None if self.encoding == "original" else list(self.resize),
            "quality": self.quality if self.encoding == "jpeg" else None,
            "exact": self.encoding != "jpeg",
            "source": self.source,
            "decoder": backend_version(self.backend) if videos else f"opencv {cv2.__version__}",
            "short_side": record.short_side if videos else None,
            "flow": self.flow if videos and modality == "flow" else None,
            "shard_frames": self.shard_frames,
        }


@dataclass(frozen=True)
class Shard:
    """One shard to write; crosses process borders."""

    folder: Path
    number: int
    videos: tuple[VideoRecord, ...]
    record: Record
    modality: Modality
    options: PackOptions
    settings: dict[str, Any]
    bad: tuple[tuple[str, str], ...] = ()
    """(id, reason) of videos that killed a process before"""

    @property
    def name(self) -> str:
        """File name of the shard."""
        return f"{self.number:06d}.tar"

    @property
    def note(self) -> Path:
        """File that says what the finished shard holds."""
        return self.folder / f"{self.number:06d}.json"

    @property
    def at(self) -> Path:
        """File that names the video being packed."""
        return self.folder / f".{self.number:06d}.at"

    @property
    def plan(self) -> str:
        """Checksum of what the shard is to hold."""
        wanted = [(v.id, v.num_frames, v.label) for v in self.videos]
        return hashlib.sha256(json.dumps([self.settings, wanted]).encode()).hexdigest()


def source_of_frames(record: Record, modality: Modality, options: PackOptions) -> FrameFolders | VideoFiles:
    """Return where frames are packed from.

    Raises:
        DataError: The record names no such folder, or it is absent.
    """
    if options.source == "videos":
        return VideoFiles(record, modality, options.backend, options.flow)
    return FrameFolders(record, modality)


def write_shard(shard: Shard, beat: Beat) -> dict[str, Any]:
    """Write one shard and its note, and return the note. A video that cannot be read is left out and named.

    Raises:
        OSError: The disk is full, or the folder cannot be written.
    """
    cv2.setNumThreads(1)
    source = source_of_frames(shard.record, shard.modality, shard.options)
    # a worker whose parent was killed may write for a moment more: never into the file of its successor
    part = shard.folder / f".{shard.name}.{os.getpid()}.part"
    failed: list[tuple[str, str]] = []
    with part.open("wb") as file:
        tar = Tar(file)
        videos = []
        for video in shard.videos:
            reason = dict(shard.bad).get(video.id)
            mark = tar.mark()
            if reason is None:
                shard.at.write_text(video.id, encoding="utf-8")
                try:
                    videos.append(_write_video(tar, shard, video, source, beat))
                    continue
                except _BROKEN as error:
                    reason = " ".join(str(error).split())
            tar.back_to(mark)
            failed.append((video.id, reason))
        size, digest = tar.end()
        file.flush()
        os.fsync(file.fileno())
    shard.note.unlink(missing_ok=True)  # of an earlier shard of this number
    part.replace(shard.folder / shard.name)
    fsync_dir(shard.folder)
    note = {
        "name": shard.name,
        "bytes": size,
        "sha256": digest,
        "settings": shard.settings,
        "plan": shard.plan,
        "extraction": extraction_settings(source.root) if isinstance(source, FrameFolders) else None,
        "failed": failed,
        "videos": videos,
    }
    write_json(shard.note, note, indent=None)
    with suppress(FileNotFoundError):
        shard.at.unlink()
    return note


class Tar:
    """A tar file of plain members, written from its beginning; what was written last can be taken back."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self._at = 0

    def add(self, name: str, size: int) -> int:
        """Begin a member of so many bytes; return the place of its first one. `write` and `close` follow."""
        info = tarfile.TarInfo(name)
        info.size = size
        self.write(info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape"))
        return self._at

    def write(self, content: bytes | memoryview) -> None:
        """Go on with what is written."""
        self._file.write(content)
        self._hash.update(content)
        self._at += len(content)

    def close(self) -> None:
        """Fill the last block of a member."""
        self.write(bytes(-self._at % _BLOCK))

    def member(self, name: str, content: bytes) -> int:
        """Write a whole member; return the place of its first byte."""
        start = self.add(name, len(content))
        self.write(content)
        self.close()
        return start

    def mark(self) -> tuple[int, Any]:
        """Return what `back_to` takes."""
        return self._at, self._hash.copy()

    def back_to(self, mark: tuple[int, Any]) -> None:
        """Forget what was written since the mark."""
        self._at, self._hash = mark[0], mark[1].copy()
        self._file.seek(self._at)
        self._file.truncate()

    def end(self) -> tuple[int, str]:
        """Write the end of the file; return its size and SHA-256."""
        self.write(bytes(2 * _BLOCK))
        return self._at, self._hash.hexdigest()


def _write_video(
    tar: Tar, shard: Shard, video: VideoRecord, source: FrameFolders | VideoFiles, beat: Beat
) -> dict[str, Any]:
    """Write one sample; return its id, frames and the places of its entries."""
    count = _frames(video, source)
    key = key_of(video.id)
    about = {
        "id": video.id,
        "label": video.label,
        "class": shard.record.classes[video.label],
        "frames": count,
        **{name: shard.settings[name] for name in ("dataset", "modality", "encoding", "resize", "exact")},
    }
    tar.member(f"{key}.json", json_text(about).encode())
    if shard.options.encoding == "raw":
        frames = _resized(shard, video, source, count)
        start, size, crcs = _write_raw(
            tar, f"{key}.{shard.modality}.npy", shard, count, _beating(frames, beat)
        )
        return {"id": video.id, "frames": count, "starts": [start], "sizes": [size], "crcs": crcs}
    starts, sizes, crcs = [], [], []
    for number, pictures in enumerate(_pictures(shard, video, source, count), start=1):
        for name, content in zip(_NAMES[shard.modality], pictures, strict=True):
            suffix = "jpg" if jpeg_size(content) else "png"
            starts.append(tar.member(f"{key}.{name}_{number:05d}.{suffix}", content))
            sizes.append(len(content))
            crcs.append(zlib.crc32(content))
        beat()
    return {"id": video.id, "frames": count, "starts": starts, "sizes": sizes, "crcs": crcs}


def _frames(video: VideoRecord, source: FrameFolders | VideoFiles) -> int:
    """Return how many frames to pack: those of the list, or of the folder where it has fewer.

    Raises:
        VideoError: The folder is missing or has no first frame.
    """
    if isinstance(source, VideoFiles):
        return video.num_frames
    folder = source.folder(video.id)
    if not folder.is_dir():
        raise VideoError(folder, "no such folder of frames")
    names = [path.name for path in folder.iterdir()]
    there = source.patterns.numbered(names, source.modality)
    count = 0
    while count < video.num_frames and all(count + 1 in found for found in there):
        count += 1
    later = sum(number > count for number in there[0])
    if not count or (later and count < video.num_frames):
        raise VideoError(folder / source.patterns.names(source.modality, count + 1)[0], "no such frame")
    return count


def _beating(frames: Iterator[Frames], beat: Beat) -> Iterator[Frames]:
    for frame in frames:
        beat()
        yield frame


def _write_raw(
    tar: Tar, name: str, shard: Shard, count: int, frames: Iterator[Frames]
) -> tuple[int, int, list[int]]:
    """Write frames as one `.npy` member; return the place and number of its pixels' bytes, and each frame's CRC-32."""
    shape = (count, *shard.options.resize, MODALITY_CHANNELS[shard.modality])
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": shape})
    size = int(np.prod(shape))
    start = tar.add(name, len(head.getvalue()) + size) + len(head.getvalue())
    tar.write(head.getvalue())
    crcs = []
    for frame in frames:
        content = np.ascontiguousarray(frame).data.cast("B")
        tar.write(content)
        crcs.append(zlib.crc32(content))
    tar.close()
    return start, size, crcs


def _resized(
    shard: Shard, video: VideoRecord, source: FrameFolders | VideoFiles, count: int
) -> Iterator[Frames]:
    """Yield the frames as a network's input, before it is cropped."""
    resize = shard.options.resize
    if isinstance(source, FrameFolders):
        for first in range(1, count + 1, _AT_ONCE):
            yield from source.read(video.id, range(first, min(first + _AT_ONCE, count + 1)), resize)
        return
    with open_video(source.path(video.id), source.backend) as opened:
        for _, frame in source.stored(opened, range(1, count + 1)):
            yield fit_frame(frame, resize)


def _pictures(
    shard: Shard, video: VideoRecord, source: FrameFolders | VideoFiles, count: int
) -> Iterator[tuple[bytes, ...]]:
    """Yield the files of each frame: one for RGB, x and y for flow."""
    if shard.options.encoding == "original":
        assert isinstance(source, FrameFolders)  # PackOptions has checked it
        folder = source.folder(video.id)
        for number in range(1, count + 1):
            names = source.patterns.names(source.modality, number)
            yield tuple(read_image_bytes(folder / name) for name in names)
        return
    for frame in _resized(shard, video, source, count):
        planes = [frame[..., ::-1]] if shard.modality == "rgb" else [frame[..., 0], frame[..., 1]]
        yield tuple(_jpeg(plane, shard.options.quality) for plane in planes)


def _jpeg(picture: Frames, quality: int) -> bytes:
    _, content = cv2.imencode(".jpg", np.ascontiguousarray(picture), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return content.tobytes()
