"""Writes the record, split lists, groups and segments of a data set, given its annotation files and existing videos."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from two_stream.config.load import read_yaml
from two_stream.data.bouts import LabelledRecording, write_recordings
from two_stream.data.catalog import MODALITIES, RECORD_FILE, Record, make_record, packaged_record
from two_stream.data.options import AnnotationOptions, ListOptions, PlaceOptions, TimelineOptions
from two_stream.data.prepare.adapters import read_annotations
from two_stream.data.prepare.adapters.annotations import AnnotatedVideo, Annotations
from two_stream.data.prepare.adapters.lists import locate, read_lists
from two_stream.data.prepare.adapters.windows import bouts_of, choose_marks, cut_recordings
from two_stream.data.prepare.counting import (
    Counts,
    FolderCounts,
    count_folders,
    count_videos,
    look_and_count,
)
from two_stream.data.prepare.folders import (
    GROUPS_FILE,
    MARK,
    Prepared,
    Splits,
    parts_line,
    relative_path,
    write_dataset,
)
from two_stream.data.sources.files import index_videos
from two_stream.data.sources.segments import Segment, frames_between, write_segments
from two_stream.data.splits import make_splits
from two_stream.errors import DataError, SettingsError, VideoError
from two_stream.runtime.files import write_text
from two_stream.runtime.text import plural
from two_stream.types import VideoRecord
from two_stream.video.decoding.backend_pyav import frame_times
from two_stream.video.decoding.base import uneven_times
from two_stream.video.decoding.reader import open_video
from two_stream.video.frames import FLOW_FOLDERS, recorded_rate, recorded_times
from two_stream.video.sources import Source, folder_ids, video_files

SEGMENTS_FILE = "segments.csv"
TIMELINE_FILE = "timeline.json"
_TEST_FRACTION = 0.3


@dataclass
class _Listed:
    """Videos, segments and failures, as they are collected for the split lists."""

    videos: list[tuple[AnnotatedVideo, VideoRecord]] = field(default_factory=list)
    counts: Counts = field(default_factory=dict)
    segments: dict[str, Segment] = field(default_factory=dict)
    failures: list[tuple[str, str]] = field(default_factory=list)
    """(id, reason) of each entry that is left out"""
    shortened: list[str] = field(default_factory=list)
    """line and times of each part that was shortened, because it ends after the end of its video"""
    differing: list[str] = field(default_factory=list)
    """line and numbers of frames of each video whose files state another number of frames than it has"""

    def leave_out(self, entry: AnnotatedVideo, name: str, reason: str) -> None:
        """Add a failure whose reason includes the line of the annotation file."""
        self.failures.append((name, f"{reason} ({entry.where})"))


def prepare_annotations(kind: str, options: AnnotationOptions | ListOptions) -> Prepared:
    """Write the record, lists, groups and segments of a data set, given its annotation files or split lists.

    Videos that are missing or cannot be read are left out and reported as failures.

    Args:
        kind: One of `ADAPTERS`, or `list`.
        options: Where the files are, and how frames are counted.

    Raises:
        DataError: An annotation file is wrong, none of its videos exists, or the folder has a record with
            different classes.
        SettingsError: Neither videos nor frames given, an unknown kind, or frame names for a record that is kept.
    """
    if options.videos is None and options.frames is None:
        raise SettingsError(
            f"{kind}: --videos or --frames is required, to count the frames of every video for the lists"
        )
    if options.fps is not None and options.fps <= 0:
        raise SettingsError(f"--fps is {options.fps}: expected more than 0")
    annotations, name = _annotations(kind, options)
    options, folder = replace(options, name=name), options.out / name
    kept = _is_kept(folder / RECORD_FILE, annotations)
    if kept and options.frames is not None and options.patterns():
        raise SettingsError(
            f"{folder / RECORD_FILE} is not overwritten; omit --rgb-pattern and --flow-pattern, and "
            "set `patterns` in this file"
        )
    places = VideoIndex(options.frames or options.videos or Path(), frames=options.frames is not None)
    if isinstance(options, ListOptions):
        annotations.entries, moved = locate(annotations.entries, places)
        annotations.notes += moved
        annotations.check()
    where = {entry.names: places.find(entry.names) for entry in annotations.entries}
    if annotations.splits:
        where = {n: replace(p, id=n[0]) if isinstance(p, LocatedVideo) else p for n, p in where.items()}
    found = [place for place in where.values() if isinstance(place, LocatedVideo)]
    mapping = _mapping(kind, annotations, options, folder, kept=kept)
    counted = _counted(mapping, folder, found, options, kept=kept)
    recordings: dict[str, LabelledRecording] = {}
    if isinstance(options, TimelineOptions):
        annotations.entries, recordings = _cut(annotations, where, counted.counts, options)
    listed = _listed(annotations, where, counted, options, make_record(mapping, folder))
    unit: Literal["video", "clip"] = (
        "clip" if listed.segments or any(entry.seconds for entry in annotations.entries) else "video"
    )
    if not listed.videos:
        raise DataError(_none_here(places, listed, counted, unit))
    if recordings:
        mapping["timeline"] = TIMELINE_FILE
        write_recordings(folder / TIMELINE_FILE, recordings)
    _write_groups_and_segments(mapping, listed, folder)
    record = make_record(mapping, folder)
    splits, validation, notes = _splits(annotations, listed, record.num_splits)
    if kind in ("table", "list", "timeline") and any(entry.split for entry, _ in listed.videos):
        notes.insert(0, parts_line(splits[0], validation))
    if kept and not annotations.splits:
        notes.append(
            f"{folder / RECORD_FILE} is not overwritten; compare its `groups` and `segments` with the "
            "files in its folder"
        )
    made = write_dataset(
        record, None if kept else mapping, folder, splits, listed.counts, validation, counted.modalities
    )
    made.failures, made.unit = listed.failures, unit
    made.warnings += [*annotations.notes, *notes]
    if listed.shortened:
        one, many = "ends after its video and is", "end after their video and are"
        counted_parts = plural(len(listed.shortened), "part", one, many)
        made.warnings.append(f"{counted_parts} shortened (first: {listed.shortened[0]})")
    if listed.differing:
        several = plural(len(listed.differing), "video", "has", "have")
        made.warnings.append(
            f"{several} another number of frames than listed; the counted frames are used "
            f"(first: {listed.differing[0]})"
        )
    return made


def _annotations(kind: str, options: AnnotationOptions | ListOptions) -> tuple[Annotations, str]:
    """Read the annotation files or lists; return their content and the name of the data set."""
    if isinstance(options, AnnotationOptions):
        name = options.name or (options.annotations.stem if kind in ("json", "table", "timeline") else kind)
        found = read_annotations(kind, options.annotations)
        return (choose_marks(found, options) if isinstance(options, TimelineOptions) else found), name
    found = read_lists({"train": options.train, "val": options.val, "test": options.test}, options.classes)
    return found, options.name or options.train.resolve().parent.name


def _none_here(places: VideoIndex, listed: _Listed, counted: FolderCounts, unit: str) -> str:
    """Return the error message if no entry can be used; it contains the first failure and an existing file."""
    strange = {name for name, _ in counted.strange}
    name, reason = next((one for one in listed.failures if one[0] in strange), listed.failures[0])
    number, found = len(listed.failures), counted.counts or counted.failures
    what = f"none of the {number} listed {unit}s" if number > 1 else f"the listed {unit}"
    state = (
        f"{'can' if number > 1 else 'cannot'} be used" if found else f"is {'' if number > 1 else 'not '}here"
    )
    return f"{places.root}: {what} {state}; {name}: {reason}" + ("" if found else f"; {places.example()}")


def _is_kept(path: Path, annotations: Annotations) -> bool:
    """Return whether an existing record is kept, because a user wrote it or the data set has several official splits.

    Raises:
        DataError: It has different classes.
    """
    if not path.is_file():
        return False
    if not annotations.splits and path.read_text(encoding="utf-8-sig").startswith(MARK):
        return False
    if read_yaml(path).get("classes") != annotations.classes:
        raise DataError(
            f"{path}: the classes in this record differ from those in the annotation files; use another "
            "--name or --out, or move the record"
        )
    return True


def _mapping(
    kind: str, annotations: Annotations, options: PlaceOptions, folder: Path, *, kept: bool
) -> dict[str, Any]:
    """Return the content of the record."""
    if annotations.splits:  # the packaged record contains everything that the files do not state
        base = read_yaml(folder / RECORD_FILE) if kept else packaged_record(kind)
        mapping = {**(base or {}), "name": options.name}
    else:
        root = relative_path(Path("data") / str(options.name), folder)
        mapping = {"name": options.name, "num_splits": 1, "frames": {"rgb": root, "flow": root}}
    if options.frames is not None:
        mapping["frames"] = dict.fromkeys(("rgb", "flow"), relative_path(options.frames, folder))
    if options.videos is not None:
        mapping["videos"] = relative_path(options.videos, folder)
    if annotations.group is not None:
        mapping["group"] = annotations.group
    if annotations.multi_label:
        mapping["multi_label"] = True
    if annotations.mirror_pairs:
        mapping["mirror_pairs"] = [list(pair) for pair in annotations.mirror_pairs]
    mapping.pop("classes", None)  # last in the file
    return {**mapping, "classes": annotations.classes}


def _counted(
    mapping: dict[str, Any],
    folder: Path,
    found: Sequence[LocatedVideo],
    options: PlaceOptions,
    *,
    kept: bool,
) -> FolderCounts:
    """Count the frames of the located videos; if a record is kept, its `patterns` are used."""
    distinct = list({place.id: place for place in found}.values())
    ids = [place.id for place in distinct]
    if options.frames is None:
        sources = [Source(place.id, place.path) for place in distinct]
        counts, failures = count_videos(sources, backend=options.backend, processes=options.processes)
        return FolderCounts(counts, failures, modalities=list(MODALITIES))
    if not kept:
        return look_and_count(mapping, folder, ids, [place.path for place in distinct], options)
    own = read_yaml(folder / RECORD_FILE)
    mapping |= {key: own[key] for key in ("patterns", "first") if key in own}
    return count_folders(make_record(mapping, folder), ids, fixed_first=True)


def _listed(
    annotations: Annotations,
    where: dict[tuple[str, ...], LocatedVideo | str],
    counted: FolderCounts,
    options: PlaceOptions,
    record: Record,
) -> _Listed:
    made = _Listed()
    counts, failures = counted.counts, dict(counted.failures)
    parts: Counter[str] = Counter()
    videos = VideoIndex(options.videos, frames=False) if options.videos and options.frames else None
    for entry in annotations.entries:
        place = where[entry.names]
        if isinstance(place, str):
            made.leave_out(entry, entry.names[0], place)
            continue
        if place.id not in counts:
            made.leave_out(entry, place.id, failures[place.id])
            continue
        parts[place.id] += 1
        name, part = place.id, f"{place.id}#{parts[place.id]}"
        try:
            span, late = _span(entry, place, counts[place.id][0], options, videos)
        except VideoError as error:
            made.leave_out(entry, part, error.reason)
            continue
        if entry.seconds or span.start > 1:
            name = part
        if name in made.counts:
            made.leave_out(entry, entry.id, f"its file {place.path} is already used by another line")
            continue
        flow = counts[place.id][1]
        if not annotations.splits:
            flow = min(len(span) - 1, flow - (span.start - 1))
        if flow < 1:
            inside = f"{len(span)} of the {plural(counts[place.id][0], 'frame')} in this part, flow needs 2"
            made.leave_out(entry, name, inside)
            continue
        if entry.num_frames and min(abs(entry.num_frames - count) for count in counts[place.id]) > 1:
            made.differing.append(f"{entry.where}: {entry.num_frames}, found {counts[place.id][0]}")
        if late:
            made.shortened.append(f"{entry.where}: {late}")
        if name != place.id:
            start, end = entry.seconds or (None, None)
            made.segments[name] = Segment(place.id, start, end, span.start)
        made.counts[name] = (len(span), flow)
        several = entry.labels if annotations.multi_label else ()
        group = entry.group or (record.group_of(name) if annotations.splits else annotations.source(place.id))
        video = VideoRecord(name, len(span), entry.labels[0], group, several)
        made.videos.append((entry, video))
    return made


def _span(
    entry: AnnotatedVideo,
    place: LocatedVideo,
    count: int,
    options: PlaceOptions,
    videos: VideoIndex | None,
) -> tuple[range, str]:
    """Return the existing frames of an entry, and a message if the entry ends after the end of the video.

    Raises:
        VideoError: The rate is unknown, or the part starts after the end of the video.
    """
    if entry.frames is not None:
        first, stop = entry.frames
        if first > count:
            raise VideoError(
                place.path, f"the part starts at frame {first}, but the video has {plural(count, 'frame')}"
            )
        late = f"to frame {stop - 1}, but the video has {plural(count, 'frame')}" if stop > count + 1 else ""
        return range(first, min(stop, count + 1)), late
    if entry.seconds is None:
        return range(1, count + 1), ""
    clock = _clock(entry, place, count, options, videos)
    (start, end), span = entry.seconds, clock.between(*entry.seconds)
    if span.start > count:
        raise VideoError(place.path, f"the part starts at {start:g} s, but the video ends at {clock.end:g} s")
    lost = end - clock.end >= clock.step * (1 - 1e-6)
    return span, f"to {end:g} s, but the video ends at {clock.end:g} s" if lost else ""


def _clock(
    entry: AnnotatedVideo,
    place: LocatedVideo,
    count: int,
    options: PlaceOptions,
    videos: VideoIndex | None,
) -> VideoClock:
    file = place.path if options.frames is None else None
    if videos is not None:
        other = videos.find(entry.names)
        file = other.path if isinstance(other, LocatedVideo) else None
    folder = place.path if options.frames is not None else None
    return clock_of(file, folder, count, entry.fps, options.fps)


def _cut(
    annotations: Annotations,
    where: dict[tuple[str, ...], LocatedVideo | str],
    counts: Counts,
    options: TimelineOptions,
) -> tuple[list[AnnotatedVideo], dict[str, LabelledRecording]]:
    """Return the clips of recordings with dense labels, and the recordings by id of the video."""
    videos = VideoIndex(options.videos, frames=False) if options.videos and options.frames else None
    by_entry: dict[str, LabelledRecording] = {}
    places: dict[str, AnnotatedVideo] = {}
    for entry in annotations.entries:
        place = where[entry.names]
        if isinstance(place, str) or place.id not in counts:
            continue  # reported as left out
        if place.id in places:
            first = places[place.id].where
            raise DataError(
                f"{entry.where}: the labels of {place.path} are also at {first}; keep one of the two"
            )
        places[place.id] = entry
        frames, flow = counts[place.id]
        clock = _clock(entry, place, frames, options, videos)
        edges = np.asarray([*clock.times, clock.end] if clock.times else np.arange(frames + 1) * clock.step)
        assert annotations.marks is not None
        by_entry[entry.id] = LabelledRecording(
            frames=frames,
            flow=flow,
            seconds=round(float(edges[-1]), 6),
            times=tuple(uneven_times(edges)),
            group=entry.group or annotations.source(place.id),
            bouts=tuple(
                (round(bout.start, 6), round(bout.end, 6), bout.name)
                for bout in bouts_of(annotations.marks[entry.id], edges)
            ),
        )
    recordings = {name: by_entry[entry.id] for name, entry in places.items()}
    return cut_recordings(annotations, by_entry, options), recordings


def _write_groups_and_segments(mapping: dict[str, Any], listed: _Listed, folder: Path) -> None:
    """Write the files of groups and segments, and add them to the record."""
    classes = mapping.pop("classes")
    if listed.segments or any(entry.group for entry, _ in listed.videos):
        mapping.pop("group", None)
        mapping["groups"] = GROUPS_FILE
        lines = (f"{video.id} {'_'.join(video.group.split())}\n" for _, video in listed.videos)
        write_text(folder / GROUPS_FILE, "".join(lines))
    if listed.segments:
        mapping["segments"] = SEGMENTS_FILE
        write_segments(folder / SEGMENTS_FILE, listed.segments)
    mapping["classes"] = classes


def _splits(
    annotations: Annotations, listed: _Listed, num_splits: int
) -> tuple[Splits, list[VideoRecord], list[str]]:
    """Return the splits, the validation part and notes. If the files have no official split, a split is made."""
    if annotations.splits:
        by_id = {video.id: video for _, video in listed.videos}
        sides = [[[by_id[i] for i in ids if i in by_id] for ids in split] for split in annotations.splits]
        return [(train, test) for train, test in sides[:num_splits]], [], []
    if all(not entry.split for entry, _ in listed.videos):
        made = make_splits([video for _, video in listed.videos], 1, _TEST_FRACTION, 0)
        return made, [], [f"no split is given: about {_TEST_FRACTION:.0%} of every class are the test list"]
    train, val, test = (
        [video for entry, video in listed.videos if entry.split == split]
        for split in ("train", "val", "test")
    )
    notes = []
    for side, videos in (("training", train), ("test", test)):
        seen = {label for video in videos for label in video.all_labels}
        if not videos:
            notes.append(f"the {side} list is empty: none of its videos is here")
        elif len(seen) < len(annotations.classes):
            lacking = plural(len(annotations.classes) - len(seen), "class", "has", "have")
            notes.append(f"{lacking} no {side} video here")
    return [(train, test)], val, notes


@dataclass(frozen=True)
class LocatedVideo:
    """The id and location of a video that exists."""

    id: str
    """path relative to the root, without suffix"""
    path: Path
    """path of the video file or of the frame folder"""


class VideoIndex:
    """Index of the videos or frame folders below a root folder, by id and by name without folders."""

    def __init__(self, root: Path, *, frames: bool) -> None:
        """Scan the folder once.

        Args:
            root: Folder of videos, or of frame folders.
            frames: Whether they are frame folders.

        Raises:
            DataError: No such folder.
        """
        if not root.is_dir():
            raise DataError(f"{root}: the folder of {'frames' if frames else 'videos'} does not exist")
        self.root = root
        self._frames = frames
        self._what = "frame folder" if frames else "video file"
        if frames:
            self._index, self._ids = _frame_folders(root)
        else:
            files = video_files(root)[0]
            self._index, self._ids = (
                index_videos(root),
                dict(zip(files, folder_ids(root, files), strict=True)),
            )

    def find(self, names: Sequence[str]) -> LocatedVideo | str:
        """Return the first existing video with one of these names, or the reason why no video was found.

        A name with a class folder matches only a video in that folder; a name without a class folder matches a video in
        any class folder.
        """
        for name in names:
            relative = self._relative(name)
            places = self._index.get(relative, [])
            if len(places) > 1:
                shown = ", ".join(path.relative_to(self.root).as_posix() for path in places[:3])
                return f"several with this name: {shown}"
            if places:
                return LocatedVideo(self._ids[places[0]], places[0])
            inside = not relative.startswith("/") and ".." not in relative.split("/")
            if self._frames and inside and (self.root / relative).is_dir():  # deeper than class folders
                return LocatedVideo(relative, self.root / relative)
        return f"no {self._what} with this name"

    def example(self) -> str:
        """Return a message that names an existing file or frame folder, or says that none exists."""
        path = next(iter(self._ids), None)
        if path is None:
            return f"there is no {self._what} here"
        return f"there is for example {path.relative_to(self.root).as_posix()}"

    def _relative(self, name: str) -> str:
        path = Path(name)
        if path.is_absolute() and path.is_relative_to(self.root.absolute()):
            return path.relative_to(self.root.absolute()).as_posix()
        return path.as_posix()


def _frame_folders(root: Path) -> tuple[dict[str, list[Path]], dict[Path, str]]:
    """Index the frame folders one or two levels below the root by id and name; also return each folder's id."""
    index: dict[str, list[Path]] = {}
    ids: dict[Path, str] = {}
    for top in _folders(root):
        inside = _folders(top)
        flow_only = len(inside) > 1 and all(path.name in FLOW_FOLDERS for path in inside)
        for path in [top] if flow_only or not inside else inside:
            ids[path] = path.relative_to(root).as_posix()
            for key in {ids[path], path.name}:
                index.setdefault(key, []).append(path)
    return index, ids


def _folders(path: Path) -> list[Path]:
    with os.scandir(path) as entries:
        return [path / name for name in sorted(e.name for e in entries if e.is_dir() and e.name[0] != ".")]


@dataclass(frozen=True)
class VideoClock:
    """The times at which the frames of a video are displayed."""

    count: int
    fps: float | None = None
    times: Sequence[float] | None = None

    def between(self, start: float, end: float) -> range:
        """Return the numbers of the frames between two times in seconds; see `frames_between`."""
        return frames_between(start, end, self.count, fps=self.fps, times=self.times)

    @property
    def step(self) -> float:
        """Average duration of a frame, in seconds."""
        if self.times:
            return (self.times[-1] - self.times[0]) / max(len(self.times) - 1, 1)
        assert self.fps is not None
        return 1 / self.fps

    @property
    def end(self) -> float:
        """Duration of the video, in seconds."""
        return self.times[-1] + self.step if self.times else self.count * self.step


@lru_cache(maxsize=8)  # the parts of a video are adjacent in the files
def clock_of(
    file: Path | None, folder: Path | None, count: int, fps: float | None, wanted: float | None
) -> VideoClock:
    """Return the frame times of a video.

    Args:
        file: The video, if it is available.
        folder: Its frame folder, if that is read; the video's timestamps are used if it has as many frames.
        count: Frames.
        fps: Rate in the annotations.
        wanted: Rate given by the user for the frame folders; takes precedence over everything but timestamps.

    Raises:
        VideoError: The rate is unknown.
    """
    if file is not None:
        with suppress(VideoError):
            times = frame_times(file)
            if times is not None and len(times) == count:
                return VideoClock(count, times=times)
    elif folder is not None:
        times = recorded_times(folder)
        if len(times) == count + 1:
            return VideoClock(count, times=times[:-1])
    rate = wanted or fps
    if rate is None and folder is not None:
        rate = recorded_rate(folder)
    elif rate is None and file is not None:
        with open_video(file) as video:
            rate = video.fps
    if rate is None:
        where = folder or file
        raise VideoError(where, f"the frames per second of {where} are unknown; use --fps")
    return VideoClock(count, fps=rate)
