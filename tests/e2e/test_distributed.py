"""`torchrun … train`: the losses, metrics and files of one process; kills, stops and restarts."""

from __future__ import annotations

import json
import os
import re
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
from two_stream.training.run_folder import load_checkpoint
from two_stream.training.tracking import TIME_FIELDS

pytestmark = pytest.mark.integration
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


@pytest.fixture(scope="module")
def experiment_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment over 15 short frame folders of three classes. No dropout and no masked tokens: they are drawn per
    process, and all else is to be equal.
    """
    root = write_rolled_dataset(tmp_path_factory.mktemp("distributed"), val=slice(None, None, 3))
    experiment = {
        "name": "run",
        "runs": str(root / "runs"),
        "seed": 3,
        "device": "cpu",
        "threads": 1,
        "model": {
            "backbone": {"kind": "resnet3d", "depth": 10, "width": 0.125, "temporal_stride": 4},
            "head": {"kind": "bert", "heads": 2, "hidden": 16, "keep": 1.0, "dropout": 0.0},
            "dropout": 0.0,
            "input": {"clip_length": 8, "resize": [36, 40], "crop": 32},
        },
        "data": {"dataset": "tiny", "settings_root": str(root / "settings"), "workers": 0},
        "train": {
            "epochs": 2,
            "batch_size": 2,
            "accumulate": 2,
            "optimizer": {"kind": "sgd", "lr": 0.05},
            "schedule": {"kind": "cosine", "warmup_epochs": 1},
            "label_smoothing": 0.1,
            "mixup": 0.2,
            "clip_grad": 1.0,
            "checkpoint_every": 1,
            "log_images": False,
        },
    }
    path = root / "tiny.yaml"
    path.write_text(yaml.safe_dump(experiment))
    return path


def _command(
    experiment_file: Path, name: str, *flags: str, processes: int = 1, restarts: int = 0
) -> list[str]:
    command = ["-m", "two_stream", "train", str(experiment_file), "--name", name, *flags]
    if processes == 1:
        return [sys.executable, *command]
    return [*TORCHRUN, str(processes), "--max-restarts", str(restarts), *command]


def _run(
    experiment_file: Path, name: str, *flags: str, processes: int = 1
) -> subprocess.CompletedProcess[str]:
    command = _command(experiment_file, name, *flags, processes=processes)
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False)


def _lines(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIME_FIELDS} for line in lines]


def _assert_close(one: Path, other: Path, *, exact: bool = False) -> None:
    """Metrics to 1e-5, or both checkpoints bit for bit."""
    lines, others = _lines(one), _lines(other)
    assert [line["train_loss"] for line in lines] != [lines[0]["train_loss"]] * len(lines)
    for line, line_other in zip(lines, others, strict=True):
        for key, value in line.items():
            close = pytest.approx(value, rel=0.0 if exact else 1e-5) if isinstance(value, float) else value
            assert line_other[key] == close, key
    for checkpoint in ("last", "best"):
        weights, weights_other = (load_checkpoint(folder / checkpoint)[0] for folder in (one, other))
        for key, value in weights.items():
            if exact:
                assert torch.equal(value, weights_other[key]), key
            elif not key.endswith("key.bias"):  # softmax forgets it, so its gradient is rounding
                torch.testing.assert_close(weights_other[key], value, rtol=1e-3, atol=1e-5, msg=key)


def test_two_processes_equal_one(experiment_file: Path) -> None:
    """15 videos in micro-batches of 2: eight of them, four to a step, the last of a single clip."""
    runs = experiment_file.parent / "runs"
    one = _run(experiment_file, "one", "--train.accumulate", "4")
    assert one.returncode == 0, one.stderr
    two = _run(experiment_file, "two", processes=2)
    assert two.returncode == 0, two.stderr
    _assert_close(runs / "one", runs / "two")
    assert two.stdout.count("epoch 1/2") == two.stdout.count("best epoch") == 1, "one process speaks"
    assert two.stderr.count("run folder:") == 1
    assert "Traceback" not in two.stderr
    assert len(list((runs / "two").glob("events.out.tfevents.*"))) == 1
    facts = json.loads((runs / "two" / "environment.json").read_text())
    assert facts["processes"] == "2"


def test_a_joined_process_ends_before_python_shuts_down(tmp_path: Path) -> None:
    """gloo's threads can abort an interpreter that shuts down, so it never comes to that; alone it does."""
    script = tmp_path / "ends.py"
    script.write_text(
        "import atexit, os, sys\n"
        "from two_stream.runtime import distributed\n"
        "class Late:\n"
        "    def __del__(self, write=os.write):\n"
        "        write(1, b'shut down')\n"
        "late = Late()\n"
        "atexit.register(os.write, 1, b'exit handler\\n')\n"
        "distributed.init(cpu_only=True)\n"
        "os.write(1, b'total %d\\n' % distributed.largest([distributed.rank()])[0])\n"
        "distributed.shutdown()\n"
        "distributed.exit_process(0)\n"
    )
    alone, two = (
        subprocess.run([*start, str(script)], capture_output=True, text=True, env=ENVIRONMENT)
        for start in ([sys.executable], [*TORCHRUN, "2"])
    )
    assert (alone.returncode, two.returncode) == (0, 0), two.stderr
    assert alone.stdout == "total 0\nexit handler\nshut down"
    assert two.stdout.count("total 1\n") == two.stdout.count("exit handler") == 2
    assert "shut down" not in two.stdout


@pytest.mark.slow
def test_a_mistake_is_one_line_from_one_process(experiment_file: Path) -> None:
    """Found out by the main process, by all of them alike, and by one of them while it trains."""
    folder = experiment_file.parent / "runs" / "used"
    folder.mkdir(parents=True)
    (folder / "experiment.yaml").write_text("name: used\n")
    frames = experiment_file.parent / "settings" / "tiny" / "frames" / "still_g4"
    hidden = frames.rename(frames.with_name("hidden"))
    try:
        for name, flags, complaint in (
            ("used", (), f"{folder}: the run exists; continue it with --resume"),
            ("flag", ("--train.batchsize", "3"), "unknown flag --train.batchsize"),
            ("lost", (), "video 'still_g4' cannot be read"),
        ):
            done = _run(experiment_file, name, *flags, processes=2)
            assert done.returncode == 1, "torchrun's"
            said = re.findall(r"^two-stream.*", done.stderr, re.MULTILINE)
            assert len(said) == 1, done.stderr
            assert complaint in said[0]
    finally:
        hidden.rename(frames)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "processes", "alone"),
    [
        (["--train.strategy", "fsdp"], 2, ["--train.accumulate", "4"]),
        (["--train.gradient-checkpointing", "--train.ema", "0.9"], 3, ["--train.accumulate", "6"]),
        (
            ["--train.sync-batchnorm", "--train.mixup", "0"],
            2,
            ["--train.batch-size", "4", "--train.mixup", "0"],
        ),
    ],
    ids=["fsdp", "checkpointing", "sync_batchnorm"],
)
def test_strategies_equal_one_process(
    experiment_file: Path, flags: list[str], processes: int, alone: list[str]
) -> None:
    runs, name = experiment_file.parent / "runs", "-".join(flags).replace("--train.", "")
    more = ["--train.ema", "0.9"] if "--train.ema" in flags else []
    for done in (
        _run(experiment_file, f"{name}-1", *alone, *more),
        _run(experiment_file, f"{name}-n", *flags, processes=processes),
    ):
        assert done.returncode == 0, done.stderr
    _assert_close(runs / f"{name}-1", runs / f"{name}-n")


@pytest.mark.slow
def test_a_killed_process_is_started_anew_and_changes_nothing(experiment_file: Path) -> None:
    flags = ("--train.epochs", "12", "--model.dropout", "0.5")
    runs = experiment_file.parent / "runs"
    whole = _run(experiment_file, "whole", *flags, processes=2)
    assert whole.returncode == 0, whole.stderr
    process = _start(experiment_file, "killed", *flags, restarts=3)
    _wait_for_epoch(process, runs / "killed", 3)
    os.kill(_workers(process)[1], signal.SIGKILL)
    _, complaint = process.communicate(timeout=240)
    assert process.returncode == 0, complaint
    assert complaint.count("restart 1 by torchrun: continuing from the last checkpoint") == 1
    assert "resuming" in complaint
    _assert_close(runs / "whole", runs / "killed", exact=True)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_torchrun_saves_once_and_any_number_of_processes_goes_on(
    experiment_file: Path, number: signal.Signals
) -> None:
    name, runs = f"stopped{int(number)}", experiment_file.parent / "runs"
    flags = ("--train.epochs", "8")
    if not (runs / "alone").exists():
        done = _run(experiment_file, "alone", *flags, "--train.accumulate", "4")
        assert done.returncode == 0, done.stderr
    process = _start(experiment_file, name, *flags, "--data.workers", "1")
    _wait_for_epoch(process, runs / name, 2)
    process.send_signal(number)
    _, complaint = process.communicate(timeout=60)
    assert complaint.count("saved after epoch") == 1, complaint
    assert "torchrun --nproc-per-node 2 -m two_stream train" in complaint
    assert complaint.count("Traceback") == complaint.count("SignalException: Process"), "torchrun's own only"
    assert len(_lines(runs / name)) < 8, "over before the signal: the test proves nothing"
    shutil.copytree(runs / name, runs / f"{name}-one")
    processes = 1 if number == signal.SIGINT else 3
    done = _run(experiment_file, name, *flags, "--resume", processes=processes)
    assert done.returncode == 0, done.stderr
    assert "began with 4 × 2 clips per step and keeps this" in done.stderr
    _assert_close(runs / "alone", runs / name)


def _start(experiment_file: Path, name: str, *flags: str, restarts: int = 0) -> subprocess.Popen[str]:
    command = _command(experiment_file, name, *flags, processes=2, restarts=restarts)
    return subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def _wait_for_epoch(process: subprocess.Popen[str], folder: Path, epoch: int) -> None:
    deadline = time.monotonic() + 120
    while not (folder / "metrics.jsonl").exists() or len(_lines(folder)) < epoch:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _workers(process: subprocess.Popen[str]) -> list[int]:
    """Return the processes that torchrun started, by rank."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ranks = {}
    for pid in children:
        found = re.search(rb"(?:^|\0)RANK=(\d+)", Path(f"/proc/{pid}/environ").read_bytes())
        if found:
            ranks[int(found[1])] = int(pid)
    return [ranks[rank] for rank in sorted(ranks)]
