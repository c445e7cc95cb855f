"""Packs a data set: every video of its lists, one sample each, shard by shard.

Which videos make a shard follows from the lists alone. A shard is written under a hidden name, renamed when it is
whole, and gets a note of what it holds (`000000.json`); a pack that was killed goes on with the shards that have none.
The index is written last, from the notes.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from two_stream.data.catalog import Record
from two_stream.data.packing.shard_writer import PackOptions, Shard, source_of_frames, write_shard
from two_stream.data.sources.shards import INDEX, Packed, ShardIndex
from two_stream.data.sources.storage import is_url
from two_stream.data.splits import read_list
from two_stream.errors import DataError, SettingsError, TwoStreamError
from two_stream.runtime.console import progress
from two_stream.runtime.files import sha256, write_bytes
from two_stream.runtime.locks import exclusive_lock
from two_stream.runtime.provenance import code_version
from two_stream.runtime.text import parse_json
from two_stream.runtime.workers import TaskFailure, run_tasks, usable_processes
from two_stream.types import Modality, Part, VideoRecord

__all__ = ["PackOptions", "PackSummary", "all_videos", "pack", "plan", "verify"]


@dataclass
class PackSummary:
    """What a pack has made."""

    folder: Path
    videos: int = 0
    frames: int = 0
    shards: int = 0
    written: int = 0
    """shards written by this run; the others were there"""
    bytes: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    """(id, reason) of the videos that are not in the shards"""
    short: list[tuple[str, int, int]] = field(default_factory=list)
    """(id, frames packed, frames of the list)"""

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON-ready values."""
        return {**asdict(self), "folder": str(self.folder)}


def pack(record: Record, modality: Modality, out: Path | str, options: PackOptions) -> PackSummary:
    """Pack every video of a data set's lists in one modality into `out/<modality>`.

    Raises:
        SettingsError: `out` is a URL.
        DataError: No lists, no frames, or `out` holds shards of other settings or lists.
    """
    if is_url(str(out)):
        raise SettingsError(
            f"--out is {str(out)!r}: pack into a local folder, then copy it there (aws s3 sync, gsutil)"
        )
    if record.segments is not None:
        raise DataError(
            f"{record.name}: its videos are segments of longer ones, which cannot be packed; read frames or videos"
        )
    folder = Path(out) / modality
    source_of_frames(record, modality, options)  # a missing root is one error, not one per video
    settings = options.recorded(record, modality)
    shards = [
        Shard(folder, number, videos, record, modality, options, settings)
        for number, videos in enumerate(plan(all_videos(record, modality), options.shard_frames))
    ]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot be made an output folder ({error.strerror})") from None
    busy = DataError(f"{folder}: another `two-stream pack` is writing here; wait for it")
    with exclusive_lock(folder / ".lock", busy):
        for leftover in [*folder.glob(".[0-9]*.part"), *folder.glob(".[0-9]*.at")]:
            with suppress(OSError):
                leftover.unlink()
        notes = {shard.number: _finished(shard) for shard in shards}
        _refuse_others(shards, notes)
        missing = [shard for shard in shards if notes[shard.number] is None]
        if missing:
            (folder / INDEX).unlink(missing_ok=True)  # it would name places of old shards
            _write_missing(missing, notes)
        return _finish(folder, shards, notes, len(missing))


def all_videos(record: Record, modality: Modality) -> list[VideoRecord]:
    """Return every video of every list, sorted by id; where lists differ in its frames, the most.

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
            f"{path}: no split list of {record.name} for {modality}; write it with `two-stream prepare`"
        )
    return [found[name] for name in sorted(found)]


def plan(videos: Sequence[VideoRecord], shard_frames: int) -> list[tuple[VideoRecord, ...]]:
    """Divide videos, in their order, into shards of about so many frames."""
    shards: list[list[VideoRecord]] = [[]]
    held = 0
    for video in videos:
        if shards[-1] and held + video.num_frames > shard_frames:
            shards.append([])
            held = 0
        shards[-1].append(video)
        held += video.num_frames
    return [tuple(shard) for shard in shards]


def verify(folder: Path) -> list[str]:
    """Compare every shard of a folder with its note; return a line per one that is missing or damaged.

    Raises:
        DataError: There are no shards.
    """
    notes = sorted(folder.glob("[0-9]*.json"))
    if not notes:
        raise DataError(f"{folder}: no shards here (expected 000000.tar, 000000.json, …)")
    wrong = []
    for path in notes:
        note = _read_note(path)
        tar = path.with_suffix(".tar")
        if note is None:
            wrong.append(f"{path}: damaged note; pack again")
        elif not tar.is_file():
            wrong.append(f"{tar}: missing")
        elif tar.stat().st_size != note["bytes"] or sha256(tar) != note["sha256"]:
            wrong.append(f"{tar}: damaged (its note has another size or SHA-256); remove it and pack again")
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
    """Return the note of a shard that is whole, as planned and without failures."""
    note = _read_note(shard.note)
    tar = shard.folder / shard.name
    if note is None or note["plan"] != shard.plan or note["failed"]:
        return None
    return note if tar.is_file() and tar.stat().st_size == note["bytes"] else None


def _refuse_others(shards: Sequence[Shard], notes: dict[int, dict[str, Any] | None]) -> None:
    """Refuse to mix with, or to write over, shards of other settings or lists, unless asked to."""
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
                f"{folder} holds other shards: {what}; --overwrite packs anew, or choose another --out"
            )
        for old in (folder / INDEX, path, path.with_suffix(".tar")):  # the note before what it vouches for
            old.unlink(missing_ok=True)


def _write_missing(missing: list[Shard], notes: dict[int, dict[str, Any] | None]) -> None:
    """Write shards; a video that kills its process is left out of its shard, which is then tried again."""
    options = missing[0].options
    processes = usable_processes() if options.processes is None else options.processes
    total = sum(video.num_frames for shard in missing for video in shard.videos)
    with progress(f"packing {missing[0].modality}", total) as advance:
        while missing:
            again: list[Shard] = []
            for index, answer in run_tasks(
                write_shard, missing, processes=min(processes, len(missing)), patience=options.patience
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
        TwoStreamError: Something else went wrong, such as a full disk.
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
    """Write the index from the notes."""
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
            videos[video["id"]] = Packed(shard.number, video["frames"], len(starts))
            starts += video["starts"]
            sizes += video["sizes"]
            crcs += video.get("crcs", ())  # shards of an earlier version have none
            summary.frames += video["frames"]
            if video["frames"] < wanted[video["id"]]:
                summary.short.append((video["id"], video["frames"], wanted[video["id"]]))
        summary.failed += [(name, reason) for name, reason in note["failed"]]
        summary.bytes += note["bytes"]
    summary.videos = len(videos)
    settings = {**shards[0].settings, "code_version": code_version()}
    made = [(notes[shard.number] or {}).get("extraction") for shard in shards]
    if all(one == made[0] for one in made) and made[0]:
        settings["extraction"] = made[0]  # they may have been packed at different times
    places = np.array(starts, np.int64), np.array(sizes, np.int64)
    whole = len(crcs) == (summary.frames if settings["encoding"] == "raw" else len(starts))
    index = ShardIndex(settings, [], [], videos, *places, np.array(crcs, np.uint32) if whole else None)
    write_bytes(folder / INDEX, index.dump(listed))
    return summary
