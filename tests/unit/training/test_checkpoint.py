"""Checkpoint folders: one whole folder under the name at every moment, damage named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.helpers.training import TinyNet, write_tensors
from two_stream.errors import CheckpointError
from two_stream.runtime import files
from two_stream.runtime.files import complete_folder, replaced_folder, verify_checksums
from two_stream.training.run_folder import load_checkpoint, save_checkpoint


class _KilledError(Exception):
    """A SIGKILL at this very call."""


def _write(target: Path, text: str) -> None:
    with replaced_folder(target) as new:
        (new / "a.txt").write_text(text)


def _read(target: Path) -> str:
    folder = complete_folder(target)
    verify_checksums(folder)
    return (folder / "a.txt").read_text()


@pytest.mark.parametrize("moment", range(12))
def test_a_kill_at_any_call_leaves_one_whole_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    """Every call that changes the disk in turn is the one that never happens, and nothing after it does either."""
    target = tmp_path / "last"
    _write(target, "old")
    calls = 0

    def guarded(owner: object, name: str) -> None:
        real = getattr(owner, name)

        def call(*args: object, **kwargs: object) -> object:
            nonlocal calls
            calls += 1
            if calls > moment:
                raise _KilledError
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)

    for owner, name in (
        (Path, "mkdir"),
        (Path, "rename"),
        (Path, "write_text"),
        (files.shutil, "rmtree"),
        (files, "fsync_file"),
        (files, "fsync_dir"),
    ):
        guarded(owner, name)
    killed = False
    try:
        _write(target, "new")
    except _KilledError:
        killed = True
    monkeypatch.undo()
    assert _read(target) in ("old", "new")
    if not killed:
        assert _read(target) == "new"
    _write(target, "newest")
    assert _read(target) == "newest"
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


def test_a_kill_between_the_two_renames(tmp_path: Path) -> None:
    target = tmp_path / "best"
    _write(target, "old")
    target.rename(tmp_path / ".best.old")
    assert _read(target) == "old"
    _write(target, "new")
    assert _read(target) == "new"
    assert not (tmp_path / ".best.old").exists()


def test_an_error_while_writing_keeps_the_present_folder(tmp_path: Path) -> None:
    target = tmp_path / "last"
    _write(target, "old")
    with pytest.raises(ValueError, match="disk full"), replaced_folder(target) as new:
        (new / "a.txt").write_text("half")
        raise ValueError("disk full")
    assert _read(target) == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


def test_round_trip_and_every_kind_of_damage(tmp_path: Path) -> None:
    target = tmp_path / "last"
    model = TinyNet()
    save_checkpoint(target, model, {"epoch": 3, "nested": {"t": torch.arange(3)}}, {}, write_tensors)
    weights, state = load_checkpoint(target)
    assert state["epoch"] == 3
    assert state["nested"]["t"].tolist() == [0, 1, 2]
    assert torch.equal(weights["stem.weight"], model.stem.weight)
    content = (target / "state.pt").read_bytes()
    (target / "state.pt").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"last/state\.pt: damaged \(SHA-256"):
        load_checkpoint(target)
    (target / "state.pt").unlink()
    with pytest.raises(CheckpointError, match=r"last/state\.pt: the file is missing"):
        load_checkpoint(target)
    (target / "checksums.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"checksums\.json: missing or damaged"):
        load_checkpoint(target)
    with pytest.raises(CheckpointError, match="no such checkpoint folder"):
        load_checkpoint(tmp_path / "none")


def test_a_pickle_with_code_in_it_is_refused(tmp_path: Path) -> None:
    """`state.pt` is read with `weights_only=True`: an object that is no tensor and no plain value does not load."""
    target = tmp_path / "last"
    save_checkpoint(target, TinyNet(), {"path": tmp_path}, {}, write_tensors)
    with pytest.raises(CheckpointError, match=r"state\.pt: cannot be read"):
        load_checkpoint(target)


def test_another_format_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "last"
    save_checkpoint(target, TinyNet(), {"format": 99}, {}, write_tensors)
    with pytest.raises(CheckpointError, match="written by a different version"):
        load_checkpoint(target)
    assert set(json.loads((target / "checksums.json").read_text())) == {"model.safetensors", "state.pt"}
