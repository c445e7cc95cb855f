"""Files are whole or absent."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from two_stream.runtime.files import atomic_path, sha256, write_bytes, write_json


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    write_bytes(target, b"old")
    with pytest.raises(RuntimeError, match="half"), atomic_path(target) as part:
        part.write_bytes(b"new, but ha")
        raise RuntimeError("half way")
    assert target.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_a_good_write_replaces(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "a.json"
    write_json(target, {"ö": 1})
    write_json(target, {"ö": 2})
    assert target.read_text(encoding="utf-8") == '{\n  "ö": 2\n}\n'
    assert [p.name for p in target.parent.iterdir()] == ["a.json"]


def test_sha256_is_of_the_content(tmp_path: Path) -> None:
    target = tmp_path / "a"
    write_bytes(target, b"abc")
    assert sha256(target) == hashlib.sha256(b"abc").hexdigest()
