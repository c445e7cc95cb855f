"""What is known about a video's frames, so that a read may begin at a key frame; kept between runs.

An index is `decoded` (one full pass: time stamps, key frames and a checksum of each frame's pixels), made from
`packets` (time stamps and key frames of a file whose packets can be believed, nothing decoded), or `none` (time stamps
do not identify frames, or the file is damaged: read from its beginning). Files lie in the user's cache folder
(`TWO_STREAM_CACHE`), one per video, known by path, size and time of change.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from bisect import bisect_right
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from two_stream.runtime.files import cache_folder, write_cached

_FORMAT = 2
Kind = Literal["decoded", "packets", "none"]


@dataclass
class Index:
    """Frames in order of presentation, numbered from 0."""

    pts: list[int | None] | NDArray[np.int64] = field(default_factory=list)
    """time stamp of each frame"""
    keys: list[int] = field(default_factory=list)
    """frames that can be decoded without those before them, ascending"""
    prints: list[int] | NDArray[np.uint32] = field(default_factory=list)
    """checksum of every fourth row of each frame's first plane; empty where nothing was decoded"""
    kind: Kind = "decoded"

    def start_before(self, frame: int) -> int:
        """Return the last key frame at or before `frame`, 0 where time stamps do not identify frames."""
        place = bisect_right(self.keys, frame)
        return self.keys[place - 1] if place and self.unique else 0

    @cached_property
    def unique(self) -> bool:
        """Whether time stamps are all there and strictly rise."""
        if isinstance(self.pts, np.ndarray):
            return bool((np.diff(self.pts) > 0).all())
        known = [stamp for stamp in self.pts if stamp is not None]
        return len(known) == len(self.pts) and all(a < b for a, b in pairwise(known))


def load(path: Path, decoder: str) -> Index | None:
    """Return the kept index of a file; None where there is none, or it was made of another state of the file.

    Args:
        path: The video.
        decoder: Name and version of what decodes; pixels differ between versions.
    """
    place = _place(path)
    if place is None:
        return None
    try:
        content = place.read_bytes()
        first, _, payload = content.partition(b"\n")
        found = json.loads(first)
        if (
            found != {**_header(path, decoder), "made": found["made"]}
            or zlib.crc32(payload) != found["made"]["crc"]
        ):
            return None
        return _unpack(found["made"], payload)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def store(path: Path, decoder: str, index: Index) -> bool:
    """Keep an index; False where that is not possible."""
    place = _place(path)
    if place is None:
        return False
    if index.kind == "none" or not index.unique:
        index = Index(kind="none")
    try:
        payload = b"".join(
            np.asarray(values, kind).tobytes()
            for values, kind in ((index.pts, "<i8"), (index.keys, "<i8"), (index.prints, "<u4"))
        )
        header = _header(path, decoder)
    except (OSError, OverflowError):
        return False
    counts = [len(index.pts), len(index.keys), len(index.prints)]
    header["made"] = {"kind": index.kind, "counts": counts, "crc": zlib.crc32(payload)}
    return write_cached(place, json.dumps(header).encode() + b"\n" + payload)


def _unpack(made: dict[str, Any], payload: bytes) -> Index:
    """Raise ValueError where counts and content differ."""
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


def _place(path: Path) -> Path | None:
    folder = cache_folder()
    if folder is None:
        return None
    name = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:40]
    return folder / "video-index" / name[:2] / f"{name}.idx"
