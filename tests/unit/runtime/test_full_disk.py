"""A full disk is one line with the file's name and what is kept, whichever library finds out."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from two_stream import cli
from two_stream.errors import FullDiskError, SettingsError
from two_stream.evaluation.scores import files
from two_stream.runtime.files import check_writable, replaced_folder, room_for, temporary_folder, write_bytes

FULL = [
    OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),
]


@pytest.mark.parametrize("error", FULL)
def test_each_way_to_write_names_the_file_and_what_is_kept(tmp_path, error, monkeypatch):
    def full(self, content):
        raise error

    old, new = tmp_path / "old.npz", tmp_path / "new.onnx"
    write_bytes(old, b"whole")
    with replaced_folder(tmp_path / "last") as folder:
        write_bytes(folder / "model", b"whole")
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(FullDiskError) as caught:
        write_bytes(old, b"more")
    assert str(caught.value) == f"{old}: no space left on the disk; the previous content is kept"
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    with pytest.raises(FullDiskError) as caught, temporary_folder(new) as folder:
        (folder / "graph").write_bytes(b"more")
    assert str(caught.value) == f"{new}: no space left on the disk; no part of it is left"
    with pytest.raises(FullDiskError) as caught, replaced_folder(tmp_path / "last") as folder:
        write_bytes(folder / "model", b"more")
    assert (
        str(caught.value) == f"{tmp_path}/last/model: no space left on the disk; the previous last/ is kept"
    )
    assert sorted(tmp_path.rglob("*")) == before


def test_other_errors_stay_what_they_are(tmp_path):
    for error in (
        OSError(errno.EACCES, "denied"),
        RuntimeError("shape mismatch"),
        SettingsError("no space left"),
    ):
        with pytest.raises(type(error)) as caught, room_for(tmp_path):
            raise error
        assert caught.value is error


def test_fuse_says_it_in_one_line(tmp_path, monkeypatch, capsys):
    meta = {
        "name": "a",
        "dataset": "d",
        "split": 1,
        "part": "test",
        "modality": "rgb",
        "selection": "holdout",
    }
    for name in ("a", "b"):
        logits = np.random.default_rng(0).normal(size=(3, 2))
        made = files.ScoreTable(
            ["x", "y", "z"], np.array([0, 1, 0]), ["k", "l"], logits, dict(meta, name=name)
        )
        files.write_scores(tmp_path / f"{name}.npz", made)

    def full(*args, **kwargs):
        raise FULL[0]

    monkeypatch.setattr(np, "savez_compressed", full)
    code = cli.main(
        ["fuse", *(str(tmp_path / f"{name}.npz") for name in "ab"), "--out", str(tmp_path / "f.npz")]
    )
    said = capsys.readouterr().err.strip().splitlines()
    assert (code, said[-1]) == (
        1,
        f"two-stream: {tmp_path / 'f.npz'}: no space left on the disk; no part of it is left",
    )


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounts a small disk")
def test_a_disk_that_is_really_full(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], check=False).returncode:
        pytest.skip("may not mount")
    try:
        big = torch.zeros(1_000_000)
        for write in (
            lambda p: torch.save({"a": big}, p),
            lambda p: save_file({"a": big}, p),
            big.numpy().tofile,
        ):
            with (
                pytest.raises(FullDiskError, match=r"disk/x: no space left"),
                replaced_folder(disk / "x") as folder,
            ):
                write(folder / "a")
            assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_file_that_cannot_be_written_is_found_out_before(tmp_path):
    check_writable(tmp_path / "new" / "a.npz")
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match=r"file/a.npz: cannot be written \("):
        check_writable(tmp_path / "file" / "a.npz")
    with pytest.raises(SettingsError, match="is a folder; expected the path of a file to write"):
        check_writable(tmp_path)


def test_a_killed_loader_process_is_one_line(capsys):
    def action():
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. \nTraceback ...")

    assert cli.guarded(action) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "(DataLoader worker (pid 7) is killed by signal: Killed)" in line
    assert all(word in line for word in ("memory", "--data.workers", "--resume"))
