"""The official split files of UCF101 and HMDB51."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from two_stream.data.catalog import (
    RECORD_FILE,
    Record,
    Roots,
    class_index,
    load_record,
    packaged_record,
    read_lines,
)
from two_stream.data.prepare.counting import (
    Counts,
    FolderCounts,
    FrameNames,
    count_folders,
    count_videos,
    look_and_count,
    make_record,
)
from two_stream.data.prepare.folders import Prepared, Splits, relative_path, write_dataset
from two_stream.data.sources.files import FrameFolders, find_video, index_videos
from two_stream.data.splits import MODALITIES
from two_stream.errors import DataError, SettingsError, VideoError
from two_stream.types import VideoRecord
from two_stream.video.sources import Source

RawSplits = list[tuple[list[tuple[str, int]], list[tuple[str, int]]]]
"""training and test (id, label) of every split"""
_HMDB_FILE = re.compile(r"(.+)_test_split(\d+)\.txt")
_HMDB_TRAIN, _HMDB_TEST = "1", "2"
"""marks in the official files; 0 is a video the split does not use"""


def prepare_official(
    name: str,
    annotations: Path,
    settings: Path,
    *,
    videos: Path | None = None,
    frames: Path | None = None,
    names: FrameNames | None = None,
    backend: str = "pyav",
    processes: int | None = None,
) -> Prepared:
    """Write the split lists of `ucf101` or `hmdb51` beside its record, from the official files.

    Args:
        name: `ucf101` or `hmdb51`.
        annotations: Folder of the official split files.
        settings: Settings folder; where it has no `<name>/dataset.yaml` yet, the package's own is written there.
        videos: Root of the videos, to count frames by decoding.
        frames: Root of the frame folders, to count the files instead; goes before `videos`.
        names: Names of frame files, where looking does not tell.
        backend: Decoder.
        processes: Worker processes of decoding.

    Raises:
        DataError: A file or folder is missing, a line has another form, or a class is unknown.
    """
    record, mapping = _record(name, settings, videos, frames)
    raw = ucf101_splits(annotations, record) if name == "ucf101" else hmdb51_splits(annotations, record)
    ids = list(dict.fromkeys(video_id for split in raw for part in split for video_id, _ in part))
    if frames is not None:
        if not frames.is_dir():
            raise DataError(f"{frames}: no such folder of frames")
        at = _at(record, frames=Roots(rgb=frames.absolute(), flow=frames.absolute()))
        if mapping is None and names not in (None, FrameNames()):
            raise SettingsError(
                f"{record.folder / RECORD_FILE} is kept as it is: write the names of frames into its `patterns`"
            )
        if mapping is None:
            counted = count_folders(at, ids, settled=True)
        else:
            root = FrameFolders(at, "rgb")
            places = []
            for video_id in ids:
                with suppress(VideoError):  # several of this name: said where it is counted
                    places.append(root.folder(video_id))
            there = [place for place in places if place.is_dir()]
            counted = look_and_count(mapping, record.folder, ids, there, names or FrameNames())
            record = make_record(mapping, record.folder)
    elif videos is not None:
        if not videos.is_dir():
            raise DataError(f"{videos}: no such folder of videos")
        counts, failures = _count_listed(videos, ids, backend, processes)
        counted = FolderCounts(counts, failures, modalities=list(MODALITIES))
    else:
        raise DataError(
            f"{name}: give --videos or --frames; the lists need the number of frames of every video"
        )
    if not counted.counts:
        reason = (counted.strange or counted.failures)[0][1]
        raise DataError(f"{frames or videos}: none of the {len(ids)} listed videos is here ({reason})")
    counts, splits = counted.counts, _known(raw, counted.counts, record)
    made = write_dataset(record, mapping, record.folder, splits, counts, modalities=counted.modalities)
    made.failures = counted.failures
    return made


def _record(
    name: str, settings: Path, videos: Path | None, frames: Path | None
) -> tuple[Record, dict[str, Any] | None]:
    """Return the record of the settings folder, else that of the package and the content to write there."""
    folder = settings / name
    if (folder / RECORD_FILE).is_file():
        return load_record(name, settings), None
    mapping = packaged_record(name)
    assert mapping is not None
    if videos is not None:
        mapping["videos"] = relative_path(videos, folder)
    if frames is not None:
        mapping["frames"] = dict.fromkeys(("rgb", "flow"), relative_path(frames, folder))
    return make_record(mapping, folder), mapping


def ucf101_splits(folder: Path, record: Record) -> RawSplits:
    """Read `trainlist0N.txt` and `testlist0N.txt` (lines `Class/v_Class_g01_c01.avi`, with or without a label).

    Raises:
        DataError: A file is missing, a line has another form, or a class is unknown.
    """
    _check_classes(folder, record)
    splits: RawSplits = []
    for split in range(1, record.num_splits + 1):
        train, test = (
            _ucf101_list(folder / f"{part}list{split:02d}.txt", record) for part in ("train", "test")
        )
        splits.append((train, test))
    return splits


def _ucf101_list(path: Path, record: Record) -> list[tuple[str, int]]:
    videos = []
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        entry = PurePosixPath(line.split()[0])
        if len(entry.parts) != 2:
            raise DataError(f"{path}:{number}: {line.strip()!r}: expected `Class/video.avi`")
        videos.append((entry.stem, _label(record, entry.parts[0], path, number)))
    return videos


def _check_classes(folder: Path, record: Record) -> None:
    """Compare `classInd.txt` (lines `1 ApplyEyeMakeup`), where it is there, with the record."""
    path = folder / "classInd.txt"
    if not path.is_file():
        return
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        index, _, name = line.strip().partition(" ")
        label = _label(record, name.strip(), path, number)
        if not index.isdecimal() or int(index) != label + 1:
            raise DataError(
                f"{path}:{number}: class {name.strip()!r} has number {index}, the record {label + 1}"
            )


def hmdb51_splits(folder: Path, record: Record) -> RawSplits:
    """Read `<class>_test_splitN.txt` (lines `video.avi 0|1|2`: unused, training, test), classes in label order.

    Raises:
        DataError: A class or split has no file, a line has another form, or a class is unknown.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of split files")
    files: dict[int, dict[int, Path]] = defaultdict(dict)
    for path in sorted(folder.glob("*_test_split*.txt")):
        match = _HMDB_FILE.fullmatch(path.name)
        if match:
            files[int(match[2])][class_index(record, match[1])] = path
    splits: RawSplits = []
    for split in range(1, record.num_splits + 1):
        lacking = sorted(set(range(record.num_classes)) - set(files[split]))
        if lacking:
            expected = f"{record.classes[lacking[0]]}_test_split{split}.txt"
            more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
            raise DataError(
                f"{folder / expected}: no such file{more}; give the folder testTrainMulti_7030_splits"
            )
        train: list[tuple[str, int]] = []
        test: list[tuple[str, int]] = []
        for label, path in sorted(files[split].items()):
            for number, line in enumerate(read_lines(path), 1):
                if not line.strip():
                    continue
                name, _, mark = line.strip().rpartition(" ")
                if not name or mark not in ("0", _HMDB_TRAIN, _HMDB_TEST):
                    raise DataError(f"{path}:{number}: {line.strip()!r}: expected `video.avi 0`, `1` or `2`")
                entry = (PurePosixPath(name.strip()).stem, label)
                if mark == _HMDB_TRAIN:
                    train.append(entry)
                elif mark == _HMDB_TEST:
                    test.append(entry)
        splits.append((train, test))
    return splits


def _label(record: Record, name: str, path: Path, number: int) -> int:
    try:
        return class_index(record, name)
    except DataError as error:
        raise DataError(f"{path}:{number}: {error}") from None


def _count_listed(
    videos: Path, ids: Sequence[str], backend: str, processes: int | None
) -> tuple[Counts, list[tuple[str, str]]]:
    index = index_videos(videos)
    sources, absent = [], []
    for video_id in ids:
        try:
            sources.append(Source(video_id, find_video(index, videos, video_id)))
        except VideoError as error:
            absent.append((video_id, error.reason))
    counts, failures = count_videos(sources, backend=backend, processes=processes)
    return counts, absent + failures


def _known(raw: RawSplits, counts: Counts, record: Record) -> Splits:
    return [
        tuple(  # type: ignore[misc]
            [VideoRecord(i, counts[i][0], label, record.group_of(i)) for i, label in part if i in counts]
            for part in split
        )
        for split in raw
    ]


def _at(record: Record, **changes: object) -> Record:
    """Return a changed copy of a record that keeps its folder."""
    changed = record.model_copy(update=changes)
    changed._folder = record.folder
    return changed
