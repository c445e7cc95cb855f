"""Kinetics-400, -600 and -700: CSV files `label,youtube_id,time_start,time_end,split`, one per part."""

from __future__ import annotations

from pathlib import Path

from two_stream.data.prepare.adapters.annotations import (
    AnnotatedClasses,
    AnnotatedVideo,
    Annotations,
    Split,
    find_file,
    number,
    span,
    table_rows,
)
from two_stream.data.prepare.adapters.codebase_json import read_codebase_json
from two_stream.errors import DataError

COLUMNS = ("label", "youtube_id", "time_start", "time_end")
GROUP = r"(?:^|/)([\w-]{11})(?:_\d{6}_\d{6})?$"
"""clips of one YouTube video share a source"""


def read_kinetics(path: Path) -> Annotations:
    """Read `*train*.csv` and `*val*.csv` of a folder, or the JSON file that the codebases make of them.

    Labels follow the sorted class names, as in every published Kinetics checkpoint. A clip lies at
    `<id>_000010_000020.mp4` (start and end in seconds), in a class folder or not, or at `<id>.mp4`.

    Raises:
        DataError: A file is missing, or a line is wrong.
    """
    if path.suffix == ".json":
        found = read_codebase_json(path)
        found.group = GROUP
        return found
    parts: list[tuple[Split, Path]] = [
        ("train", find_file(path, "*train*.csv")),
        ("test", find_file(path, "*val*.csv")),
    ]
    listed = [(split, where, row) for split, file in parts for where, row in table_rows(file, COLUMNS)]
    for _, where, row in listed:
        for column in ("label", "youtube_id"):
            if not row[column]:
                raise DataError(f"{where}: `{column}` is empty")
    classes = AnnotatedClasses(sorted({row["label"] for _, _, row in listed}), path)
    entries = []
    for split, where, row in listed:
        start, end = span(
            number(row["time_start"], where, "`time_start`"),
            number(row["time_end"], where, "`time_end`"),
            where,
        )
        name = f"{row['youtube_id']}_{int(start):06d}_{int(end):06d}"
        label = classes.label(row["label"], where)
        entries.append(AnnotatedVideo(name, (name, row["youtube_id"]), (label,), split, where))
    return Annotations(classes.names, entries, group=GROUP)
