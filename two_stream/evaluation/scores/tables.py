"""Checks and joins score tables: tables are joined by video id."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from two_stream.errors import ScoreError
from two_stream.runtime.console import note
from two_stream.runtime.text import plural
from two_stream.types import ScoreTable
from two_stream.video.decoding.base import VIDEO_SUFFIXES

if TYPE_CHECKING:
    pass


_NAMED = 3
"""Largest number of videos that are listed in an error message."""


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


def match_ids(wanted: Sequence[str], known: Sequence[str]) -> dict[str, str]:
    """Return `{wanted id: known id}` for the wanted ids that are known.

    Ids are compared as they are, then without suffixes of video files, then with only the innermost folder, then
    without folders. The first of these that finds the most ids is used, unless it would give the same id to two videos.
    """
    best: dict[str, str] = {}
    forms: list[Callable[[str], str]] = [
        str,
        _without_suffix,
        partial(_tail, parts=2),
        partial(_tail, parts=1),
    ]
    for shorten in forms:
        own = {shorten(name): name for name in known}
        keys = [shorten(name) for name in wanted]
        if len(own) < len(known) or len(set(keys)) < len(keys):
            continue
        found = {name: own[key] for name, key in zip(wanted, keys) if key in own}
        best = found if len(found) > len(best) else best
        if len(best) == len(wanted):
            break
    return best


def _tail(name: str, parts: int) -> str:
    return "/".join(PurePosixPath(_without_suffix(name)).parts[-parts:])


def _without_suffix(name: str) -> str:
    name = name.replace("\\", "/")
    stem, dot, suffix = name.rpartition(".")
    return stem if f"{dot}{suffix.lower()}" in VIDEO_SUFFIXES else name


def join(tables: Sequence[ScoreTable]) -> list[ScoreTable]:
    """Reorder the rows of tables as in the first table, so that `ids`, `labels` and `class_names` are equal.

    Ids that differ only in suffix or folder are matched, see `match_ids`. Classes may be in different orders.

    Raises:
        ScoreError: Videos, class names or labels differ, or an id is duplicated.
    """
    if not tables:
        raise ScoreError("no score tables given; expected at least one")
    for table in tables:
        check_table(table, name_of(table))
    first = tables[0]
    joined = [first, *(_align(first, other) for other in tables[1:])]
    return _with_same_groups(joined)


def keep_common_videos(tables: Sequence[ScoreTable]) -> list[ScoreTable]:
    """Return the tables reduced to the videos that all tables contain, in the order of the first table.

    Raises:
        ScoreError: The tables have no video in common, or their labels or class names differ.
    """
    total = max(len(table.ids) for table in tables)
    tables = [tables[0], *(_with_ids(tables[0], table) for table in tables[1:])]
    shared = set(tables[0].ids).intersection(*(table.ids for table in tables[1:]))
    if not shared:
        raise ScoreError(
            f"{name_of(tables[0])} and {name_of(tables[-1])}: the files have no video in common; "
            "expected scores of the same videos"
        )
    rows = [[row for row, name in enumerate(table.ids) if name in shared] for table in tables]
    kept = join([reorder(table, np.array(own, np.int64)) for table, own in zip(tables, rows)])
    if len(shared) == total:
        return kept
    remark = {"common": f"only the {plural(len(shared), 'video')} of {total} that all files contain"}
    return [replace(table, meta=table.meta | remark) for table in kept]


def _with_ids(first: ScoreTable, other: ScoreTable) -> ScoreTable:
    """Return a table with the ids of another table where they differ only in suffix or folder."""
    if other.ids == first.ids or set(other.ids) == set(first.ids):
        return other
    names = {theirs: ours for ours, theirs in match_ids(first.ids, other.ids).items()}
    changed = next((name for name, ours in names.items() if name != ours), None)
    if changed is None:
        return other
    note(f"{name_of(other)}: ids are matched without suffixes and folders: {changed!r} is {names[changed]!r}")
    return replace(other, ids=[names.get(name, name) for name in other.ids])


def _with_same_groups(joined: Sequence[ScoreTable]) -> list[ScoreTable]:
    """Return the tables with the sources of the first table that has sources, so that all intervals use the same."""
    leading = next((table for table in joined if any(table.groups or ())), None)
    if leading is None:
        return list(joined)
    for table in joined:
        if any(table.groups or ()) and table.groups != leading.groups:
            note(
                f"{name_of(table)}: the sources differ from those in {name_of(leading)}, which are used for all files"
            )
    return [replace(table, groups=leading.groups) for table in joined]


def with_classes(first: ScoreTable, other: ScoreTable) -> ScoreTable:
    """Return a table with its classes in the order of another table, if both have the same classes."""
    if other.class_names == first.class_names or sorted(other.class_names) != sorted(first.class_names):
        return other
    place = {name: number for number, name in enumerate(first.class_names)}
    order = np.asarray([other.class_names.index(name) for name in first.class_names])
    return replace(
        other,
        class_names=first.class_names,
        labels=np.asarray([place[name] for name in other.class_names])[other.labels],
        logits=other.logits[:, order],
        view_logits=None if other.view_logits is None else other.view_logits[:, order],
        targets=None if other.targets is None else other.targets[:, order],
    )


def _align(first: ScoreTable, other: ScoreTable) -> ScoreTable:
    ours, theirs = name_of(first), name_of(other)
    other = with_classes(first, _with_ids(first, other))
    if other.class_names != first.class_names:
        raise ScoreError(f"{theirs}: class names differ from {ours}: {_class_difference(first, other)}")
    known, wanted = set(other.ids), set(first.ids)
    for where, names, of, total, ids in (
        (theirs, [name for name in first.ids if name not in known], ours, len(first.ids), other.ids),
        (ours, [name for name in other.ids if name not in wanted], theirs, len(other.ids), first.ids),
    ):
        if names:
            hint = "--common uses only the videos that all files contain"
            if len(names) == total:
                hint = f"its ids are such as {ids[0]!r}; expected the same ids in both files"
            raise ScoreError(
                f"{where}: {len(names)} of the {total} videos of {of} are missing: {some_names(names)}; {hint}"
            )
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
        raise ScoreError(f"{where}: {what} {some_names(listed)}")


def some_names(names: Sequence[str]) -> str:
    """Return the first few names as text, and how many there are more."""
    more = f" (and {len(names) - _NAMED} more)" if len(names) > _NAMED else ""
    return f"{', '.join(map(repr, names[:_NAMED]))}{more}"
