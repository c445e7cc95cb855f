"""An index of a video's frames from its packets, without decoding, for the files whose packets can be believed.

Demuxing a thousand frames takes as long as decoding twenty. What makes packets believable: a codec whose key frames
can be told from mere recovery points, a time stamp on every packet, none twice, none marked corrupt or discarded, as
many as the header announces, parameter sets that do not change on the way, and the first frames decoding in the very
order the stamps say. Everything else takes a full pass. What packets cannot show is damage inside one that nobody has
decoded yet: behind it a full pass may end, where a seek goes on.
"""

from __future__ import annotations

from collections.abc import Iterator

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from two_stream.video.decoding.index import Index

PROVEN = 32
"""frames decoded from the beginning to see that packets and frames agree"""

_KEYS = {"h264": frozenset({5}), "hevc": frozenset({19, 20})}
"""types of the NAL units after which nothing refers to what came before"""
_SETS = {"h264": frozenset({7, 8}), "hevc": frozenset({32, 33, 34})}
"""types of the NAL units that change how pictures are decoded"""
_PLAIN = frozenset({"vp9", "mjpeg"})
"""codecs whose packets marked as key frames always are"""


def index_of_packets(container: InputContainer, stream: VideoStream) -> Index | None:
    """Return the index of a freshly opened file, or None when its packets cannot be believed.

    Args:
        container: Just opened; afterwards it stands at its end.
        stream: The video stream.
    """
    codec = stream.codec_context.name
    if codec not in _KEYS and codec not in _PLAIN:
        return None
    stamps: list[int] = []
    keys: list[int] = []
    try:
        for packet in container.demux(stream):
            if packet.size == 0:  # the last one, which flushes the decoder
                continue
            if packet.pts is None or packet.is_corrupt or packet.is_discard:
                return None
            key = _key(packet, codec, stream)
            if key is None:
                return None
            if key:
                keys.append(packet.pts)
            stamps.append(packet.pts)
    except (av.FFmpegError, ValueError, MemoryError):
        return None
    # what the decoder allows for from the start; PyAV tells since 18
    depth = int(getattr(stream.codec_context, "reorder_depth", 0) or 0)
    return _ordered(stamps, keys, stream.frames, depth)


def starts_as(container: InputContainer, stream: VideoStream, index: Index) -> bool:
    """Tell whether the first frames of a freshly opened file decode with the time stamps of the index."""
    count = min(PROVEN, len(index.pts))
    number = 0
    try:
        for packet in container.demux(stream):
            for frame in packet.decode():
                if frame.is_corrupt or frame.pts != index.pts[number]:
                    return False
                number += 1
                if number == count:
                    return True
    except (av.FFmpegError, ValueError, MemoryError):
        return False
    return False


def _ordered(stamps: list[int], keys: list[int], announced: int, depth: int) -> Index | None:
    """Sort the time stamps of the packets; None when they are not what frames will have.

    Args:
        stamps: In the order of the file.
        keys: Those of key frames.
        announced: Frames in the header, 0 where it says nothing.
        depth: Frames that the decoder holds back to put them in order.
    """
    if not stamps or not keys or (announced and announced != len(stamps)):
        return None
    read = np.asarray(stamps, np.int64)
    order = np.argsort(read, kind="stable")
    shown = read[order]
    if (np.diff(shown) <= 0).any() or keys[0] != shown[0] or stamps[0] != shown[0]:
        return None
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    late = np.arange(len(order)) - rank  # by how much a packet comes after its place in the presentation
    if late.max() > max(
        depth, late[:PROVEN].max()
    ):  # a decoder that learns of it on the way may drop a frame there
        return None
    return Index(
        shown,
        np.searchsorted(shown, np.asarray(sorted(keys), np.int64)).tolist(),
        kind="packets",
    )


def _key(packet: Packet[VideoStream], codec: str, stream: VideoStream) -> bool | None:
    """Tell whether decoding can begin at a packet; None when parameter sets change on the way."""
    if codec in _PLAIN:
        return bool(packet.is_keyframe)
    kinds = list(_units(bytes(packet), codec, stream.codec_context.extradata or b""))
    carried = _SETS[codec].intersection(kinds)
    if not _KEYS[codec].intersection(kinds):
        return None if carried else False
    inside = not (stream.codec_context.extradata or b"").startswith(
        b"\x01"
    )  # no sets in the header of the file
    if inside:
        return carried == _SETS[codec]
    return None if carried else True


def _units(content: bytes, codec: str, extradata: bytes) -> Iterator[int]:
    """Yield the types of a packet's NAL units."""
    if extradata.startswith(b"\x01"):  # length-prefixed, as in MP4 and Matroska
        at_size = 4 if codec == "h264" else 21
        width = (extradata[at_size] & 3) + 1 if len(extradata) > at_size else 4
        at = 0
        while at + width < len(content):
            yield _kind(content[at + width], codec)
            at += width + int.from_bytes(content[at : at + width], "big")
        return
    at = content.find(b"\x00\x00\x01")
    while at >= 0 and at + 3 < len(content):
        yield _kind(content[at + 3], codec)
        at = content.find(b"\x00\x00\x01", at + 3)


def _kind(head: int, codec: str) -> int:
    return head & 31 if codec == "h264" else head >> 1 & 63
