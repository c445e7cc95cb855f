"""Frame indexes of videos. With an index, decoding can start at a key frame. Indexes are stored between runs.

There are three kinds of index:

- `decoded`: timestamps, key frames and a checksum of each frame's pixels, from decoding the whole file.
- `packets`: timestamps and key frames of a file whose packets are reliable. Only the first frames are decoded.
- `none`: timestamps do not identify frames, or the file is damaged. The file is decoded from its start.

Packets are reliable if all of these conditions hold:

- The codec's marks for key frames are exact: no later frame refers to a frame before a key frame.
- Every packet has its own timestamp, and no packet is marked as corrupt or discarded.
- If the header states a number of frames, it is the number of packets.
- Parameter sets do not change.
- The first frames are decoded in the order of the timestamps.

Damage inside a packet is found only when the packet is decoded. Decoding the whole file may stop at a damaged packet,
while seeking past this packet still works.

The index of each video is a file in the user's cache folder (`TWO_STREAM_CACHE`). The name of this file depends on the
path of the video. The file also contains the size and modification time of the video, and is ignored if they differ.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream
from numpy.typing import NDArray

from two_stream.runtime.files import cache_folder, write_cached

_FORMAT = 2
_VERIFIED = 32
"""frames decoded from the beginning to verify that packets and frames agree"""
_KEYS = {"h264": frozenset({5}), "hevc": frozenset({19, 20})}
"""types of the NAL units after which no frame refers to earlier frames"""
_SETS = {"h264": frozenset({7, 8}), "hevc": frozenset({32, 33, 34})}
"""types of the NAL units that change how frames are decoded"""
_PLAIN = frozenset({"vp9", "mjpeg"})
"""codecs whose packets marked as key frames always are"""


@dataclass
class Index:
    """Index of a video's frames, which are numbered from 0 in the order of presentation."""

    pts: list[int | None] | NDArray[np.int64] = field(default_factory=list)
    """timestamp of each frame"""
    keys: list[int] = field(default_factory=list)
    """numbers of the frames that can be decoded without earlier frames, ascending"""
    prints: list[int] | NDArray[np.uint32] = field(default_factory=list)
    """checksum of every fourth row of each frame's first plane; empty if nothing was decoded"""
    kind: Literal["decoded", "packets", "none"] = "decoded"

    def start_before(self, frame: int) -> int:
        """Return the last key frame that is not after `frame`, or 0 if timestamps do not identify frames."""
        place = bisect_right(self.keys, frame)
        return self.keys[place - 1] if place and self.unique else 0

    @cached_property
    def unique(self) -> bool:
        """Whether every frame has a timestamp and timestamps strictly increase."""
        if isinstance(self.pts, np.ndarray):
            return bool((np.diff(self.pts) > 0).all())
        known = [stamp for stamp in self.pts if stamp is not None]
        return len(known) == len(self.pts) and all(a < b for a, b in pairwise(known))


def load_frame_index(path: Path, decoder: str) -> Index | None:
    """Return the stored index of a file; None if there is none for the current file and this version of the decoder."""
    place = _index_file(path)
    if place is None:
        return None
    try:
        first, _, payload = place.read_bytes().partition(b"\n")
        found = json.loads(first)
        made = found.pop("made")
        if found != _header(path, decoder) or zlib.crc32(payload) != made["crc"]:
            return None
        return _unpack(made, payload)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def store_frame_index(path: Path, decoder: str, index: Index) -> bool:
    """Store an index, and return whether this was possible."""
    place = _index_file(path)
    if place is None:
        return False
    if index.kind == "none" or not index.unique:
        index = Index(kind="none")
    parts = ((index.pts, "<i8"), (index.keys, "<i8"), (index.prints, "<u4"))
    try:
        payload = b"".join(np.asarray(values, kind).tobytes() for values, kind in parts)
        header = _header(path, decoder)
    except (OSError, OverflowError):
        return False
    counts = [len(values) for values, _ in parts]
    header["made"] = {"kind": index.kind, "counts": counts, "crc": zlib.crc32(payload)}
    return write_cached(place, json.dumps(header).encode() + b"\n" + payload)


def _unpack(made: dict[str, Any], payload: bytes) -> Index:
    """Unpack a stored index; raise `ValueError` if its content does not match its counts."""
    frames, keys, prints = (int(count) for count in made["counts"])
    middle, end = 8 * frames, 8 * (frames + keys)
    if len(payload) != end + 4 * prints or made["kind"] not in ("decoded", "packets", "none"):
        raise ValueError("damaged")
    return Index(
        np.frombuffer(payload[:middle], "<i8"),
        np.frombuffer(payload[middle:end], "<i8").tolist(),
        np.frombuffer(payload[end:], "<u4"),
        made["kind"],
    )


def _header(path: Path, decoder: str) -> dict[str, Any]:
    status = path.stat()
    return {
        "format": _FORMAT,
        "path": os.fsencode(path.absolute()).hex(),
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "decoder": decoder,
    }


def _index_file(path: Path) -> Path | None:
    folder = cache_folder()
    name = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:40]
    return None if folder is None else folder / "video-index" / name[:2] / f"{name}.idx"


def read_packet_index(container: InputContainer, stream: VideoStream) -> Index | None:
    """Read all packets of a newly opened file; return its index, or None if the packets are not reliable."""
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
            is_key = _is_key(packet, codec, stream)
            if is_key is None:
                return None
            if is_key:
                keys.append(packet.pts)
            stamps.append(packet.pts)
    except (av.FFmpegError, ValueError, MemoryError):
        return None
    # frames that the decoder holds back from the start; known since PyAV 18
    depth = int(getattr(stream.codec_context, "reorder_depth", 0) or 0)
    return _sort_packets(stamps, keys, stream.frames, depth)


def starts_like_index(container: InputContainer, stream: VideoStream, index: Index) -> bool:
    """Return whether the first frames of a newly opened file have the timestamps of the index."""
    count = min(_VERIFIED, len(index.pts))
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


def _sort_packets(stamps: list[int], keys: list[int], announced: int, depth: int) -> Index | None:
    """Create an index from the timestamps of packets; None if the decoded frames would have other timestamps.

    `announced` is the number of frames in the header (0 if not stated); `depth` is the number of frames that the
    decoder delays.
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
    late = np.arange(len(order)) - rank  # by how much a packet comes after its place in presentation order
    # a decoder that meets a larger delay later on may drop a frame there
    if late.max() > max(depth, late[:_VERIFIED].max()):
        return None
    places = np.searchsorted(shown, np.asarray(sorted(keys), np.int64))
    return Index(shown, places.tolist(), kind="packets")


def _is_key(packet: Packet[VideoStream], codec: str, stream: VideoStream) -> bool | None:
    """Return whether decoding can start at a packet; None if the parameter sets change at this packet."""
    if codec in _PLAIN:
        return bool(packet.is_keyframe)
    extradata = stream.codec_context.extradata or b""
    units = list(_unit_types(bytes(packet), codec, extradata))
    sets = _SETS[codec].intersection(units)
    if not _KEYS[codec].intersection(units):
        return None if sets else False
    if not extradata.startswith(b"\x01"):  # the header of the file has no parameter sets
        return sets == _SETS[codec]
    return None if sets else True


def _unit_types(content: bytes, codec: str, extradata: bytes) -> Iterator[int]:
    """Yield the types of a packet's NAL units."""

    def unit_type(head: int) -> int:
        return head & 31 if codec == "h264" else head >> 1 & 63

    if extradata.startswith(b"\x01"):  # length-prefixed, as in MP4 and Matroska
        at_size = 4 if codec == "h264" else 21
        width = (extradata[at_size] & 3) + 1 if len(extradata) > at_size else 4
        at = 0
        while at + width < len(content):
            yield unit_type(content[at + width])
            at += width + int.from_bytes(content[at : at + width], "big")
        return
    at = content.find(b"\x00\x00\x01")
    while at >= 0 and at + 3 < len(content):
        yield unit_type(content[at + 3])
        at = content.find(b"\x00\x00\x01", at + 3)
