"""Reads split lists as other programs write them, with lines `path label` or `path num_frames label`.

mmaction2, PySlowFast, VideoMAE, TSM and similar programs write such lists, with spaces, commas or tabs. Labels are
numbers from 0 or 1, or class names. Every function raises a `DataError` that names the file and the line.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Protocol

from two_stream.data.catalog import SPLIT_WORDS, read_lines
from two_stream.data.prepare.adapters.annotations import AnnotatedClasses, AnnotatedVideo, Annotations, Split
from two_stream.errors import DataError
from two_stream.runtime.text import plural
from two_stream.video.decoding.base import VIDEO_SUFFIXES

FORM = "`path label` or `path num_frames label`"
_SEVERAL = "expected one label; use `prepare table` for several classes or for parts of videos"
_DELIMITERS = {"\t": "tabs", ",": "commas", " ": "spaces"}
_FILE = re.compile(rf"(.*(?:{'|'.join(map(re.escape, sorted(VIDEO_SUFFIXES)))}))\s+(.*)", re.IGNORECASE)
_LABEL_WORDS = frozenset({"label", "labels", "class", "class_name", "category", "tag", "target", "action"})
_DIGITS = 5
"""largest number of digits of a label; a longer number is probably not a label"""
_SAMPLE = 200
"""number of lines of each list whose videos are looked up, to find the folder that the paths are relative to"""
_MOST_BELOW = 20
"""largest number of sub-folders that may be added to paths; if there are more, they are class folders"""


@dataclass(frozen=True)
class _Line:
    where: str
    path: str
    label: str
    frames: int | None = None


def read_lists(files: Mapping[Split, Path | None], class_file: Path | None = None) -> Annotations:
    """Read the lists of a data set.

    Labels that are numbers count from 1 if 1 is the smallest label (with a file of class names: if 0 does not occur,
    and the largest label is the number of classes or the file counts from 1). Otherwise, labels count from 0. Without a
    file of class names, the classes are called by their numbers, or are the sorted names.

    Args:
        files: The list of each part. Without a list of `test`, the list of `val` is the test list.
        class_file: Class names in the order of the labels, one per line, or lines `index name` in any order.
    """
    known, base = read_class_file(class_file) if class_file is not None else (None, None)
    given = {split: file for split, file in files.items() if file is not None}
    listed = [(split, line) for split, file in given.items() for line in _read_list(file, known)]
    lines = [line for _, line in listed]
    numbers = {line.label for line in lines if line.label.isdecimal()}
    if any(not line.label.isdecimal() for line in lines):
        other = next(
            (line for line in lines if line.label in numbers and not (known and line.label in known)), None
        )
        if other is not None:
            named = next(line for line in lines if not line.label.isdecimal())
            raise DataError(
                f"{named.where}: label {named.label!r}: expected a whole number of at least 0, as at {other.where} "
                f"({other.label!r}); labels are either all numbers or all class names"
            )
        classes = AnnotatedClasses(known or sorted({line.label for line in lines}), class_file)
        labels, note = [classes.label(line.label, line.where) for line in lines], "labels are class names"
    else:
        classes, labels, note = _numbered(lines, known, base, class_file)
    entries = [
        AnnotatedVideo(line.path, (line.path,), (label,), split, line.where, num_frames=line.frames)
        for (split, line), label in zip(listed, labels, strict=True)
    ]
    if "test" not in given:
        entries = [replace(entry, split="test") if entry.split == "val" else entry for entry in entries]
    return Annotations(classes.names, entries, notes=[note])


def _numbered(
    lines: Sequence[_Line], known: Sequence[str] | None, base: int | None, class_file: Path | None
) -> tuple[AnnotatedClasses, list[int], str]:
    """Return the classes, the labels from 0 and a note, if all labels are numbers."""
    long = next((line for line in lines if len(line.label.lstrip("0")) > _DIGITS), None)
    if long is not None:
        raise DataError(f"{long.where}: label {long.label}: expected at most {_DIGITS} digits")
    labels = [int(line.label) for line in lines]
    lowest, highest = min(labels), max(labels)
    if known is None:
        first = int(lowest == 1)
        known = [str(number) for number in range(first, highest + 1)]
    else:
        first = int(lowest > 0 and (highest == len(known) or base == 1))
        if highest >= len(known) + first:
            raise DataError(
                f"{lines[labels.index(highest)].where}: label {highest}: expected {first} to "
                f"{len(known) + first - 1}, because {class_file} has {plural(len(known), 'class')}"
            )
    note = f"labels are numbers from {first}: {first} is class {known[0]!r}"
    return AnnotatedClasses(known, class_file), [label - first for label in labels], note


def read_class_file(path: Path) -> tuple[list[str], int | None]:
    """Return the class names in the order of their labels, and the first index in the file; None if it has no indices.

    Lines are names, `index name` or `name index`, separated by spaces, commas or tabs; the indices count from 0 or 1.
    """
    rows = [line.strip() for line in read_lines(path) if line.strip()]
    for delimiter, places in (("\t", (0, -1)), (",", (0, -1)), (" ", (0,))):
        pairs = [next(csv.reader([row], delimiter=delimiter, skipinitialspace=True)) for row in rows]
        if pairs and not any(field.strip().isdecimal() for field in pairs[0]):
            pairs = pairs[1:]  # column names
        for place in places:
            found = {}
            for fields in pairs:
                rest = fields[1:] if place == 0 else fields[:-1]
                if fields[place].strip().isdecimal() and any(rest):
                    found[int(fields[place])] = delimiter.join(rest).strip()
            first = min(found, default=-1)
            whole = len(set(found.values())) == len(pairs) and max(found, default=0) - first == len(pairs) - 1
            if first in (0, 1) and whole:
                return [found[index] for index in sorted(found)], first
    return AnnotatedClasses([row.strip('"') for row in rows], path).names, None


def _read_list(path: Path, known: Sequence[str] | None) -> list[_Line]:
    """Return the lines of a list."""
    texts = [
        (f"{path}:{number}", text.strip()) for number, text in enumerate(read_lines(path), 1) if text.strip()
    ]
    delimiter = _delimiter([text for _, text in texts])
    names = frozenset(known or ())
    rows = [(where, text, _fields(text, delimiter, names)) for where, text in texts]
    head = [field.lower() for field in rows[0][2]] if rows else [""]
    if head[0] in _LABEL_WORDS:
        raise DataError(
            f"{rows[0][0]}: {rows[0][1]!r}: expected {FORM}; use `prepare table` for other columns"
        )
    others = {fields[-1].lower() for _, _, fields in rows[1:]}
    if head[-1] in _LABEL_WORDS - others and not set("/.") & set(head[0]):
        rows = rows[1:]  # column names
    lines = []
    for where, text, fields in rows:
        if len(fields) not in (2, 3) or not all(fields) or (len(fields) == 3 and not fields[1].isdecimal()):
            raise DataError(
                f"{where}: {text!r}: expected {FORM}, separated by {_DELIMITERS[delimiter]} as in the other lines; "
                "quote fields that contain the separator, and use `prepare table` for several classes or for parts of "
                "videos"
            )
        if len(fields[-1].split()) > 1 and fields[-1] not in names and not re.search(r"[^\d\s]", fields[-1]):
            raise DataError(f"{where}: {text!r}: {_SEVERAL}")
        count = int(fields[1]) if len(fields) == 3 else None
        lines.append(_Line(where, fields[0].replace("\\", "/"), fields[-1], count))
    if not lines:
        raise DataError(f"{path}: the list is empty; expected lines {FORM}")
    return lines


def _delimiter(texts: Sequence[str]) -> str:
    """Return the character that separates the fields of all lines."""
    body = texts[1:] or texts  # the first line may contain column names
    for delimiter in ("\t", ","):
        rows = [_fields(text, delimiter) for text in texts]
        if not all(len(row) in (2, 3) for row in rows):
            continue
        labels = [row[-1] for row in rows[len(texts) - len(body) :]]
        in_paths = all(text.split()[-1].isdecimal() for text in body) and not all(map(str.isdecimal, labels))
        if delimiter == "\t" or not in_paths:
            return delimiter
    return " "


def _fields(text: str, delimiter: str, names: frozenset[str] = frozenset()) -> list[str]:
    """Return path and label, or path, number of frames and label; other numbers of fields are errors of the caller."""
    if delimiter != " " or text.startswith('"'):
        return [
            field.strip() for field in next(csv.reader([text], delimiter=delimiter, skipinitialspace=True))
        ]
    found = _FILE.fullmatch(text)
    if found:
        count, _, label = found[2].partition(" ")
        several = count.isdecimal() and label and found[2] not in names
        return [found[1], count, label.strip()] if several else [found[1], found[2]]
    words = text.split()
    start = next((n for n in range(1, len(words)) if " ".join(words[n:]) in names), len(words) - 1)
    path, count = " ".join(words[:start]), words[start - 1]
    label = " ".join(words[start:])
    if start > 1 and count.isdecimal():
        return [" ".join(words[: start - 1]), count, label]
    return [path, label]


class VideoLookup(Protocol):
    """The part of `VideoIndex` that is needed here."""

    root: Path

    def find(self, names: Sequence[str]) -> object:
        """Return a video with one of these names, or a text if there is none."""


def locate(entries: Sequence[AnnotatedVideo], places: VideoLookup) -> tuple[list[AnnotatedVideo], list[str]]:
    """Return the entries with paths relative to the folder of the videos, and notes about changed paths.

    Lists often contain paths on another machine, or paths relative to another folder (mmaction2 has one folder for each
    list). For each list, a sample of its paths shows which leading folders are removed, and which sub-folder is added.
    """
    lists: dict[str, list[AnnotatedVideo]] = {}
    for entry in entries:
        lists.setdefault(entry.where.rpartition(":")[0], []).append(entry)
    made, notes = [], []
    for file, listed in lists.items():
        removed, added = _moved(listed[:: max(1, len(listed) // _SAMPLE)], places)
        moved = [_located(entry, places, removed, added) for entry in listed]
        _check_counts(listed, moved)
        if removed or added:
            notes.append(f"{file}: {listed[0].id!r} is read as {moved[0].id!r} in {places.root}")
        made += moved
    return made, notes


def _moved(sample: Sequence[AnnotatedVideo], places: VideoLookup) -> tuple[int, str]:
    """Return how many leading folders to remove and which sub-folder to add, so that most paths of a sample exist."""

    def count(removed: int, added: str) -> int:
        return sum(_exists(places, _names(entry, removed, added)) for entry in sample)

    below = [path.name for path in places.root.iterdir() if path.is_dir() and path.name[0] != "."]
    below = sorted(below) if len(below) <= _MOST_BELOW else []
    counts = []
    for removed in range(max(len(PurePosixPath(entry.id).parts) for entry in sample)):
        counts.append(count(removed, ""))
        if 2 * counts[-1] >= len(sample):
            return removed, ""
        found = {added: number for added in below if (number := count(removed, added))}
        if len(found) > 1:  # such as videos_train and videos_val
            found = {added: number for added, number in found.items() if _is_part(added, sample[0].split)}
        if len(found) == 1 and 2 * sum(found.values()) >= len(sample):
            return removed, next(iter(found))
    return counts.index(max(counts)), ""


def _is_part(folder: str, split: Split) -> bool:
    """Return whether the name of a folder contains the name of the part; the list of `test` may be called `val`."""
    named = {SPLIT_WORDS.get(word) for word in re.split(r"[\W_]+", folder.lower())}
    return bool(named & {split, "val" if split == "test" else split})


def _located(entry: AnnotatedVideo, places: VideoLookup, removed: int, added: str) -> AnnotatedVideo:
    """Return an entry with the first of its possible ids that exists."""
    names = _names(entry, removed, added)
    name = next((name for name in names if _exists(places, (name,))), None)
    if name is None:
        shorter = replace(entry, id=re.sub(r"(\s\d+)+$", "", entry.id), num_frames=None)
        if shorter.id != entry.id and _exists(places, _names(shorter, removed, added)):
            raise DataError(f"{entry.where}: found more than two numbers after {shorter.id!r}: {_SEVERAL}")
        return replace(entry, id=names[0], names=names)
    counted = None if name.endswith(f" {entry.num_frames}") else entry.num_frames
    return replace(entry, id=name, names=(name,), num_frames=counted)


def _check_counts(listed: Sequence[AnnotatedVideo], moved: Sequence[AnnotatedVideo]) -> None:
    """Check that all or none of the lines have a number of frames, now that numbers that belong to names are known."""
    found = [new for new in moved if new.names == (new.id,)]
    counted = next((new for new in found if new.num_frames is not None), None)
    lone = next((old for old in listed if old.num_frames is None), None)
    if counted is not None and lone is not None:
        raise DataError(
            f"{lone.where}: found one number or name after {lone.id!r}, but a number of frames and a label at "
            f"{counted.where}; expected the same form in all lines"
        )


def _exists(places: VideoLookup, names: Sequence[str]) -> bool:
    return not isinstance(places.find(names), str)


def _names(entry: AnnotatedVideo, removed: int, added: str) -> tuple[str, ...]:
    """Return the possible ids of a video: with its suffix, without it, and both with a number that may belong to it."""
    parts = PurePosixPath(entry.id).parts
    path = PurePosixPath(added, *parts[min(removed, len(parts) - 1) :])
    paths = [path] if entry.num_frames is None else [path, path.with_name(f"{path.name} {entry.num_frames}")]
    names = []
    for one in paths:
        names += [str(one), str(one.with_suffix("")) if one.suffix.lower() in VIDEO_SUFFIXES else str(one)]
    return tuple(dict.fromkeys(names))
