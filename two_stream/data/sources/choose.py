"""Creates the frame source for clips: frame folders, video files, segments of longer videos, or packed shards."""

from __future__ import annotations

from two_stream.config.schema import DataOptions
from two_stream.data.catalog import Record
from two_stream.data.sources.base import ClipSource
from two_stream.data.sources.files import FrameFolders, VideoFiles
from two_stream.data.sources.segments import SegmentSource, segments_of
from two_stream.data.sources.shards import ShardSource
from two_stream.errors import DataError
from two_stream.types import Modality


def make_source(record: Record, modality: Modality, data: DataOptions) -> ClipSource:
    """Return the frame source that is selected by `data.source`.

    Raises:
        DataError: The record has no such folder, or it does not exist.
    """
    if data.source == "shards":
        if record.segments is not None:
            raise DataError(
                f"{record.name}: `data.source: shards` cannot read segments of longer videos; "
                "use `data.source: frames` or `data.source: videos`"
            )
        assert data.shards is not None  # DataOptions has checked it
        return ShardSource(data.shards, modality, scaled_decoding=data.scaled_decoding)
    videos: ClipSource
    if data.source == "frames":
        videos = FrameFolders(record, modality, scaled_decoding=data.scaled_decoding)
    else:
        videos = VideoFiles(record, modality, data.backend, data.flow)
    if record.segments is None:
        return videos
    return SegmentSource(videos, segments_of(record))
