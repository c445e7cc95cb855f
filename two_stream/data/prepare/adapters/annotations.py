"""The content of annotation files, as adapters return it, and functions that read such files.

The functions that read a file or check a value raise a `DataError` if the file is missing or the value is wrong. The
message names the folder or the file and, where there is one, the line, or for JSON files the key.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

from two_stream.config.load import nearest
from two_stream.data.catalog import SPLIT_WORDS, compile_group, find_source, packaged_record, read_lines
from two_stream.errors import DataError
from two_stream.runtime.text import parse_json, plural

Split = Literal["train", "val", "test", ""]
"""the official validation part is the `test` list here, as in published lists; `val` are rows of a table that also has
test rows; empty if the files make no split"""


@dataclass(frozen=True)
class AnnotatedVideo:
    """One video, or one part of a longer video."""

    id: str
    """id in the annotation files; for a part of a video, the id of the whole video"""
    names: tuple[str, ...]
    """possible names of the file or folder, without suffix, in order of preference; a name may include the class
    folder"""
    labels: tuple[int, ...]
    """labels in ascending order; a single label unless the data set is multi-label"""
    split: Split
    where: str
    """place in the annotation files: `file:line`, or file and JSON key"""
    seconds: tuple[float, float] | None = None
    """start and end of a part, in seconds"""
    frames: tuple[int, int] | None = None
    """first frame of a part (1-based), and the frame after its last frame"""
    group: str = ""
    """source video or person, if the files state it"""
    fps: float | None = None
    """frames per second, if the files state them"""
    num_frames: int | None = None
    """number of frames, if the files state it; only compared with the counted frames"""


@dataclass(frozen=True)
class Mark:
    """A labelled part of a recording; without times, a point event, or (without `name`) a recording without labels."""

    video: str
    """name of the video in the file, which may be a path or an address"""
    name: str
    """class"""
    where: str
    """place in the file"""
    seconds: tuple[float, float] | None = None
    frames: tuple[int, int | None] | None = None
    """instead of `seconds`: first frame (1-based), and the frame after the last one; None for the end of the video"""
    track: str = ""
    """ELAN tier, BORIS subject or Label Studio control"""
    group: str = ""
    """source of the recording"""
    split: Split = ""

    @property
    def lasts(self) -> bool:
        """Whether the mark has a start and an end."""
        return self.seconds is not None or self.frames is not None


@dataclass
class Annotations:
    """The content of the annotation files of a data set."""

    classes: list[str]
    entries: list[AnnotatedVideo]
    splits: Sequence[tuple[Sequence[str], Sequence[str]]] = ()
    """(training ids, test ids) of each official split; empty if there is only one split"""
    multi_label: bool = False
    mirror_pairs: Sequence[tuple[str, str]] = ()
    """see `Record`"""
    group: str | None = None
    """regular expression for ids of whole videos, whose first group is the name of the source"""
    notes: list[str] = field(default_factory=list)
    """one-line notes for the user"""
    marks: dict[str, list[Mark]] | None = None
    """dense labels of each entry, by its id; None if the files describe clips"""

    def source(self, video_id: str) -> str:
        """Return the name of a whole video's source; a video that `group` does not match is its own source."""
        return find_source(self._group_pattern, video_id)

    @cached_property
    def _group_pattern(self) -> re.Pattern[str] | None:
        return None if self.group is None else compile_group(self.group, self.classes)

    def check(self) -> None:
        """Check that the entries can be written to split lists; remove repeated entries and add a note about them.

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
                    f"{entry.where}: {entry.id!r} is also at {first.where}, with a different class "
                    "or part; keep only one of the two"
                )
        if len(kept) < len(self.entries):
            repeated = len(self.entries) - len(kept)
            one, many = "repeats another line and is", "repeat another line and are"
            self.notes.append(f"{plural(repeated, 'line', one, many)} skipped")
        self.entries = kept


class AnnotatedClasses:
    """Class names of an annotation file, in the order of their labels."""

    def __init__(self, names: Sequence[str], where: object, *, any_case: bool = False) -> None:
        """Assign labels to the classes.

        Args:
            names: The classes.
            where: File to name in errors.
            any_case: Find a class whatever the case of its name.

        Raises:
            DataError: There are no names, or a name occurs twice.
        """
        self.names = list(names)
        if not self.names:
            raise DataError(f"{where}: expected class names, found none")
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
    """Return the classes of a data set whose record comes with the package; names may be in upper or lower case."""
    mapping = packaged_record(name)
    assert mapping is not None
    return AnnotatedClasses(mapping["classes"], name, any_case=True)


def left_right_pairs(classes: Sequence[str], also: Mapping[str, str] | None = None) -> list[tuple[str, str]]:
    """Return the pairs of classes that mirroring exchanges, because their names differ only by left and right.

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
    """Return the only file in a folder that matches one of the patterns, ignoring case.

    Earlier patterns take precedence.
    """
    found = find_optional(folder, *patterns)
    if found is None:
        raise DataError(f"{folder}: expected a file {' or '.join(patterns)} in this folder")
    return found


def find_optional(folder: Path, *patterns: str) -> Path | None:
    """Return the only file in a folder that matches one of the patterns, or None; see `find_file`."""
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
    """Yield (`file:line`, fields) for each line of a file without a header; blank lines are skipped.

    A line needs at least `least` fields; the error message shows the expected `form`.
    """
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        fields = [field.strip() for field in next(csv.reader([line.strip()], delimiter=delimiter))]
        if len(fields) < least or not all(fields[:least]):
            raise DataError(f"{path}:{number}: {line.strip()!r}: expected `{form}`")
        yield f"{path}:{number}", fields


def read_table_rows(
    path: Path, needed: Sequence[str], delimiter: str = ",", filled: Sequence[str] = (), skip: int = 0
) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield (`file:line`, values by column) for each line of a file whose first line contains the column names.

    The columns `needed` must exist, and the columns `filled` must have a value in every row. `skip` is the number of
    lines before the column names.
    """
    lines = read_lines(path)[skip:]
    if delimiter == "," and lines and ";" in lines[0] and "," not in lines[0]:
        delimiter = ";"  # as spreadsheets write it where the comma is the decimal point
    reader = csv.reader((line + "\n" for line in lines), delimiter=delimiter)
    header = [column.strip() for column in next(reader, [])]
    lacking = [column for column in needed if column not in header]
    if lacking:
        line = lines[0] if lines else ""
        line = line if len(line) <= 80 else f"{line[:77]}…"
        raise DataError(
            f"{path}:{skip + 1}: column {lacking[0]!r} is missing in {line!r}: expected `{delimiter.join(needed)}`"
        )
    end = reader.line_num
    for fields in reader:
        begin, end = end + 1, reader.line_num
        if not any(field.strip() for field in fields):
            continue
        if len(fields) != len(header):
            raise DataError(
                f"{path}:{skip + begin}: found {len(fields)} fields, expected {len(header)} as in the first line; "
                "check that the file is complete"
            )
        row = dict(zip(header, (field.strip() for field in fields), strict=True))
        for column in filled:
            if not row[column]:
                raise DataError(f"{path}:{skip + begin}: `{column}` is empty; expected a value")
        yield f"{path}:{skip + begin}", row


def read_json(path: Path) -> Any:
    """Return the content of a JSON file."""
    text = "\n".join(read_lines(path))
    try:
        return parse_json(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: invalid JSON ({error.msg})") from None


def check_type(value: Any, kind: type[T], where: str) -> T:
    """Return a value of a JSON file after checking its type; an integer is also accepted as a float."""
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
        raise DataError(f"{where}: the key {name!r} is missing")
    return check_type(container[name], kind, f"{where}.{name}")


def parse_number(text: str, where: str, what: str) -> float:
    """Convert text to a number, which must be at least 0."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise DataError(f"{where}: {what} is {text!r}: expected a number of at least 0")
    return value


def check_span(start: float, end: float, where: str) -> tuple[float, float]:
    """Return the start and end of a part, in seconds, after checking them."""
    if not 0 <= start < end:
        raise DataError(f"{where}: start is {start:g} s and end is {end:g} s: expected 0 <= start < end")
    return start, end


def parse_split(text: str, where: str) -> Split:
    """Return the part that a table names; an empty text names none."""
    split = SPLIT_WORDS.get(text.lower())
    if text and split is None:
        raise DataError(f"{where}: `split` is {text!r}: expected train, val or test")
    return split or ""


def check_splits(entries: Sequence[AnnotatedVideo]) -> list[AnnotatedVideo]:
    """Check that all entries or none name a part. If the parts are not train, val and test, `val` becomes `test`."""
    found = {entry.split for entry in entries}
    if "" in found and len(found) > 1:
        lone = next(entry for entry in entries if not entry.split)
        raise DataError(
            f"{lone.where}: `split` is empty, but not in other rows; set it in all rows or in none"
        )
    if found == {"train", "val", "test"}:
        return list(entries)
    return [replace(entry, split="test") if entry.split == "val" else entry for entry in entries]


def json_objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (`file: [index]`, object) for each object of a JSON list."""
    for place, value in enumerate(check_type(read_json(path), list, str(path))):
        where = f"{path}: [{place}]"
        yield where, check_type(value, dict, where)
