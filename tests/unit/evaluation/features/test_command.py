"""`two-stream features`: from a run, an experiment file or a named model to a run that is trained and scored on it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.helpers.models import settled_model
from tests.helpers.runs import experiment_of, save_run
from two_stream.cli import main
from two_stream.config.load import dump
from two_stream.evaluation.features.cache import FeatureCache
from two_stream.evaluation.scores.files import read_scores

SMALL = ["--evaluate.crops", "center", "--evaluate.views", "single", "--device", "cpu"]


def test_run_to_features_to_run(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = experiment_of(world, head={"kind": "average"}, name="source", runs=tmp_path)
    run = save_run(source, settled_model(source.model))
    out = tmp_path / "cache"
    assert main(["features", str(run), "--out", str(out), "--train-views", "2", *SMALL]) == 0
    said = capsys.readouterr()
    assert "30 views of 12 videos as tokens (T, D) 2×1280" in said.err
    assert f"{out}: 12 videos, 30 views, 304.2 KiB" in said.out
    flags = said.out.splitlines()[-1].partition("`two-stream train`: ")[2].split()
    settings = tmp_path / "bert.yaml"
    settings.write_text(dump(experiment_of(world, name="bert", runs=tmp_path)))
    shown = [*SMALL[:4], "--device", "cpu"]
    assert main(["train", str(settings), *flags, *shown]) == 0
    assert main(["evaluate", str(tmp_path / "bert"), "--device", "cpu", "--json"]) == 0
    capsys.readouterr()
    scores = tmp_path / "bert" / "scores" / "test_single_center_logits.npz"
    stored = read_scores(scores)
    assert stored.meta["source"] == "features"
    assert main(["evaluate", str(tmp_path / "bert"), "--device", "cpu", "--uncached"]) == 0
    read = read_scores(scores)
    assert read.meta["source"] == "frames"
    assert stored.logits == pytest.approx(read.logits, abs=1e-5)
    assert main(["evaluate", str(tmp_path / "bert"), "--device", "cpu", "--crops", "ten"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_experiment_file_and_overwrite(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = experiment_of(world, runs=tmp_path)
    settings = tmp_path / "small.yaml"
    settings.write_text(dump(experiment))
    command = ["features", str(settings), "--out", str(tmp_path / "cache"), "--parts", "test", *SMALL]
    assert main(command) == 0
    assert "at random from the seed" in capsys.readouterr().err
    assert list(FeatureCache(tmp_path / "cache").facts.parts) == ["test"]
    assert main(command) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main([*command, "--overwrite", "--maps"]) == 0
    assert FeatureCache(tmp_path / "cache").layout.maps


def test_named_model(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    record = world / "settings" / "toy" / "dataset.yaml"
    name = "efficient3d/mobilenetv2_0.2x"
    arguments = ["--data.dataset", str(record), "--data.workers", "0", "--parts", "test", *SMALL]
    assert main(["features", name, *arguments]) == 0
    (folder,) = (tmp_path / "features").iterdir()
    assert folder.name == "mobilenetv2_0-toy-split1"
    assert FeatureCache(folder).facts.settings["model.backbone.width"] == 0.2


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("mobilenetv2_3", "did you mean"),
        ("missing.yaml", "missing.yaml"),
        (".", "not a run folder"),
    ],
)
def test_wrong_source_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    source: str,
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["features", source]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


def test_interrupted_command_leaves_nothing(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from two_stream.evaluation.features import extract_features as writing

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    experiment = experiment_of(world, head={"kind": "average"}, runs=tmp_path / "runs")
    run = save_run(experiment, settled_model(experiment.model))
    monkeypatch.setattr(writing, "check_incomplete", stop)
    assert main(["features", str(run), "--out", str(tmp_path / "out" / "cache"), *SMALL]) == 130
    assert capsys.readouterr().err.endswith("two-stream: interrupted\n")
    assert list((tmp_path / "out").iterdir()) == []


def test_features_in_an_experiment_file_round_trip(world: Path, tmp_path: Path) -> None:
    experiment = experiment_of(world, data={"features": tmp_path / "cache"})
    assert yaml.safe_load(dump(experiment))["data"]["features"] == str(tmp_path / "cache")
    assert json.loads(experiment.model_dump_json())["train"]["init_part"] == "all"
