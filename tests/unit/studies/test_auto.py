"""`two-stream auto` on a tiny data set: its steps, its answer, what it does when time is short or data are broken."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy.special import log_softmax
from scipy.stats import t

from two_stream import cli
from two_stream.config.load import load_experiment
from two_stream.data.catalog import load_record
from two_stream.errors import ScoreError, SettingsError
from two_stream.evaluation.scores.files import newest_scores, read_scores
from two_stream.evaluation.scores.metrics import top_k_accuracy
from two_stream.evaluation.scores.tables import keep_common_videos
from two_stream.evaluation.scores.words import expected_words
from two_stream.studies.auto import (
    Candidate,
    best_candidate,
    candidate,
    fit_to_time,
    pass_seconds,
    recipe,
)
from two_stream.types import RunPaths, ScoreTable

pytestmark = pytest.mark.usefixtures("small")
REPOSITORY = Path(__file__).parents[3]
INPUT = {"clip_length": 4, "segments": 4, "resize": [48, 64], "crop": [48, 64]}


@pytest.fixture(scope="module")
def settings(world: Path) -> Path:
    """The recipes themselves, at a size that takes seconds."""
    folder = world / "settings" / "experiments"
    folder.mkdir()
    for modality in ("rgb", "flow"):
        made = yaml.safe_load((REPOSITORY / f"settings/experiments/own_videos_{modality}.yaml").read_text())
        made["model"]["input"] = {**INPUT, "clip_length": 8 if modality == "rgb" else 4}
        made["data"]["workers"] = 0
        made["train"]["optimizer"] |= {"cs": [0.01, 0.1], "repeats": 1}
        (folder / f"own_videos_{modality}.yaml").write_text(yaml.safe_dump(made))
    return world


def both(answered: Path) -> list[RunPaths]:
    return [RunPaths(answered / f"toy-split1-{modality}") for modality in ("rgb", "flow")]


def arguments(world: Path, *more: str) -> list[str]:
    places = ["--settings-root", str(world / "settings"), "--runs", str(world / "auto"), "--device", "cpu"]
    return ["auto", "toy", *places, *more]


@pytest.fixture(scope="module")
def answered(settings: Path) -> Path:
    assert cli.main(arguments(settings, "--minutes", "60")) == 0
    return settings / "auto"


def test_every_step_says_its_command_and_the_answer_can_be_used(
    settings: Path, answered: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in answered.glob("*/best/*")}
    capsys.readouterr()
    assert cli.main(arguments(settings, "--minutes", "60")) == 0  # again: nothing is trained
    assert before == {path: path.stat().st_mtime_ns for path in before}
    said = capsys.readouterr().out
    commands = [line.strip() for line in said.splitlines() if line.startswith("  $ two-stream")]
    names = [line.split()[2] for line in commands]
    assert names == ["check", "baseline", "train", "evaluate", "train", "evaluate", "report", "predict"]
    assert "11 training videos of 6 sources, 4 test videos of 2 sources, 2 classes" in said
    answer = json.loads((answered / "auto" / "toy-split1_answer.json").read_text())
    assert answer["predict"] in commands[-1]
    assert all(
        (Path(run) / "best").exists() or (Path(run) / "experiment.yaml").is_file() for run in answer["runs"]
    )
    page = (answered / "auto" / "toy-split1.html").read_text()
    assert "baseline" in page
    facts = json.loads((answered / "auto" / "toy-split1.json").read_text())
    runs = [RunPaths(Path(run)) for run in answer["runs"]]
    led = candidate("networks", runs if answer["answer"] != "baseline" else both(answered), "learned")
    main = next(stream for stream in facts["streams"] if stream["name"] == facts["main"])
    assert (
        main["meta"]["weights"] == led.weights
    )  # the page leads with the answer, or with what lost to the baseline
    train = load_experiment(answered / "toy-split1-rgb" / "experiment.yaml")
    assert (train.train.optimizer.views, train.evaluate.crops) == (1, "full")


def test_the_answer_is_judged_on_held_out_training_videos(answered: Path) -> None:
    found = candidate("networks", both(answered), "learned")
    runs = found.runs
    vals = [read_scores(newest_scores(run.root, "val")) for run in runs]
    fused = sum(weight * table.logits for weight, table in zip(found.weights, vals, strict=True))
    assert found.validated == top_k_accuracy(fused, vals[0].labels)
    assert found.videos == len(vals[0].ids) == 11
    tests = [read_scores(newest_scores(run.root)) for run in runs]
    by_hand = sum(weight * table.logits for weight, table in zip(found.weights, tests, strict=True))
    np.testing.assert_allclose(found.test.logits, by_hand, atol=1e-9)


def test_equals_are_decided_by_the_fewer_runs() -> None:
    def made(name: str, validated: float, runs: int) -> Candidate:
        table = ScoreTable([], np.zeros(0, np.int64), [], np.zeros((0, 2)))
        return Candidate(name, [RunPaths(Path("x"))] * runs, table, "logits", [1.0] * runs, validated, 9)

    assert best_candidate([made("a", 0.8, 3), made("b", 0.8, 2), made("c", 0.7, 1)]).name == "b"
    assert best_candidate([made("a", 0.8, 3), made("b", 0.81, 5)]).name == "b"


def test_short_time_means_fewer_views_then_no_network(answered: Path, settings: Path) -> None:
    experiment = load_experiment(settings / "settings" / "experiments" / "own_videos_flow.yaml")
    run = RunPaths(answered / "baseline" / "toy-split1" / "flow")
    line = json.loads(run.metrics.read_text().splitlines()[0])
    one_pass = pass_seconds(experiment, run, 15)
    assert one_pass == pytest.approx(1.3 * 15 / line["clips_per_second"])
    assert fit_to_time(experiment, one_pass, 2.01 * one_pass) == experiment
    less = fit_to_time(experiment, one_pass, 1.5 * one_pass)
    assert less is not None
    assert (less.train.optimizer.views, less.evaluate.crops) == (0, "center")
    assert fit_to_time(experiment, one_pass, 0.9 * one_pass) is None
    learning = load_experiment(REPOSITORY / "settings/experiments/own_videos_flow_gpu.yaml")
    assert pass_seconds(learning, run, 15) == pytest.approx(4 * one_pass)  # 16 frames
    assert fit_to_time(learning, 1.0, 91.0) == learning
    fewer = fit_to_time(learning, 1.0, 1 + 3 * 7.5)
    assert fewer is not None
    assert fewer.train.epochs == 7
    assert fit_to_time(learning, 1.0, 1 + 3 * 4.5) is None


def test_no_time_leaves_the_baseline_as_the_answer(
    settings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(settings / "auto" / "baseline", settings / "hurried" / "baseline")
    args = arguments(settings, "--minutes", "0.0001")
    args[args.index("--runs") + 1] = str(settings / "hurried")
    assert cli.main(args) == 0
    said = capsys.readouterr().out
    assert said.count("no time is left") == 2
    assert "Only the baseline was run, so it is chosen." in said
    assert json.loads((settings / "hurried/auto/toy-split1_answer.json").read_text())["answer"] == "baseline"


def test_broken_data_end_it_before_anything_is_trained(
    settings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(settings / "settings", tmp_path / "settings")
    lists = tmp_path / "settings" / "toy" / "train_rgb_split1.txt"
    lists.write_text(lists.read_text() + "left/v_g99 8 0\n")
    args = ["auto", "toy", "--settings-root", str(tmp_path / "settings"), "--runs", str(tmp_path / "runs")]
    assert cli.main(args) == 1
    assert "Fix these errors first" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()
    assert cli.main([*args, "--minutes", "0"]) == 2
    assert "--minutes is 0: expected more than 0" in capsys.readouterr().err
    assert cli.main([*args, "--split", "9"]) == 2
    assert "no split 9; expected a split from 1 to 1" in capsys.readouterr().err


def test_a_published_split_with_sources_on_both_sides_can_be_accepted(
    settings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise SettingsError("the baseline is run")

    monkeypatch.setattr("two_stream.studies.baseline.run_baseline", stop)
    shutil.copytree(settings / "settings", tmp_path / "settings")
    record = tmp_path / "settings" / "toy" / "dataset.yaml"
    record.write_text(record.read_text().replace(r"_(g\d)$", r"(v)_g\d$"))  # all videos are of one source
    args = ["auto", "toy", "--settings-root", str(tmp_path / "settings"), "--runs", str(tmp_path / "runs")]
    assert cli.main(args) == 1
    said = capsys.readouterr().out
    assert said.count("source 'v' has videos of class 'left' in the training list too") == 1
    assert "or accept a published split with --official-split" in said
    assert cli.main([*args, "--official-split"]) == 2
    assert "the baseline is run" in capsys.readouterr().err


def test_recipes_are_found_under_the_settings_and_in_the_checkout(tmp_path: Path, settings: Path) -> None:
    own = settings / "settings"
    assert recipe("rgb", own, "cpu") == own / "experiments" / "own_videos_rgb.yaml"
    assert recipe("rgb", tmp_path, "cpu") == REPOSITORY / "settings/experiments/own_videos_rgb.yaml"


def test_the_expected_interval_counts_sources(settings: Path, tmp_path: Path) -> None:
    said = expected_words(load_record("toy", settings / "settings"), "rgb", 1)
    assert said.startswith("11 training videos of 6 sources, 4 test videos of 2 sources, 2 classes")
    assert "no interval, because an interval requires three test sources" in said
    shutil.copytree(settings / "settings", tmp_path / "settings")
    listed = tmp_path / "settings" / "toy" / "val_rgb_split1.txt"
    more = [
        f"{name}/v_g{group} 8 {label}" for group in (0, 9) for label, name in enumerate(("left", "right"))
    ]
    listed.write_text("\n".join([listed.read_text().strip(), *more]) + "\n")
    said = expected_words(load_record("toy", tmp_path / "settings"), "rgb", 1)
    assert "8 test videos of 4 sources, 2 classes" in said
    trials, square = 8 / 1.3, t.ppf(0.975, 3) ** 2  # two videos each, correlation 0.3: 8 / (1 + 0.3)
    half = math.sqrt(square * (0.75 * 0.25 / trials + square / (4 * trials**2))) / (1 + square / trials)
    assert f"the 95 % interval of an accuracy of 75 % will be about ±{100 * half:.0f} points" in said


def test_common_keeps_the_videos_that_all_have() -> None:
    def made(ids: str) -> ScoreTable:
        logits = log_softmax(np.array([[ord(name), 100.0] for name in ids]), axis=1)
        return ScoreTable(list(ids), np.zeros(len(ids), np.int64), ["x", "y"], logits)

    one, other = keep_common_videos([made("badc"), made("dxb")])
    assert one.ids == other.ids == ["b", "d"]
    np.testing.assert_array_equal(one.logits, other.logits)
    with pytest.raises(ScoreError, match="no video in common"):
        keep_common_videos([made("ab"), made("cd")])


def test_folds_need_the_solver() -> None:
    with pytest.raises(SettingsError, match="set `selection` to holdout or paper"):
        from two_stream.config.load import validate_settings
        from two_stream.config.schema import Experiment

        validate_settings(Experiment, {"train": {"selection": "folds"}}, "x")
