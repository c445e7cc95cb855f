"""Jester: `jester-v1-labels.csv` (a class per line), `jester-v1-train.csv` and `-validation.csv` (`id;label`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from two_stream.data.prepare.adapters.annotations import (
    AnnotatedClasses,
    AnnotatedVideo,
    Annotations,
    Split,
    find_file,
    find_optional,
    left_right_pairs,
    rows,
)
from two_stream.errors import DataError

TURNS = {"clockwise": "counterclockwise", "counterclockwise": "clockwise"}
"""a mirror turns a turning hand round; rolling forward and backward stay what they are"""


def read_jester(path: Path) -> Annotations:
    """Read the official files, or those of Efficient-3DCNNs (`classInd.txt`, `trainlist.txt`, `vallist.txt`).

    A video is the folder `<id>` of frames `00001.jpg`, or `<id>.webm`.

    Raises:
        DataError: A file is missing, a line is wrong or a class is unknown.
    """
    labels = find_optional(path, "jester*labels.csv", "*labels.csv")
    parts: list[tuple[Split, Path]]
    if labels is not None:
        classes = AnnotatedClasses([fields[0] for _, fields in rows(labels, ";", 1, "class")], labels)
        parts = [
            ("train", find_file(path, "jester*train.csv", "*train.csv")),
            ("test", find_file(path, "jester*validation.csv", "*validation.csv")),
        ]
        listed = [
            (split, where, name, text) for split, file in parts for where, name, text in _official(file)
        ]
        numbered = [(s, where, name, classes.label(text, where)) for s, where, name, text in listed]
    else:
        numbers = find_file(path, "classInd.txt", "jester*labels.csv")
        classes = _numbered_classes(numbers)
        parts = [("train", find_file(path, "trainlist.txt")), ("test", find_file(path, "vallist.txt"))]
        numbered = [
            (split, where, fields[0], _label(fields[1], classes, where))
            for split, file in parts
            for where, fields in rows(file, " ", 2, "id number")
        ]
    entries = [
        AnnotatedVideo(name, (name,), (label,), split, where) for split, where, name, label in numbered
    ]
    pairs = left_right_pairs(classes.names, TURNS)
    return Annotations(classes.names, entries, mirror_pairs=pairs)


def _official(path: Path) -> Iterator[tuple[str, str, str]]:
    for where, (name, label, *_) in rows(path, ";", 2, "id;label"):
        yield where, name, label


def _numbered_classes(path: Path) -> AnnotatedClasses:
    names: list[str] = []
    for where, fields in rows(path, " ", 2, "1 class"):
        if fields[0] != str(len(names) + 1):
            raise DataError(f"{where}: class {fields[1]!r} has number {fields[0]}, expected {len(names) + 1}")
        names.append(" ".join(fields[1:]))
    return AnnotatedClasses(names, path)


def _label(text: str, classes: AnnotatedClasses, where: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= len(classes.names):
        raise DataError(f"{where}: class number {text!r}: expected 1 to {len(classes.names)}")
    return int(text) - 1
