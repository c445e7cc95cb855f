"""STAIR-Actions: `actionlist.csv`, `videolist_train.txt` and `videolist_val.txt` of STAIR-Lab-CIT/STAIR-actions."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from two_stream.data.prepare.adapters.annotations import (
    AnnotatedClasses,
    AnnotatedVideo,
    Annotations,
    Split,
    find_file,
    find_optional,
    rows,
    table_rows,
)
from two_stream.errors import DataError

NAME = "English category"


def read_stair(path: Path) -> Annotations:
    """Read the lists (lines `drinking/a001-0001Y.mp4 1`, numbers from 1); both lie in `data/` of the repository.

    Raises:
        DataError: A file is missing, a line is wrong, or folder and number name different classes.
    """
    inside = path / "data" if (path / "data").is_dir() else path
    actions = find_optional(path, "actionlist.csv") or find_file(inside, "actionlist.csv")
    classes = AnnotatedClasses([row[NAME] for _, row in table_rows(actions, (NAME,))], actions)
    parts: list[tuple[Split, Path]] = [
        ("train", find_file(inside, "videolist_train.txt")),
        ("test", find_file(inside, "videolist_val.txt")),
    ]
    entries = []
    for split, file in parts:
        for where, (video, number, *_) in rows(file, " ", 2, "class/video.mp4 number"):
            stem = PurePosixPath(video).with_suffix("")
            label = classes.label(stem.parts[0], where)
            if number != str(label + 1):
                raise DataError(
                    f"{where}: {stem.parts[0]!r} is class {label + 1} of {actions.name}, not {number}"
                )
            entries.append(AnnotatedVideo(str(stem), (str(stem), stem.name), (label,), split, where))
    return Annotations(classes.names, entries)
