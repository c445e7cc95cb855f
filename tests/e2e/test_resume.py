"""A run killed at any moment and resumed ends with the weights and metrics of one that was left alone."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.helpers.datasets import write_rolled_dataset
from two_stream.cli import main
from two_stream.training.run_folder import load_checkpoint
from two_stream.training.tracking import TIME_FIELDS

pytestmark = pytest.mark.integration
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
ATTEMPTS = 5
"""on a busy machine a run may be over before this process looks at it again"""


@pytest.fixture(scope="module")
def experiment_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment over 15 short frame folders of three classes, small enough for a run of seconds."""
    root = write_rolled_dataset(tmp_path_factory.mktemp("resume"), val=slice(3))
    experiment = {
        "name": "run",
        "runs": str(root / "runs"),
        "seed": 3,
        "device": "cpu",
        "threads": 1,
        "model": {
            "backbone": {"kind": "mobilenetv2_3d", "width": 0.25},
            "head": {"kind": "bert", "heads": 2, "hidden": 32},
            "dropout": 0.5,
            "input": {"clip_length": 8, "resize": [36, 40], "crop": 32},
        },
        "data": {"dataset": "tiny", "settings_root": str(root / "settings"), "workers": 0},
        "train": {
            "epochs": 4,
            "batch_size": 2,
            "accumulate": 2,
            "optimizer": {"kind": "adamw", "lr": 1e-3},
            "schedule": {"kind": "cosine", "warmup_epochs": 1},
            "label_smoothing": 0.1,
            "mixup": 0.2,
            "checkpoint_every": 1,
            "log_images": False,
        },
    }
    path = root / "tiny.yaml"
    path.write_text(yaml.safe_dump(experiment))
    return path


@pytest.fixture(scope="module")
def uninterrupted(experiment_file: Path) -> Path:
    """The run folder everything is compared with, read in the main process."""
    done = _run(experiment_file, "whole")
    assert done.returncode == 0, done.stderr
    return experiment_file.parent / "runs" / "whole"


def _command(experiment_file: Path, name: str, *flags: str) -> list[str]:
    return [sys.executable, "-m", "two_stream", "train", str(experiment_file), "--name", name, *flags]


def _run(experiment_file: Path, name: str, *flags: str) -> subprocess.CompletedProcess[str]:
    command = _command(experiment_file, name, *flags)
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False)


def _start(experiment_file: Path, name: str, *flags: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        _command(experiment_file, name, *flags),
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _metrics(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIME_FIELDS} for line in lines]


def _assert_equal(left: Any, right: Any, where: str = "") -> None:
    """Compare nested values, tensors bit for bit."""
    if isinstance(left, torch.Tensor):
        assert left.dtype == right.dtype, where
        assert torch.equal(left, right), where
    elif isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for key in left:
            if key not in (*TIME_FIELDS, "code_version"):
                _assert_equal(left[key], right[key], f"{where}.{key}")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), where
        for index, pair in enumerate(zip(left, right, strict=True)):
            _assert_equal(*pair, f"{where}[{index}]")
    else:
        assert left == right, where


def _assert_same_run(one: Path, other: Path) -> None:
    for checkpoint in ("last", "best"):
        weights, state = load_checkpoint(one / checkpoint)
        weights_other, state_other = load_checkpoint(other / checkpoint)
        _assert_equal(weights, weights_other, f"{checkpoint} weights")
        _assert_equal(state, state_other, f"{checkpoint} state")
    assert _metrics(one) == _metrics(other)


def _position(folder: Path) -> int:
    """Optimizer steps of the newest checkpoint; 0 without one."""
    try:
        return int(load_checkpoint(folder / "last")[1]["progress"]["step"])
    except Exception:  # noqa: BLE001 - read while the run writes: any failure means "not now"
        return 0


def _kill_and_resume(experiment_file: Path, name: str, kills: int, steps: int, *flags: str) -> Path:
    """Kill a run again and again, a random moment after the next part of its steps is done; then let it finish."""
    draw = random.Random(5)
    folder = experiment_file.parent / "runs" / name
    reached = []
    for number in range(kills):
        process = _start(experiment_file, name, "--resume", *flags)
        if number == 0:
            time.sleep(draw.uniform(0.5, 4.0))  # among the imports, or before the first checkpoint
        else:
            _wait_for_step(process, folder, number * (steps - 2) // kills)
            time.sleep(draw.uniform(0.0, 0.4))
        process.kill()
        process.communicate()
        reached.append(_position(folder))
    assert reached == sorted(reached)
    assert sum(step < steps for step in reached) >= kills - 1, f"over before the last kills: {reached}"
    done = _run(experiment_file, name, "--resume", *flags)
    assert done.returncode == 0, done.stderr
    return folder


def _wait_for_step(process: subprocess.Popen[str], folder: Path, step: int) -> None:
    deadline = time.monotonic() + 120
    while _position(folder) < step:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_killed_before_and_after_checkpoints(experiment_file: Path, uninterrupted: Path) -> None:
    """One kill before the first checkpoint, one inside an epoch; the second half is read by two workers."""
    folder = experiment_file.parent / "runs" / "killed"
    for _ in range(ATTEMPTS):
        shutil.rmtree(folder, ignore_errors=True)
        process = _start(experiment_file, "killed")
        while not (folder / "experiment.yaml").exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        process.kill()
        process.communicate()
        process = _start(experiment_file, "killed", "--resume")
        _wait_for_step(process, folder, 4)
        process.kill()
        process.communicate()
        if _position(folder) < 12:
            break
    assert 4 <= _position(folder) < 12, "the run was over before the kill: the test proves nothing"
    done = _run(experiment_file, "killed", "--resume", "--data.workers", "2")
    assert done.returncode == 0, done.stderr
    assert "resuming" in done.stderr
    _assert_same_run(uninterrupted, folder)


def test_sigterm_saves_and_says_how_to_resume(experiment_file: Path, uninterrupted: Path) -> None:
    folder = experiment_file.parent / "runs" / "stopped"
    for _ in range(ATTEMPTS):
        shutil.rmtree(folder, ignore_errors=True)
        process = _start(experiment_file, "stopped", "--data.workers", "2")
        _wait_for_step(process, folder, 2)
        process.send_signal(signal.SIGTERM)
        _, complaint = process.communicate(timeout=60)
        if process.returncode == 143:
            break
    assert process.returncode == 143, complaint
    assert "--name stopped" in complaint
    assert "--resume" in complaint
    assert 2 <= _position(folder) < 12
    done = _run(experiment_file, "stopped", "--resume")
    assert done.returncode == 0, done.stderr
    _assert_same_run(uninterrupted, folder)


def test_finished_and_existing_runs(
    experiment_file: Path, uninterrupted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (uninterrupted / "last" / "model.safetensors").stat().st_mtime_ns
    command = ["train", str(experiment_file), "--name", "whole"]
    assert main([*command, "--resume"]) == 0
    assert "the run has finished" in capsys.readouterr().out
    assert (uninterrupted / "last" / "model.safetensors").stat().st_mtime_ns == before
    assert main(command) == 2
    complaint = capsys.readouterr().err
    assert complaint.count("\n") == 1
    assert "--resume" in complaint
    assert "--overwrite" in complaint
    assert main([*command, "--resume", "--train.epochs", "3", "--data.workers", "1"]) == 2
    complaint = capsys.readouterr().err
    assert "train.epochs: 4 -> 3" in complaint
    assert "workers" not in complaint


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_ten_kills(experiment_file: Path, workers: int) -> None:
    """With a moving average, too; the kills fall anywhere between the first import and the last write."""
    flags = ("--train.ema", "0.9", "--train.epochs", "10", "--data.workers", str(workers))
    whole = _run(experiment_file, f"whole{workers}", *flags)
    assert whole.returncode == 0, whole.stderr
    folder = _kill_and_resume(experiment_file, f"ten{workers}", 10, 30, *flags)
    _assert_same_run(folder.parent / f"whole{workers}", folder)
    _, state = load_checkpoint(folder / "best")
    assert state["holds"] == "averaged"
