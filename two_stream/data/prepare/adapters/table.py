"""Reads a data set from a CSV, TSV, JSON or JSON lines table. Each row is a video, or a part of a video."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from two_stream.config.load import nearest
from two_stream.data.catalog import read_lines
from two_stream.data.prepare.adapters.annotations import (
    AnnotatedClasses,
    AnnotatedVideo,
    Annotations,
    check_span,
    check_splits,
    check_type,
    json_objects,
    parse_number,
    parse_split,
    read_table_rows,
)
from two_stream.errors import DataError
from two_stream.runtime.text import parse_json

COLUMNS = ("path", "id", "label", "labels", "start", "end", "group", "fps", "split")
SEPARATOR = ";"
"""between the `labels` of a video, in CSV and TSV"""
Row = dict[str, str]


def read_table(path: Path) -> Annotations:
    """Read a table with columns from `COLUMNS`. The columns `path` or `id`, and `label` or `labels`, are required.

    With a column `labels`, the data set is multi-label; class names are separated by `;`, or form a list in JSON.
    Labels are indices into the sorted class names; if all names are integers, they are sorted as numbers. Without a
    column `split`, a split is made. If no row has the split `test`, the rows with `val` are the test list.

    Raises:
        DataError: The file is missing, a column is unknown or missing, or a value is wrong; names the line.
    """
    rows = list(_rows(path))
    if not rows:
        raise DataError(f"{path}: the table has no rows; expected one row per video")
    multi_label = any(row.get("labels") for _, row in rows)
    named = [_classes_of(row, where) for where, row in rows]
    names = {name for found in named for name in found}
    classes = AnnotatedClasses(sorted(names, key=_order(names)), path)
    entries = [
        _entry(row, tuple(sorted(classes.label(name, where) for name in found)), where)
        for (where, row), found in zip(rows, named, strict=True)
    ]
    return Annotations(classes.names, check_splits(entries), multi_label=multi_label)


def _rows(path: Path) -> Iterator[tuple[str, Row]]:
    suffix = path.suffix.lower()
    if suffix in (".json", ".jsonl"):
        yield from ((where, _texts(value, where)) for where, value in _json_rows(path, suffix))
        return
    if suffix not in (".csv", ".tsv"):
        raise DataError(f"{path}: expected a .csv, .tsv, .json or .jsonl file")
    first = True
    for where, row in read_table_rows(path, (), "\t" if suffix == ".tsv" else ","):
        if first:
            _known(row, f"{path}:1")
            first = False
        yield where, row


def _json_rows(path: Path, suffix: str) -> Iterator[tuple[str, Any]]:
    if suffix == ".json":
        yield from json_objects(path)
        return
    for line, text in enumerate(read_lines(path), 1):
        if not text.strip():
            continue
        try:
            yield f"{path}:{line}", parse_json(text)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{line}: invalid JSON ({error.msg})") from None


def _texts(value: Any, where: str) -> Row:
    """Convert the values of a JSON row to text, as in a CSV table."""
    item = check_type(value, dict, where)
    _known(item, where)
    row = {}
    for name, content in item.items():
        if name == "labels":
            content = SEPARATOR.join(str(entry) for entry in check_type(content, list, f"{where}.labels"))
        row[name] = "" if content is None else str(content)
    return row


def _known(row: dict[str, Any], where: str) -> None:
    for name in row:
        if name not in COLUMNS:
            several = len(row) > 1  # a single field is the whole line: the delimiter is another one
            hint = nearest(name, list(COLUMNS)) if several else f": expected some of `{','.join(COLUMNS)}`"
            raise DataError(f"{where}: unknown column {name!r}{hint}")


def _classes_of(row: Row, where: str) -> list[str]:
    several = [name.strip() for name in row.get("labels", "").split(SEPARATOR) if name.strip()]
    one = row.get("label", "")
    if bool(several) == bool(one):
        raise DataError(f"{where}: expected a class in `label`, or several in `labels`, but not in both")
    return list(dict.fromkeys(several)) or [one]


def _order(names: set[str]) -> Any:
    return int if all(name.isdecimal() for name in names) else str


def _entry(row: Row, labels: tuple[int, ...], where: str) -> AnnotatedVideo:
    text = (row.get("path") or row.get("id", "")).replace("\\", "/")
    if not text:
        raise DataError(f"{where}: the video is missing; set `path` or `id`")
    stem = PurePosixPath(text).with_suffix("") if row.get("path") else PurePosixPath(text)
    seconds = None
    if row.get("start") or row.get("end"):
        start = parse_number(row.get("start") or "0", where, "`start`")
        seconds = check_span(start, parse_number(row.get("end", ""), where, "`end`"), where)
    fps = parse_number(row["fps"], where, "`fps`") if row.get("fps") else None
    if fps == 0:
        raise DataError(f"{where}: `fps` is 0: expected more than 0")
    return AnnotatedVideo(
        str(stem),
        (str(stem),),
        labels,
        parse_split(row.get("split", ""), where),
        where,
        seconds=seconds,
        group=row.get("group", ""),
        fps=fps,
    )
