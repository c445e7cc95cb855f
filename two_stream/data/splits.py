"""Reads and writes split lists in the published form, and loads the parts of a split.

A line is `folder num_frames label`, or in a multi-label data set `folder num_frames label,label,…`. With
`train.selection: holdout`, the validation part is the data set's own validation list. If the data set has no validation
list, this part is split off from the official training list. All videos of a source then stay together. `load_part`
explains the other selections.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from two_stream.config.schema import Experiment
from two_stream.data.catalog import MODALITIES, Record, read_lines
from two_stream.errors import DataError
from two_stream.runtime.files import write_text
from two_stream.types import Modality, Part, VideoRecord

_LEAST_GAIN = 1e-12
"""smallest gain for which a source is chosen: larger than the rounding errors of a gain of 0"""
_DIGITS = 7
"""largest number of digits of a number in a list: five days at 25 frames per second"""


def read_list(
    path: Path,
    *,
    num_classes: int | None = None,
    group_of: Callable[[str], str] | None = None,
    least_frames: int = 1,
    multi_label: bool = False,
) -> list[VideoRecord]:
    """Read a split list; folder names may contain spaces.

    Args:
        path: The list.
        num_classes: Labels must be below it.
        group_of: Gives a video's source from its id.
        least_frames: Smallest number of frames a line may give; 0 if they are counted later.
        multi_label: A line may give several labels.

    Raises:
        DataError: Missing, empty, or an invalid or duplicate line, named as `file:line`.
    """
    records = []
    seen: dict[str, int] = {}
    for number, record in numbered_records(path, least_frames, multi_label=multi_label):
        where = f"{path}:{number}"
        if record.id in seen:
            raise DataError(
                f"{where}: {record.id!r} is already on line {seen[record.id]}; remove one of the two lines"
            )
        if num_classes is not None and max(record.all_labels) >= num_classes:
            raise DataError(f"{where}: label {max(record.all_labels)}: expected 0 to {num_classes - 1}")
        seen[record.id] = number
        if group_of is not None:
            group = group_of(record.id)
            record = VideoRecord(record.id, record.num_frames, record.label, group, record.labels)
        records.append(record)
    if not records:
        raise DataError(f"{path}: the list is empty; expected lines `folder num_frames label`")
    return records


def numbered_records(
    path: Path, least_frames: int = 1, *, multi_label: bool = False
) -> list[tuple[int, VideoRecord]]:
    """Return the record and number (1-based) of every line of a list, including duplicate ids.

    Raises:
        DataError: Missing file or a line in a different format.
    """
    found = []
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        parts = line.strip().rsplit(maxsplit=2)
        labels = parts[-1].split(",")
        if len(parts) != 3 or not parts[1].isdecimal() or not all(label.isdecimal() for label in labels):
            raise DataError(f"{path}:{number}: {line.strip()!r}: expected `folder num_frames label`")
        if len(labels) > 1 and not multi_label:
            raise DataError(
                f"{path}:{number}: found several labels {parts[2]!r}; set `multi_label: true` in "
                "dataset.yaml, or keep only one label"
            )
        if any(len(one.lstrip("0")) > _DIGITS for one in (parts[1], *labels)):
            raise DataError(
                f"{path}:{number}: {parts[0]!r}: expected at most {_DIGITS} digits in the number of "
                "frames and in the label"
            )
        if int(parts[1]) < least_frames:
            raise DataError(
                f"{path}:{number}: {parts[0]!r} has no frames; extract the video again, or remove the line"
            )
        name = parts[0].replace("\\", "/")  # written on Windows
        classes = tuple(sorted({int(label) for label in labels}))
        several = classes if multi_label else ()
        found.append((number, VideoRecord(name, int(parts[1]), classes[0], labels=several)))
    return found


def write_list(path: Path, records: Sequence[VideoRecord]) -> None:
    """Write a split list atomically, with one line `folder num_frames label` per video; labels are joined by commas."""
    lines = (f"{r.id} {r.num_frames} {','.join(map(str, r.all_labels))}\n" for r in records)
    write_text(path, "".join(lines))


def single_class_warning(record: Record) -> list[str]:
    """Return a warning if a data set has only one class."""
    if record.num_classes > 1 or record.multi_label:
        return []
    return [
        f"{record.classes[0]!r} is the only class, so every prediction is correct and nothing can be learned"
    ]


def check_names(ids: Iterable[str], where: object) -> None:
    """Check that these ids can be written to a split list.

    Raises:
        DataError: A list cannot hold an id; names the first one.
    """
    for name in ids:
        ends = any(step != step.strip() for step in name.split("/"))
        other = name.encode(errors="replace").decode() != name  # no UTF-8
        if ends or other or len(name.splitlines()) != 1 or "\\" in name:
            raise DataError(
                f"{where}: the name {name!r} cannot be written to a split list; expected UTF-8 "
                "without line breaks, backslashes, "
                "or spaces at the start or end; rename the video"
            )


def source_of(record: VideoRecord) -> str:
    """Return the source of a video; a video without a group is its own source."""
    return record.group or record.id


def choose_groups(
    records: Sequence[VideoRecord], fraction: float, seed: int, used: Collection[str] = ()
) -> set[str]:
    """Choose source videos that together contain about the given fraction of every class.

    Sources are tried in an order that depends only on their names, the seed and `used`. A source is chosen if it brings
    the class counts closer to the target counts. At least one source of every class is not chosen. If a class has two
    or more sources, at least one is chosen if possible.

    Args:
        records: Videos with label and group; their order does not matter, nor do frame counts.
        fraction: Target fraction of each class, 0 to 1.
        seed: A different seed gives a different choice.
        used: Sources to take only when all others are taken.
    """
    from two_stream.runtime.device import derive  # imports torch

    counts, total = _class_counts(records)
    order = sorted(counts, key=lambda group: derive("split", seed, group) + ((group in used) << 63))
    chosen: set[str] = set()
    taken = dict.fromkeys(sorted(total), 0)
    column = {label: place for place, label in enumerate(taken)}
    taken_K, total_K = np.zeros(len(taken)), np.array([total[label] for label in taken], np.float64)
    spread = len(total) * fraction**2  # sum of squared distances from the target fractions

    def gain(group: str) -> float:
        found = 0.0
        for label, count in counts[group]:
            before = (taken[label] - fraction * total[label]) / total[label]
            found += before**2 - (before + count / total[label]) ** 2
        return found

    def dense_gain(group: str) -> float:
        # the formula of earlier versions, whose rounding errors decide between equal gains; choices must not change
        before_K = (taken_K - fraction * total_K) / total_K
        after_K = before_K.copy()
        for label, count in counts[group]:
            after_K[column[label]] += count / total[label]
        return float(np.sum(before_K**2) - np.sum(after_K**2))

    def leaves_some(group: str) -> bool:
        return all(total[label] - taken[label] > count for label, count in counts[group])

    def choose(group: str) -> None:
        chosen.add(group)
        for label, count in counts[group]:
            taken[label] += count
            taken_K[column[label]] += count

    settled: set[tuple[tuple[int, int], ...]] = set()  # counts of sources that will not be chosen
    for group in order:
        if counts[group] in settled:
            continue
        found = gain(group) if leaves_some(group) else -1.0
        if abs(found - _LEAST_GAIN) <= 1e-14 * (1 + spread):  # within the rounding errors of both formulas
            found = dense_gain(group)
        if found > _LEAST_GAIN:
            choose(group)
            spread -= found
        elif found < -1e-9:
            settled.add(counts[group])  # gains decrease as videos are taken
    holders: dict[int, list[str]] = {label: [] for label, count in taken.items() if not count}
    for group in order if holders else ():
        for label, _ in counts[group]:
            if label in holders:
                holders[label].append(group)
    for label, groups in holders.items():  # a class with too few sources to reach its fraction still gets one
        able = [group for group in groups if group not in chosen and leaves_some(group)]
        if able and not taken[label]:
            first_of: dict[tuple[tuple[int, int], ...], str] = {}
            for group in able:
                first_of.setdefault(counts[group], group)
            choose(able[0] if len(first_of) == 1 else max(first_of.values(), key=dense_gain))
    return chosen


def _class_counts(
    records: Sequence[VideoRecord],
) -> tuple[dict[str, tuple[tuple[int, int], ...]], dict[int, int]]:
    """Return the (label, number of videos) pairs of each source, and the number of videos of each label."""
    counts: dict[str, tuple[tuple[int, int], ...]] = {}
    shared: dict[tuple[int, ...], tuple[tuple[int, int], ...]] = {}  # most sources have one video
    several: dict[str, Counter[int]] = {}
    total: dict[int, int] = {}
    for record in records:
        source, labels = source_of(record), record.all_labels
        for label in labels:
            total[label] = total.get(label, 0) + 1
        if source not in counts:
            if labels not in shared:
                shared[labels] = tuple((label, 1) for label in labels)
            counts[source] = shared[labels]
        else:
            if source not in several:
                several[source] = Counter(dict(counts[source]))
            several[source].update(labels)
    return counts | {source: tuple(sorted(held.items())) for source, held in several.items()}, total


def carve_holdout(
    records: Sequence[VideoRecord], fraction: float, seed: int
) -> tuple[list[VideoRecord], list[VideoRecord]]:
    """Split off a validation part from a training list, stratified by class and grouped by source video.

    Returns:
        The training and the validation part, each in the order of `records`.

    Raises:
        DataError: Nothing could be set aside because all videos of every class share one source.
    """
    chosen = choose_groups(records, fraction, seed)
    if not chosen:
        raise DataError(
            "no validation part can be split off, because every class has only one source video; "
            "add videos, correct `group` in dataset.yaml, or use `train.selection: paper`"
        )
    train = [record for record in records if source_of(record) not in chosen]
    return train, [record for record in records if source_of(record) in chosen]


def make_splits(
    records: Sequence[VideoRecord], num_splits: int, test_fraction: float, seed: int
) -> list[tuple[list[VideoRecord], list[VideoRecord]]]:
    """Return `num_splits` pairs of training and test videos, stratified by class and grouped by source.

    The test parts have no source in common if there are enough sources.
    """
    from two_stream.runtime.device import derive

    used: set[str] = set()
    splits = []
    for split in range(1, num_splits + 1):
        chosen = choose_groups(records, test_fraction, derive(seed, split), used)
        used |= chosen
        train = [record for record in records if source_of(record) not in chosen]
        splits.append((train, [record for record in records if source_of(record) in chosen]))
    return splits


def load_part(
    record: Record,
    modality: Modality,
    split: int,
    part: Part,
    *,
    selection: str = "holdout",
    holdout: float = 0.2,
    seed: int = 0,
) -> list[VideoRecord]:
    """Read the videos of one part of a split, with the name of each video's source.

    `test` is always the official test list. With selection `holdout`, `train` is the training list and `val` is the
    data set's own validation list. If the data set has no validation list, the training list is divided into `train`
    and `val`. With selection `folds`, `train` and `val` are both the full training list. With selection `paper`,
    `train` is the full training list and `val` is the official test list, as in the published code.

    Args:
        record: The data set.
        modality: Which lists; flow lists count their own frames.
        split: Official split, from 1.
        part: `train`, `val` or `test`.
        selection: `holdout`, `folds` or `paper`.
        holdout: Target fraction of the validation part, chosen with `seed`.
        seed: Seed of that choice.

    Raises:
        DataError: A list is missing or wrong.
    """
    if selection == "paper" and part == "val":
        part = "test"
    own = selection == "holdout" and _has_own_validation(record, split)
    if own and part == "val":
        return _read(record, record.holdout_path(modality, split))
    records = _read(record, record.list_path(part, modality, split))
    if part == "test" or selection != "holdout" or own:
        return records
    return _divide(record, modality, split, records, holdout, seed)[part == "val"]


def _has_own_validation(record: Record, split: int) -> bool:
    return any(record.holdout_path(m, split).is_file() for m in MODALITIES)


def _divide(
    record: Record, modality: Modality, split: int, records: list[VideoRecord], holdout: float, seed: int
) -> tuple[list[VideoRecord], list[VideoRecord]]:
    """Divide a training list into the training and the validation part; see `load_part`."""
    # decided on the union of both lists: a video missing from one list must not change the side of another video
    everything = {r.id: r for r in records}
    for other in MODALITIES:
        path = record.list_path("train", other, split)
        if other != modality and path.is_file():
            everything |= {r.id: r for r in _read(record, path) if r.id not in everything}
    chosen = {source_of(r) for r in carve_holdout(list(everything.values()), holdout, seed)[1]}
    train, val = ([r for r in records if (source_of(r) in chosen) == held] for held in (False, True))
    return train, val


def experiment_part(
    experiment: Experiment, record: Record, part: Part, modality: Modality | None = None
) -> list[VideoRecord]:
    """Read the videos of a part, with the split, selection, holdout and seed of an experiment; see `load_part`.

    If `modality` is None, the lists of the model's modality are read.
    """
    data = experiment.data
    return load_part(
        record,
        modality or experiment.model.reads,
        data.split,
        part,
        selection=experiment.train.selection,
        holdout=data.holdout,
        seed=experiment.seed,
    )


def training_lists(
    experiment: Experiment, record: Record
) -> tuple[list[VideoRecord], list[VideoRecord], dict[str, Any]]:
    """Return the training and the validation part of an experiment and the `list_facts`; reads each list once."""
    data, selection, modality = experiment.data, experiment.train.selection, experiment.model.reads
    whole = load_part(record, modality, data.split, "train", selection="paper")
    facts = list_facts(whole, own_validation(record, modality, data.split), record.classes)
    if selection == "holdout" and not _has_own_validation(record, data.split):
        return *_divide(record, modality, data.split, whole, data.holdout, experiment.seed), facts
    return whole, whole if selection == "folds" else experiment_part(experiment, record, "val"), facts


def own_validation(record: Record, modality: Modality, split: int) -> list[VideoRecord]:
    """Return the videos of the data set's own validation list, or an empty list if it does not exist."""
    path = record.holdout_path(modality, split)
    return _read(record, path) if path.is_file() else []


def all_training_videos(record: Record, modality: Modality, split: int) -> list[VideoRecord]:
    """Return the videos of the training list and of the data set's own validation list."""
    train = load_part(record, modality, split, "train", selection="paper")
    return [*train, *own_validation(record, modality, split)]


def _read(record: Record, path: Path) -> list[VideoRecord]:
    if not path.is_file():
        raise DataError(f"{path}: no such split list; write it with `two-stream prepare`")
    return read_list(
        path, num_classes=record.num_classes, group_of=record.group_of, multi_label=record.multi_label
    )


def fingerprint(
    train: Sequence[VideoRecord], val: Sequence[VideoRecord], classes: Sequence[str], *, frames: bool = True
) -> str:
    """Return the SHA-256 of the training list, the validation list and the class names; `frames`: and frame counts."""
    digest = hashlib.sha256("\x1f".join(classes).encode())
    for name, records in (("train", train), ("val", val)):
        digest.update(f"\x1e{name}".encode())
        for record in records:
            labels = ",".join(map(str, record.all_labels))
            digest.update(f"\x1f{record.id}\x1d{record.num_frames if frames else 0}\x1d{labels}".encode())
    return digest.hexdigest()


def list_facts(
    train: Sequence[VideoRecord], own: Sequence[VideoRecord], classes: Sequence[str]
) -> dict[str, Any]:
    """Return the length and the fingerprint of a training list, to check whether runs used the same list.

    The fingerprint covers the ids and labels of the training list and of the data set's own validation list. The
    fingerprint does not depend on the seed, the holdout, the modality or the order of the videos.
    """
    first, second = (sorted(one, key=lambda r: r.id) for one in (train, own))
    return {"training_videos": len(train), "training_list": fingerprint(first, second, classes, frames=False)}
