"""Bouts of actions in long recordings, and the file that contains the bouts of a data set's recordings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from two_stream.config.base import Options, PositiveInt
from two_stream.config.load import validate_settings
from two_stream.data.catalog import RECORD_FILE, Record, read_lines
from two_stream.errors import DataError
from two_stream.runtime.files import write_json
from two_stream.runtime.text import parse_json

BACKGROUND = "background"
"""name of the class of all times without a bout; it is never scored"""
TOUCHING = 1e-3
"""seconds; bouts of a class that are no further apart are one bout"""


@dataclass(frozen=True)
class Bout:
    """One occurrence of an action, from `start` up to, but not including, `end`, in seconds."""

    start: float
    end: float
    name: str
    """class"""
    confidence: float = 1.0
    """of a predicted bout: mean probability of its class"""
    where: str = ""
    """of an annotated bout: its place in the annotation files"""


class LabelledRecording(Options):
    """A recording with dense labels. Every time without a bout is background."""

    frames: PositiveInt
    """number of images"""
    flow: Annotated[int, Field(ge=0)]
    """number of flow frames"""
    seconds: Annotated[float, Field(gt=0)]
    """duration"""
    times: tuple[float, ...] = ()
    """times of the images and of the end in seconds if the rate varies, otherwise empty"""
    group: str = ""
    """source of the recording"""
    bouts: tuple[tuple[float, float, str], ...]
    """start and end in seconds, and class"""

    @property
    def edges(self) -> NDArray[np.float64]:
        """Times of the images and of the end, `(frames + 1,)`."""
        return np.asarray(self.times or np.linspace(0, self.seconds, self.frames + 1), np.float64)


class _Recordings(Options):
    recordings: dict[str, LabelledRecording]


def merge_bouts(bouts: Sequence[Bout], gap: float = TOUCHING) -> list[Bout]:
    """Return bouts in order of time; bouts of a class that overlap or are at most `gap` seconds apart become one."""
    made: list[Bout] = []
    latest: dict[str, int] = {}
    for bout in sorted(bouts, key=lambda bout: (bout.start, bout.end)):
        place = latest.get(bout.name)
        if place is not None and bout.start - made[place].end <= gap:
            made[place] = replace(made[place], end=max(made[place].end, bout.end))
        else:
            latest[bout.name] = len(made)
            made.append(bout)
    return made


def read_recordings(record: Record) -> dict[str, LabelledRecording]:
    """Read the dense labels of a data set, by id of the recording.

    Raises:
        DataError: The data set has no dense labels, or the file is missing or wrong.
        SettingsError: A value in the file is wrong.
    """
    if record.timeline is None:
        raise DataError(
            f"{record.folder / RECORD_FILE}: the data set has no dense labels (`timeline`); write them with "
            "`two-stream prepare timeline`"
        )
    path = record.resolve(record.timeline)
    try:
        content = parse_json("\n".join(read_lines(path)))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: invalid JSON ({error.msg})") from None
    found = validate_settings(_Recordings, content, path).recordings
    for name, recording in found.items():
        if recording.times and len(recording.times) != recording.frames + 1:
            raise DataError(
                f"{path}: {name!r} has {len(recording.times)} times: expected {recording.frames + 1}"
            )
        for start, end, label in recording.bouts:
            if not 0 <= start < end:
                raise DataError(
                    f"{path}: {name!r} has a bout from {start} to {end} s: expected 0 <= start < end"
                )
            if label not in record.classes:
                raise DataError(
                    f"{path}: {name!r} has a bout of {label!r}, which is not a class of {record.name}"
                )
    return found


def write_recordings(path: Path, recordings: Mapping[str, LabelledRecording]) -> None:
    """Write the file that `read_recordings` reads."""
    write_json(
        path, {"recordings": {name: one.model_dump() for name, one in recordings.items()}}, indent=None
    )
