"""Cells on stored features that run side by side end like cells that run alone, bit for bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.helpers.datasets import write_frame_dataset
from tests.helpers.models import settled_model
from tests.helpers.runs import BERT, experiment_of, save_run, with_features
from tests.helpers.studies import run_jobs_here
from two_stream.cli import main
from two_stream.config.load import dump
from two_stream.config.schema import Experiment
from two_stream.evaluation.features import cache
from two_stream.evaluation.features.extract_features import write_features
from two_stream.evaluation.scores.files import read_scores
from two_stream.studies.running import ablation, cells, pool
from two_stream.studies.running import plan as planning
from two_stream.studies.running.cells import (
    StudyJob,
    StudyOutcome,
    group_of,
    job_of,
    run_job,
    run_side_by_side,
)
from two_stream.studies.running.pool import Event, Slot, Workers
from two_stream.training.step import Stepper
from two_stream.training.tracking import TIME_FIELDS
from two_stream.training.train import start_model
from two_stream.training.trainer import Trainer

ADAMW = {"kind": "adamw", "lr": 1e-3}
CELLS: dict[str, dict[str, Any]] = {
    "bert": {"head": BERT, "train": {"schedule": {"kind": "cosine", "warmup_epochs": 1}}},
    "average": {"head": {"kind": "average"}, "train": {"optimizer": ADAMW, "epochs": 2}},
    "lstm": {"head": {"kind": "lstm", "hidden": 8}, "train": {"ema": 0.9, "clip_grad": 0.5}},
    "nonlocal": {"head": {"kind": "nonlocal", "over": "time", "features": 8}, "model": {"dropout": 0.6}},
    "probe": {"head": {"kind": "concat"}, "train": {"freeze_until": "head", "epochs": 5}},
}


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """The common settings of all cells, with stored features."""
    world = write_frame_dataset(tmp_path_factory.mktemp("side"))
    source = experiment_of(world, head={"kind": "average"}, name="source")
    folder = save_run(source, settled_model(source.model))
    experiment = experiment_of(
        world,
        threads=1,
        train={"init": folder, "init_part": "backbone", "checkpoint_every": 1},
        evaluate={"views": "single", "crops": "center"},
    )
    write_features(start_model(experiment), experiment, world / "features", train_views=2)
    return with_features(experiment, world / "features")


def jobs_of(start: Experiment, folder: Path, names: Sequence[str] = tuple(CELLS)) -> list[StudyJob]:
    found = []
    for name in names:
        settings = json.loads(start.model_dump_json())
        settings |= {"name": name, "runs": str(folder / "runs")}
        own = dict(CELLS[name])
        settings["model"] |= {"head": own.pop("head"), **own.pop("model", {})}
        settings["train"] |= own.pop("train", {})
        experiment = Experiment.model_validate(settings)
        found.append(job_of(experiment, folder, title=name, key=f"key of {name}", group=group_of(experiment)))
    assert len({job.group for job in found}) == 1
    return found


@pytest.fixture(scope="module")
def alone(start: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which every cell ran alone."""
    folder = tmp_path_factory.mktemp("alone")
    assert all(run_job(job).done for job in jobs_of(start, folder))
    return folder


def together(jobs: Sequence[StudyJob]) -> dict[str, StudyOutcome]:
    return {jobs[place].title: outcome for place, outcome in run_side_by_side(jobs, lambda _: nullcontext())}


def plain(value: Any) -> Any:
    """Return a training state as values that can be compared, without durations."""
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items() if key not in TIME_FIELDS}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    return (str(value.dtype), value.tolist()) if isinstance(value, torch.Tensor) else value


def assert_same(ours: Path, theirs: Path) -> None:
    """Check that two run folders have equal weights, training states, metrics and scores."""
    for part in ("last", "best"):
        found, expected = (load_file(run / part / "model.safetensors") for run in (ours, theirs))
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected), (ours, part)
        states = [torch.load(run / part / "state.pt", weights_only=True) for run in (ours, theirs)]
        assert plain(states[0]) == plain(states[1])
    lines = [(run / "metrics.jsonl").read_text().splitlines() for run in (ours, theirs)]
    found, expected = ([plain(json.loads(line)) for line in each] for each in lines)
    assert found == expected
    (table,), (other,) = ([read_scores(f) for f in run.glob("scores/*.npz")] for run in (ours, theirs))
    np.testing.assert_array_equal(table.logits, other.logits)
    assert table.ids == other.ids
    names = [
        sorted(path.name for path in run.iterdir() if "tfevents" not in path.name) for run in (ours, theirs)
    ]
    assert names[0] == names[1]


def test_side_by_side_ends_like_alone_and_reads_once(start, alone: Path, tmp_path: Path, monkeypatch):
    reads: list[tuple] = []
    read = cache.StoredClips._read
    monkeypatch.setattr(
        cache.StoredClips,
        "_read",
        lambda self, numbers, epoch: reads.append((epoch, *numbers)) or read(self, numbers, epoch),
    )
    jobs = jobs_of(start, tmp_path)
    outcomes = together(jobs)
    assert next(iter(outcomes)) == "average"  # it has the fewest epochs
    for job in jobs:
        assert_same(Path(job.run), alone / "runs" / job.title)
        before = json.loads((alone / "cells" / f"{job.title}.json").read_text())
        after = json.loads(Path(job.record).read_text())
        for key in ("state", "key", "accuracy", "evaluate", "loose_key"):
            assert after[key] == before[key]
        assert after["seconds"] > 0
    assert len(reads) == len(set(reads))
    assert {epoch for epoch, *_ in reads} == {None, 0, 1, 2, 3, 4}


def test_a_cell_that_fails_stops_no_other(start, alone: Path, tmp_path: Path):
    jobs = jobs_of(start, tmp_path)
    wrong = Experiment.model_validate(yaml.safe_load(jobs[1].experiment) | {"name": "wrong"})
    optimizer = wrong.train.optimizer.model_copy(update={"lr": 1e30})
    wrong = planning.with_setting(wrong, "train.optimizer", optimizer)
    jobs[1] = replace(job_of(wrong, tmp_path, title="wrong", key="w"), group=jobs[0].group)
    outcomes = together(jobs)
    assert outcomes["wrong"].state == "failed"
    assert "is not finite" in outcomes["wrong"].reason
    assert cells.outcome_of(jobs[1]) == outcomes["wrong"]
    for job in (jobs[0], *jobs[2:]):
        assert outcomes[job.title].done
        assert_same(Path(job.run), alone / "runs" / job.title)


def test_an_unexpected_error_is_tried_again_alone(start, alone: Path, tmp_path: Path, monkeypatch, capsys):
    jobs, end, failures = jobs_of(start, tmp_path, ["bert", "lstm"]), Trainer._end_epoch, []

    def scarce(self: Trainer, *args: Any) -> None:
        if self.experiment.name == "bert" and self.progress.epoch == 1 and len(failures) < 1:
            failures.append(1)
            raise MemoryError("no room")
        end(self, *args)

    monkeypatch.setattr(Trainer, "_end_epoch", scarce)
    outcomes = together(jobs)
    assert list(outcomes) == ["lstm", "bert"]
    assert "MemoryError: no room" in capsys.readouterr().err
    for job in jobs:
        assert_same(Path(job.run), alone / "runs" / job.title)


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_it_continues_in_the_middle(start, alone: Path, tmp_path: Path, monkeypatch, how: str):
    jobs, run, steps = jobs_of(start, tmp_path), Stepper.run, []

    def stopping(self: Stepper, *args: Any, **options: Any) -> Any:
        steps.append(1)
        if len(steps) == 17:  # of the second cell, in its second epoch
            if how == "killed":
                raise SystemExit
            signal.raise_signal(signal.SIGTERM)
        return run(self, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "run", stopping)
        if how == "killed":
            with pytest.raises(SystemExit):
                together(jobs)
        else:
            assert {outcome.state for outcome in together(jobs).values()} == {"interrupted"}
    assert len(steps) == {"killed": 17, "stopped": 17 + 4}[how]  # every cell ends the step that it has begun
    assert not list(tmp_path.glob("cells/*"))
    assert all((Path(job.run) / "last").is_dir() for job in jobs)
    assert all(outcome.done for outcome in together(jobs).values())
    for job in jobs:
        assert_same(Path(job.run), alone / "runs" / job.title)


def run_groups_here(
    jobs: Mapping[int, StudyJob], slots: Sequence[Slot], running: set[int], workers: Workers
) -> Generator[Event]:
    """Like `run_jobs`, in this process."""
    del running, workers
    waiting = deque(jobs)
    while waiting:
        taken = pool._next(waiting, jobs, len(slots))
        GROUPS.append(sorted(jobs[index].title for index in taken))
        for place, outcome in run_side_by_side([jobs[index] for index in taken], lambda _: nullcontext()):
            yield taken[place], outcome


GROUPS: list[list[str]] = []


def test_a_mixed_study(start, tmp_path: Path, monkeypatch):
    base = tmp_path / "base.yaml"
    base.write_text(dump(start.model_copy(update={"data": start.data.model_copy(update={"features": None})})))
    variants = {
        "average": {"model.head.kind": "average"},
        "lstm": {"model.head": {"kind": "lstm", "hidden": 8}, "train.optimizer.lr": 0.01},
        "large": {"model.head.kind": "average", "train.batch_size": 3},
        "solved": {
            "model.head.kind": "average",
            "train": {"freeze_until": "head", "optimizer": {"kind": "logistic"}},
        },
    }
    study = {"name": "s", "question": "?", "base": str(base), "variants": variants, "seeds": [1, 2]}
    study |= {"features": {"train_views": 2}, "measure_cost": False}
    study["compare"] = [{"baseline": "average"}]
    for name, run in (("alone", run_jobs_here), ("groups", run_groups_here)):
        GROUPS.clear()
        monkeypatch.setattr(ablation, "run_jobs", run)
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump(study | {"out": str(tmp_path / name)}))
        assert main(["ablate", str(file), "--jobs", "1"]) == 0
    found = [sorted(title.split(",")[0] for title in group) for group in GROUPS]
    assert sorted(found) == sorted(
        [["features"], ["features"], *2 * [["average", "lstm"], ["large"], ["solved"]]]
    )
    assert all(len({title.rpartition(" ")[2] for title in group}) == 1 for group in GROUPS)
    runs = sorted((tmp_path / "alone" / "s" / "runs").iterdir())
    assert len(runs) == 8
    for run in runs:
        if not run.name.startswith("solved"):
            assert_same(tmp_path / "groups" / "s" / "runs" / run.name, run)


def test_worker_processes_write_the_same_and_a_log_for_each_cell(start, alone: Path, tmp_path: Path):
    jobs = dict(enumerate(jobs_of(start, tmp_path, ["bert", "lstm"])))
    workers = Workers()
    events = [event for event in pool.run_jobs(jobs, [Slot()], set(), workers) if event is not None]
    workers.close()
    assert sorted(jobs[index].title for index, outcome in events if outcome.done) == ["bert", "lstm"]
    for job in jobs.values():
        assert_same(Path(job.run), alone / "runs" / job.title)
        log = Path(job.log).read_text()
        assert [f"epoch {number}/3  train loss" in log for number in (1, 2, 3)] == [True] * 3
        assert log.count("train loss") == 3
        assert f"run folder: {job.run}" in " ".join(log.split())


@pytest.mark.integration
def test_a_study_that_is_killed_and_interrupted_ends_the_same(start, tmp_path: Path, monkeypatch):
    base = tmp_path / "base.yaml"
    train = start.train.model_copy(update={"epochs": 40})
    data = start.data.model_copy(update={"features": None})
    base.write_text(dump(start.model_copy(update={"data": data, "train": train})))
    variants = {
        "average": {"model.head.kind": "average"},
        "lstm": {"model.head": {"kind": "lstm", "hidden": 8}},
    }
    study = {"name": "s", "question": "?", "base": str(base), "variants": variants, "seeds": [1]}
    study |= {"features": {"train_views": 2}, "measure_cost": False}
    for name in ("alone", "groups"):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(study | {"out": str(tmp_path / name)}))
    command = [sys.executable, "-m", "two_stream", "ablate", str(tmp_path / "groups.yaml"), "--jobs", "1"]
    for number in (signal.SIGKILL, signal.SIGINT):
        with subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True) as process:
            end, before = time.monotonic() + 120, epochs(tmp_path)
            while time.monotonic() < end and process.poll() is None and epochs(tmp_path) < before + 6:
                time.sleep(0.02)
            os.kill(process.pid, number)
            _, said = process.communicate(timeout=120)
        assert process.returncode == (-9 if number == signal.SIGKILL else 130), said
        assert len(list((tmp_path / "groups" / "s" / "runs").glob("*/last"))) == 2
        assert not list((tmp_path / "groups" / "s" / "runs").glob("*/scores"))
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    monkeypatch.setattr(ablation, "run_jobs", run_jobs_here)
    assert main(["ablate", str(tmp_path / "alone.yaml"), "--jobs", "1"]) == 0
    runs = sorted((tmp_path / "alone" / "s" / "runs").iterdir())
    assert len(runs) == 2
    for run in runs:
        assert_same(tmp_path / "groups" / "s" / "runs" / run.name, run)


def epochs(folder: Path) -> int:
    return sum(path.read_text().count("\n") for path in folder.glob("groups/s/runs/*/metrics.jsonl"))
