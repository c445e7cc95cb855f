"""Packs a data set into tar shards, with one sample for each video in the split lists.

The videos of each shard depend only on the lists. A shard is written to a hidden file, which is renamed when it is
complete. Then its content is recorded in a file such as `000000.json`. After an interruption, packing continues with
the shards that have no such record. The index is written last, from the records.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np

from two_stream.data.catalog import Record
from two_stream.data.options import PackOptions
from two_stream.data.sources.files import FrameFolders, VideoFiles
from two_stream.data.sources.segments import segments_of
from two_stream.data.sources.shards import INDEX, Packed, ShardIndex, is_url, key_of
from two_stream.data.splits import read_list
from two_stream.errors import DataError, SettingsError, TwoStreamError, VideoError
from two_stream.runtime.console import progress
from two_stream.runtime.files import exclusive_lock, fsync_dir, sha256, write_bytes, write_json
from two_stream.runtime.provenance import code_version
from two_stream.runtime.text import json_text, parse_json
from two_stream.runtime.workers import Beat, TaskFailure, run_tasks, usable_processes
from two_stream.types import MODALITY_CHANNELS, Frames, Modality, Part, VideoRecord
from two_stream.video.decoding.reader import backend_version, open_video
from two_stream.video.frames import (
    extraction_settings,
    fit_frame,
    jpeg_size,
    list_file_names,
    read_image_bytes,
)
from two_stream.video.rate import FrameTimes

_BLOCK = 512
"""bytes of a block of a tar file"""
_AT_ONCE = 32
"""frames read at a time"""
_PATIENCE = 600.0
"""seconds without a new frame after which a shard is considered hung"""
_NAMES = {"rgb": ("img",), "flow": ("flow_x", "flow_y")}
_BROKEN = (VideoError, DataError, cv2.error)


@dataclass(frozen=True)
class Shard:
    """One shard to write, as it is sent to a worker process."""

    folder: Path
    number: int
    videos: tuple[VideoRecord, ...]
    record: Record
    modality: Modality
    options: PackOptions
    settings: dict[str, Any]
    places: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    """for each part of a longer video, the id of that video and the number of frames before the part"""
    bad: tuple[tuple[str, str], ...] = ()
    """(id, reason) of each video that crashed a process in an earlier attempt"""

    @property
    def name(self) -> str:
        """File name of the shard."""
        return f"{self.number:06d}.tar"

    @property
    def note(self) -> Path:
        """File that records the content of the finished shard."""
        return self.folder / f"{self.number:06d}.json"

    @property
    def at(self) -> Path:
        """File that contains the id of the video that is being packed."""
        return self.folder / f".{self.number:06d}.at"

    @property
    def plan(self) -> str:
        """Checksum of the planned content of the shard."""
        wanted = [(v.id, v.num_frames, v.label, *self.places.get(v.id, ())) for v in self.videos]
        return hashlib.sha256(json.dumps([self.settings, wanted]).encode()).hexdigest()


@dataclass
class PackSummary:
    """Result of packing."""

    folder: Path
    videos: int = 0
    frames: int = 0
    shards: int = 0
    written: int = 0
    """number of shards written by this call; the other shards existed already"""
    bytes: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    """(id, reason) of each video that is not in the shards"""
    short: list[tuple[str, int, int]] = field(default_factory=list)
    """(id, number of packed frames, number of frames in the list) of each video with fewer frames than listed"""

    def as_dict(self) -> dict[str, Any]:
        """Return all fields as values that can be written as JSON."""
        return {**asdict(self), "folder": str(self.folder)}


def pack(record: Record, modality: Modality, out: Path | str, options: PackOptions) -> PackSummary:
    """Pack every video in a data set's lists of one modality into `out/<modality>`.

    Raises:
        SettingsError: `out` is a URL.
        DataError: No lists, no frames, or `out` contains shards with different settings or lists.
    """
    if is_url(str(out)):
        raise SettingsError(
            f"--out is {str(out)!r}: expected a local folder; copy the shards to the URL "
            "afterwards, for example with aws s3 sync or gsutil"
        )
    folder = Path(out) / modality
    source_of_frames(record, modality, options)  # a missing root is a single error, not one per video
    settings = _settings(options, record, modality)
    segments = segments_of(record)
    shards = []
    for number, videos in enumerate(plan_shards(all_videos(record, modality), options.shard_frames)):
        parts = [(v.id, segments[v.id]) for v in videos if v.id in segments]
        places = {name: (segment.video, segment.first - 1) for name, segment in parts}
        shards.append(Shard(folder, number, videos, record, modality, options, settings, places))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: the output folder cannot be created ({error.strerror})") from None
    busy = DataError(f"{folder}: another `two-stream pack` is writing to this folder; wait until it finishes")
    with exclusive_lock(folder / ".lock", busy):
        for leftover in [*folder.glob(".[0-9]*.part"), *folder.glob(".[0-9]*.at")]:
            with suppress(OSError):
                leftover.unlink()
        notes = {shard.number: _finished(shard) for shard in shards}
        _refuse_others(shards, notes)
        missing = [shard for shard in shards if notes[shard.number] is None]
        if missing:
            (folder / INDEX).unlink(missing_ok=True)  # it would point into old shards
            _write_missing(missing, notes)
        return _finish(folder, shards, notes, len(missing))


def all_videos(record: Record, modality: Modality) -> list[VideoRecord]:
    """Return the videos of all lists, sorted by id. If lists give different numbers of frames, the largest is used.

    Raises:
        DataError: No list of this modality, or a wrong one.
    """
    found: dict[str, VideoRecord] = {}
    parts: tuple[Part, ...] = ("train", "test")
    for split in range(1, record.num_splits + 1):
        lists = [record.list_path(part, modality, split) for part in parts]
        for path in (*lists, record.holdout_path(modality, split)):
            if not path.is_file():
                continue
            for video in read_list(path, num_classes=record.num_classes, multi_label=record.multi_label):
                known = found.get(video.id)
                if known is None or known.num_frames < video.num_frames:
                    found[video.id] = video
    if not found:
        path = record.list_path("train", modality, 1)
        raise DataError(
            f"{path}: the {modality} split list of {record.name} does not exist; write it with `two-stream prepare`"
        )
    return [found[name] for name in sorted(found)]


def plan_shards(videos: Sequence[VideoRecord], shard_frames: int) -> list[tuple[VideoRecord, ...]]:
    """Divide videos, in order, into shards of about `shard_frames` frames."""
    shards: list[list[VideoRecord]] = [[]]
    held = 0
    for video in videos:
        if shards[-1] and held + video.num_frames > shard_frames:
            shards.append([])
            held = 0
        shards[-1].append(video)
        held += video.num_frames
    return [tuple(shard) for shard in shards]


def verify_shards(folder: Path) -> list[str]:
    """Compare every shard in a folder with its record; return one message for each missing or damaged shard.

    Raises:
        DataError: There are no shards.
    """
    notes = sorted(folder.glob("[0-9]*.json"))
    if not notes:
        raise DataError(f"{folder}: the folder contains no shards; expected 000000.tar, 000000.json, …")
    wrong = []
    for path in notes:
        note = _read_note(path)
        tar = path.with_suffix(".tar")
        if note is None:
            wrong.append(f"{path}: damaged shard record; pack the data set again")
        elif not tar.is_file():
            wrong.append(f"{tar}: missing")
        elif tar.stat().st_size != note["bytes"] or sha256(tar) != note["sha256"]:
            wrong.append(f"{tar}: damaged (size or SHA-256 differ from its record); remove it and pack again")
    return wrong


def _read_note(path: Path) -> dict[str, Any] | None:
    try:
        note = parse_json(path.read_text(encoding="utf-8"))
        (
            int(note["bytes"]),
            str(note["sha256"]),
            str(note["plan"]),
            list(note["videos"]),
            dict(note["settings"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return dict(note)


def _finished(shard: Shard) -> dict[str, Any] | None:
    """Return the record of a shard that is complete, matches the plan and has no failures; otherwise None."""
    note = _read_note(shard.note)
    tar = shard.folder / shard.name
    if note is None or note["plan"] != shard.plan or note["failed"]:
        return None
    return note if tar.is_file() and tar.stat().st_size == note["bytes"] else None


def _refuse_others(shards: Sequence[Shard], notes: dict[int, dict[str, Any] | None]) -> None:
    """Raise an error if the folder contains shards with different settings or lists; with `overwrite`, remove them."""
    folder, options = shards[0].folder, shards[0].options
    planned = {shard.number: shard for shard in shards}
    for path in sorted(folder.glob("[0-9]*.json")):
        number = int(path.stem) if path.stem.isdecimal() else -1
        note = _read_note(path)
        if note is None or (number in planned and (notes[number] or note["plan"] == planned[number].plan)):
            continue
        if not options.overwrite:
            wanted, made = shards[0].settings, note["settings"]
            changes = [
                f"{key} {made.get(key)} -> {wanted[key]}" for key in wanted if made.get(key) != wanted[key]
            ]
            what = ", ".join(changes) or "the split lists have changed"
            raise DataError(
                f"{folder}: contains shards packed differently: {what}; replace them with "
                "--overwrite, or choose another --out"
            )
        for old in (folder / INDEX, path, path.with_suffix(".tar")):  # the record before its shard
            old.unlink(missing_ok=True)


def _write_missing(missing: list[Shard], notes: dict[int, dict[str, Any] | None]) -> None:
    """Write shards; if a process is killed, its shard is written again without the video that was being packed."""
    options = missing[0].options
    processes = usable_processes() if options.processes is None else options.processes
    total = sum(video.num_frames for shard in missing for video in shard.videos)
    with progress(f"packing {missing[0].modality}", total) as advance:
        while missing:
            again: list[Shard] = []
            for index, answer in run_tasks(
                write_shard, missing, processes=min(processes, len(missing)), patience=_PATIENCE
            ):
                shard = missing[index]
                if isinstance(answer, TaskFailure):
                    again.append(_without_culprit(shard, answer))
                    continue
                notes[shard.number] = answer
                advance(sum(video.num_frames for video in shard.videos), shard=shard.name)
            missing = again


def _without_culprit(shard: Shard, failure: TaskFailure) -> Shard:
    """Return the shard without the video whose decoder crashed or hung.

    Raises:
        TwoStreamError: Another cause, such as a full disk.
    """
    try:
        culprit = shard.at.read_text(encoding="utf-8")
    except OSError:
        culprit = ""
    known = {name for name, _ in shard.bad}
    if failure.kind == "raised" or culprit in known or culprit not in {video.id for video in shard.videos}:
        raise TwoStreamError(f"{shard.folder / shard.name}: cannot be packed ({failure.reason})")
    return replace(shard, bad=(*shard.bad, (culprit, failure.reason)))


def _finish(
    folder: Path, shards: Sequence[Shard], notes: dict[int, dict[str, Any] | None], written: int
) -> PackSummary:
    """Write the index from the records of the shards."""
    summary = PackSummary(folder, shards=len(shards), written=written)
    videos: dict[str, Packed] = {}
    starts: list[int] = []
    sizes: list[int] = []
    crcs: list[int] = []
    listed = []
    for shard in shards:
        note = notes[shard.number]
        assert note is not None
        listed.append({"name": shard.name, "bytes": note["bytes"], "sha256": note["sha256"]})
        wanted = {video.id: video.num_frames for video in shard.videos}
        for video in note["videos"]:
            videos[video["id"]] = Packed(shard.number, video["frames"], len(starts), video.get("times"))
            starts += video["starts"]
            sizes += video["sizes"]
            crcs += video.get("crcs", ())  # missing in shards of an earlier version
            summary.frames += video["frames"]
            if video["frames"] < wanted[video["id"]]:
                summary.short.append((video["id"], video["frames"], wanted[video["id"]]))
        summary.failed += [(name, reason) for name, reason in note["failed"]]
        summary.bytes += note["bytes"]
    summary.videos = len(videos)
    settings = {**shards[0].settings, "code_version": code_version()}
    made = [(notes[shard.number] or {}).get("extraction") for shard in shards]
    if all(one == made[0] for one in made) and made[0]:
        settings["extraction"] = made[0]  # shards may have been packed at different times
    places = np.array(starts, np.int64), np.array(sizes, np.int64)
    whole = len(crcs) == (summary.frames if settings["encoding"] == "raw" else len(starts))
    index = ShardIndex(settings, [], [], videos, *places, np.array(crcs, np.uint32) if whole else None)
    write_bytes(folder / INDEX, index.dump(listed))
    return summary


def _settings(options: PackOptions, record: Record, modality: Modality) -> dict[str, Any]:
    """Return the settings that determine the content of the shards; they are recorded in the index."""
    videos = options.source == "videos"
    return {
        "dataset": record.name,
        "modality": modality,
        "encoding": options.encoding,
        "resize": None if options.encoding == "original" else list(options.size),
        "quality": options.quality if options.encoding == "jpeg" else None,
        "exact": options.encoding != "jpeg",
        "source": options.source,
        "decoder": backend_version(options.backend) if videos else f"opencv {cv2.__version__}",
        "short_side": record.short_side if videos else None,
        "flow": options.flow if videos and modality == "flow" else None,
        "shard_frames": options.shard_frames,
    }


def source_of_frames(record: Record, modality: Modality, options: PackOptions) -> FrameFolders | VideoFiles:
    """Return the source of the frames to pack.

    Raises:
        DataError: The record names no such folder, or the folder does not exist.
    """
    if options.source == "videos":
        return VideoFiles(record, modality, options.backend, options.flow)
    return FrameFolders(record, modality)


def write_shard(shard: Shard, beat: Beat) -> dict[str, Any]:
    """Write one shard and its record, and return the record; a video that cannot be read is recorded as failed.

    Raises:
        OSError: The disk is full, or the folder cannot be written.
    """
    cv2.setNumThreads(1)
    source = source_of_frames(shard.record, shard.modality, shard.options)
    # a worker whose parent was killed may still write for a moment, but not into its successor's file
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
    """A tar file that is written sequentially; the latest writes can be undone."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self._at = 0

    def add(self, name: str, size: int) -> int:
        """Begin a member of `size` bytes, and return the position of its first byte; next, call `write` and `close`."""
        info = tarfile.TarInfo(name)
        info.size = size
        self.write(info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape"))
        return self._at

    def write(self, content: bytes | memoryview) -> None:
        """Append content."""
        self._file.write(content)
        self._hash.update(content)
        self._at += len(content)

    def close(self) -> None:
        """Pad the last block of a member."""
        self.write(bytes(-self._at % _BLOCK))

    def member(self, name: str, content: bytes) -> int:
        """Write a complete member, and return the position of its first byte."""
        start = self.add(name, len(content))
        self.write(content)
        self.close()
        return start

    def mark(self) -> tuple[int, Any]:
        """Return the current position, to pass to `back_to`."""
        return self._at, self._hash.copy()

    def back_to(self, mark: tuple[int, Any]) -> None:
        """Undo everything written since the mark."""
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
    """Write one sample; return its id, its number of frames and the positions of its entries."""
    at = shard.places.get(video.id, (video.id, 0))
    count = _frames(video, source, at)
    key = key_of(video.id)
    images = count + (shard.modality == "flow")
    times = _times(source, at, images)
    about = {
        "id": video.id,
        "label": video.label,
        "class": shard.record.classes[video.label],
        "frames": count,
        **{name: shard.settings[name] for name in ("dataset", "modality", "encoding", "resize", "exact")},
    }
    tar.member(f"{key}.json", json_text(about).encode())
    if shard.options.encoding == "raw":
        frames = _resized(shard, at, source, count)
        start, size, crcs = _write_raw(
            tar, f"{key}.{shard.modality}.npy", shard, count, _beating(frames, beat)
        )
        return {
            "id": video.id,
            "frames": count,
            "times": times,
            "starts": [start],
            "sizes": [size],
            "crcs": crcs,
        }
    starts, sizes, crcs = [], [], []
    for number, pictures in enumerate(_pictures(shard, at, source, count), start=1):
        for name, content in zip(_NAMES[shard.modality], pictures, strict=True):
            suffix = "jpg" if jpeg_size(content) else "png"
            starts.append(tar.member(f"{key}.{name}_{number:05d}.{suffix}", content))
            sizes.append(len(content))
            crcs.append(zlib.crc32(content))
        beat()
    return {"id": video.id, "frames": count, "times": times, "starts": starts, "sizes": sizes, "crcs": crcs}


def _times(source: FrameFolders | VideoFiles, at: tuple[str, int], images: int) -> FrameTimes | None:
    """Return when the packed images appear, as a rate if it is constant; None if the folder does not record it.

    `at` is the id of the whole video, and the number of its frames before the packed ones.
    """
    video_id, before = at
    try:
        times = source.times(video_id)
    except SettingsError:
        return None
    if not isinstance(times, Sequence):
        return times
    own = np.asarray(times[before : before + images])
    own -= own[:1]
    rate = (len(own) - 1) / own[-1] if len(own) > 1 and own[-1] > 0 else 0.0
    even = rate and np.allclose(own * rate, np.arange(len(own)), rtol=0, atol=1e-6 * rate)
    return float(rate) if even else own.round(6).tolist()


def _frames(video: VideoRecord, source: FrameFolders | VideoFiles, at: tuple[str, int]) -> int:
    """Return the number of frames to pack: the number in the list, or the number in the folder if it is smaller.

    `at` is the id of the whole video, and the number of its frames before the packed ones.

    Raises:
        VideoError: The folder is missing or has no first frame.
    """
    if isinstance(source, VideoFiles):
        return video.num_frames
    folder, before = source.folder(at[0]), at[1]
    if not folder.is_dir():
        raise VideoError(folder, "no such folder of frames")
    names = list_file_names(folder)
    there = source.patterns.numbered(names, source.modality)
    count = 0
    while count < video.num_frames and all(before + count + 1 in found for found in there):
        count += 1
    later = sum(number > before + count for number in there[0])
    if not count or (later and count < video.num_frames):
        missing = source.patterns.names(source.modality, before + count + 1)[0]
        raise VideoError(folder / missing, "no such frame")
    return count


def _beating(frames: Iterator[Frames], beat: Beat) -> Iterator[Frames]:
    for frame in frames:
        beat()
        yield frame


def _write_raw(
    tar: Tar, name: str, shard: Shard, count: int, frames: Iterator[Frames]
) -> tuple[int, int, list[int]]:
    """Write frames as one `.npy` member; return the position and size of its pixels, and the CRC-32 of each frame."""
    shape = (count, *shard.options.size, MODALITY_CHANNELS[shard.modality])
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
    shard: Shard, at: tuple[str, int], source: FrameFolders | VideoFiles, count: int
) -> Iterator[Frames]:
    """Yield the frames, resized as for a network but not cropped."""
    resize, (video_id, before) = shard.options.size, at
    numbers = range(before + 1, before + count + 1)
    if isinstance(source, FrameFolders):
        for first in range(0, count, _AT_ONCE):
            yield from source.read(video_id, numbers[first : first + _AT_ONCE], resize)
        return
    with open_video(source.path(video_id), source.backend) as opened:
        for _, frame in source.stored(opened, numbers):
            yield fit_frame(frame, resize)


def _pictures(
    shard: Shard, at: tuple[str, int], source: FrameFolders | VideoFiles, count: int
) -> Iterator[tuple[bytes, ...]]:
    """Yield the contents of each frame's files: one file for RGB, x and y files for flow."""
    if shard.options.encoding == "original":
        assert isinstance(source, FrameFolders)  # PackOptions has checked it
        folder = source.folder(at[0])
        for number in range(1, count + 1):
            names = source.patterns.names(source.modality, at[1] + number)
            yield tuple(read_image_bytes(folder / name) for name in names)
        return
    for frame in _resized(shard, at, source, count):
        planes = [frame[..., ::-1]] if shard.modality == "rgb" else [frame[..., 0], frame[..., 1]]
        yield tuple(_jpeg(plane, shard.options.quality) for plane in planes)


def _jpeg(picture: Frames, quality: int) -> bytes:
    _, content = cv2.imencode(".jpg", np.ascontiguousarray(picture), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return content.tobytes()
