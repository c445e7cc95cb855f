"""Reads the official annotation files of published data sets.

There is one function for each data set. The argument is the folder or file of `--annotations`. Every function raises a
`DataError` if a file is missing, a line or value is wrong, or a class is unknown. The message names the folder or the
file and, where there is one, the line, or for JSON files the key.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from two_stream.data.catalog import read_lines
from two_stream.data.prepare.adapters.annotations import (
    AnnotatedClasses,
    AnnotatedVideo,
    Annotations,
    Split,
    check_span,
    check_type,
    find_file,
    find_optional,
    json_objects,
    json_value,
    left_right_pairs,
    packaged_classes,
    parse_number,
    read_fields,
    read_json,
    read_table_rows,
)
from two_stream.errors import DataError
from two_stream.runtime.text import plural

_JSON_PARTS: dict[str, Split] = {"training": "train", "validation": "test"}
_SUFFIXES = (".mp4", ".avi", ".webm", ".mkv")


def read_ucf101(path: Path) -> Annotations:
    """Read UCF101: `trainlist0N.txt` and `testlist0N.txt` for three splits, with lines `Class/v_Class_g01_c01.avi 1`.

    The labels on the lines and the file `classInd.txt` are optional.
    """
    classes = packaged_classes("ucf101")
    if (path / "classInd.txt").is_file():
        for where, (place, *words) in read_fields(path / "classInd.txt", " ", 2, "1 ApplyEyeMakeup"):
            name = " ".join(words)
            label = classes.label(name, where)
            if place != str(label + 1):
                raise DataError(f"{where}: class {name!r} has number {place}, expected {label + 1}")
    entries: dict[str, AnnotatedVideo] = {}

    def read_list(file: Path) -> list[str]:
        names = []
        for where, fields in read_fields(file, " ", 1, "Class/video.avi"):
            video = PurePosixPath(fields[0])
            if len(video.parts) != 2:
                raise DataError(f"{where}: {fields[0]!r}: expected `Class/video.avi`")
            label = classes.label(video.parts[0], where)
            entries.setdefault(video.stem, AnnotatedVideo(video.stem, (video.stem,), (label,), "", where))
            names.append(video.stem)
        return names

    splits = [
        (read_list(path / f"trainlist{split:02d}.txt"), read_list(path / f"testlist{split:02d}.txt"))
        for split in (1, 2, 3)
    ]
    return Annotations(classes.names, list(entries.values()), splits=splits)


def read_hmdb51(path: Path) -> Annotations:
    """Read HMDB51: `<class>_test_splitN.txt` for three splits. Lines are `video.avi 0|1|2` (unused, training, test)."""
    if not path.is_dir():
        raise DataError(f"{path}: the folder of the split files does not exist")
    classes = packaged_classes("hmdb51")
    entries: dict[str, AnnotatedVideo] = {}
    splits = []
    for split in (1, 2, 3):
        suffix = f"_test_split{split}.txt"
        found = sorted(path.glob(f"*{suffix}"))
        files = {classes.label(file.name.removesuffix(suffix), str(file)): file for file in found}
        missing = [name for label, name in enumerate(classes.names) if label not in files]
        if missing:
            more = f" (other missing files: {len(missing) - 1})" if len(missing) > 1 else ""
            raise DataError(
                f"{path / (missing[0] + suffix)}: no such file{more}; use the folder testTrainMulti_7030_splits"
            )
        sides: dict[str, list[str]] = {"0": [], "1": [], "2": []}
        for label, file in sorted(files.items()):
            for place, line in enumerate(read_lines(file), 1):
                if not line.strip():
                    continue
                name, _, mark = line.strip().rpartition(" ")
                where, stem = f"{file}:{place}", PurePosixPath(name.strip()).stem
                if not name or mark not in sides:
                    raise DataError(f"{where}: {line.strip()!r}: expected `video.avi N`, with N 0, 1 or 2")
                sides[mark].append(stem)
                if mark != "0":
                    entries.setdefault(stem, AnnotatedVideo(stem, (stem,), (label,), "", where))
        splits.append((sides["1"], sides["2"]))
    return Annotations(classes.names, list(entries.values()), splits=splits)


def read_kinetics(path: Path) -> Annotations:
    """Read Kinetics-400, -600 or -700: `*train*.csv` and `*val*.csv`, or a JSON file (see `read_codebase_json`).

    Labels are indices into the sorted class names, as in every published Kinetics checkpoint. A clip is called
    `<id>_000010_000020.mp4` (start and end in seconds) or `<id>.mp4`; class folders are optional.
    """
    group = r"(?:^|/)([\w-]{11})(?:_\d{6}_\d{6})?$"  # clips of one YouTube video share a source
    if path.suffix == ".json":
        found = read_codebase_json(path)
        found.group = group
        return found
    columns = ("label", "youtube_id", "time_start", "time_end")
    listed = [
        (split, where, row)
        for split, file in _two_lists(path, ("*train*.csv",), ("*val*.csv",))
        for where, row in read_table_rows(file, columns, filled=columns[:2])
    ]
    classes = AnnotatedClasses(sorted({row["label"] for _, _, row in listed}), path)
    entries = []
    for split, where, row in listed:
        start, end = (parse_number(row[column], where, f"`{column}`") for column in columns[2:])
        check_span(start, end, where)
        name = f"{row['youtube_id']}_{int(start):06d}_{int(end):06d}"
        label = classes.label(row["label"], where)
        entries.append(AnnotatedVideo(name, (name, row["youtube_id"]), (label,), split, where))
    return Annotations(classes.names, entries, group=group)


def read_jester(path: Path) -> Annotations:
    """Read Jester: `jester-v1-labels.csv`, `jester-v1-train.csv` and `jester-v1-validation.csv`.

    The lists have lines `id;label`. The files `classInd.txt`, `trainlist.txt` and `vallist.txt` of Efficient-3DCNNs are
    also supported. A video is a folder `<id>` with frames `00001.jpg` and so on, or a file `<id>.webm`.
    """
    entries = []
    labels = find_optional(path, "jester*labels.csv", "*labels.csv")
    if labels is not None:
        classes = AnnotatedClasses([fields[0] for _, fields in read_fields(labels, ";", 1, "class")], labels)
        train, test = ("jester*train.csv", "*train.csv"), ("jester*validation.csv", "*validation.csv")
        for split, file in _two_lists(path, train, test):
            for where, (name, text, *_) in read_fields(file, ";", 2, "id;label"):
                entries.append(AnnotatedVideo(name, (name,), (classes.label(text, where),), split, where))
    else:
        names: list[str] = []
        numbers = find_file(path, "classInd.txt", "jester*labels.csv")
        for where, fields in read_fields(numbers, " ", 2, "1 class"):
            if fields[0] != str(len(names) + 1):
                raise DataError(
                    f"{where}: class {fields[1]!r} has number {fields[0]}, expected {len(names) + 1}"
                )
            names.append(" ".join(fields[1:]))
        classes = AnnotatedClasses(names, numbers)
        for split, file in _two_lists(path, ("trainlist.txt",), ("vallist.txt",)):
            for where, (name, text, *_) in read_fields(file, " ", 2, "id number"):
                if not text.isdecimal() or not 1 <= int(text) <= len(names):
                    raise DataError(f"{where}: class number {text!r}: expected 1 to {len(names)}")
                entries.append(AnnotatedVideo(name, (name,), (int(text) - 1,), split, where))
    # a mirror reverses a turning hand; rolling forward and backward stay the same
    turns = {"clockwise": "counterclockwise", "counterclockwise": "clockwise"}
    return Annotations(classes.names, entries, mirror_pairs=left_right_pairs(classes.names, turns))


def read_ssv2(path: Path) -> Annotations:
    """Read Something-Something V2: `*labels.json`, `*train.json` and `*validation.json`; videos are files `<id>.webm`.

    Classes whose names differ only by left and right (`Pushing something from left to right`, `Turning the camera left
    while filming something` …) are mirror images of each other.
    """
    file = find_file(path, "something*labels.json", "*labels.json")
    by_label: dict[int, str] = {}
    for name, text in check_type(read_json(file), dict, str(file)).items():
        where = f"{file}: {name!r}"
        if not str(text).isdecimal():
            raise DataError(f"{where}: label {text!r}: expected a whole number")
        if by_label.setdefault(int(text), name) != name:
            raise DataError(f"{where}: label {text} already belongs to {by_label[int(text)]!r}")
    missing = next((label for label in range(len(by_label)) if label not in by_label), None)
    if missing is not None:
        raise DataError(f"{file}: no class has label {missing}; check that the file is complete")
    classes = AnnotatedClasses([by_label[label] for label in range(len(by_label))], file)
    entries = []
    train, test = ("something*train.json", "*train.json"), ("something*validation.json", "*validation.json")
    for split, listed in _two_lists(path, train, test):
        for where, item in json_objects(listed):
            name = json_value(item, "id", str, where)
            template = json_value(item, "template", str, where).replace("[", "").replace("]", "")
            label = classes.label(template, f"{where}.template")
            entries.append(AnnotatedVideo(name, (name,), (label,), split, where))
    return Annotations(classes.names, entries, mirror_pairs=left_right_pairs(classes.names))


def read_mit(path: Path) -> Annotations:
    """Read Moments in Time: `moments_categories.txt` (lines `class,label`), `trainingSet.csv` and `validationSet.csv`.

    The lists have no header, and their lines are `class/video.mp4,class,…`. The JSON files of Efficient-3DCNNs and
    3D-ResNets-PyTorch are also supported (see `read_codebase_json`).
    """
    if path.suffix == ".json":
        return read_codebase_json(path)
    file = find_file(path, "moments_categories.txt")
    names: list[str] = []
    for where, (name, label, *_) in read_fields(file, ",", 2, "class,label"):
        if label != str(len(names)):
            raise DataError(f"{where}: class {name!r} has label {label}, expected {len(names)}")
        names.append(name)
    classes = AnnotatedClasses(names, file)
    entries = []
    for split, listed in _two_lists(path, ("trainingSet.csv",), ("validationSet.csv",)):
        for where, (video, name, *_) in read_fields(listed, ",", 2, "class/video.mp4,class,…"):
            stem = PurePosixPath(video).with_suffix("")
            places = tuple(dict.fromkeys((str(stem), stem.name)))
            entries.append(AnnotatedVideo(str(stem), places, (classes.label(name, where),), split, where))
    return Annotations(classes.names, entries)


def read_diving48(path: Path) -> Annotations:
    """Read Diving48: `Diving48_vocab.json` with four terms for each class, and `Diving48_V2_{train,test}.json`.

    Class names have the form `Back, 15som, 05Twis, FREE`. A video consists of the frames `start_frame` (from 0) to
    `end_frame` (exclusive) of `<vid_name>.mp4`.
    """
    vocabulary = find_file(path, "Diving48_vocab.json", "*vocab*.json")
    names = []
    for place, terms in enumerate(check_type(read_json(vocabulary), list, str(vocabulary))):
        where = f"{vocabulary}: [{place}]"
        names.append(", ".join(check_type(term, str, where) for term in check_type(terms, list, where)))
    classes = AnnotatedClasses(names, vocabulary)
    entries = []
    for split, file in _two_lists(
        path, ("Diving48*train.json", "*train.json"), ("Diving48*test.json", "*test.json")
    ):
        for where, item in json_objects(file):
            name, label = json_value(item, "vid_name", str, where), json_value(item, "label", int, where)
            if not 0 <= label < len(names):
                raise DataError(f"{where}.label: {label}: expected 0 to {len(names) - 1}")
            start, end = (
                json_value(item, "start_frame", int, where),
                json_value(item, "end_frame", int, where),
            )
            if not 0 <= start < end:
                raise DataError(f"{where}: frames {start} to {end}: expected 0 <= start_frame < end_frame")
            entries.append(AnnotatedVideo(name, (name,), (label,), split, where, frames=(start + 1, end + 1)))
    # dives of one YouTube video share a source
    return Annotations(classes.names, entries, group=r"(?:^|/)([\w-]{11})_\d{5}$")


def read_stair(path: Path) -> Annotations:
    """Read STAIR-Actions: `actionlist.csv`, `videolist_train.txt` and `videolist_val.txt`.

    These files are in the folder `data/` of the published repository. Lines of the lists have the form
    `drinking/a001-0001Y.mp4 1`, with class numbers from 1.
    """
    column = "English category"
    inside = path / "data" if (path / "data").is_dir() else path
    actions = find_optional(path, "actionlist.csv") or find_file(inside, "actionlist.csv")
    classes = AnnotatedClasses([row[column] for _, row in read_table_rows(actions, (column,))], actions)
    entries = []
    for split, file in _two_lists(inside, ("videolist_train.txt",), ("videolist_val.txt",)):
        for where, (video, place, *_) in read_fields(file, " ", 2, "class/video.mp4 number"):
            stem = PurePosixPath(video).with_suffix("")
            label = classes.label(stem.parts[0], where)
            if place != str(label + 1):
                raise DataError(
                    f"{where}: {stem.parts[0]!r} is class {label + 1} of {actions.name}, not {place}"
                )
            entries.append(AnnotatedVideo(str(stem), (str(stem), stem.name), (label,), split, where))
    return Annotations(classes.names, entries)


def read_charades(path: Path) -> Annotations:
    """Read Charades: `Charades_v1_classes.txt` with lines `c000 Name`, and CSV files with a column `actions`.

    The `actions` of a video have the form `c092 11.90 21.20;…`, and the video has all of these classes. The source of a
    video is the person in it. Videos without actions are left out, and a note reports their number.
    """
    file = find_file(path, "Charades_v1_classes.txt", "*classes.txt")
    named = [
        (where, fields[0], " ".join(fields[1:])) for where, fields in read_fields(file, " ", 2, "c000 name")
    ]
    for place, (where, code, _) in enumerate(named):
        if code != f"c{place:03d}":
            raise DataError(f"{where}: class {code}, expected c{place:03d}")
    codes = AnnotatedClasses([code for _, code, _ in named], file)
    classes = AnnotatedClasses([name for _, _, name in named], file)
    entries, empty = [], 0
    for split, listed in _two_lists(
        path, ("Charades_v1_train.csv", "*train.csv"), ("Charades_v1_test.csv", "*test.csv")
    ):
        for where, row in read_table_rows(listed, ("id", "subject", "actions"), filled=("id",)):
            labels = set()
            for action in filter(None, (text.strip() for text in row["actions"].split(";"))):
                fields = action.split()
                if len(fields) != 3:
                    raise DataError(f"{where}: action {action!r}: expected the form `c092 11.90 21.20`")
                for text in fields[1:]:
                    parse_number(text, where, "a time of an action")
                labels.add(codes.label(fields[0], where))
            name, group = row["id"], row["subject"]
            if labels:
                entries.append(
                    AnnotatedVideo(name, (name,), tuple(sorted(labels)), split, where, group=group)
                )
            empty += not labels
    one, many = "has no action and is", "have no action and are"
    notes = [f"{plural(empty, 'video', one, many)} left out"] if empty else []
    return Annotations(classes.names, entries, multi_label=True, notes=notes)


def read_activitynet(path: Path) -> Annotations:
    """Read ActivityNet: `activity_net.v1-3.min.json`, or the folder with this file.

    Every annotated segment is a separate entry. If the file has no `labels`, classes are in the order of the leaves of
    the taxonomy, as in 3D-ResNets-PyTorch `datasets/activitynet.py`. The scripts of 3D-ResNets-PyTorch may add `fps` to
    the file; it is used for videos whose timestamps cannot be read. Videos are called `v_<id>` or `<id>`.
    """
    file = find_file(path, "activity_net*.json", "*.json") if path.is_dir() else path
    return read_codebase_json(file, prefix="v_")


def read_codebase_json(path: Path, prefix: str = "") -> Annotations:
    """Read the JSON files of Efficient-3DCNNs and 3D-ResNets-PyTorch, which have a form similar to ActivityNet's.

    The form is `{"labels": […], "database": {id: {"subset": "training", "annotations": {"label": …, "segment": [1,
    41]}}}}`. The frames of a segment are counted from 1, and the end of a segment is exclusive. The Kinetics file of
    Efficient-3DCNNs contains one database for each subset, and its ids are file names. If annotations are a list, as in
    ActivityNet, segments are in seconds. Classes are in the order of `labels`, or without `labels` in the order of the
    leaves of `taxonomy`. Segments without duration, of which ActivityNet has some, are left out with a note.

    Args:
        path: The file.
        prefix: Files may be called `<prefix><id>`.
    """
    content = check_type(read_json(path), dict, str(path))
    classes = AnnotatedClasses(_names(content, path), path)
    entries: list[AnnotatedVideo] = []
    without, empty = 0, list[str]()
    for where, video_id, item in _items(content, path):
        subset = json_value(item, "subset", str, where)
        if subset == "testing":  # published without classes
            without += 1
            continue
        if subset not in _JSON_PARTS:
            raise DataError(f"{where}.subset: {subset!r}: expected training, validation or testing")
        name = PurePosixPath(video_id)
        stem = str(name.with_suffix("")) if name.suffix.lower() in _SUFFIXES else video_id
        entries += _entries(item, stem, prefix, _JSON_PARTS[subset], classes, where, empty)
    one, many = "of the testing subset has no class and is", "of the testing subset have no class and are"
    notes = [f"{plural(without, 'video', one, many)} left out"] if without else []
    if empty:
        notes.append(f"{plural(len(empty), 'segment')} without duration left out (first: {empty[0]})")
    return Annotations(classes.names, entries, notes=notes)


def _two_lists(path: Path, train: tuple[str, ...], test: tuple[str, ...]) -> list[tuple[Split, Path]]:
    """Return the training and the test list; see `find_file` for the patterns."""
    return [("train", find_file(path, *train)), ("test", find_file(path, *test))]


def _names(content: dict[str, Any], path: Path) -> list[str]:
    if "labels" in content:
        labels = json_value(content, "labels", list, f"{path}:")
        return [check_type(name, str, f"{path}: labels[{place}]") for place, name in enumerate(labels)]
    if "taxonomy" not in content:
        raise DataError(f"{path}: expected class names in `labels` or `taxonomy`, found none")
    nodes = json_value(content, "taxonomy", list, f"{path}:")
    named = []
    for place, value in enumerate(nodes):
        where = f"{path}: taxonomy[{place}]"
        node = check_type(value, dict, where)
        named.append((node.get("nodeId"), node.get("parentId"), json_value(node, "nodeName", str, where)))
    parents = {parent for _, parent, _ in named}
    return [name for node, _, name in named if node not in parents]


def _items(content: dict[str, Any], path: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    database = json_value(content, "database", dict, f"{path}:")
    for name, value in database.items():
        where = f"{path}: database.{name}"
        item = check_type(value, dict, where)
        if name in ("training", "validation", "testing") and "subset" not in item:
            for inner, inner_value in item.items():
                yield f"{where}.{inner}", inner, check_type(inner_value, dict, f"{where}.{inner}")
        else:
            yield where, name, item


def _entries(
    item: dict[str, Any],
    name: str,
    prefix: str,
    split: Split,
    classes: AnnotatedClasses,
    where: str,
    empty: list[str],
) -> Iterator[AnnotatedVideo]:
    """Yield the entries of a video; the places of segments without duration are added to `empty`."""
    annotations = item.get("annotations")
    place = f"{where}.annotations"
    names = tuple(dict.fromkeys((f"{prefix}{name}", name)))
    if isinstance(annotations, dict):
        label = classes.label(json_value(annotations, "label", str, place), f"{place}.label")
        frames = _frames(annotations["segment"], f"{place}.segment") if "segment" in annotations else None
        named = (f"{classes.names[label]}/{name}", *names)
        yield AnnotatedVideo(name, named, (label,), split, where, frames=frames)
        return
    fps = json_value(item, "fps", float, where) if "fps" in item else None
    if fps is not None and fps <= 0:
        raise DataError(f"{where}.fps: {fps:g}: expected more than 0")
    for index, value in enumerate(check_type(annotations, list, place)):
        inner = f"{place}[{index}]"
        part = check_type(value, dict, inner)
        label = classes.label(json_value(part, "label", str, inner), f"{inner}.label")
        seconds = _pair(json_value(part, "segment", list, inner), f"{inner}.segment")
        if seconds[0] == seconds[1]:
            empty.append(inner)
            continue
        yield AnnotatedVideo(
            name, names, (label,), split, inner, seconds=check_span(*seconds, inner), group=name, fps=fps
        )


def _pair(value: list[Any], where: str) -> tuple[float, float]:
    if len(value) != 2:
        raise DataError(f"{where}: found {len(value)} values: expected start and end")
    start, end = (check_type(entry, float, where) for entry in value)
    return start, end


def _frames(value: Any, where: str) -> tuple[int, int]:
    start, stop = _pair(check_type(value, list, where), where)
    if not (start.is_integer() and stop.is_integer() and 0 <= start < stop):
        raise DataError(
            f"{where}: {value}: expected two integer frame numbers, the second larger than the first"
        )
    return max(int(start), 1), int(stop)
