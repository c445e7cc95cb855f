"""When the frames of a video are shown: from its packets where these can be believed, else from its frames."""

from __future__ import annotations

from pathlib import Path

from two_stream.video.decoding.backend_pyav import opened, version
from two_stream.video.decoding.index import load
from two_stream.video.decoding.packets import index_of_packets
from two_stream.video.decoding.reader import open_video


def frame_times(path: Path) -> list[float] | None:
    """Return the second at which each frame appears, the first at 0; None where the file does not tell.

    Raises:
        VideoError: Not a video.
    """
    with opened(path) as (container, stream):
        index = load(path, version()) or index_of_packets(container, stream)
        base = stream.time_base
    if index is None or not len(index.pts) or not index.unique or base is None:
        with open_video(path) as video:
            return None if video.times is None else video.times[:-1].tolist()
    stamps = [int(stamp) for stamp in index.pts if stamp is not None]
    return [float((stamp - stamps[0]) * base) for stamp in stamps]
