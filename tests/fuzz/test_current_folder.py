"""Whatever lies in the current folder, nothing of it is run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from two_stream.studies.running import pool


def test_workers_take_no_modules_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("yaml", "pydantic", "numpy", "torch"):
        (tmp_path / f"{name}.py").write_text("open('ran', 'w').close()\n")
    monkeypatch.chdir(tmp_path)
    worker = pool._started()
    assert worker.stdin is not None
    worker.stdin.close()
    worker.wait(60)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("start", [["-m", "two_stream"], ["-P", "-m", "two_stream"]])
def test_the_command_takes_no_modules_from_the_current_folder(tmp_path: Path, start: list[str]):
    for name in ("yaml", "pydantic", "numpy", "rich", "tyro"):
        (tmp_path / f"{name}.py").write_text("open('ran', 'w').close()\n")
    made = subprocess.run([sys.executable, *start, "models"], cwd=tmp_path, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    assert not (tmp_path / "ran").exists()
