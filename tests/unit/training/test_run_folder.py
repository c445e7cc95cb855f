"""May a run begin, continue, overwrite; who else is at it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from two_stream.config.load import load_experiment
from two_stream.config.schema import Experiment
from two_stream.errors import SettingsError
from two_stream.training.run_folder import begin_run, check_run, differences, lock_run, record_environment


def _experiment(runs: Path, **changes: Any) -> Experiment:
    return Experiment.model_validate({"name": "run", "runs": runs, **changes})


def test_a_fresh_run_writes_its_settings(tmp_path: Path) -> None:
    experiment = _experiment(tmp_path, seed=7)
    paths = check_run(experiment, resume=False, overwrite=False)
    assert not paths.root.exists(), "looking changes nothing"
    begin_run(paths, experiment, overwrite=False)
    assert load_experiment(paths.experiment) == experiment
    with pytest.raises(SettingsError, match="the run exists; continue it with --resume") as caught:
        check_run(experiment, resume=False, overwrite=False)
    assert "\n" not in str(caught.value)
    assert check_run(experiment, resume=True, overwrite=False) == paths
    with pytest.raises(SettingsError, match="cannot be combined"):
        check_run(experiment, resume=True, overwrite=True)


def test_only_what_leaves_the_training_alone_may_change(tmp_path: Path) -> None:
    before = _experiment(tmp_path)
    free = {"device": "cpu", "threads": 2, "data": {"workers": 0}, "evaluate": {"crops": "center"}}
    assert differences(before, _experiment(tmp_path / "moved", **free)) == []
    changed = _experiment(
        tmp_path,
        seed=4,
        train={"epochs": 31, "optimizer": {"kind": "adamw"}},
        model={"head": {"kind": "average"}},
    )
    keys = [entry.partition(":")[0] for entry in differences(before, changed)]
    assert {"seed", "train.epochs", "train.optimizer.kind", "model.head.kind"} <= set(keys)
    assert all(key.startswith(("seed", "train.epochs", "train.optimizer", "model.head")) for key in keys)
    paths = check_run(before, resume=False, overwrite=False)
    begin_run(paths, before, overwrite=False)
    with pytest.raises(SettingsError, match=r"to resume differ \(.*; seed: 0 -> 4; train.optimizer"):
        check_run(changed, resume=True, overwrite=False)


def test_a_run_continues_for_more_epochs_but_not_for_fewer(tmp_path: Path, capsys: Any) -> None:
    before = _experiment(tmp_path)
    begin_run(check_run(before, resume=False, overwrite=False), before, overwrite=False)
    check_run(_experiment(tmp_path, train={"epochs": 40}), resume=True, overwrite=False)
    said = " ".join(capsys.readouterr().err.split())
    assert "30 -> 40; from epoch 31, the learning rates are those of a schedule over 40 epochs" in said
    taught = {"kind": "distill", "teachers": ["runs/other"]}
    for changes in ({"train": {"epochs": 29}}, {"train": {"epochs": 40}, "compress": taught}):
        with pytest.raises(SettingsError, match=r"train.epochs: 30 -> (29|40)"):
            check_run(_experiment(tmp_path, **changes), resume=True, overwrite=False)


def test_overwrite_removes_what_a_run_writes_and_nothing_else(tmp_path: Path) -> None:
    experiment = _experiment(tmp_path)
    paths = check_run(experiment, resume=False, overwrite=False)
    begin_run(paths, experiment, overwrite=False)
    for folder in (paths.last, paths.best, paths.scores):
        folder.mkdir()
        (folder / "x").write_text("x")
    for name in ("metrics.jsonl", "events.out.tfevents.1.host", "report.html", "my_notes.txt"):
        (paths.root / name).write_text("x")
    begin_run(check_run(experiment, resume=False, overwrite=True), experiment, overwrite=True)
    assert sorted(path.name for path in paths.root.iterdir()) == ["experiment.yaml", "my_notes.txt"]


def test_a_folder_that_is_no_run_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("x")
    for flags in ({"resume": True, "overwrite": False}, {"resume": False, "overwrite": True}):
        with pytest.raises(SettingsError, match="contains files but no `experiment"):
            check_run(_experiment(tmp_path), **flags)
    (tmp_path / "file").write_text("x")
    with pytest.raises(SettingsError, match="is a file"):
        check_run(_experiment(tmp_path, name="file"), resume=False, overwrite=False)


def test_killed_while_the_settings_were_written(tmp_path: Path) -> None:
    """A lock and a temporary file are all there is: the run has still to begin, whether resumed or not."""
    (tmp_path / "run").mkdir()
    for name in (".lock", ".experiment.yaml.abc.part"):
        (tmp_path / "run" / name).write_text("na")
    for resume in (True, False):
        assert check_run(_experiment(tmp_path), resume=resume, overwrite=False).root == tmp_path / "run"


def test_one_process_at_a_time(tmp_path: Path) -> None:
    experiment = _experiment(tmp_path)
    paths = check_run(experiment, resume=False, overwrite=False)
    code = (
        "import sys; from pathlib import Path; from two_stream.types import RunPaths;"
        "from two_stream.training.run_folder import lock_run\n"
        "with lock_run(RunPaths(Path(sys.argv[1]))): print('in', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(paths.root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "in\n"
        with pytest.raises(SettingsError, match="another process is training this run"), lock_run(paths):
            pass
        other.kill()
        other.wait()
        with lock_run(paths):
            pass


def test_changed_versions_are_said_and_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = check_run(_experiment(tmp_path), resume=False, overwrite=False)
    paths.root.mkdir()
    record_environment(paths, {"decoder": "pyav 1"})
    assert "other versions" not in capsys.readouterr().err
    record_environment(paths, {"decoder": "pyav 2"})
    assert "decoder pyav 1 -> pyav 2" in capsys.readouterr().err
    facts = json.loads((paths.root / "environment.json").read_text())
    assert facts["decoder"] == "pyav 2"
    assert {"torch", "numpy", "av", "platform", "two-stream"} <= set(facts)
