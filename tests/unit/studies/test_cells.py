"""A job, how it ended, and when that still counts."""

from __future__ import annotations

import json
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

import pytest

from two_stream.config.load import dump
from two_stream.config.schema import Experiment
from two_stream.errors import DataError
from two_stream.runtime.files import sha256
from two_stream.studies.running import cells
from two_stream.studies.running.ablation import LiveTable
from two_stream.studies.running.cells import (
    StudyJob,
    StudyOutcome,
    job_from,
    job_of,
    outcome_of,
    run_job,
    to_wire,
)


@pytest.fixture
def job(tmp_path: Path) -> StudyJob:
    experiment = Experiment(name="a-1", runs=tmp_path / "runs")
    return job_of(experiment, tmp_path, title="a, seed 1", key="key", loose_key="loose", parts=("test",))


@pytest.fixture
def scored(job: StudyJob, monkeypatch, tmp_path: Path) -> Path:
    """A training that writes a score file at once."""
    path = tmp_path / "runs" / "a-1" / "scores" / "test.npz"

    def trained(job: StudyJob, *_: object) -> Generator[None, None, StudyOutcome]:
        yield
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"scores")
        scores = {"test": [str(path), sha256(path)]}
        return StudyOutcome(
            "done", job.key, accuracy=0.5, scores=scores, evaluate=cells._scoring(job.settings())
        )

    monkeypatch.setattr(cells, "_trained", trained)
    return path


def test_a_job_travels(job: StudyJob):
    assert [job_from(values) for values in json.loads(to_wire(job, job))] == [job, job]
    assert job.settings() == Experiment(name="a-1", runs=Path(job.run).parent)
    placed = replace(job, device="cuda:1", threads=3).settings()
    assert (placed.device, placed.threads) == ("cuda:1", 3)
    own = replace(job, experiment=dump(Experiment(threads=1)), threads=3).settings()
    assert own.threads == 1


def test_a_done_job_counts_while_its_scores_are_the_same_bytes(job: StudyJob, scored: Path):
    assert outcome_of(job) is None
    outcome = run_job(job)
    assert outcome_of(job) == outcome
    assert (outcome.loose_key, outcome.run, outcome.accuracy) == ("loose", job.run, 0.5)
    assert outcome_of(replace(job, key="other")) is None
    assert outcome_of(replace(job, parts=("test", "val"))) is None
    scored.write_bytes(b"changed")
    assert outcome_of(job) is None
    scored.unlink()
    assert outcome_of(job) is None


def test_scoring_in_another_way_is_done_again_without_another_key(job: StudyJob, scored: Path):
    run_job(job)
    other = Experiment.model_validate(
        {"name": "a-1", "runs": str(Path(job.run).parent), "evaluate": {"crops": "center"}}
    )
    assert outcome_of(replace(job, experiment=dump(other))) is None


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (DataError("the list\nis gone"), "the list is gone"),
        (RuntimeError("bad shape"), "RuntimeError: bad shape (see "),
        (MemoryError(), "MemoryError"),
    ],
)
def test_a_mistake_is_kept_with_its_reason_and_tried_again(job: StudyJob, monkeypatch, error, reason):
    def failing(job: StudyJob, *_: object) -> Generator[None, None, StudyOutcome]:
        yield
        raise error

    monkeypatch.setattr(cells, "_trained", failing)
    assert run_job(job).state == "failed"
    kept = outcome_of(job)
    assert kept is not None
    assert kept.state == "failed"
    assert kept.reason.startswith(reason)


def test_an_interrupted_job_leaves_no_outcome(job: StudyJob, monkeypatch):
    def stopped(job: StudyJob, *_: object) -> Generator[None, None, StudyOutcome]:
        yield
        return StudyOutcome("interrupted", job.key)

    monkeypatch.setattr(cells, "_trained", stopped)
    assert run_job(job).state == "interrupted"
    assert not Path(job.record).exists()


def test_a_damaged_record_is_no_result(job: StudyJob, scored: Path):
    run_job(job)
    for text in ("{", "[]", '{"state": "done"', '{"statement": 1}'):
        Path(job.record).write_text(text)
        assert outcome_of(job) is None


def test_the_board_counts_and_foretells(job: StudyJob, tmp_path: Path):
    jobs = [replace(job, run=str(tmp_path / name), epochs=4, title=name) for name in ("a", "b", "c", "d")]
    board = LiveTable("study", ["x", "x", "y", "y"], jobs, slots=2)
    assert board.left() is None
    board.end(0, StudyOutcome("done", seconds=100.0, accuracy=0.25))
    board.end(1, StudyOutcome("failed", reason="too hot"))
    board.running = {2}
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "metrics.jsonl").write_text("{}\n{}\n{}\n")
    assert board.left() == pytest.approx((25 + 100) / 2)
    assert board.line(0) == "[2/4] a: 25.0 %, 1 min 40 s; about 1 min 02 s left"
    assert board.line(1) == "[2/4] b: failed: too hot"
    columns = [list(column.cells) for column in board.table().columns]
    assert columns == [["x", "y"], ["1/2", "0/2"], ["", "75 %"], ["1", ""], ["25.0 %", ""]]
