"""Which jobs a study does, in which order, and where they find what others have made."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from pathlib import Path

import pytest
import torch
import yaml

from two_stream.config.study import Study
from two_stream.errors import SettingsError
from two_stream.runtime.files import sha256, write_text
from two_stream.studies.running import ablation, cells
from two_stream.studies.running import plan as planning
from two_stream.studies.running.ablation import StudyWorkers, read_progress, run_study
from two_stream.studies.running.cells import StudyJob, StudyOutcome, record_outcome
from two_stream.studies.running.pool import Event, Slot, Workers


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """Two heads on a backbone that is trained first."""
    folder = tmp_path / "toy"
    (folder / "frames").mkdir(parents=True)
    record = {"name": "toy", "num_splits": 1, "classes": ["a", "b"], "frames": {"rgb": "frames"}}
    (folder / "dataset.yaml").write_text(yaml.safe_dump(record))
    (folder / "train_rgb_split1.txt").write_text("".join(f"a/v{n} 30 {n % 2}\n" for n in range(12)))
    (folder / "val_rgb_split1.txt").write_text("b/w 30 1\n")
    planning._digest.cache_clear()
    return Study.model_validate(
        {
            "name": "s",
            "question": "?",
            "settings": {"data.dataset": str(folder / "dataset.yaml"), "device": "cpu", "threads": 1},
            "variants": {"average": {"model.head.kind": "average"}, "lstm": {"model.head.kind": "lstm"}},
            "seeds": [1],
            "features": {"backbone": {"model.head.kind": "average"}},
            "out": str(tmp_path / "out"),
        }
    )


@pytest.fixture
def done(monkeypatch) -> list[StudyJob]:
    """The jobs in the order in which they were done, each at once."""
    found: list[StudyJob] = []

    def run(
        jobs: Mapping[int, StudyJob], slots: Sequence[Slot], running: set[int], workers: Workers
    ) -> Generator[Event]:
        for index, job in jobs.items():
            found.append(job)
            scores = {}
            if job.kind == "train":
                path = Path(job.run) / "scores" / "test.npz"
                write_text(path, job.key)
                scores = {"test": [str(path), sha256(path)]}
            scoring = cells._scoring(job.settings())
            yield index, record_outcome(job, StudyOutcome("done", job.key, scores=scores, evaluate=scoring))

    monkeypatch.setattr(ablation, "run_jobs", run)
    monkeypatch.setattr(cells, "_stored", lambda job, outcome: True)
    return found


def titles(done: list[StudyJob]) -> list[str]:
    return [job.title for job in done]


ALL = ["backbone, split 1", "features, split 1", "average, split 1, seed 1", "lstm, split 1, seed 1"]


def test_what_needs_what_is_done_first_and_once(study: Study, done: list[StudyJob]):
    run_study(study, StudyWorkers())
    assert titles(done) == ALL
    run_study(study, StudyWorkers())
    assert titles(done) == ALL


def test_what_no_missing_cell_needs_is_not_made_again(study: Study, done: list[StudyJob], monkeypatch):
    run_study(study, StudyWorkers())
    monkeypatch.setattr(cells, "_stored", lambda job, outcome: False)  # the features were removed
    run_study(study, StudyWorkers())
    assert titles(done) == ALL
    (Path(done[-1].run) / "scores" / "test.npz").unlink()
    run_study(study, StudyWorkers())
    assert titles(done)[4:] == ["features, split 1", "lstm, split 1, seed 1"]


def test_other_code_runs_everything_again_unless_any_is_taken(
    study: Study, done: list[StudyJob], monkeypatch
):
    run_study(study, StudyWorkers())
    backbone, features = done[:2]
    monkeypatch.setattr(planning, "source_digest", lambda: "other")
    more = study.model_copy(update={"seeds": [1, 2]})
    assert read_progress(study).failed == 2
    assert read_progress(study, any_code=True).failed == 0
    ran = run_study(more, StudyWorkers(), any_code=True)
    assert titles(done)[4:] == ["average, split 1, seed 2", "lstm, split 1, seed 2"]
    taken = done[-1].settings()
    assert str(taken.train.init) == backbone.run
    assert str(taken.data.features) == features.out
    assert [outcome.key == cell.key for cell, outcome in zip(ran.cells, ran.outcomes) if outcome] == [
        *(False, False),
        *(True, True),
    ]
    run_study(study, StudyWorkers())
    assert titles(done)[6:] == ALL


def test_results_by_other_code_count_only_under_the_same_evaluation(study: Study, done, monkeypatch):
    run_study(study, StudyWorkers())
    monkeypatch.setattr(planning, "source_digest", lambda: "other")
    other = study.model_copy(update={"settings": {**study.settings, "evaluate.crops": "three"}})
    assert read_progress(other, any_code=True).failed == 2


def test_a_missing_device_is_one_line_before_anything_is_done(study: Study, done: list[StudyJob]):
    with pytest.raises(SettingsError, match="--devices names cuda:77, which this machine does not have"):
        run_study(study, StudyWorkers(devices=("cuda:77",)))
    assert not done


def test_jobs_share_a_processor_but_not_unasked_a_gpu(study: Study, monkeypatch):
    jobs = read_progress(study).jobs
    monkeypatch.setattr(ablation, "usable_processes", lambda: 8)
    assert len(ablation._slots(jobs, StudyWorkers())) == 8
    monkeypatch.setattr(ablation, "pick_device", lambda name: torch.device("cuda"))
    assert len(ablation._slots(jobs, StudyWorkers())) == 1
    assert len(ablation._slots(jobs, StudyWorkers(jobs=3))) == 3
