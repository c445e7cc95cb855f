"""The JSON files of Efficient-3DCNNs and 3D-ResNets-PyTorch, which follow ActivityNet's.

`{"labels": […], "database": {id: {"subset": "training", "annotations": {"label": …, "segment": [1, 41]}}}}`; the
segment counts frames from 1 and does not hold the last. Efficient-3DCNNs' Kinetics file has the database once per
subset and file names as ids. Where annotations are a list, as in ActivityNet, segments are seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from two_stream.data.prepare.adapters.annotations import (
    AnnotatedClasses,
    AnnotatedVideo,
    Annotations,
    Split,
    find_file,
    key,
    read_json,
    span,
    typed,
)
from two_stream.errors import DataError

_PARTS: dict[str, Split] = {"training": "train", "validation": "test"}
_SUFFIXES = (".mp4", ".avi", ".webm", ".mkv")


def read_codebase_json(path: Path, prefix: str = "") -> Annotations:
    """Read such a file; labels follow its `labels`, else the leaves of its `taxonomy`.

    Args:
        path: The file.
        prefix: Files may be called `<prefix><id>`.

    Raises:
        DataError: Missing, no whole JSON, or a wrong value; names the key.
    """
    content = typed(read_json(path), dict, str(path))
    classes = AnnotatedClasses(_names(content, path), path)
    entries: list[AnnotatedVideo] = []
    without = 0
    for where, video_id, item in _items(content, path):
        subset = key(item, "subset", str, where)
        if subset == "testing":  # published without classes
            without += 1
            continue
        if subset not in _PARTS:
            raise DataError(f"{where}.subset: {subset!r}: expected training, validation or testing")
        name = _stem(video_id)
        entries += _entries(item, name, prefix, _PARTS[subset], classes, where)
    notes = [f"{without} videos of the testing subset have no class and are left out"] if without else []
    return Annotations(classes.names, entries, notes=notes)


def _names(content: dict[str, Any], path: Path) -> list[str]:
    if "labels" in content:
        labels = key(content, "labels", list, f"{path}:")
        return [typed(name, str, f"{path}: labels[{place}]") for place, name in enumerate(labels)]
    if "taxonomy" not in content:
        raise DataError(f"{path}: neither `labels` nor `taxonomy` names the classes")
    nodes = key(content, "taxonomy", list, f"{path}:")
    named = []
    for place, value in enumerate(nodes):
        where = f"{path}: taxonomy[{place}]"
        node = typed(value, dict, where)
        named.append((node.get("nodeId"), node.get("parentId"), key(node, "nodeName", str, where)))
    parents = {parent for _, parent, _ in named}
    return [name for node, _, name in named if node not in parents]


def _items(content: dict[str, Any], path: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    database = key(content, "database", dict, f"{path}:")
    for name, value in database.items():
        where = f"{path}: database.{name}"
        item = typed(value, dict, where)
        if name in ("training", "validation", "testing") and "subset" not in item:
            for inner, inner_value in item.items():
                yield f"{where}.{inner}", inner, typed(inner_value, dict, f"{where}.{inner}")
        else:
            yield where, name, item


def _stem(video_id: str) -> str:
    name = PurePosixPath(video_id)
    return str(name.with_suffix("")) if name.suffix.lower() in _SUFFIXES else video_id


def _entries(
    item: dict[str, Any], name: str, prefix: str, split: Split, classes: AnnotatedClasses, where: str
) -> Iterator[AnnotatedVideo]:
    annotations = item.get("annotations")
    place = f"{where}.annotations"
    names = tuple(dict.fromkeys((f"{prefix}{name}", name)))
    if isinstance(annotations, dict):
        label = classes.label(key(annotations, "label", str, place), f"{place}.label")
        frames = _frames(annotations["segment"], f"{place}.segment") if "segment" in annotations else None
        named = (f"{classes.names[label]}/{name}", *names)
        yield AnnotatedVideo(name, named, (label,), split, where, frames=frames)
        return
    fps = key(item, "fps", float, where) if "fps" in item else None
    if fps is not None and fps <= 0:
        raise DataError(f"{where}.fps: {fps:g}: expected more than 0")
    for number, value in enumerate(typed(annotations, list, place)):
        inner = f"{place}[{number}]"
        part = typed(value, dict, inner)
        label = classes.label(key(part, "label", str, inner), f"{inner}.label")
        seconds = _pair(key(part, "segment", list, inner), f"{inner}.segment")
        yield AnnotatedVideo(
            name, names, (label,), split, inner, seconds=span(*seconds, inner), group=name, fps=fps
        )


def _pair(value: list[Any], where: str) -> tuple[float, float]:
    if len(value) != 2:
        raise DataError(f"{where}: {len(value)} values: expected start and end")
    start, end = (typed(entry, float, where) for entry in value)
    return start, end


def _frames(value: Any, where: str) -> tuple[int, int]:
    start, stop = _pair(typed(value, list, where), where)
    if not (start.is_integer() and stop.is_integer() and 0 <= start < stop):
        raise DataError(f"{where}: {value}: expected whole frame numbers, the second after the first")
    return max(int(start), 1), int(stop)


def read_activitynet(path: Path) -> Annotations:
    """Read the official file (or the folder it lies in): every annotated segment is an entry of its own.

    Labels follow the leaves of the taxonomy, as in 3D-ResNets-PyTorch `datasets/activitynet.py`, unless the file has
    `labels`. `fps`, where 3D-ResNets' scripts have added it, goes for videos whose own time stamps cannot be read.
    Videos are called `v_<id>` or `<id>`.

    Raises:
        DataError: Missing, no whole JSON, or a wrong value; names the key.
    """
    file = find_file(path, "activity_net*.json", "*.json") if path.is_dir() else path
    return read_codebase_json(file, prefix="v_")
