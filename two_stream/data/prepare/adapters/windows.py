"""Cuts recordings with dense labels into clips for training: parts of bouts, and parts of the background."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from math import ceil

import numpy as np
from numpy.typing import NDArray

from two_stream.config.load import nearest
from two_stream.data.bouts import BACKGROUND, Bout, LabelledRecording, merge_bouts
from two_stream.data.options import TimelineOptions
from two_stream.data.prepare.adapters.annotations import AnnotatedVideo, Annotations, Mark
from two_stream.errors import DataError, SettingsError
from two_stream.runtime.text import plural

_SLIGHT = 0.05
"""seconds; if bouts of two classes overlap by at most this time, the first one ends where the second one starts"""


def choose_marks(annotations: Annotations, options: TimelineOptions) -> Annotations:
    """Return annotations with the marks of the chosen track and without those of the background.

    Raises:
        SettingsError: No mark has this track.
        DataError: There are no marks.
    """
    assert annotations.marks is not None
    tracks = sorted({mark.track for one in annotations.marks.values() for mark in one if mark.track})
    if options.track is not None and options.track not in tracks:
        known = nearest(options.track, tracks) if tracks else "; these files have no tracks"
        raise SettingsError(f"--track is {options.track!r}: no label has it{known}")
    marks = {
        key: [
            mark for mark in one if options.track in (None, mark.track) and mark.name.casefold() != BACKGROUND
        ]
        for key, one in annotations.marks.items()
    }
    classes = sorted({mark.name for one in marks.values() for mark in one})
    if not classes:
        raise DataError(
            f"{options.annotations}: found no bout of an action; expected labels with start and end"
        )
    return replace(
        annotations, marks=marks, classes=[*classes, *([BACKGROUND] if options.background else [])]
    )


def bouts_of(marks: Sequence[Mark], edges: NDArray[np.float64]) -> list[Bout]:
    """Return the bouts of a recording in order of time, as parts of the video that do not overlap.

    Args:
        marks: Its marks.
        edges: Times of its frames and of its end, `(frames + 1,)`, in seconds.

    Raises:
        DataError: A bout starts after the end of the video, or two bouts of different classes overlap.
    """
    count, made = len(edges) - 1, []
    for mark in marks:
        if mark.frames is None:
            assert mark.seconds is not None
            start, end = mark.seconds
        else:
            first, stop = mark.frames
            start = float(edges[first - 1]) if first <= count else float("inf")
            end = float(edges[min(stop or count + 1, count + 1) - 1])
        if start >= edges[-1]:
            at = f"frame {mark.frames[0]}" if mark.frames else f"{start:g} s"
            raise DataError(
                f"{mark.where}: {mark.name!r} starts at {at}, but the video has {plural(count, 'frame')} and ends at "
                f"{edges[-1]:g} s; check that the labels belong to this video"
            )
        made.append(Bout(start, min(end, float(edges[-1])), mark.name, where=mark.where))
    made = merge_bouts(made)
    for place, (one, two) in enumerate(pairwise(made)):
        if one.end - two.start > _SLIGHT:
            raise DataError(
                f"{two.where}: {two.name!r} from {two.start:g} s overlaps {one.name!r} until {one.end:g} s "
                f"({one.where}); correct one of them, or choose one tier or subject with --track"
            )
        made[place] = replace(one, end=min(one.end, two.start))
    return [bout for bout in made if bout.end > bout.start]


def cut_recordings(
    annotations: Annotations, recordings: Mapping[str, LabelledRecording], options: TimelineOptions
) -> list[AnnotatedVideo]:
    """Return the clips of all recordings, as entries for the split lists.

    A bout is cut into equal clips of at most `longest` seconds, and a shorter one than `shortest` is widened. The gaps
    between bouts are cut in the same way. If there are too many clips of the background, evenly spaced ones are kept.

    `recordings` are those that could be read, by id of the entry; the other entries are returned as they are.
    """
    made: list[AnnotatedVideo] = []
    rest: list[AnnotatedVideo] = []
    for entry in annotations.entries:
        recording = recordings.get(entry.id)
        if recording is None:
            made.append(entry)
            continue
        end, before = recording.seconds, 0.0
        for first, last, name in [*recording.bouts, (end, end, "")]:
            if first - before >= options.shortest and options.background:
                label = len(annotations.classes) - 1
                rest += [_clip(entry, label, span) for span in _parts(before, first, options.longest)]
            before = last
            if name and last - first < options.shortest:
                middle, half = (first + last) / 2, min(options.shortest, end) / 2
                middle = min(max(middle, half), end - half)
                first, last = middle - half, middle + half
            label = annotations.classes.index(name) if name else 0
            made += [_clip(entry, label, span) for span in _parts(first, last, options.longest)]
    kept = min(len(rest), ceil(options.background * sum(entry.seconds is not None for entry in made)))
    made += [rest[place * len(rest) // kept] for place in range(kept)]
    order = {entry.id: place for place, entry in enumerate(annotations.entries)}
    return sorted(made, key=lambda entry: (order[entry.id], entry.seconds or (0.0, 0.0)))


def _parts(start: float, end: float, longest: float) -> list[tuple[float, float]]:
    count = ceil((end - start) / longest - 1e-9)
    times = [start + (end - start) * place / count for place in range(count)] if count > 0 else []
    return list(zip(times, [*times[1:], end]))


def _clip(entry: AnnotatedVideo, label: int, span: tuple[float, float]) -> AnnotatedVideo:
    return replace(entry, labels=(label,), seconds=span)
