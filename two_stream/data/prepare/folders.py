"""Writes the record and the split lists of a data set, given a folder of videos.

Frames are counted in the frame folders if they exist, otherwise by decoding every video once in several processes. A
video without readable frames is reported and left out of the lists.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import yaml

from two_stream.config.load import nearest
from two_stream.data.catalog import MODALITIES, RECORD_FILE, SPLIT_WORDS, Record, make_record, read_groups
from two_stream.data.options import FolderOptions
from two_stream.data.prepare.counting import (
    Counts,
    FolderCounts,
    count_videos,
    look_and_count,
)
from two_stream.data.sources.files import FrameFolders
from two_stream.data.splits import check_names, make_splits, single_class_warning, write_list
from two_stream.errors import DataError
from two_stream.runtime.files import write_text
from two_stream.runtime.text import plural
from two_stream.types import Modality, Part, VideoRecord
from two_stream.video.sources import Source, find_sources

GROUPS_FILE = "groups.txt"
MARK = "# Written by `two-stream prepare`."
"""first line of a record that may be overwritten"""
Splits = Sequence[tuple[Sequence[VideoRecord], Sequence[VideoRecord]]]
"""training and test videos of every split"""


@dataclass
class Prepared:
    """The result of `two-stream prepare`, and the videos that were left out."""

    record: Record
    path: Path
    videos: int
    sources: int
    """number of distinct source videos"""
    lists: list[Path] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)
    """(id, reason) of each video that was left out"""
    unit: Literal["video", "clip"] = "video"
    """what a line of the lists describes: a whole video, or a part of a video (`clip`)"""
    warnings: list[str] = field(default_factory=list)


def prepare_folder(videos: Path, name: str, out: Path, options: FolderOptions | None = None) -> Prepared:
    """Prepare a data set from a folder with one sub-folder per class; ids are relative paths without suffix.

    If the sub-folders are named `train`, `val`, `test` or similar and contain the class folders, they define the split.

    Args:
        videos: The folder.
        name: Name of the data set.
        out: Settings folder; the record and the lists go to `<out>/<name>/`.
        options: Grouping, splits, counting.

    Raises:
        DataError: No class folders or no videos, a video without group, or too few sources for both sides of a split.
        SettingsError: A wrong name or regular expression.
    """
    chosen = options or FolderOptions()
    sources, _ = find_sources(videos)
    ids = [source.id for source in sources]
    loose = [video_id for video_id in ids if "/" not in video_id]
    if loose:
        raise DataError(
            f"{videos}: {loose[0]!r} is not in a class folder; expected {videos}/<class>/<video> "
            f"(misplaced videos: {len(loose)})"
        )
    check_names(ids, videos)
    parts, note = _parts_by_folder(ids, videos)
    if parts:
        chosen = replace(chosen, splits=1)
    label_of = {video_id: PurePosixPath(video_id).parts[1 if parts else 0] for video_id in ids}
    classes = sorted(set(label_of.values()))
    folder = out / name
    frames = chosen.frames or Path("data") / name
    mapping = _mapping(name, videos, frames, folder, classes, chosen)
    record = make_record(mapping, folder)
    table = _groups_by_id(chosen.groups, ids) if chosen.groups is not None else None
    counted = _count(mapping, folder, frames, sources, chosen)
    record, counts = make_record(mapping, folder), counted.counts
    group_of: Callable[[str], str] = table.__getitem__ if table is not None else record.group_of
    number = {name: label for label, name in enumerate(classes)}
    records = [VideoRecord(i, counts[i][0], number[label_of[i]], group_of(i)) for i in ids if i in counts]
    _enough(records, classes, videos)
    side: dict[Part, list[VideoRecord]] = {"train": [], "val": [], "test": []}
    if parts:
        for r in records:
            side[parts[PurePosixPath(r.id).parts[0]]].append(r)
        splits: Splits = [(side["train"], side["test"])]
        note = f"{parts_line(splits[0], side['val'])}, from the folders {', '.join(parts)}"
    else:
        splits = make_splits(records, chosen.splits, chosen.test_fraction, chosen.seed)
    _both_sides(splits, videos, "" if parts else _TOO_FEW)
    if table is not None:
        lines = (f"{key} {value}\n" for key, value in sorted(table.items()))
        write_text(folder / GROUPS_FILE, "".join(lines))
    made = write_dataset(record, mapping, folder, splits, counts, side["val"], counted.modalities)
    made.failures = counted.failures
    why = "" if parts else ": too few source videos"
    made.warnings += [*([note] if note else []), *_one_sided(splits, classes, why), *_ungrouped(record, ids)]
    return made


def _parts_by_folder(ids: Sequence[str], videos: Path) -> tuple[dict[str, Part], str]:
    """Return the part of the split for each top folder, and a note. If the folders are classes, there are no parts.

    Raises:
        DataError: A split folder contains a video outside its class folders.
    """
    depths: dict[str, int] = {}
    for video_id in ids:
        steps = PurePosixPath(video_id).parts
        depths[steps[0]] = max(depths.get(steps[0], 0), len(steps))
    words = {top: SPLIT_WORDS[top.lower()] for top in sorted(depths) if top.lower() in SPLIT_WORDS}
    if not words:
        return {}, ""
    found = set(words.values())
    if len(words) < len(depths) or "train" not in found or len(found) < 2 or min(depths.values()) < 3:
        return {}, (
            f"{', '.join(words)} used as classes, not as a split: a split needs only top folders of such names, one "
            "of them train, each with class folders"
        )
    loose = [video_id for video_id in ids if len(PurePosixPath(video_id).parts) < 3]
    if loose:
        raise DataError(
            f"{videos}: {loose[0]!r} is not in a class folder; expected <split>/<class>/<video> "
            f"(misplaced videos: {len(loose)})"
        )
    return {top: "test" if part == "val" and "test" not in found else part for top, part in words.items()}, ""


def parts_line(
    split: tuple[Sequence[VideoRecord], Sequence[VideoRecord]], validation: Sequence[object]
) -> str:
    """Return a message with the number of videos in each part of a given split."""
    own = f"{len(validation)} validation, " if validation else ""
    return f"the split is the given one: {len(split[0])} training, {own}{plural(len(split[1]), 'test video')}"


def _mapping(
    name: str, videos: Path, frames: Path, folder: Path, classes: list[str], options: FolderOptions
) -> dict[str, Any]:
    """Return the content of the record."""
    root = relative_path(frames, folder)
    mapping: dict[str, Any] = {
        "name": name,
        "num_splits": options.splits,
        "frames": {"rgb": root, "flow": root},
        "videos": relative_path(videos, folder),
    }
    if options.groups is not None:
        mapping["groups"] = GROUPS_FILE
    elif options.group_regex is not None:
        mapping["group"] = options.group_regex
    return {**mapping, "classes": classes}


def _count(
    mapping: dict[str, Any], folder: Path, frames: Path, sources: Sequence[Source], options: FolderOptions
) -> FolderCounts:
    """Count the frames in existing frame folders, and decode videos without a frame folder."""
    made = FolderCounts(modalities=list(MODALITIES))
    if frames.is_dir():
        root = FrameFolders(make_record(mapping, folder), "rgb")
        there = {source.id: place for source in sources if (place := root.folder(source.id)).is_dir()}
        found = look_and_count(mapping, folder, list(there), list(there.values()), options)
        made = found if found.modalities else made
    skipped = {*made.counts, *made.misnumbered}
    rest = [source for source in sources if source.id not in skipped]
    made.failures = [(name, why) for name, why in made.failures if name in made.misnumbered]
    if rest:
        more, failures = count_videos(rest, backend=options.backend, processes=options.processes)
        made.counts |= more
        made.failures += failures
    return made


def _ungrouped(record: Record, ids: Sequence[str]) -> list[str]:
    if record.groups is not None:
        return []
    if record.group is None:
        return [
            "without --groups or --group-regex every video is its own source; clips cut from one video may then "
            "be on both sides of a split"
        ]
    lost = [video_id for video_id in ids if not record.fits_group(video_id)]
    if not lost:
        return []
    return [f"--group-regex does not match {len(lost)} ids, such as {lost[0]!r}; each is its own source"]


def write_dataset(
    record: Record,
    mapping: Mapping[str, Any] | None,
    folder: Path,
    splits: Splits,
    counts: Counts,
    validation: Sequence[VideoRecord] = (),
    modalities: Sequence[Modality] = MODALITIES,
) -> Prepared:
    """Write the split lists of each modality, and the record if `mapping` is given.

    Args:
        record: The data set; its folder is `folder`.
        mapping: Content of `dataset.yaml`; None leaves the file as it is.
        folder: Output folder.
        splits: Training and test videos of each split.
        counts: Frames of each video.
        validation: The data set's own validation videos, if it has any, of its only split.
        modalities: Those with frames, now or later; lists of the others are removed.

    Raises:
        DataError: A name that a list cannot contain; nothing is written.
    """
    everything = {r.id: r for train, test in splits for r in (*train, *test, *validation)}
    check_names(everything, folder)
    made = Prepared(record, folder / RECORD_FILE, 0, 0)
    for number, (train, test) in enumerate(splits, 1):
        for index, modality in enumerate(MODALITIES):
            parts = {
                record.list_path("train", modality, number): train,
                record.list_path("test", modality, number): test,
                record.holdout_path(modality, number): validation,
            }
            for path, records in parts.items():
                if modality in modalities and (records or path != record.holdout_path(modality, number)):
                    write_list(path, [replace(r, num_frames=counts[r.id][index]) for r in records])
                    made.lists.append(path)
                elif mapping is not None or path == record.holdout_path(modality, number):
                    path.unlink(missing_ok=True)  # written by an earlier call
    made.warnings += [
        f"no {modality} frames found, so no {modality} lists are written; extract them and prepare again"
        for modality in MODALITIES
        if modality not in modalities
    ]
    made.warnings += single_class_warning(record)
    if mapping is not None:  # last: a record without lists is an incomplete data set
        text = yaml.safe_dump(dict(mapping), sort_keys=False, allow_unicode=True, width=100)
        write_text(folder / RECORD_FILE, f"{MARK}\n{text}")
    made.videos = len(everything)
    made.sources = len({r.group or r.id for r in everything.values()})
    return made


def relative_path(path: Path, folder: Path) -> str:
    """Return a path relative to a folder, so that both can be moved together; absolute if they share only the root."""
    target, start = path.resolve(), folder.resolve()
    if target.anchor == os.path.commonpath([target, start]):
        return target.as_posix()
    return PurePosixPath(os.path.relpath(target, start)).as_posix()


def _groups_by_id(path: Path, ids: Sequence[str]) -> dict[str, str]:
    """Return the group of every id; the ids in the file may omit the class folder."""
    table = read_groups(path)
    bare: dict[str, set[str]] = {}
    for key, group in table.items():
        bare.setdefault(PurePosixPath(key).name, set()).add(group)
    found = {}
    for video_id in ids:
        groups = {table[video_id]} if video_id in table else bare.get(PurePosixPath(video_id).name, set())
        if len(groups) != 1:
            what = "no line" if not groups else "several groups"
            raise DataError(
                f"{path}: {what} for video {video_id!r}{nearest(video_id, list(table)) if not groups else ''}"
            )
        found[video_id] = groups.pop()
    return found


def _enough(records: Sequence[VideoRecord], classes: Sequence[str], videos: Path) -> None:
    if not records:
        raise DataError(f"{videos}: no video can be read; see `two-stream check {videos}` for the reasons")
    if len({r.group or r.id for r in records}) < 2:
        raise DataError(f"{videos}: all videos come from one source; a split needs at least two sources")
    empty = sorted(set(range(len(classes))) - {r.label for r in records})
    if empty:
        raise DataError(
            f"{videos}: no video of class {classes[empty[0]]!r} can be read; repair its videos or remove the class"
        )


_TOO_FEW = ": too few source videos per class; a class needs two, so add videos, or correct --groups or --group-regex"


def _both_sides(splits: Splits, videos: Path, why: str) -> None:
    for number, (train, test) in enumerate(splits, 1):
        if not train or not test:
            side = "test" if train else "training"
            raise DataError(f"{videos}: split {number} would have no {side} video{why}")


def _one_sided(splits: Splits, classes: Sequence[str], why: str) -> list[str]:
    warnings = []
    for number, (train, test) in enumerate(splits, 1):
        for side, records in (("training", train), ("test", test)):
            lacking = sorted(set(range(len(classes))) - {r.label for r in records})
            if lacking:
                names = ", ".join(classes[label] for label in lacking)
                warnings.append(f"split {number} has no {side} video of {names}{why}")
    return warnings
