"""Shard indexes that point elsewhere, pictures of gigapixels, URLs of other kinds."""

from __future__ import annotations

import resource
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from two_stream.data.shards import Packed, ShardIndex, parse_index
from two_stream.data.storage import Storage
from two_stream.errors import DataError, SettingsError, VideoError
from two_stream.video.frames import decode_picture

SETTINGS = {"modality": "rgb", "encoding": "jpeg", "resize": None, "format": 1}


def index(**changes: Any) -> bytes:
    """Return an index of two videos of three pictures, with something else in places."""
    made: dict[str, Any] = {
        "settings": SETTINGS,
        "names": ["000000.tar"],
        "lengths": [600],
        "videos": {"a": Packed(0, 3, 0), "b": Packed(0, 3, 3)},
        "starts": np.arange(6) * 100,
        "sizes": np.full(6, 100),
        **changes,
    }
    shards = [
        {"name": n, "bytes": b, "sha256": ""} for n, b in zip(made["names"], made["lengths"], strict=True)
    ]
    return ShardIndex(**made).dump(shards)


def test_a_sound_index_is_read() -> None:
    assert list(parse_index(index(), "x").videos) == ["a", "b"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"names": ["../../../etc/passwd"]}, "the shard '../../../etc/passwd' is no file name"),
        ({"names": ["/etc/passwd"]}, "is no file name"),
        ({"names": [".."]}, "is no file name"),
        ({"videos": {"a": Packed(1, 3, 0)}}, "'a' lies outside of the index"),
        ({"videos": {"a": Packed(0, 10**12, 0)}}, "'a' lies outside of the index"),
        ({"videos": {"a": Packed(0, 3, -3)}}, "'a' lies outside of the index"),
        ({"sizes": np.full(6, 10**12)}, "'a' lies outside of its shard"),
        ({"starts": np.full(6, -1)}, "'a' lies outside of its shard"),
        ({"sizes": np.full(5, 100)}, "6 beginnings of 5 entries"),
        ({"sizes": np.full(6, 100.0)}, "no whole numbers"),
        ({"settings": {**SETTINGS, "encoding": "raw", "resize": [10**6, 10**6]}}, "pictures of 1000000"),
    ],
)
def test_an_index_that_points_elsewhere_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        parse_index(index(**changes), "index.npz")


def test_a_picture_of_gigapixels_is_refused_before_it_is_decoded() -> None:
    def png(width: int, height: int) -> bytes:
        packed = zlib.compressobj(9)
        rows = b"".join(packed.compress(bytes(width + 1)) for _ in range(height)) + packed.flush()
        parts = (
            (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)),
            (b"IDAT", rows),
            (b"IEND", b""),
        )
        chunks = [struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in parts]
        return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)

    assert decode_picture(png(40, 30), "good.png", cv2.IMREAD_COLOR).shape == (30, 40, 3)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(VideoError, match=r"huge.png: more than 67108864 pixels"):
        decode_picture(png(12000, 9000), "huge.png", cv2.IMREAD_COLOR)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def test_other_kinds_of_url_are_not_opened(tmp_path: Path) -> None:
    for url in ("ssh://host/x", "github://a:b@c/x", "reference://x", "ftp://host/x", "hf://datasets/x"):
        with pytest.raises(
            SettingsError, match=r"is no place for shards; expected file, s3, gs, az, http, https"
        ):
            Storage(url).size("index.npz")
    (tmp_path / "x").write_bytes(b"abc")
    assert Storage(f"file://{tmp_path}").size("x") == 3
