"""Finds the frames that the split lists and segments of a data set need, for `two-stream extract --dataset`."""

from __future__ import annotations

from collections import defaultdict

from two_stream.data.bouts import read_recordings
from two_stream.data.catalog import RECORD_FILE, Record
from two_stream.data.packing import all_videos
from two_stream.data.sources.files import find_video, index_videos
from two_stream.data.sources.segments import segments_of
from two_stream.errors import DataError
from two_stream.video.sources import Source


def needed_sources(record: Record) -> list[Source]:
    """Return the videos of a data set's lists, each with the parts that its segments need.

    A part has one image more than its flow frames. Parts that overlap or touch are joined. A recording with dense
    labels is needed as a whole, because `evaluate --timeline` reads all of it.

    Raises:
        DataError: There are no lists or no videos, or the record numbers its frames from another number than 1.
        VideoError: There is no file of a video.
    """
    if (record.first.rgb, record.first.flow) != (1, 1):
        raise DataError(
            f"{record.folder / RECORD_FILE}: `first` is set, but `extract` numbers frames from 1; remove `first`"
        )
    root = record.videos_root()
    index, segments = index_videos(root), segments_of(record)
    whole = set(read_recordings(record)) if record.timeline is not None else set()
    spans: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for modality in record.modalities() or ["rgb"]:
        for video in all_videos(record, modality):
            segment = segments.get(video.id)
            if segment is None:
                whole.add(video.id)
                continue
            last = segment.first - 1 + video.num_frames + (modality == "flow")
            spans[segment.video].append((segment.first, last))
    names = sorted(whole | set(spans))
    return [
        Source(name, find_video(index, root, name), () if name in whole else _joined(spans[name]))
        for name in names
    ]


def _joined(spans: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    made: list[tuple[int, int]] = []
    for first, last in sorted(spans):
        if made and first <= made[-1][1] + 1:
            made[-1] = (made[-1][0], max(last, made[-1][1]))
        else:
            made.append((first, last))
    return tuple(made)
