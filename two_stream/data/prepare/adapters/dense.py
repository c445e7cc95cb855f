"""Reads dense labels of long recordings: CSV files, and exports of BORIS, ELAN, CVAT and Label Studio.

Every function raises a `DataError` if a file or a value is wrong. The message names the file and the line or element.
The forms of the files are described in docs/datasets.md.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree

from two_stream.data.catalog import read_lines
from two_stream.data.prepare.adapters.annotations import (
    AnnotatedVideo,
    Annotations,
    Mark,
    check_span,
    check_splits,
    check_type,
    json_value,
    parse_number,
    parse_split,
    read_json,
    read_table_rows,
)
from two_stream.errors import DataError
from two_stream.runtime.text import plural

COLUMNS = {
    "video": "video file filename video_file path recording id",
    "start": "start start_s start_time begin onset",
    "end": "end end_s end_time stop stop_s offset",
    "class": "class label action behavior behaviour annotation",
    "group": "group source",
    "split": "split subset",
}
"""names of the columns of a CSV file, in lower case; `start (s)` is read as `start_s`"""
_SUFFIXES = (".csv", ".tsv", ".eaf", ".xml", ".json")


def read_timeline(path: Path) -> Annotations:
    """Read a file of dense labels, or all such files of a folder.

    The result has one entry for each recording. Its `marks` are the labels of each entry.
    """
    files = [path]
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in _SUFFIXES)
        if not files:
            raise DataError(f"{path}: the folder has no dense labels; expected {', '.join(_SUFFIXES)} files")
    marks = [mark for file in files for mark in _read(file)]
    found = Annotations([], [], marks={})
    assert found.marks is not None
    first: dict[str, Mark] = {}
    for mark in marks:
        names = _video_names(mark.video, mark.where)
        if names[0] not in first:
            first[names[0]] = mark
            entry = AnnotatedVideo(names[0], names, (0,), mark.split, mark.where, group=mark.group)
            found.entries.append(entry)
        one = first[names[0]]
        if (mark.group, mark.split) != (one.group, one.split):
            raise DataError(
                f"{mark.where}: {mark.video!r} has another `group` or `split` than at {one.where}; expected the same "
                "in all rows of a recording"
            )
        found.marks.setdefault(names[0], []).append(mark)
    found.entries = check_splits(found.entries)
    points = Counter(mark.where.rpartition(":")[0] for mark in marks if mark.name and not mark.lasts)
    found.marks = {key: [mark for mark in one if mark.lasts] for key, one in found.marks.items()}
    found.notes += [
        f"{file}: {plural(n, 'point event')} without duration skipped" for file, n in points.items()
    ]
    found.classes = sorted({mark.name for one in found.marks.values() for mark in one})
    return found


def _read(path: Path) -> Iterator[Mark]:
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        lines = read_lines(path)
        if not lines:
            raise DataError(f"{path}: the file is empty; expected `video,start,end,class`")
        head = next((n for n, line in enumerate(lines) if "Behavior" in line and "Media file" in line), None)
        return _read_csv(path) if head is None else _read_boris(path, lines, head)
    if suffix == ".eaf":
        return _read_elan(path)
    if suffix == ".xml":
        return _read_cvat_xml(path)
    if suffix != ".json":
        raise DataError(f"{path}: expected a {', '.join(_SUFFIXES)} file")
    tasks = read_json(path)
    tasks = tasks if isinstance(tasks, list) else [tasks]
    objects = [
        (f"{path}: [{place}]", check_type(task, dict, f"{path}: [{place}]"))
        for place, task in enumerate(tasks)
    ]
    if any("tracks" in task or "tags" in task for _, task in objects):
        return _read_cvat_json(path, objects)
    return _read_label_studio(objects)


def _video_names(text: str, where: str) -> tuple[str, ...]:
    """Return the possible names of a recording: its path without suffix, and its name without folders."""
    plain = text.replace("\\", "/").rpartition("?d=")[2].split("?")[0].strip()
    plain = unquote(plain.removeprefix("file://")) if "://" in plain else plain
    if not plain:
        raise DataError(f"{where}: the video is missing; expected the name of a video file")
    path = PurePosixPath(plain)
    path = path.with_suffix("") if re.fullmatch(r"\.\w*[A-Za-z]\w*", path.suffix) else path
    uploaded = re.sub(r"^[0-9a-f]{8}-", "", path.name)  # Label Studio puts a code in front of uploaded files
    return tuple(dict.fromkeys((str(path), path.name, uploaded, PurePosixPath(plain).name)))


def _read_csv(path: Path) -> Iterator[Mark]:
    """Read rows `video,start,end,class` in seconds; without a column of videos, the file has the name of the video."""
    tab = path.suffix.lower() == ".tsv"
    columns: dict[str, str] = {}
    for where, row in read_table_rows(path, (), "\t" if tab else ","):
        if not columns:
            plain = {re.sub(r"[\s(-]+", "_", name.lower()).strip("_)"): name for name in row}
            columns = {key: plain[n] for key, names in COLUMNS.items() for n in names.split() if n in plain}
            lacking = [key for key in ("start", "end", "class") if key not in columns]
            if lacking:
                raise DataError(
                    f"{path}:1: the column `{lacking[0]}` is missing; expected `video,start,end,class`"
                )
        cells = {key: row[name] for key, name in columns.items()}
        video, split = cells.get("video") or path.stem, parse_split(cells.get("split", ""), where)
        mark = Mark(video, cells["class"], where, group=cells.get("group", ""), split=split)
        if not any(cells[key] for key in ("start", "end", "class")):
            yield mark  # a recording without labels
            continue
        if not mark.name:
            raise DataError(f"{where}: the class is empty; expected a class, or only a video for no labels")
        span = [parse_number(cells[key], where, f"`{columns[key]}`") for key in ("start", "end")]
        yield replace(mark, seconds=check_span(span[0], span[1], where))
    if not columns:
        yield Mark(path.stem, "", f"{path}:1")  # only a header: a recording without labels


def _read_boris(path: Path, lines: list[str], head: int) -> Iterator[Mark]:
    """Read events of BORIS, tabular (lines of START and STOP) or aggregated (lines with start and stop)."""
    delimiter = "\t" if "\t" in lines[head] else ","
    header = [name.strip().strip('"') for name in lines[head].split(delimiter)]
    kind = next((name for name in ("Behavior type", "Status") if name in header), "")
    media = next(
        name for name in ("Media file name", "Media file path", "Media file", *header) if name in header
    )
    aggregated = "Start (s)" in header
    needed = ("Behavior", kind or "Behavior type", *(("Start (s)", "Stop (s)") if aggregated else ("Time",)))
    open_: dict[tuple[str, ...], tuple[float, str]] = {}
    media_of: dict[str, str] = {}
    for where, row in read_table_rows(path, needed, delimiter, skip=head):
        video, name, subject = row[media], row["Behavior"], row.get("Subject", "")
        observation = row.get("Observation id", "")
        if media_of.setdefault(observation, video) != video:
            raise DataError(
                f"{where}: observation {observation!r} has several media files, such as {media_of[observation]!r} and "
                f"{video!r}; expected one media file for each observation"
            )
        if parse_number(row.get("Time offset (s)") or "0", where, "`Time offset (s)`"):
            raise DataError(
                f"{where}: the time offset is {row['Time offset (s)']} s: expected 0; remove it in BORIS"
            )
        what = row[kind].upper()
        if what == "POINT":
            yield Mark(video, name, where, track=subject)
        elif aggregated:
            start, end = (parse_number(row[key], where, f"`{key}`") for key in ("Start (s)", "Stop (s)"))
            yield Mark(video, name, where, check_span(start, end, where), track=subject)
        else:
            key = (observation, video, subject, name, *(row[c] for c in header if c.startswith("Modifier")))
            time = parse_number(row["Time"], where, "`Time`")
            if what not in ("START", "STOP") or (what == "STOP") != (key in open_):
                raise DataError(
                    f"{where}: {name!r} has {what or 'no type'}: expected START and STOP in turn, or POINT"
                )
            if what == "START":
                open_[key] = (time, where)
            else:
                yield Mark(video, name, where, check_span(open_.pop(key)[0], time, where), track=subject)
    for key, (time, where) in open_.items():
        raise DataError(f"{where}: {key[3]!r} starts at {time:g} s and never stops; expected a STOP")


def _read_xml(path: Path, root: str) -> ElementTree.Element:
    text = "\n".join(read_lines(path))
    if "<!DOCTYPE" in text or "<!ENTITY" in text:  # entities can make a small file arbitrarily large
        raise DataError(f"{path}: expected XML without DOCTYPE and ENTITY, which no export contains")
    try:
        found = ElementTree.fromstring(text)  # noqa: S314 - entities are refused above
    except (ElementTree.ParseError, ValueError) as error:
        line = getattr(error, "position", (1, 0))[0]
        raise DataError(f"{path}:{line}: invalid XML ({error}); check that the file is complete") from None
    if found.tag != root:
        raise DataError(f"{path}: the XML root is <{found.tag[:40]}>: expected <{root}>")
    return found


def _attribute(element: ElementTree.Element, name: str, where: str) -> str:
    value = element.get(name)
    if value is None:
        raise DataError(f"{where}: <{element.tag}> has no attribute {name}")
    return value


def _whole(value: Any, where: str, what: str) -> int:
    if not re.fullmatch(r"\d{1,9}", str(value)):
        raise DataError(f"{where}: {what} is {value!r}: expected a whole number of at least 0")
    return int(value)


def _read_elan(path: Path) -> Iterator[Mark]:
    """Read an ELAN file: the annotations of all tiers that have times of their own."""
    root = _read_xml(path, "ANNOTATION_DOCUMENT")
    media = root.find("HEADER/MEDIA_DESCRIPTOR")
    video = path.stem if media is None else media.get("MEDIA_URL") or path.stem
    if media is not None and media.get("TIME_ORIGIN", "0") != "0":
        raise DataError(
            f"{path}: MEDIA_DESCRIPTOR has TIME_ORIGIN {media.get('TIME_ORIGIN')}: expected no offset"
        )
    slots = {slot.get("TIME_SLOT_ID"): slot.get("TIME_VALUE") for slot in root.iter("TIME_SLOT")}
    yield Mark(video, "", str(path))
    for tier in root.iter("TIER"):
        track = tier.get("TIER_ID", "")
        for note in tier.iter("ALIGNABLE_ANNOTATION"):
            where = f"{path}: tier {track!r}, annotation {note.get('ANNOTATION_ID', '')}"
            name = (note.findtext("ANNOTATION_VALUE") or "").strip()
            if not name:
                raise DataError(f"{where}: the annotation has no text; expected a class")
            times = []
            for key in ("TIME_SLOT_REF1", "TIME_SLOT_REF2"):
                value = slots.get(_attribute(note, key, where))
                if value is None:
                    raise DataError(f"{where}: {key} has no time; align the annotation in ELAN")
                times.append(_whole(value, where, "TIME_VALUE") / 1000)
            yield Mark(video, name, where, check_span(times[0], times[1], where), track=track)


def _runs(shapes: Mapping[int, bool], last: int | None) -> Iterator[tuple[int, int | None]]:
    """Yield (first frame, 1-based, frame after the last one) of each visible part of a CVAT track.

    `shapes` says for each frame, from 0, whether the object is outside. `last` ends a part that is visible to the end.
    """
    start: int | None = None
    for frame, outside in sorted(shapes.items()):
        if not outside and start is None:
            start = frame
        elif outside and start is not None:
            yield start + 1, frame + 1
            start = None
    if start is not None:
        yield start + 1, last


def _read_cvat_xml(path: Path) -> Iterator[Mark]:
    """Read "CVAT for video 1.1" (tracks) or "CVAT for images 1.1" (tags of frames) of one task."""
    root = _read_xml(path, "annotations")
    meta = root.find("meta")
    if meta is not None and meta.find("project") is not None:
        raise DataError(f"{path}: is the export of a project; export each task by itself")
    video = (root.findtext("meta/source") or root.findtext("meta/task/source") or path.stem).strip()
    yield Mark(video, "", str(path))
    for track in root.iter("track"):
        where = f"{path}: track {track.get('id', '')}"
        shapes = {
            _whole(_attribute(shape, "frame", where), where, "frame"): shape.get("outside") == "1"
            for shape in track
        }
        for span in _runs(shapes, max(shapes, default=0) + 2):
            yield Mark(video, _attribute(track, "label", where), where, frames=span)
    for image in root.iter("image"):
        where = f"{path}: image {image.get('id', '')}"
        frame = _whole(_attribute(image, "id", where), where, "id")
        for tag in image.iter("tag"):
            yield Mark(video, _attribute(tag, "label", where), where, frames=(frame + 1, frame + 2))


def _read_cvat_json(path: Path, jobs: list[tuple[str, dict[str, Any]]]) -> Iterator[Mark]:
    """Read `annotations.json` of a CVAT task backup: tracks with key frames, and tags of frames."""
    yield Mark(path.stem, "", str(path))
    for place, job in jobs:
        for kind in ("tracks", "tags"):
            for number, item in enumerate(check_type(job.get(kind, []), list, f"{place}.{kind}")):
                where = f"{place}.{kind}[{number}]"
                item = check_type(item, dict, where)
                name = json_value(item, "label", str, where)
                if kind == "tags":
                    frame = _whole(json_value(item, "frame", int, where), where, "frame")
                    yield Mark(path.stem, name, where, frames=(frame + 1, frame + 2))
                    continue
                shapes = {}
                for shape in check_type(item.get("shapes", []), list, f"{where}.shapes"):
                    frame = _whole(
                        json_value(check_type(shape, dict, where), "frame", int, where), where, "frame"
                    )
                    shapes[frame] = bool(shape.get("outside"))
                for span in _runs(shapes, None):
                    yield Mark(path.stem, name, where, frames=span)


def _read_label_studio(tasks: list[tuple[str, dict[str, Any]]]) -> Iterator[Mark]:
    """Read the JSON export of Label Studio: `timelinelabels` in frames, or labels of audio and video in seconds."""
    for place, task in tasks:
        data = json_value(task, "data", dict, place)
        media = [str(data[key]) for key in ("video", "audio", "url") if data.get(key)] or [
            str(task.get("file_upload", ""))
        ]
        done = [one for one in json_value(task, "annotations", list, place) if not one.get("was_cancelled")]
        if len(done) > 1:
            raise DataError(
                f"{place}: the task has {len(done)} annotations: expected one; keep the final one"
            )
        yield Mark(media[0], "", place)
        for number, item in enumerate(check_type(done[0].get("result", []), list, place) if done else []):
            where = f"{place}.result[{number}]"
            kind, value = item.get("type", ""), json_value(item, "value", dict, where)
            track = str(item.get("from_name", ""))
            for name in value.get(kind, []) if kind in ("timelinelabels", "labels") else []:
                for part in check_type(value.get("ranges", [value]), list, where):
                    ends = [json_value(part, key, float, where) for key in ("start", "end")]
                    if kind == "labels":
                        yield Mark(
                            media[0], str(name), where, check_span(ends[0], ends[1], where), track=track
                        )
                        continue
                    if not 1 <= ends[0] <= ends[1]:
                        raise DataError(
                            f"{where}: frames {ends[0]:g} to {ends[1]:g}: expected 1 <= start <= end"
                        )
                    yield Mark(
                        media[0], str(name), where, frames=(int(ends[0]), int(ends[1]) + 1), track=track
                    )
