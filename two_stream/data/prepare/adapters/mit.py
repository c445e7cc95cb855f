"""Moments in Time: `moments_categories.txt` (`class,label`), `trainingSet.csv`, `validationSet.csv`."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from two_stream.data.prepare.adapters.annotations import (
    AnnotatedClasses,
    AnnotatedVideo,
    Annotations,
    Split,
    find_file,
    rows,
)
from two_stream.data.prepare.adapters.codebase_json import read_codebase_json
from two_stream.errors import DataError


def read_mit(path: Path) -> Annotations:
    """Read the official files (lines `class/video.mp4,class,…` without header), or the codebases' JSON file.

    Raises:
        DataError: A file is missing, a line is wrong or a class is unknown.
    """
    if path.suffix == ".json":
        return read_codebase_json(path)
    classes = _classes(find_file(path, "moments_categories.txt"))
    parts: list[tuple[Split, Path]] = [
        ("train", find_file(path, "trainingSet.csv")),
        ("test", find_file(path, "validationSet.csv")),
    ]
    entries = []
    for split, file in parts:
        for where, (video, name, *_) in rows(file, ",", 2, "class/video.mp4,class,…"):
            stem = PurePosixPath(video).with_suffix("")
            names = tuple(dict.fromkeys((str(stem), stem.name)))
            entries.append(AnnotatedVideo(str(stem), names, (classes.label(name, where),), split, where))
    return Annotations(classes.names, entries)


def _classes(path: Path) -> AnnotatedClasses:
    names: list[str] = []
    for where, (name, label, *_) in rows(path, ",", 2, "class,label"):
        if label != str(len(names)):
            raise DataError(f"{where}: class {name!r} has label {label}, expected {len(names)}")
        names.append(name)
    return AnnotatedClasses(names, path)
