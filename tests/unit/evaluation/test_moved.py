"""Runs and data that were moved: evaluation, reports, exports and resumed trainings find the data again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.datasets import SmallWorld
from two_stream.cli import main
from two_stream.config.load import dump
from two_stream.evaluation.scores.files import read_scores
from two_stream.training.train import train

PLACES = {"file", "run", "date", "created", "environment", "folder", "location"}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with data, and a run that names them by a path relative to this folder."""
    world = SmallWorld(tmp_path / "here")
    monkeypatch.chdir(world.root)
    experiment = world.experiment(epochs=1)
    data = experiment.data.model_copy(
        update={"dataset": "settings/tiny/dataset.yaml", "settings_root": Path("settings")}
    )
    experiment = experiment.model_copy(update={"runs": Path("runs"), "data": data})
    (world.root / "run.yaml").write_text(dump(experiment))
    train(experiment)
    return world.root


def without_places(meta: dict[str, Any]) -> dict[str, Any]:
    """Return metadata without paths and dates."""
    inner = {key: without_places(value) if isinstance(value, dict) else value for key, value in meta.items()}
    return {key: value for key, value in inner.items() if key not in PLACES}


def scored(run: Path, *flags: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the metadata without paths and dates, and the arrays, of a new evaluation."""
    shutil.rmtree(run / "scores", ignore_errors=True)
    assert main(["evaluate", str(run), "--device", "cpu", *flags]) == 0
    (file,) = (run / "scores").iterdir()
    table = read_scores(file)
    return without_places(table.meta), {
        "logits": table.logits,
        "labels": table.labels,
        "ids": np.array(table.ids),
        "groups": np.array(table.groups),
    }


def same(first: tuple, second: tuple) -> bool:
    return first[0] == second[0] and all(np.array_equal(first[1][key], second[1][key]) for key in first[1])


def test_a_run_is_scored_from_anywhere_after_moves(here: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    wanted = scored(Path("runs/run"))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert same(scored(here / "runs" / "run"), wanted)  # another folder
    alone = tmp_path / "other" / "place" / "run"
    shutil.copytree(here / "runs" / "run", alone)
    assert same(scored(alone), wanted)  # the run was copied: the absolute path
    both = tmp_path / "moved"
    here.rename(both)
    assert same(scored(both / "runs" / "run"), wanted)  # run and data moved together: the relative path
    capsys.readouterr()
    assert main(["evaluate", str(alone), "--device", "cpu"]) == 2  # the data are gone
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert (
        f"data set 'tiny' not found; tried {tmp_path}/other/settings/tiny/dataset.yaml, {here}/settings/"
        in said
    )
    assert "--data-root" in said
    root = both / "settings" / "tiny"
    for given in (root, root / "dataset.yaml"):
        assert same(scored(alone, "--data-root", str(given)), wanted)
    assert main(["report", str(alone), "--data-root", str(root), "--out", "r.html"]) == 0
    assert "data:image/jpeg" in Path("r.html").read_text()
    assert main(["export", str(alone), "--to", "pt2", "--data-root", str(root)]) == 0


def test_a_data_set_of_another_name_is_not_used(here: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    """In the current folder, another data set may have the path that the settings name."""
    wanted = scored(Path("runs/run"))
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(here / "settings", elsewhere / "settings")
    record = elsewhere / "settings" / "tiny" / "dataset.yaml"
    record.write_text(record.read_text().replace("name: tiny", "name: other"))
    shutil.rmtree(elsewhere / "settings" / "tiny" / "frames")
    monkeypatch.chdir(elsewhere)
    assert same(scored(here / "runs" / "run"), wanted)
    capsys.readouterr()
    assert (
        main(["evaluate", str(here / "runs" / "run"), "--data-root", str(record.parent), "--device", "cpu"])
        == 2
    )
    assert "found no dataset.yaml of the data set 'tiny' there" in capsys.readouterr().err


def test_the_recorded_place_comes_before_that_of_the_settings(
    here: Path, tmp_path: Path, monkeypatch
) -> None:
    """Another version of the data set, with the same name, may lie in the current folder."""
    wanted = scored(Path("runs/run"))
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(here / "settings", elsewhere / "settings")
    for lists in (elsewhere / "settings" / "tiny").glob("val_*.txt"):
        lists.write_text("".join(lists.read_text().splitlines(keepends=True)[:2]))
    monkeypatch.chdir(elsewhere)
    assert same(scored(here / "runs" / "run"), wanted)


def test_a_run_of_an_earlier_version_is_found_by_its_folder(here: Path, tmp_path: Path, monkeypatch) -> None:
    wanted = scored(Path("runs/run"))
    Path("runs/run/data.json").unlink()
    monkeypatch.chdir(tmp_path)
    assert same(
        scored(here / "runs" / "run"), wanted
    )  # its settings say runs/run, relative to the first folder


def test_a_moved_run_folder_resumes(here: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    both = tmp_path / "moved"
    here.rename(both)
    (both / "runs" / "run").rename(both / "runs" / "renamed")
    monkeypatch.chdir(both / "runs" / "renamed")
    for given in (Path("experiment.yaml"), both / "runs" / "renamed"):
        assert main(["train", str(given), "--resume"]) == 0
        assert "the run has finished" in capsys.readouterr().out
    assert [path.name for path in (both / "runs").iterdir()] == ["renamed"]


def test_a_moved_run_resumes_on_moved_data_only_if_they_are_the_same(
    here: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    both = tmp_path / "moved"
    here.rename(both)
    monkeypatch.chdir(tmp_path)
    dataset = both / "settings" / "tiny" / "dataset.yaml"
    command = [
        "train",
        str(both / "run.yaml"),
        "--runs",
        str(both / "runs"),
        "--data.dataset",
        str(dataset),
        "--resume",
    ]
    assert main(command) == 0
    assert "the run has finished" in capsys.readouterr().out
    places = json.loads((both / "runs" / "run" / "data.json").read_text())["paths"]["dataset"]
    assert places == {
        "relative": "../../settings/tiny/dataset.yaml",
        "absolute": dataset.resolve().as_posix(),
    }
    lists = dataset.parent / "train_rgb_split1.txt"
    lists.write_text("".join(lists.read_text().splitlines(keepends=True)[:-1]))
    assert main(command) == 2
    assert "list" in capsys.readouterr().err


def test_stored_features_and_shards_are_found_after_moves(
    here: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    """Their recorded places come before those in the settings, which other files in the current folder may have."""
    frozen = ["--train.freeze-until", "backbone", "--train.init", "runs/run", "--train.init-part", "backbone"]
    caches = {"features": Path("features/run"), "shards": Path("packed")}
    assert main(["features", "runs/run", "--out", "features/run"]) == 0
    packing = ["--encoding", "original", "--processes", "0", "--out", "packed"]
    assert main(["pack", "settings/tiny/dataset.yaml", *packing]) == 0
    given = {"features": frozen, "shards": ["--data.source", "shards"]}
    for key, flags in given.items():
        assert main(["train", "run.yaml", "--name", key, f"--data.{key}", str(caches[key]), *flags]) == 0
    wanted = {key: scored(Path("runs") / key) for key in caches}
    both, elsewhere = tmp_path / "moved", tmp_path / "elsewhere"
    here.rename(both)
    for path in caches.values():  # damaged files at the places in the settings
        shutil.copytree(both / path, elsewhere / path)
        for file in (elsewhere / path).rglob("*.np*"):
            file.write_bytes(b"")
    monkeypatch.chdir(elsewhere)
    assert main(["features", str(both / "runs" / "run"), "--out", "features/again"]) == 0
    assert all(same(scored(both / "runs" / key), wanted[key]) for key in caches)
    monkeypatch.chdir(tmp_path)
    shutil.rmtree(elsewhere)
    for key, path in caches.items():
        place = tmp_path / "caches" / key
        shutil.move(both / path, place)
        run = both / "runs" / key
        capsys.readouterr()
        for command in (["evaluate", str(run)], ["train", str(run), "--resume"]):
            assert main(command) == 2
            said = capsys.readouterr().err
            assert said.count("\n") == 1
            assert f"not found; tried {both / path}, {here / path}" in said
            assert f"--data-root (`train --resume`: --data.{key})" in said
        assert same(scored(run, "--data-root", str(place)), wanted[key])
        assert main(["train", str(run), "--resume", f"--data.{key}", str(place)]) == 0
        assert same(scored(run), wanted[key])  # resuming has stored the new place
    capsys.readouterr()
    assert main(["evaluate", str(both / "runs" / "shards"), "--data-root", str(both)]) == 2
    assert "found no dataset.yaml of the data set 'tiny' there, and no shards" in capsys.readouterr().err


def test_shards_of_another_data_set_are_not_read(here: Path, capsys) -> None:
    record = Path("settings/tiny/dataset.yaml")
    record.write_text(record.read_text().replace("name: tiny", "name: other"))
    packing = ["--encoding", "original", "--processes", "0", "--out", "packed"]
    assert main(["pack", str(record), *packing]) == 0
    record.write_text(record.read_text().replace("name: other", "name: tiny"))
    flags = ["--name", "shards", "--data.shards", "packed", "--data.source", "shards"]
    assert main(["train", "run.yaml", *flags]) == 2
    assert "packed: shards of the data set 'other', expected 'tiny'" in capsys.readouterr().err


def test_a_run_of_an_earlier_version_reads_its_settings(here: Path, capsys) -> None:
    wanted = scored(Path("runs/run"))
    Path("runs/run/data.json").unlink()
    assert same(scored(Path("runs/run")), wanted)
    Path("runs/run/data.json").write_text("[1")
    assert same(scored(Path("runs/run")), wanted)
