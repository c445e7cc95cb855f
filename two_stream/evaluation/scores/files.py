"""Score files: one `.npz` file for each stream and protocol. Files are read without pickles and joined by video id."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from two_stream.errors import ScoreError
from two_stream.runtime.files import atomic_path, read_arrays
from two_stream.runtime.text import json_text, parse_json
from two_stream.types import ScoreTable

FORMAT = 1
"""Version of the file layout; files of newer versions are rejected."""
_NAMED = 3
"""Largest number of videos that are listed in an error message."""


def write_scores(path: Path, table: ScoreTable) -> None:
    """Write a score file atomically.

    Raises:
        ScoreError: The table is inconsistent; see `check_table`.
    """
    check_table(table, str(path))
    meta = {key: value for key, value in table.meta.items() if key != "file"}
    arrays: dict[str, NDArray[Any]] = {
        "format": np.asarray(FORMAT),
        "ids": np.asarray(table.ids, dtype=np.str_),
        "labels": np.asarray(table.labels, dtype=np.int64),
        "class_names": np.asarray(table.class_names, dtype=np.str_),
        "logits": np.asarray(table.logits, dtype=np.float64),
        "meta": np.asarray(json_text(meta, sort_keys=True)),
    }
    if table.view_logits is not None and table.view_counts is not None:
        arrays["view_logits"] = np.asarray(table.view_logits, dtype=np.float32)
        arrays["view_counts"] = np.asarray(table.view_counts, dtype=np.int64)
    if table.targets is not None:
        arrays["targets"] = np.asarray(table.targets, dtype=np.bool_)
    if table.groups is not None:
        arrays["groups"] = np.asarray(table.groups, dtype=np.str_)
    with atomic_path(path) as part, part.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def read_scores(path: Path | str) -> ScoreTable:
    """Read a score file. `meta["file"]` of the result is the path of the file.

    Raises:
        ScoreError: The file is missing, damaged, inconsistent or not a score file.
    """
    path = Path(path)
    try:
        arrays = read_arrays(path)
    except FileNotFoundError:
        raise ScoreError(f"{path}: no such score file; write one with `two-stream evaluate RUN`") from None
    except (OSError, ValueError) as error:
        raise ScoreError(
            f"{path}: not a score file, or a damaged one ({error}); write it again with "
            "`two-stream evaluate RUN`"
        ) from None
    try:
        if int(arrays["format"]) > FORMAT:
            raise ScoreError(
                f"{path}: format {int(arrays['format'])} is newer than {FORMAT}, the newest format that this "
                "version reads; update two-stream"
            )
        meta = parse_json(str(arrays["meta"]))
        table = ScoreTable(
            ids=[str(name) for name in arrays["ids"]],
            labels=arrays["labels"].astype(np.int64),
            class_names=[str(name) for name in arrays["class_names"]],
            logits=arrays["logits"].astype(np.float64),
            meta={**meta, "file": str(path)},
            view_logits=arrays.get("view_logits"),
            view_counts=arrays.get("view_counts"),
            groups=[str(name) for name in arrays["groups"]] if "groups" in arrays else None,
            targets=arrays["targets"].astype(np.bool_) if "targets" in arrays else None,
        )
    except KeyError as error:
        raise ScoreError(
            f"{path}: not a score file: the array {error} is missing; use a file written by "
            "`two-stream evaluate`"
        ) from None
    except (TypeError, ValueError) as error:
        raise ScoreError(
            f"{path}: damaged score file ({str(error).splitlines()[0]}); write it again with "
            "`two-stream evaluate RUN`"
        ) from None
    check_table(table, str(path))
    return table


def newest_scores(run: Path, part: str = "test") -> Path:
    """Return the newest score file of a run for a part.

    Raises:
        ScoreError: The run has no scores of this part.
    """
    folder = run / "scores"
    found = sorted(folder.glob(f"{part}_*.npz"), key=lambda path: (path.stat().st_mtime_ns, path.name))
    if not found:
        flag = "" if part == "test" else f" --part {part}"
        command = f"two-stream evaluate {shlex.quote(str(run))}{flag}"
        raise ScoreError(f"{folder}: no scores of the {part} part; write them with `{command}`")
    return found[-1]


def find_scores(path: Path | str, part: str = "test") -> Path:
    """Return the path of a score file, or of the newest score file of a run folder.

    Raises:
        ScoreError: The file or folder does not exist, or the run has no scores of this part.
    """
    path = Path(path)
    if path.is_dir():
        return newest_scores(path, part)
    if not path.exists():
        raise ScoreError(f"{path}: no such score file or run folder; check the path")
    return path


def check_table(table: ScoreTable, where: str) -> None:
    """Check that a table is consistent.

    Raises:
        ScoreError: Shapes are wrong, ids are duplicated, labels are out of range or logits are not finite. The message
            starts with `where`.
    """
    count, classes = len(table.ids), len(table.class_names)
    if table.logits.shape != (count, classes):
        raise ScoreError(f"{where}: logits have shape {table.logits.shape}, expected {(count, classes)}")
    if table.labels.shape != (count,):
        raise ScoreError(
            f"{where}: {table.labels.size} labels for {count} videos; expected one label for each video"
        )
    _refuse(where, "duplicate video id:", [name for name, n in Counter(table.ids).items() if n > 1])
    wrong = np.asarray((table.labels < 0) | (table.labels >= classes), dtype=np.bool_)
    _refuse(where, f"label outside 0..{classes - 1}:", _pick(table.ids, wrong))
    infinite = np.asarray(~np.isfinite(table.logits).all(axis=1), dtype=np.bool_)
    _refuse(where, "logits are not finite:", _pick(table.ids, infinite))
    if table.groups is not None and len(table.groups) != count:
        raise ScoreError(
            f"{where}: {len(table.groups)} groups for {count} videos; expected one group for each video"
        )
    if table.targets is not None:
        if table.targets.shape != (count, classes):
            raise ScoreError(
                f"{where}: targets have shape {table.targets.shape}, expected ({count}, {classes})"
            )
        own = np.take_along_axis(table.targets, table.labels[:, None], axis=1)[:, 0]
        _refuse(where, "the label is not among the targets:", _pick(table.ids, ~own))
    if (table.view_logits is None) != (table.view_counts is None):
        raise ScoreError(
            f"{where}: only one of `view_logits` and `view_counts` is set; expected both or neither"
        )
    if table.view_logits is not None and table.view_counts is not None:
        expected = (int(table.view_counts.sum()), classes)
        if table.view_counts.shape != (count,) or table.view_logits.shape != expected:
            raise ScoreError(
                f"{where}: view logits have shape {table.view_logits.shape}, expected {expected}"
            )


def name_of(table: ScoreTable) -> str:
    """Return the name of a table in messages: its file, or else its modality."""
    return str(table.meta.get("file") or table.meta.get("modality") or "scores")


def join(tables: Sequence[ScoreTable]) -> list[ScoreTable]:
    """Reorder the rows of tables as in the first table, so that `ids`, `labels` and `class_names` are equal.

    Raises:
        ScoreError: Videos, class names or labels differ, or an id is duplicated.
    """
    if not tables:
        raise ScoreError("no score tables given; expected at least one")
    for table in tables:
        check_table(table, name_of(table))
    first = tables[0]
    return [first, *(_align(first, other) for other in tables[1:])]


def keep_common_videos(tables: Sequence[ScoreTable]) -> list[ScoreTable]:
    """Return the tables reduced to the videos that all tables contain, in the order of the first table.

    Raises:
        ScoreError: The tables have no video in common, or their labels or class names differ.
    """
    shared = set(tables[0].ids).intersection(*(table.ids for table in tables[1:]))
    if not shared:
        raise ScoreError(
            f"{name_of(tables[0])} and {name_of(tables[-1])}: the files have no video in common; "
            "expected scores of the same videos"
        )
    rows = [[row for row, name in enumerate(table.ids) if name in shared] for table in tables]
    return join([reorder(table, np.array(own, np.int64)) for table, own in zip(tables, rows)])


def _align(first: ScoreTable, other: ScoreTable) -> ScoreTable:
    ours, theirs = name_of(first), name_of(other)
    if other.class_names != first.class_names:
        raise ScoreError(f"{theirs}: class names differ from {ours}: {_class_difference(first, other)}")
    known, wanted = set(other.ids), set(first.ids)
    _refuse(theirs, f"videos of {ours} are missing:", [name for name in first.ids if name not in known])
    _refuse(ours, f"videos of {theirs} are missing:", [name for name in other.ids if name not in wanted])
    place = {name: row for row, name in enumerate(other.ids)}
    order = np.asarray([place[name] for name in first.ids], dtype=np.int64)
    aligned = reorder(other, order)
    if (aligned.targets is None) != (first.targets is None):
        raise ScoreError(
            f"{theirs}: only one of this file and {ours} is multi-label; expected both or neither"
        )
    if aligned.targets is not None and first.targets is not None:
        wrong = np.asarray((aligned.targets != first.targets).any(1))
        _refuse(theirs, f"labels differ from {ours}:", _pick(first.ids, wrong))
    differ = np.flatnonzero(aligned.labels != first.labels)
    if differ.size:
        row = int(differ[0])
        mine, yours = first.class_names[first.labels[row]], other.class_names[aligned.labels[row]]
        raise ScoreError(
            f"{theirs}: label of {first.ids[row]!r} is {yours!r}, but {mine!r} in {ours}"
            f"{f' (and {differ.size - 1} more)' if differ.size > 1 else ''}; expected equal labels"
        )
    return aligned


def reorder(table: ScoreTable, order: NDArray[np.int64]) -> ScoreTable:
    """Return the rows of a table with the indices `order`, including their views and groups."""
    views, counts = table.view_logits, table.view_counts
    if views is not None and counts is not None:
        views, counts = view_rows(views, counts, order), counts[order]
    return replace(
        table,
        ids=[table.ids[row] for row in order],
        labels=table.labels[order],
        logits=table.logits[order],
        view_logits=views,
        view_counts=counts,
        groups=None if table.groups is None else [table.groups[row] for row in order],
        targets=None if table.targets is None else table.targets[order],
    )


def view_rows(
    views: NDArray[np.float32], counts: NDArray[np.int64], order: Iterable[int]
) -> NDArray[np.float32]:
    """Return the views of the videos with the indices `order`.

    `views` are the logits of all views, `(sum of counts, K)`; `counts` is the number of views of each video.
    """
    ends = np.cumsum(counts)
    return np.concatenate([views[:0], *(views[ends[row] - counts[row] : ends[row]] for row in order)])


def _class_difference(first: ScoreTable, other: ScoreTable) -> str:
    if len(first.class_names) != len(other.class_names):
        return f"{len(other.class_names)} against {len(first.class_names)} classes"
    place = next(i for i, (a, b) in enumerate(zip(first.class_names, other.class_names)) if a != b)
    return f"class {place} is {other.class_names[place]!r} against {first.class_names[place]!r}"


def _pick(ids: Sequence[str], mask: NDArray[np.bool_]) -> list[str]:
    return [ids[row] for row in np.flatnonzero(mask).tolist()]


def _refuse(where: str, what: str, names: Iterable[str]) -> None:
    listed = list(names)
    if listed:
        more = f" (and {len(listed) - _NAMED} more)" if len(listed) > _NAMED else ""
        raise ScoreError(f"{where}: {what} {', '.join(map(repr, listed[:_NAMED]))}{more}")
