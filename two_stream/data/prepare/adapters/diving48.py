"""Diving48: `Diving48_vocab.json` (a list of four terms per class) and `Diving48_V2_{train,test}.json`."""

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
    read_json,
    typed,
)
from two_stream.errors import DataError

GROUP = r"(?:^|/)([\w-]{11})_\d{5}$"
"""dives of one YouTube video share a source"""


def read_diving48(path: Path) -> Annotations:
    """Read the vocabulary and both lists; a class is called `Back, 15som, 05Twis, FREE`.

    A video `<vid_name>.mp4` has the frames `start_frame` (from 0) to `end_frame` (exclusive); they are all of it.

    Raises:
        DataError: A file is missing or an entry is wrong; names the key.
    """
    vocabulary = find_file(path, "Diving48_vocab.json", "*vocab*.json")
    names = []
    for place, terms in enumerate(typed(read_json(vocabulary), list, str(vocabulary))):
        where = f"{vocabulary}: [{place}]"
        names.append(", ".join(typed(term, str, where) for term in typed(terms, list, where)))
    classes = AnnotatedClasses(names, vocabulary)
    parts: list[tuple[Split, Path]] = [
        ("train", find_file(path, "Diving48*train.json", "*train.json")),
        ("test", find_file(path, "Diving48*test.json", "*test.json")),
    ]
    entries = []
    for split, file in parts:
        for where, item in json_objects(file):
            name, label = key(item, "vid_name", str, where), key(item, "label", int, where)
            if not 0 <= label < len(names):
                raise DataError(f"{where}.label: {label}: expected 0 to {len(names) - 1}")
            start, end = key(item, "start_frame", int, where), key(item, "end_frame", int, where)
            if not 0 <= start < end:
                raise DataError(f"{where}: frames {start} to {end}: expected 0 <= start_frame < end_frame")
            entries.append(AnnotatedVideo(name, (name,), (label,), split, where, frames=(start + 1, end + 1)))
    return Annotations(classes.names, entries, group=GROUP)
