"""A study that was moved, or whose data were moved, is continued from its folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from tests.helpers.datasets import SmallWorld
from tests.helpers.studies import run_jobs_here
from tests.unit.evaluation.test_moved import without_places
from two_stream.cli import main
from two_stream.config.load import dump
from two_stream.evaluation.scores.files import read_scores
from two_stream.studies.running import ablation
from two_stream.studies.running import plan as planning

DATASET = Path("settings/tiny/dataset.yaml")
STUDY = {
    "name": "heads",
    "question": "Which?",
    "base": "base.yaml",
    "variants": {"average": {}, "lstm": {"model.head": {"kind": "lstm", "hidden": 8}}},
    "seeds": [1],
    "features": {"backbone": {"train.epochs": 1}},
    "measure_cost": False,
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with data and a study; all paths in the settings are relative to this folder."""
    world = SmallWorld(tmp_path / "here")
    monkeypatch.chdir(world.root)
    monkeypatch.setattr(ablation, "run_jobs", run_jobs_here)
    planning._digest.cache_clear()  # paths of other tests
    base = world.experiment(epochs=1)
    data = base.data.model_copy(update={"dataset": str(DATASET), "settings_root": Path("settings")})
    Path("base.yaml").write_text(dump(base.model_copy(update={"data": data})))
    Path("study.yaml").write_text(yaml.safe_dump(STUDY))
    assert main(["ablate", "study.yaml"]) == 0
    return world.root


def cells(study: Path) -> dict[str, tuple]:
    """Return the metadata without paths and dates, and the arrays, of the scores of each cell."""
    found = {}
    for file in sorted(study.glob("runs/*/scores/*.npz")):
        table = read_scores(file)
        meta = without_places(table.meta)
        del meta["model_sha256"]  # the order of the metadata in a file of weights differs between trainings
        arrays = [table.logits.tolist(), table.labels.tolist(), table.ids, table.groups]
        found[file.parent.parent.name] = (meta, arrays)
    assert len(found) == 3  # the backbone and two heads
    return found


def states(capsys) -> str:
    return capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize("moved", ["nothing", "study", "data", "both"])
def test_a_study_is_continued_from_any_folder(moved: str, here: Path, tmp_path: Path, monkeypatch, capsys):
    study = Path("runs/studies/heads")
    wanted = cells(study)
    folder, flags, elsewhere = here / study, [], tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    if moved == "study":
        folder = tmp_path / "archive" / "renamed"
        shutil.move(here / study, folder)
    elif moved == "data":
        shutil.move(here / "settings", tmp_path / "disk")
        flags = ["--data-root", str(tmp_path / "disk" / "tiny")]
    elif moved == "both":
        here.rename(tmp_path / "there")
        folder = tmp_path / "there" / study
    planning._digest.cache_clear()
    command = ["ablate", str(folder), *flags]
    capsys.readouterr()
    assert main([*command, "--dry-run"]) == 0
    assert states(capsys) == "2 of 2 cells are done"
    assert main([*command, "--report-only"]) == 0
    assert str(here / study) not in (folder / "report.json").read_text() or folder == here / study
    average, lstm = (next((folder / "runs").glob(f"{name}-*")) for name in ("average", "lstm"))
    trained = (average / "metrics.jsonl").read_bytes()
    for run in (average, lstm):  # one cell was trained but not scored, the other was not run
        (folder / "cells" / f"{run.name}.json").unlink()
        shutil.rmtree(run / "scores")
    shutil.rmtree(lstm)
    assert main(command) == 0
    assert (average / "metrics.jsonl").read_bytes() == trained
    assert cells(folder) == wanted
    assert not list(elsewhere.iterdir())


def test_other_data_of_the_same_name_are_not_used(here: Path, tmp_path: Path, capsys):
    study = here / "runs" / "studies" / "heads"
    other = tmp_path / "other" / "runs" / "studies" / "heads"
    shutil.copytree(study, other)
    shutil.copytree(here / "settings", tmp_path / "other" / "settings")
    lists = tmp_path / "other" / "settings" / "tiny" / "train_rgb_split1.txt"
    lists.write_text("".join(lists.read_text().splitlines(keepends=True)[1:]))
    before = sorted(other.rglob("*"))
    capsys.readouterr()
    assert main(["ablate", str(other)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"the lists or frames of {lists.parent / 'dataset.yaml'}, or the initial weights, are not" in said
    assert [path for path in sorted(other.rglob("*")) if ".lock" not in path.name] == before
    right = ["--data-root", str(here / DATASET.parent)]
    assert main(["ablate", str(other), "--dry-run", *right]) == 0
    assert states(capsys) == "2 of 2 cells are done"


def test_missing_data_are_one_line(here: Path, tmp_path: Path, capsys):
    folder = tmp_path / "heads"
    shutil.copytree(here / "runs" / "studies" / "heads", folder)
    record = here / DATASET
    record.write_text(record.read_text().replace("name: tiny", "name: other"))
    capsys.readouterr()
    for flags in ([], ["--data-root", str(record.parent)]):
        assert main(["ablate", str(folder), *flags]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert f"(data set 'tiny'): not found; tried {record if flags else ''}" in said
        assert "name the folder with --data-root" in said
    assert main(["ablate", "study.yaml", "--data-root", str(record.parent)]) == 2
    assert "--data-root is for the folder of a study" in capsys.readouterr().err
    assert main(["ablate", str(here / "runs")]) == 2
    assert "the folder contains no study.yaml" in capsys.readouterr().err
