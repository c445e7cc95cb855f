"""Files are whole or absent."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from two_stream.config.backbones import ResNet3d
from two_stream.config.model import ModelOptions
from two_stream.pretrained.folder import write_model
from two_stream.recognizer import create_model
from two_stream.runtime.files import atomic_path, replaced_folder, sha256, write_bytes, write_json


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


@pytest.mark.skipif(os.name == "nt", reason="no modes")
@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_every_file_has_the_mode_that_the_umask_gives(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        (tmp_path / "plain").touch()
        write_json(tmp_path / "facts.json", {})
        with replaced_folder(tmp_path / "run") as folder:
            write_model(folder, create_model(ModelOptions(backbone=ResNet3d(depth=10, width=0.125)), 2), {})
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
    finally:
        os.umask(before)
    assert len(files) == 4
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in files} == {
        path.name: oct(0o666 & ~mask) for path in files
    }
