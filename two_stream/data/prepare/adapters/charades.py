"""Charades: `Charades_v1_classes.txt` (`c000 Name`) and CSV files whose `actions` are `c092 11.90 21.20;…`."""

from __future__ import annotations

from pathlib import Path

from two_stream.data.prepare.adapters.annotations import (
    AnnotatedClasses,
    AnnotatedVideo,
    Annotations,
    Split,
    find_file,
    number,
    rows,
    table_rows,
)
from two_stream.errors import DataError


def read_charades(path: Path) -> Annotations:
    """Read the classes and both lists: a video has every class of its actions; people are the source groups.

    A video without any action has nothing to learn or to score: it is left out, with a note.

    Raises:
        DataError: A file is missing, a line is wrong or a class is unknown.
    """
    file = find_file(path, "Charades_v1_classes.txt", "*classes.txt")
    named = [(where, fields[0], " ".join(fields[1:])) for where, fields in rows(file, " ", 2, "c000 name")]
    for place, (where, code, _) in enumerate(named):
        if code != f"c{place:03d}":
            raise DataError(f"{where}: class {code}, expected c{place:03d}")
    codes = AnnotatedClasses([code for _, code, _ in named], file)
    classes = AnnotatedClasses([name for _, _, name in named], file)
    parts: list[tuple[Split, Path]] = [
        ("train", find_file(path, "Charades_v1_train.csv", "*train.csv")),
        ("test", find_file(path, "Charades_v1_test.csv", "*test.csv")),
    ]
    entries, empty = [], 0
    for split, listed in parts:
        for where, row in table_rows(listed, ("id", "subject", "actions")):
            labels = _labels(row["actions"], codes, where)
            if not row["id"]:
                raise DataError(f"{where}: `id` is empty")
            if labels:
                entries.append(
                    AnnotatedVideo(row["id"], (row["id"],), labels, split, where, group=row["subject"])
                )
            else:
                empty += 1
    notes = [f"{empty} videos have no action and are left out"] if empty else []
    return Annotations(classes.names, entries, multi_label=True, notes=notes)


def _labels(actions: str, codes: AnnotatedClasses, where: str) -> tuple[int, ...]:
    labels = set()
    for action in filter(None, (text.strip() for text in actions.split(";"))):
        fields = action.split()
        if len(fields) != 3:
            raise DataError(f"{where}: action {action!r}: expected `c092 11.90 21.20`")
        for text in fields[1:]:
            number(text, where, "a time of an action")
        labels.add(codes.label(fields[0], where))
    return tuple(sorted(labels))
