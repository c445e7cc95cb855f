"""A study on the embedded data set, interrupted, killed, finished: the same as one that ran in one go."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.helpers.studies import run_jobs_here
from two_stream.cli import main
from two_stream.evaluation.scores.files import read_scores
from two_stream.studies.running import ablation

STUDY = {
    "name": "tiny",
    "question": "Which head?",
    "demo": {"out": "data", "theme": "order", "groups": 4},
    "settings": {
        "device": "cpu",
        "threads": 1,
        "model": {
            "backbone": {"kind": "timm", "name": "test_resnet"},
            "input": {"clip_length": 6, "stride": 2, "resize": [48, 64], "crop": 32},
        },
        "data": {"workers": 0, "holdout": 0.3},
        "train": {
            "epochs": 2,
            "batch_size": 8,
            "optimizer": {"kind": "adamw", "lr": 1e-3},
            "log_images": False,
        },
        "evaluate": {"views": "single", "crops": "center", "precision": "fp32"},
    },
    "variants": {
        "average": {"model.head.kind": "average"},
        "lstm": {"model.head": {"kind": "lstm", "hidden": 16, "layers": 1}},
    },
    "seeds": [1, 2],
    "measure_cost": False,
}


def write(folder: Path, **changes: object) -> Path:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({**STUDY, "out": str(folder / "out"), **changes}))
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study run in one go; the data set lies in `data` beside it."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["ablate", str(write(folder)), "--jobs", "2"]) == 0
    return folder


def logits(folder: Path) -> dict[str, np.ndarray]:
    files = sorted((folder / "out" / "tiny" / "runs").glob("*/scores/test_*.npz"))
    return {path.parents[1].name: read_scores(path).logits for path in files}


def test_a_study_ends_in_runs_and_a_report(whole: Path):
    out = whole / "out" / "tiny"
    found = logits(whole)
    assert len(found) == 4
    for name in found:
        outcome = json.loads((out / "cells" / f"{name}.json").read_text())
        assert outcome["state"] == "done"
        assert "epoch 2/2" in (out / "logs" / f"{name}.log").read_text()
    page = (out / "report.html").read_text()
    assert "Which head?" in page
    result = json.loads((out / "report.json").read_text())
    assert [variant["name"] for variant in result["variants"]] == ["average", "lstm"]
    assert len(result["comparisons"]) == 1
    assert {row["state"] for row in result["runs"]} == {"done"}


def test_what_is_done_is_not_done_again(whole: Path, monkeypatch, capsys):
    monkeypatch.chdir(whole)
    before = {path: path.stat().st_mtime_ns for path in (whole / "out").rglob("*.safetensors")}
    assert main(["ablate", "study.yaml", "--dry-run"]) == 0
    assert "4 of 4 cells are done" in capsys.readouterr().out
    assert main(["ablate", "study.yaml"]) == 0
    assert {path: path.stat().st_mtime_ns for path in (whole / "out").rglob("*.safetensors")} == before


@pytest.mark.integration
def test_killed_and_interrupted_it_ends_the_same(whole: Path, tmp_path: Path):
    (tmp_path / "data").symlink_to(whole / "data")
    study = write(tmp_path, seeds=[1])
    command = [sys.executable, "-m", "two_stream", "ablate", str(study), "--jobs", "2"]
    for number in (signal.SIGKILL, signal.SIGINT, signal.SIGTERM):
        before = _begun(tmp_path)
        with subprocess.Popen(
            command, cwd=tmp_path, stderr=subprocess.PIPE, start_new_session=True
        ) as process:
            _wait_for_training(tmp_path, process, before)
            os.kill(process.pid, number)
            _, said = process.communicate(timeout=120)
        if process.returncode == 0:  # it was over before the signal came
            break
        assert process.returncode == {signal.SIGKILL: -9, signal.SIGINT: 130, signal.SIGTERM: 143}[number]
        if number != signal.SIGKILL:
            assert b"continue with: two-stream ablate" in said
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    ours, theirs = logits(tmp_path), logits(whole)
    assert len(ours) == 2
    for name, values in ours.items():
        np.testing.assert_array_equal(values, theirs[name])


def _begun(folder: Path) -> int:
    """Return how often a cell was begun or gone on with."""
    logs = (folder / "out" / "tiny" / "logs").glob("*.log")
    return sum(log.read_text().count("run folder") for log in logs)


def _wait_for_training(folder: Path, process: subprocess.Popen[bytes], before: int) -> None:
    """Wait until a cell is at work (or all is over)."""
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None and _begun(folder) == before:
        time.sleep(0.05)


def test_failed_cells_are_listed_and_stop_nothing(whole: Path, tmp_path: Path, monkeypatch, capfd):
    (tmp_path / "data").symlink_to(whole / "data")
    monkeypatch.chdir(tmp_path)
    variants = {**STUDY["variants"], "wide": {"train.optimizer": {"kind": "sgd", "lr": 1e30}}}  # type: ignore[dict-item]
    study = write(tmp_path, seeds=[1], variants=variants)
    assert main(["ablate", str(study)]) == 1
    said = capfd.readouterr()
    assert "wide, split 1, seed 1: failed: the loss is not finite" in said.err + said.out
    result = json.loads((tmp_path / "out" / "tiny" / "report.json").read_text())
    states = {row["variant"]: (row["state"], row["reason"]) for row in result["runs"]}
    assert states["average"] == ("done", "")
    assert states["wide"][0] == "failed"
    assert "the loss is not finite" in states["wide"][1]
    assert len(logits(tmp_path)) == 2


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["nothing.yaml"], "nothing.yaml: no such file"),
        (["study.yaml", "--jobs", "0"], "--jobs is 0: expected 1 or more"),
        (
            ["study.yaml", "--ray", "local", "--devices", "cuda:0"],
            "--ray and --devices cannot be combined",
        ),
        (["study.yaml", "--job", "2"], "unknown flag --job"),
        ([], "the study file is missing"),
    ],
)
def test_a_wrong_call_is_one_line(tmp_path: Path, monkeypatch, capsys, args, words):
    write(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["ablate", *args]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


@pytest.mark.integration
@pytest.mark.slow
def test_on_ray_the_numbers_are_the_same(whole: Path, tmp_path: Path, monkeypatch):
    pytest.importorskip("ray")
    (tmp_path / "data").symlink_to(whole / "data")
    monkeypatch.chdir(tmp_path)
    assert main(["ablate", str(write(tmp_path, seeds=[1])), "--ray", "local"]) == 0
    ours, theirs = logits(tmp_path), logits(whole)
    assert len(ours) == 2
    for name, values in ours.items():
        np.testing.assert_array_equal(values, theirs[name])


@pytest.mark.slow
def test_heads_on_stored_features_are_scored_anew_in_another_way(whole: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(ablation, "run_jobs", run_jobs_here)
    (tmp_path / "data").symlink_to(whole / "data")
    monkeypatch.chdir(tmp_path)
    features = {"features": {"backbone": {"model.head.kind": "average"}}, "seeds": [1]}
    assert main(["ablate", str(write(tmp_path, **features)), "--jobs", "1"]) == 0
    weights = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("best/*.safetensors")}
    before = logits(tmp_path)
    other = {**STUDY["settings"], "evaluate": {**STUDY["settings"]["evaluate"], "crops": "three"}}  # type: ignore[dict-item]
    study = str(write(tmp_path, **features, settings=other))
    assert main(["ablate", study, "--jobs", "1"]) == 0
    assert {path: path.stat().st_mtime_ns for path in weights} == weights
    for run in before:
        scores = tmp_path / "out" / "tiny" / "runs" / run / "scores"
        found = read_scores(scores / "test_single_three_logits.npz")
        assert found.meta["views_per_video"] == 3.0
        assert not np.array_equal(found.logits, before[run])
