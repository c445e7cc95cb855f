"""Segments of longer videos, which are read directly from these videos.

Each segment has its own id and number of frames in the split lists. A CSV file in the folder of the split lists has the
columns `id,video,start,end,first`: the id of the segment, the id of the video, the start and end in seconds, and the
number (1-based) of the video's frame at which the segment starts. Flow frame n of a segment is the flow between its
images n and n + 1.
"""

from __future__ import annotations

import csv
import io
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from two_stream.data.catalog import Record, read_lines
from two_stream.data.sources.files import ClipSource
from two_stream.errors import DataError, VideoError
from two_stream.runtime.files import write_text
from two_stream.types import Frames
from two_stream.video.frames import Region
from two_stream.video.rate import FrameTimes

COLUMNS = ("id", "video", "start", "end", "first")
_SLACK = 1e-6
"""frames; tolerance for rounding, so that 0.3 s × 10 per second is frame 3"""


@dataclass(frozen=True)
class Segment:
    """The position of a segment in its video."""

    video: str
    """id of the video: its path relative to the root, without suffix"""
    start: float | None
    """start in seconds; `start` and `end` are None if the annotations count frames"""
    end: float | None
    first: int
    """number of the frame in the video that is frame 1 of the segment"""


def read_segments(path: Path) -> dict[str, Segment]:
    """Read a file of segments.

    Raises:
        DataError: Missing, or an invalid or duplicate line, named as `file:line`.
    """
    rows = csv.reader(read_lines(path))
    if tuple(next(rows, ())) != COLUMNS:
        raise DataError(f"{path}:1: expected the columns {','.join(COLUMNS)}")
    found: dict[str, Segment] = {}
    for row in rows:
        if not row:
            continue
        where = f"{path}:{rows.line_num}"
        try:
            name, video, start, end, first = (cell.replace("\\", "/") for cell in row)
            counted = not start and not end
            segment = Segment(video, None, None, int(first))
            if not counted:
                segment = replace(segment, start=float(start), end=float(end))
        except ValueError:
            raise DataError(f"{where}: {','.join(row)!r}: expected {','.join(COLUMNS)}") from None
        if not name or not video:
            raise DataError(f"{where}: expected an id and a video, found an empty field")
        if not counted and not 0 <= float(start) < float(end) < math.inf:
            raise DataError(
                f"{where}: {name!r} has start {start} s and end {end} s: expected 0 <= start < end"
            )
        if segment.first < 1:
            raise DataError(f"{where}: {name!r} starts at frame {first}: expected 1 or more")
        if name in found:
            raise DataError(f"{where}: {name!r} is listed twice; remove one line")
        found[name] = segment
    return found


def write_segments(path: Path, segments: Mapping[str, Segment]) -> None:
    """Write a file of segments atomically."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(COLUMNS)
    for name, s in segments.items():
        seconds = ("" if time is None else f"{time:.6g}" for time in (s.start, s.end))
        rows.writerow((name, s.video, *seconds, s.first))
    write_text(path, text.getvalue())


def segments_of(record: Record) -> dict[str, Segment]:
    """Return the segments of a data set, with their ids as keys; empty if it has no segments.

    Raises:
        DataError: The file is missing or wrong.
    """
    return read_segments(record.resolve(record.segments)) if record.segments is not None else {}


def frames_between(
    start: float, end: float, count: int, *, fps: float | None = None, times: Sequence[float] | None = None
) -> range:
    """Return the numbers (1-based) of the frames displayed from `start` (inclusive) to `end` (exclusive).

    Consecutive segments therefore have no frame in common and skip no frame. At a constant rate, the frames are
    `floor(start * fps) + 1` to `floor(end * fps)`, as in 3D-ResNets-PyTorch `datasets/activitynet.py`.

    Args:
        start: Seconds.
        end: Seconds.
        count: Frames of the video.
        fps: Frames per second, if `times` are unknown.
        times: Second at which each frame appears, ascending; needed for videos of variable rate.
    """
    if times:
        apart = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 0.0
        borders = [*times, times[-1] + apart]
        slack = _SLACK * apart
        first, stop = (bisect_right(borders, time + slack) for time in (start, end))
    else:
        assert fps is not None
        first, stop = (math.floor(time * fps + _SLACK) + 1 for time in (start, end))
    return range(max(first, 1), min(stop, count + 1))


class SegmentSource(ClipSource):
    """A frame source for videos and for segments of these videos."""

    def __init__(self, videos: ClipSource, segments: Mapping[str, Segment]) -> None:
        """`videos` is the source of the whole videos; it also reads ids that are not segments."""
        super().__init__(videos.modality)
        self.videos = videos
        self.segments = segments

    def read(
        self, video_id: str, numbers: Sequence[int], resize: tuple[int, int], region: Region | None = None
    ) -> Frames:
        """See `ClipSource.read`; frames are counted from the start of the segment."""
        segment = self.segments.get(video_id)
        if segment is None:
            return self.videos.read(video_id, numbers, resize, region)
        if min(numbers) < 1:
            raise VideoError(
                video_id,
                f"frame {min(numbers)} was requested, but the frames of a segment are counted from 1",
            )
        shifted = [segment.first - 1 + number for number in numbers]
        return self.videos.read(segment.video, shifted, resize, region)

    def times(self, video_id: str) -> FrameTimes:
        """See `ClipSource.times`; a segment begins with the time of its first image."""
        segment = self.segments.get(video_id)
        if segment is None:
            return self.videos.times(video_id)
        times = self.videos.times(segment.video)
        return times[segment.first - 1 :] if isinstance(times, Sequence) else times

    def has_flow(self, pairs: Sequence[tuple[int, int]]) -> bool:
        """See `ClipSource.has_flow`."""
        return self.videos.has_flow(pairs)

    def read_between(
        self,
        video_id: str,
        pairs: Sequence[tuple[int, int]],
        resize: tuple[int, int],
        region: Region | None = None,
    ) -> Frames:
        """See `ClipSource.read_between`; images are counted from the start of the segment."""
        segment = self.segments.get(video_id)
        if segment is None:
            return self.videos.read_between(video_id, pairs, resize, region)
        shifted = [(segment.first - 1 + first, segment.first - 1 + last) for first, last in pairs]
        return self.videos.read_between(segment.video, shifted, resize, region)
