"""Score files that declare what they do not hold, and bytes changed anywhere: one line each, little memory."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from two_stream.errors import ScoreError
from two_stream.evaluation.scores.files import read_scores, write_scores
from two_stream.types import ScoreTable


@pytest.fixture
def good(tmp_path: Path) -> Path:
    table = ScoreTable(
        ids=[f"v{n}" for n in range(12)],
        labels=np.arange(12) % 3,
        class_names=["a", "b", "c"],
        logits=np.random.default_rng(0).normal(size=(12, 3)),
        meta={"dataset": "toy", "split": 1, "part": "test"},
        groups=[f"g{n // 2}" for n in range(12)],
    )
    write_scores(tmp_path / "good.npz", table)
    return tmp_path / "good.npz"


def _with(source: Path, target: Path, name: str, content: bytes) -> Path:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        for one in old.namelist():
            new.writestr(one, content if one == name else old.read(one))
    return target


def _declares(shape: tuple[int, ...], kind: str, held: int) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": kind, "fortran_order": False, "shape": shape})
    return file.getvalue() + bytes(held)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (_declares((12, 10**13), "<f8", 96), "96|bytes do not fit"),
        (_declares((10**13,), "<f4", 0), "bytes do not fit"),
        (_declares((12, 3), "|O", 288), "a data type other than numbers or text"),
        (b"\x93NUMPY\x01\x00\x10\x00(" + b"(" * 15, "not a score file"),
        (b"no array", "not a score file"),
    ],
)
def test_a_part_that_is_not_what_it_says(content, words, good, tmp_path):
    with pytest.raises(ScoreError, match=words) as caught:
        read_scores(_with(good, tmp_path / "bad.npz", "logits.npy", content))
    assert "pickle" not in str(caught.value)


def test_a_small_file_of_more_than_memory(good, tmp_path, monkeypatch):
    monkeypatch.setattr("two_stream.runtime.files.MOST_BYTES", 2**24)
    path = _with(good, tmp_path / "bomb.npz", "logits.npy", _declares((2**22,), "<f8", 2**25))
    assert path.stat().st_size < 2**16
    with pytest.raises(ScoreError, match=r"more than TWO_STREAM_MOST_BYTES \(16,777,216\)"):
        read_scores(path)


@pytest.mark.parametrize("count", [500, pytest.param(20_000, marks=pytest.mark.slow)])
def test_mutated_score_files(count, good, tmp_path, guarded):
    """Bytes of the members, so that the checksums fit, and of the archive."""
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(good) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    paths = []
    for place in range(count):
        path = tmp_path / f"{place}.npz"
        changed = {name: bytearray(content) for name, content in members.items()}
        for _ in range(int(rng.integers(1, 4))):
            content = changed[list(members)[int(rng.integers(len(members)))]]
            at = int(rng.integers(min(len(content), 200)))
            content[at] = int(rng.integers(256))
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in changed.items():
                archive.writestr(name, bytes(content))
        if place % 4 == 0:
            content = bytearray(path.read_bytes())
            content[int(rng.integers(len(content)))] ^= 1 << int(rng.integers(8))
            path.write_bytes(content)
        paths.append(path)
    found = guarded("scores", good, paths)
    wrong = [
        (path.name, what)
        for path, what in zip(paths, found, strict=True)
        if not what.startswith(("opened", "refused"))
    ]
    assert not wrong, wrong[:5]
    odd = [what for what in found if not what.isprintable() or "⏎" in what or "pickle" in what]
    assert not odd, odd[:5]
    assert sum(what.startswith("refused") for what in found) > count / 3
