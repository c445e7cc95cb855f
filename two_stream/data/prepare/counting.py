"""How many frames videos and frame folders have, and with which number a folder's files begin."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2

from two_stream.config.load import validate_settings
from two_stream.data.catalog import RECORD_FILE, Patterns, Record
from two_stream.data.prepare.frame_names import FrameNames, find_patterns
from two_stream.data.sources.files import FrameFolders
from two_stream.data.splits import MODALITIES
from two_stream.errors import TwoStreamError, VideoError
from two_stream.runtime.console import progress
from two_stream.runtime.workers import Beat, TaskFailure, run_tasks, usable_processes
from two_stream.types import Modality
from two_stream.video.decoding.reader import open_video
from two_stream.video.frames import frame_numbers, list_file_names
from two_stream.video.sources import Source, find_collisions

Counts = dict[str, tuple[int, int]]
"""RGB and flow frames by video id"""


@dataclass
class FolderCounts:
    """What is in frame folders."""

    counts: Counts = field(default_factory=dict)
    failures: list[tuple[str, str]] = field(default_factory=list)
    """(id, reason)"""
    strange: list[tuple[str, str]] = field(default_factory=list)
    """those of them whose folder is there, with other files"""
    misnumbered: set[str] = field(default_factory=set)
    """ids among the failures whose files begin elsewhere than the data set's"""
    modalities: list[Modality] = field(default_factory=list)
    """those of which there is any frame"""
    first: dict[Modality, int] = field(default_factory=dict)
    """number in the name of the first file"""


@dataclass(frozen=True)
class _Job:
    path: Path
    backend: str


def count_videos(
    videos: Sequence[Source], *, backend: str = "pyav", processes: int | None = None, patience: float = 60.0
) -> tuple[Counts, list[tuple[str, str]]]:
    """Count the frames of videos by decoding them; flow has one fewer.

    Returns:
        Counts by id, and (id, reason) of the videos that give fewer than two frames.
    """
    counts: Counts = {}
    clashes = find_collisions(videos)
    failed = {videos[index].id: reason for index, reason in clashes.items()}
    todo = [video for index, video in enumerate(videos) if index not in clashes]
    jobs = [_Job(video.path, backend) for video in todo]
    chosen = usable_processes() if processes is None else processes
    with (
        progress("count frames", total=len(jobs)) as advance,
        closing(run_tasks(count_one, jobs, processes=chosen, patience=patience)) as answers,
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


def count_one(job: _Job, beat: Beat) -> int | str:
    """Return the frames of a video that decode, or why none does."""
    cv2.setNumThreads(1)
    try:
        with open_video(job.path, job.backend) as video:
            return video.count(beat)
    except VideoError as error:
        return error.reason
    except (TwoStreamError, OSError, MemoryError, cv2.error) as error:
        return " ".join(str(error).split()) or type(error).__name__


def count_folders(record: Record, ids: Sequence[str], *, settled: bool = False) -> FolderCounts:
    """Count the frames in the frame folders of a record.

    Where one modality is not there, the other's count stands for it: flow has one frame fewer. Folders whose files
    begin with another number than those of the data set are left out by name.

    Args:
        record: The data set.
        ids: Videos to count.
        settled: The record says with which number files begin; else most folders do.

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
                why = f"{rgb} RGB and {flow} flow frames in its folder, wanted {wanted}; there lie {there}"
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
        made.first[m] = first = roots[m].patterns.first(m) if settled else first
        for video_id, number in numbers_of.items():
            if number != first and video_id in made.counts:
                del made.counts[video_id]
                files = [roots[m].patterns.of(m)[0].format(at) for at in (number, first)]
                why = f"its files begin with {files[0]}, those of the data set with {files[1]}"
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
    """Count frame folders, and write into a record's content how their files are named and numbered.

    Args:
        mapping: Content of the record.
        folder: Where the record is to lie.
        ids: Videos to count.
        places: Their frame folders.
        names: Names that a person gives.

    Raises:
        DataError: Names that cannot be told.
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


def make_record(mapping: Mapping[str, Any], folder: Path) -> Record:
    """Return the record of this content that is to lie in a folder.

    Raises:
        SettingsError: The content is wrong, naming key and value.
    """
    record = validate_settings(Record, dict(mapping), folder / RECORD_FILE)
    record._folder = folder
    return record
