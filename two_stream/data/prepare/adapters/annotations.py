"""The form in which adapters return annotation files, and helpers that read such files.

Every reader raises a `DataError` if the file is missing or a value is wrong; it names the file and the line, or the
key in a JSON file.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal, TypeVar

from two_stream.config.load import nearest
from two_stream.data.catalog import packaged_record, read_lines
from two_stream.errors import DataError
from two_stream.runtime.text import parse_json, plural

Split = Literal["train", "val", "test", ""]
"""the official validation part is the `test` list here, as in published lists; `val` are rows of a table that also has
test rows; empty if the files make no split"""


@dataclass(frozen=True)
class AnnotatedVideo:
    """One video, or one part of a longer video."""

    id: str
    """as the files name it; a part of a video has the video's id here"""
    names: tuple[str, ...]
    """file or folder names to look for, without suffix, the best first; each may include its class folder"""
    labels: tuple[int, ...]
    """classes, ascending; one unless the data set is multi-label"""
    split: Split
    where: str
    """`file:line`, or file and JSON key"""
    seconds: tuple[float, float] | None = None
    """start and end of a part"""
    frames: tuple[int, int] | None = None
    """first frame of a part (1-based) and the one after its last"""
    group: str = ""
    """source video or person"""
    fps: float | None = None
    """frames per second, if the files give them"""


@dataclass
class Annotations:
    """The content of the annotation files of a data set."""

    classes: list[str]
    entries: list[AnnotatedVideo]
    splits: Sequence[tuple[Sequence[str], Sequence[str]]] = ()
    """training and test ids of each official split, in the order of the files, if there are several; the split lists
    then hold the ids of the files, wherever below the root the videos are"""
    multi_label: bool = False
    mirror_pairs: Sequence[tuple[str, str]] = ()
    """see `Record`"""
    group: str | None = None
    """regular expression over an id whose first group is the source video"""
    notes: list[str] = field(default_factory=list)
    """notes for the user, one line each"""

    def check(self) -> None:
        """Check that the split lists can hold the entries; an entry that only repeats another is dropped, with a note.

        Raises:
            DataError: No videos, or a video with two classes or in two parts; names both places.
        """
        if not self.entries:
            raise DataError("the annotation files list no video with a class")
        seen: dict[tuple[object, ...], AnnotatedVideo] = {}
        kept = []
        for entry in self.entries:
            several = (entry.seconds, entry.labels) if entry.seconds else ()  # one part may have two classes
            first = seen.setdefault((entry.id, several), entry)
            if first is entry:
                kept.append(entry)
            elif first.labels != entry.labels or first.split != entry.split:
                raise DataError(
                    f"{entry.where}: {entry.id!r} is also at {first.where}, with a different class or part; keep one"
                )
        if len(kept) < len(self.entries):
            repeated = len(self.entries) - len(kept)
            one, many = "repeats another line and is", "repeat another line and are"
            self.notes.append(f"{plural(repeated, 'line', one, many)} skipped")
        self.entries = kept


class AnnotatedClasses:
    """Class names in the order of their labels, as one file gives them."""

    def __init__(self, names: Sequence[str], where: object, *, any_case: bool = False) -> None:
        """Number the classes.

        Args:
            names: The classes.
            where: File to name in errors.
            any_case: Find a class whatever the case of its name.

        Raises:
            DataError: There are no names, or a name occurs twice.
        """
        self.names = list(names)
        if not self.names:
            raise DataError(f"{where}: no class names")
        self._labels = {name: label for label, name in enumerate(self.names)}
        if len(self._labels) < len(self.names):
            doubled = next(name for name in self.names if self.names.count(name) > 1)
            raise DataError(f"{where}: class {doubled!r} is listed twice")
        self._lowered = {name.lower(): name for name in self.names} if any_case else {}

    def label(self, name: Any, where: str) -> int:
        """Return the label of a class.

        Raises:
            DataError: Unknown; names the place and the nearest class.
        """
        name = self._lowered.get(str(name).lower(), name)
        if name not in self._labels:
            raise DataError(f"{where}: {name!r} is not a class{nearest(str(name), self.names)}")
        return self._labels[name]


def packaged_classes(name: str) -> AnnotatedClasses:
    """Return the classes of a data set whose record comes with the package, whatever the case of their names."""
    mapping = packaged_record(name)
    assert mapping is not None
    return AnnotatedClasses(mapping["classes"], name, any_case=True)


def left_right_pairs(classes: Sequence[str], also: Mapping[str, str] | None = None) -> list[tuple[str, str]]:
    """Return the pairs of classes that a mirror exchanges: those whose names differ by left and right only.

    Args:
        classes: The class names.
        also: Other words that a mirror exchanges, by word.
    """
    swaps = {"left": "right", "right": "left", **(also or {})}
    known = set(classes)
    pairs = []
    for name in classes:
        parts = name.replace("_", " ").split(" ")
        gap = "_" if "_" in name else " "
        image = gap.join(_like(swaps.get(word.lower(), word), word) for word in parts)
        if image != name and image in known and (image, name) not in pairs:
            pairs.append((name, image))
    return pairs


def _like(word: str, model: str) -> str:
    return word[:1].upper() + word[1:] if model[:1].isupper() else word


T = TypeVar("T")
_NAMES = {dict: "an object", list: "a list", str: "a text", int: "a whole number", float: "a number"}


def find_file(folder: Path, *patterns: str) -> Path:
    """Return the only file of a folder that matches a pattern (ignoring case); earlier patterns take precedence."""
    found = find_optional(folder, *patterns)
    if found is None:
        raise DataError(f"{folder}: no file {' or '.join(patterns)} here")
    return found


def find_optional(folder: Path, *patterns: str) -> Path | None:
    """Return the only file of a folder that matches a pattern, or None; see `find_file`."""
    if not folder.is_dir():
        what = "is a file; use its folder" if folder.exists() else "no such folder"
        raise DataError(f"{folder}: {what}")
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and path.name[0] != ".")
    for pattern in patterns:
        found = [name for name in names if fnmatch(name.lower(), pattern.lower())]
        if len(found) > 1:
            raise DataError(f"{folder}: {found[0]} and {found[1]} both match {pattern}; keep one of them")
        if found:
            return folder / found[0]
    return None


def read_fields(path: Path, delimiter: str, least: int, form: str) -> Iterator[tuple[str, list[str]]]:
    """Yield (`file:line`, fields) of a file without header; blank lines are skipped.

    A line needs at least `least` fields; `form` shows in the error what a line looks like.
    """
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        fields = [field.strip() for field in next(csv.reader([line.strip()], delimiter=delimiter))]
        if len(fields) < least or not all(fields[:least]):
            raise DataError(f"{path}:{number}: {line.strip()!r}: expected `{form}`")
        yield f"{path}:{number}", fields


def read_table_rows(
    path: Path, needed: Sequence[str], delimiter: str = ",", filled: Sequence[str] = ()
) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield (`file:line`, row by column) of a file whose first line names the columns.

    The columns `needed` must be there; the columns `filled` must not be empty in any row.
    """
    lines = read_lines(path)
    if delimiter == "," and lines and ";" in lines[0] and "," not in lines[0]:
        delimiter = ";"  # as spreadsheets write it where the comma is the decimal point
    reader = csv.reader((line + "\n" for line in lines), delimiter=delimiter)
    header = [column.strip() for column in next(reader, [])]
    lacking = [column for column in needed if column not in header]
    if lacking:
        line = lines[0] if lines else ""
        line = line if len(line) <= 80 else f"{line[:77]}…"
        raise DataError(
            f"{path}:1: no column {lacking[0]!r} in {line!r}: expected `{delimiter.join(needed)}`"
        )
    end = reader.line_num
    for fields in reader:
        begin, end = end + 1, reader.line_num
        if not any(field.strip() for field in fields):
            continue
        if len(fields) != len(header):
            raise DataError(
                f"{path}:{begin}: {len(fields)} fields, but the first line names {len(header)} columns; "
                "is the file complete?"
            )
        row = dict(zip(header, (field.strip() for field in fields), strict=True))
        for column in filled:
            if not row[column]:
                raise DataError(f"{path}:{begin}: `{column}` is empty")
        yield f"{path}:{begin}", row


def read_json(path: Path) -> Any:
    """Return the content of a JSON file."""
    text = "\n".join(read_lines(path))
    try:
        return parse_json(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: invalid JSON ({error.msg})") from None


def check_type(value: Any, kind: type[T], where: str) -> T:
    """Return a value of a JSON file after checking its type; an integer is accepted in place of a float."""
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)  # type: ignore[return-value]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        shown = json.dumps(value, ensure_ascii=False)
        shown = shown if len(shown) <= 60 else f"{shown[:57]}…"
        raise DataError(f"{where}: {shown}: expected {_NAMES[kind]}")
    return value


def json_value(container: dict[str, Any], name: str, kind: type[T], where: str) -> T:
    """Return an entry of a JSON object after checking its type; see `check_type`."""
    if name not in container:
        raise DataError(f"{where}: no key {name!r}")
    return check_type(container[name], kind, f"{where}.{name}")


def parse_number(text: str, where: str, what: str) -> float:
    """Return a number written in a text file."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise DataError(f"{where}: {what} is {text!r}: expected a number of at least 0")
    return value


def check_span(start: float, end: float, where: str) -> tuple[float, float]:
    """Return start and end of a part, in seconds."""
    if not 0 <= start < end:
        raise DataError(f"{where}: from {start:g} to {end:g} s: expected 0 <= start < end")
    return start, end


def json_objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the objects of a JSON list, each with its position, `file: [place]`."""
    for place, value in enumerate(check_type(read_json(path), list, str(path))):
        where = f"{path}: [{place}]"
        yield where, check_type(value, dict, where)
