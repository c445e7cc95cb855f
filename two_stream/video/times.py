"""When the frames of a video are shown, from its packets, where these can be believed."""

from __future__ import annotations

from pathlib import Path

from two_stream.video.backend_pyav import opened, version
from two_stream.video.index import load
from two_stream.video.packets import index_of_packets


def frame_times(path: Path) -> list[float] | None:
    """Return the second at which each frame appears, the first at 0; None where only decoding could tell.

    Raises:
        VideoError: Not a video.
    """
    with opened(path) as (container, stream):
        index = load(path, version()) or index_of_packets(container, stream)
        base = stream.time_base
    if index is None or not len(index.pts) or not index.unique or base is None:
        return None
    stamps = [int(stamp) for stamp in index.pts if stamp is not None]
    return [float((stamp - stamps[0]) * base) for stamp in stamps]
