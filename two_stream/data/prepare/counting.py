"""Counts the frames of videos and frame folders, and detects the naming patterns of frame files."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import cv2

from two_stream.data.catalog import MODALITIES, Patterns, Record, make_record
from two_stream.data.options import FrameNames
from two_stream.data.sources.files import FrameFolders
from two_stream.errors import DataError, TwoStreamError, VideoError
from two_stream.runtime.console import progress
from two_stream.runtime.workers import Beat, TaskFailure, run_tasks, usable_processes
from two_stream.types import Modality
from two_stream.video.decoding.reader import open_video
from two_stream.video.frames import frame_numbers, list_file_names, names_by_number
from two_stream.video.sources import Source, find_collisions

_IMAGES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"})
_STEMS = ("img_", "image_", "", "frame", "frame_")
"""text before the number: of this package; Efficient-3DCNNs and 3D-ResNets; Jester and Something-Something; others"""
_NUMBERED = re.compile(r"([^{}]*?)(\d+)([^{}\d]*)", re.ASCII)
_LOOKED_AT = 20
"""largest number of folders with files that are examined"""
Parts = tuple[str, str]
"""the text before and after the number"""


def find_patterns(folders: Sequence[Path], given: FrameNames) -> dict[str, str]:
    """Detect the `patterns` of a record from the files in these folders; given patterns are only checked.

    If the folders have different names, those of most folders are returned.

    Raises:
        DataError: The frames of the first folder with files cannot be identified; names what was tried and its files.
        SettingsError: A given name is wrong.
    """
    asked = given.patterns()
    counted: dict[str, Counter[str]] = defaultdict(Counter)
    looked: list[tuple[Path, list[str]]] = []
    unclear = False
    for folder in folders:
        names = sorted(
            name for name in list_file_names(folder) if not (name[0] == "." or (folder / name).is_dir())
        )
        if not names or len(looked) == _LOOKED_AT:
            continue
        looked.append((folder, names))
        patterns = _patterns(names)
        pair = _flow(list(patterns))
        for key, parts in zip(("flow_x", "flow_y"), pair or ()):
            counted[key][patterns[parts]] += 1
        rest = [parts for parts in patterns if parts not in (pair or ())]
        pictures = [parts for parts in rest if "." in parts[1] and "flow" not in parts[0].lower()]
        rgb = _rgb(pictures)
        unclear = unclear or (rgb is None and len(pictures) > 1)
        if rgb is not None:
            counted["rgb"][patterns[rgb]] += 1
    found = {key: patterns.most_common(1)[0][0] for key, patterns in counted.items()} | asked
    for name in asked.values():
        if looked and not any(names_by_number(names, name) for _, names in looked):
            raise DataError(
                f"{looked[0][0]}: no file matches the frame pattern {name!r}; the folder contains "
                f"{_some(looked[0][1])}"
            )
    if looked and (not found or (unclear and "rgb" not in found)):
        tried = ", ".join(f"{stem}00001.jpg" for stem in _STEMS)
        endings = ", ".join(sorted(_IMAGES))
        raise DataError(
            f"{looked[0][0]}: no frames found; expected files such as {tried}, with any number and "
            f"suffix ({endings}), or "
            f"one series of numbered images; the folder contains {_some(looked[0][1])}; use "
            "--rgb-pattern or --flow-pattern"
        )
    return found


def _some(names: Sequence[str]) -> str:
    return f"{', '.join(repr(name) for name in names[:2])}{', …' if len(names) > 2 else ''}"


def _patterns(names: Sequence[str]) -> dict[Parts, str]:
    """Return the pattern of each series of numbered files; the keys are the text before and after the number."""
    digits: dict[Parts, list[str]] = defaultdict(list)
    for name in names:
        stem, dot, ending = name.rpartition(".")
        stem, ending = (stem, dot + ending) if dot else (name, "")
        match = _NUMBERED.fullmatch(stem)
        if match and (ending.lower() in _IMAGES or not ending) and not set("{}") & set(ending):
            digits[match[1], match[3] + ending].append(match[2])
    return {
        (before, after): f"{before}{{{_width(numbers)}}}{after}"
        for (before, after), numbers in digits.items()
    }


def _width(numbers: Sequence[str]) -> str:
    padded = [len(number) for number in numbers if number[0] == "0" and len(number) > 1]
    return f":0{min(padded)}d" if padded and min(padded) < 100 else ""


def _flow(kinds: Sequence[Parts]) -> tuple[Parts, Parts] | None:
    """Return the two series whose names differ only in x and y, or u and v; names that contain `flow` are preferred."""
    pairs = []
    for before, after in kinds:
        for place, letter in enumerate(before):
            other = before[:place] + {"x": "y", "u": "v"}.get(letter, letter) + before[place + 1 :]
            if other != before and (other, after) in kinds:
                pairs.append(((before, after), (other, after)))
        for place, letter in enumerate(after.partition(".")[0]):
            other = after[:place] + {"x": "y", "u": "v"}.get(letter, letter) + after[place + 1 :]
            if other != after and (before, other) in kinds:
                pairs.append(((before, after), (before, other)))
    return min(pairs, key=lambda pair: ("flow" not in pair[0][0], pair)) if pairs else None


def _rgb(kinds: Sequence[Parts]) -> Parts | None:
    """Return the series with a usual name, or the only series."""
    for stem in _STEMS:
        known = [parts for parts in kinds if parts[0].lower() == stem and parts[1].startswith(".")]
        if known:
            return known[0]
    return kinds[0] if len(kinds) == 1 else None


Counts = dict[str, tuple[int, int]]
"""RGB and flow frames by video id"""


@dataclass
class FolderCounts:
    """Number of frames in frame folders, and the folders that cannot be used."""

    counts: Counts = field(default_factory=dict)
    failures: list[tuple[str, str]] = field(default_factory=list)
    """(id, reason) of each video that cannot be used"""
    strange: list[tuple[str, str]] = field(default_factory=list)
    """failures of folders that exist, but contain files with unexpected names or numbers"""
    misnumbered: set[str] = field(default_factory=set)
    """ids of the failures whose first file has a different number than in most folders"""
    modalities: list[Modality] = field(default_factory=list)
    """modalities for which frames exist"""
    first: dict[Modality, int] = field(default_factory=dict)
    """for each modality, the number in the name of the first file"""


def count_videos(
    videos: Sequence[Source], *, backend: str = "pyav", processes: int | None = None, patience: float = 60.0
) -> tuple[Counts, list[tuple[str, str]]]:
    """Count the RGB frames of videos by decoding them; flow has one frame fewer.

    Returns:
        Counts by id, and (id, reason) of the videos that give fewer than two frames.
    """
    counts: Counts = {}
    clashes = find_collisions(videos)
    failed = {videos[index].id: reason for index, reason in clashes.items()}
    todo = [video for index, video in enumerate(videos) if index not in clashes]
    count = partial(count_one, backend=backend)
    paths = [video.path for video in todo]
    chosen = usable_processes() if processes is None else processes
    with (
        progress("count frames", total=len(paths)) as advance,
        closing(run_tasks(count, paths, processes=chosen, patience=patience)) as answers,
    ):
        for index, answer in answers:
            video_id = todo[index].id
            if isinstance(answer, TaskFailure):
                failed[video_id] = answer.reason
            elif isinstance(answer, str):
                failed[video_id] = answer
            elif answer < 2:
                failed[video_id] = "too short: 1 frame, flow needs 2"
            else:
                counts[video_id] = (answer, answer - 1)
            advance(1, failed=len(failed))
    return counts, [(video.id, failed[video.id]) for video in videos if video.id in failed]


def count_one(path: Path, beat: Beat, backend: str) -> int | str:
    """Return the number of frames that can be decoded, or the reason why no frame can be decoded."""
    cv2.setNumThreads(1)
    try:
        with open_video(path, backend) as video:
            return video.count(beat)
    except VideoError as error:
        return error.reason
    except (TwoStreamError, OSError, MemoryError, cv2.error) as error:
        return " ".join(str(error).split()) or type(error).__name__


def count_folders(record: Record, ids: Sequence[str], *, fixed_first: bool = False) -> FolderCounts:
    """Count the frames in the frame folders of a record.

    If one modality is missing, its count is computed from the other: flow has one frame fewer. A folder whose first
    file has a different number than in most folders is reported as a failure.

    Args:
        record: The data set.
        ids: Videos to count.
        fixed_first: The record decides the number of the first file; otherwise the majority of the folders does.

    Raises:
        DataError: No such folder of frames.
    """
    roots: dict[Modality, FrameFolders] = {}
    for modality in MODALITIES:
        if getattr(record.frames, modality) is not None:
            roots[modality] = FrameFolders(record, modality)
    made = FolderCounts()
    begins: dict[Modality, dict[str, int]] = {modality: {} for modality in MODALITIES}
    with progress("count frames", total=len(ids)) as advance:
        for video_id in ids:
            try:
                found = {
                    m: frame_numbers(root.folder(video_id), m, root.patterns) for m, root in roots.items()
                }
            except VideoError as error:
                made.failures.append((video_id, str(error)))
                continue
            finally:
                advance()
            rgb, flow = (len(found.get(m, ())) for m in MODALITIES)
            for m, numbers in found.items():
                if numbers:
                    begins[m][video_id] = min(numbers)
            counts = (rgb or flow + 1, flow or rgb - 1)
            if not (rgb or flow) or min(counts) < 1:
                wanted = " or ".join(root.patterns.names(m, 1)[0] for m, root in roots.items())
                there = sorted(list_file_names(next(iter(roots.values())).folder(video_id)))[:2]
                why = f"{rgb} RGB and {flow} flow frames in its folder, expected {wanted}; its files are {there}"
                made.strange.append((video_id, why))
                made.failures.append(made.strange[-1])
            else:
                made.counts[video_id] = counts
    for m, numbers_of in begins.items():
        if not numbers_of:
            continue
        made.modalities.append(m)
        usual = Counter(numbers_of.values())
        first = min(usual, key=lambda number: (-usual[number], number != 1, number))
        made.first[m] = first = roots[m].patterns.first(m) if fixed_first else first
        for video_id, number in numbers_of.items():
            if number != first and video_id in made.counts:
                del made.counts[video_id]
                files = [roots[m].patterns.of(m)[0].format(at) for at in (number, first)]
                why = f"its files start with {files[0]}, but those of the data set with {files[1]}"
                made.strange.append((video_id, f"{why} (`first` in dataset.yaml)"))
                made.failures.append(made.strange[-1])
                made.misnumbered.add(video_id)
    return made


def look_and_count(
    mapping: dict[str, Any],
    folder: Path,
    ids: Sequence[str],
    places: Sequence[Path],
    names: FrameNames,
) -> FolderCounts:
    """Count the frames in frame folders, and add `patterns` and `first` to the content of a record.

    Args:
        mapping: Content of the record.
        folder: Folder of the record.
        ids: Videos to count.
        places: Their frame folders.
        names: Names given by the user.

    Raises:
        DataError: Names that cannot be found.
        SettingsError: A given name is wrong.
    """
    classes = mapping.pop("classes")
    patterns = mapping.pop("patterns", {}) | find_patterns(places, names)
    if patterns := {key: name for key, name in patterns.items() if name != getattr(Patterns(), key)}:
        mapping["patterns"] = patterns
    made = count_folders(make_record({**mapping, "classes": classes}, folder), ids)
    if set(made.first.values()) - {1}:
        mapping["first"] = {"rgb": 1, "flow": 1} | made.first
    mapping["classes"] = classes
    return made
