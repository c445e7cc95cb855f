"""Something-Something V2: JSON lists of `{"id", "label", "template", "placeholders"}` and the labels by template."""

from __future__ import annotations

from pathlib import Path

from two_stream.data.prepare.adapters.annotations import (
    AnnotatedClasses,
    AnnotatedVideo,
    Annotations,
    Split,
    find_file,
    json_objects,
    key,
    left_right_pairs,
    read_json,
    typed,
)
from two_stream.errors import DataError


def read_ssv2(path: Path) -> Annotations:
    """Read `*labels.json`, `*train.json` and `*validation.json`; a video is `<id>.webm`.

    Classes whose names differ by left and right only (`Pushing something from left to right`, `Turning the camera left
    while filming something` …) are the mirror images of each other.

    Raises:
        DataError: A file is missing or an entry is wrong; names the key.
    """
    classes = _classes(find_file(path, "something*labels.json", "*labels.json"))
    parts: list[tuple[Split, Path]] = [
        ("train", find_file(path, "something*train.json", "*train.json")),
        ("test", find_file(path, "something*validation.json", "*validation.json")),
    ]
    entries = []
    for split, file in parts:
        for where, item in json_objects(file):
            name = key(item, "id", str, where)
            template = key(item, "template", str, where).replace("[", "").replace("]", "")
            label = classes.label(template, f"{where}.template")
            entries.append(AnnotatedVideo(name, (name,), (label,), split, where))
    return Annotations(classes.names, entries, mirror_pairs=left_right_pairs(classes.names))


def _classes(path: Path) -> AnnotatedClasses:
    by_label: dict[int, str] = {}
    for name, text in typed(read_json(path), dict, str(path)).items():
        where = f"{path}: {name!r}"
        if not str(text).isdecimal():
            raise DataError(f"{where}: label {text!r}: expected a whole number")
        if by_label.setdefault(int(text), name) != name:
            raise DataError(f"{where}: label {text} is that of {by_label[int(text)]!r} already")
    if sorted(by_label) != list(range(len(by_label))):
        lacking = next(label for label in range(len(by_label)) if label not in by_label)
        raise DataError(f"{path}: no class has label {lacking}; is the file whole?")
    return AnnotatedClasses([by_label[label] for label in range(len(by_label))], path)
