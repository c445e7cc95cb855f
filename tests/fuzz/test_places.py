"""Shards whose index or pictures were changed, pictures of gigapixels, URLs of other kinds."""

from __future__ import annotations

import io
import json
import os
import resource
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from two_stream.data.sources.shards import INDEX, Packed, ShardIndex, Storage, parse_index
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
        ({"names": ["../../../etc/passwd"]}, "shard '../../../etc/passwd': expected a file name"),
        ({"names": ["/etc/passwd"]}, "expected a file name"),
        ({"names": [".."]}, "expected a file name"),
        ({"videos": {"a": Packed(1, 3, 0)}}, "'a' has a position outside the index"),
        ({"videos": {"a": Packed(0, 10**12, 0)}}, "'a' has a position outside the index"),
        ({"videos": {"a": Packed(0, 3, -3)}}, "'a' has a position outside the index"),
        ({"sizes": np.full(6, 10**12)}, "'a' has a position outside its shard"),
        ({"starts": np.full(6, -1)}, "'a' has a position outside its shard"),
        ({"sizes": np.full(5, 100)}, "found 6 start positions and 5 sizes"),
        ({"sizes": np.full(6, 100.0)}, "64-bit integers"),
        ({"settings": {**SETTINGS, "encoding": "raw", "resize": [10**6, 10**6]}}, "images of 1000000"),
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
    with pytest.raises(VideoError, match=r"huge.png: the image has more than 67108864 pixels"):
        decode_picture(png(12000, 9000), "huge.png", cv2.IMREAD_COLOR)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def test_other_kinds_of_url_are_not_opened(tmp_path: Path) -> None:
    for url in ("ssh://host/x", "github://a:b@c/x", "reference://x", "ftp://host/x", "hf://datasets/x"):
        with pytest.raises(
            SettingsError, match=r"URLs are not supported; expected file, s3, gs, az, http, https"
        ):
            Storage(url).size("index.npz")
    (tmp_path / "x").write_bytes(b"abc")
    assert Storage(f"file://{tmp_path}").size("x") == 3


@pytest.fixture(params=["raw", "jpeg"])
def packed(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return the index of four videos of five pictures each in two shards."""
    rng, folder = np.random.default_rng(0), tmp_path / "good" / "rgb"
    folder.mkdir(parents=True)
    raw = request.param == "raw"
    videos, starts, sizes, lengths = {}, [], [], []
    for shard in range(2):
        content = bytearray(bytes(512))
        for video in range(2):
            videos[f"v{shard}{video}"] = Packed(shard, 5, len(starts))
            pictures = [rng.integers(0, 256, (16, 24, 3), np.uint8) for _ in range(5)]
            parts = [cv2.imencode(".jpg", picture)[1].tobytes() for picture in pictures]
            for part in [np.stack(pictures).tobytes()] if raw else parts:
                starts.append(len(content))
                sizes.append(len(part))
                content += part
        (folder / f"00000{shard}.tar").write_bytes(content)
        lengths.append(len(content))
    settings = {"modality": "rgb", "encoding": request.param, "resize": [16, 24], "quality": 90}
    made = ShardIndex(settings, [], [], videos, np.array(starts), np.array(sizes))
    shards = [{"name": f"00000{n}.tar", "bytes": size, "sha256": ""} for n, size in enumerate(lengths)]
    (folder / INDEX).write_bytes(made.dump(shards))
    return folder / INDEX


TEXTS = ("", "..", "/etc/passwd", "\x1b[31m\n", "x" * 100_000, "flow", "raw", "original")
NUMBERS = (-1, 0, 1, 2, 7, 10**6, 2**31, 2**62, 2**63 - 1, -(2**63))


@pytest.mark.parametrize("count", [250, pytest.param(10_000, marks=pytest.mark.slow)])
def test_mutated_shards(count: int, packed: Path, tmp_path: Path, guarded: Any) -> None:
    """Words and numbers of the index, its arrays' types and shapes, bytes of the archive and of the pictures."""
    rng = np.random.default_rng(0)
    with np.load(packed) as file:
        good = dict(file)

    def one_of(values: Any) -> Any:
        return values[int(rng.integers(len(values)))]

    def changed(value: Any) -> Any:
        """Change one thing somewhere within JSON."""
        if isinstance(value, dict) and value and rng.random() < 0.9:
            key = one_of(list(value))
            return {
                k: changed(v) if k == key else v for k, v in value.items() if k != key or rng.random() < 0.9
            }
        if isinstance(value, list) and value and rng.random() < 0.9:
            place = int(rng.integers(len(value)))
            return [changed(v) if n == place else v for n, v in enumerate(value)]
        return one_of([*TEXTS, *NUMBERS, None, [], {}, 1e308, True])

    paths = []
    for number in range(count):
        folder = tmp_path / str(number) / "rgb"
        folder.mkdir(parents=True)
        for shard in packed.parent.glob("*.tar"):
            os.link(shard, folder / shard.name)
        arrays = {name: array.copy() for name, array in good.items()}
        kind = number % 5
        if kind == 0:
            meta = changed(json.loads(good["meta"].tobytes()))
            arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
        elif kind == 1:
            array = arrays[one_of(["places", "starts", "sizes"])]
            array.reshape(-1)[int(rng.integers(array.size))] = one_of(NUMBERS)
        elif kind == 2:
            name = one_of(list(arrays))
            array = arrays[name]
            arrays[name] = one_of(
                [
                    array[:-1],
                    array.astype(float),
                    array.astype(np.uint64),
                    array.astype(str),
                    array[None],
                    array[:0],
                ]
            )
        if kind == 3:  # a picture
            shard = one_of(sorted(folder.glob("*.tar")))
            content = bytearray(shard.read_bytes())
            for _ in range(20):
                content[int(rng.integers(512, len(content)))] = int(rng.integers(256))
            shard.unlink()
            shard.write_bytes(content[: len(content) - int(rng.integers(2))])
        file = io.BytesIO()
        np.savez_compressed(file, **arrays)
        content = bytearray(file.getvalue())
        if kind == 4:
            for _ in range(int(rng.integers(1, 4))):
                content[int(rng.integers(len(content)))] = int(rng.integers(256))
        (folder / INDEX).write_bytes(content)
        paths.append(folder / INDEX)
    found = guarded("shards", packed, paths)
    wrong = [
        (str(path), what)
        for path, what in zip(paths, found, strict=True)
        if not (what == "opened" or (what.startswith("refused ") and "⏎" not in what and what.isprintable()))
    ]
    assert not wrong, f"{len(wrong)} of {count}: {wrong[:5]}"
    assert sum(what != "opened" for what in found) > count / 3
