"""The threshold for "none of these": its rate, and what commands show below it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax

from two_stream.cli import main
from two_stream.errors import ScoreError
from two_stream.evaluation.runs.none_of_these import (
    choose_threshold,
    mark_none,
    read_threshold,
    write_threshold,
)
from two_stream.evaluation.scores.files import write_scores
from two_stream.types import ScoreTable


def holdout(rng: np.random.Generator, sources: int, strength: float = 1.5) -> ScoreTable:
    """Videos of sources of different sizes and difficulty."""
    sizes = rng.integers(1, 6, sources)
    hard = np.repeat(rng.normal(0, 1.0, sources), sizes)
    labels = rng.integers(0, 4, len(hard))
    logits = rng.normal(size=(len(hard), 4)) + np.maximum(0, strength + hard)[:, None] * np.eye(4)[labels]
    groups = np.repeat([f"g{n}" for n in range(sources)], sizes).tolist()
    ids = [f"v{n}" for n in range(len(hard))]
    return ScoreTable(ids, labels, list("abcd"), logits, {"part": "val"}, groups=groups)


def shown_and_wrong(table: ScoreTable, threshold: float) -> np.ndarray:
    """Return the fraction of each source's videos for which a wrong class is shown."""
    chances = softmax(table.logits, axis=1)
    wrong = (chances.max(axis=1) >= threshold) & (chances.argmax(axis=1) != table.labels)
    unit = np.unique(table.groups or [], return_inverse=True)[1]
    return np.bincount(unit, wrong) / np.bincount(unit)


@pytest.mark.parametrize(("sources", "rate"), [(9, 0.1), (20, 0.1), (40, 0.05), (40, 0.2)])
def test_the_rate_holds_on_new_sources(sources: int, rate: float) -> None:
    rng = np.random.default_rng(0)
    new = holdout(rng, 2000)
    found = []
    for _ in range(200):
        table = holdout(rng, sources)
        threshold = choose_threshold(softmax(table.logits, axis=1), table, rate)
        found.append(shown_and_wrong(new, threshold.value).mean())
        own = shown_and_wrong(table, threshold.value)
        assert (own.sum() + 1) / (sources + 1) <= rate + 1e-9
        below = np.nextafter(
            threshold.value, 0
        )  # the smallest threshold: the next lower video would be too much
        lower = np.sort(softmax(table.logits, axis=1).max(axis=1))
        lower = lower[lower < threshold.value]
        if len(lower):
            assert (shown_and_wrong(table, min(below, lower[-1])).sum() + 1) / (sources + 1) > rate
    mean, error = np.mean(found), np.std(found) / np.sqrt(len(found))
    assert mean < rate + 3 * error
    assert mean > 0.3 * rate or sources == 9  # and it is not needlessly strict


def test_everything_is_shown_if_nothing_is_wrong() -> None:
    table = holdout(np.random.default_rng(0), 20, strength=100)
    found = choose_threshold(softmax(table.logits, axis=1), table, 0.1)
    assert (found.value, found.shown, found.kept) == (0.0, 1.0, 1.0)


@pytest.mark.parametrize("rate", [0.0, 1.0, 0.04])
def test_a_rate_that_the_holdout_cannot_give_is_refused(rate: float) -> None:
    table = holdout(np.random.default_rng(0), 20)
    with pytest.raises(ScoreError, match=r"--false-alarms is .*at least 0\.0476, .* 20 holdout sources"):
        choose_threshold(softmax(table.logits, axis=1), table, rate)


def test_a_run_keeps_it_and_two_runs_share_one(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tables = [holdout(rng, 40) for _ in range(2)]
    tables[1].labels, tables[1].ids, tables[1].groups = tables[0].labels, tables[0].ids, tables[0].groups
    tables[1].logits = tables[0].logits + rng.normal(size=tables[0].logits.shape)
    runs = [tmp_path / "rgb", tmp_path / "flow"]
    for run, table in zip(runs, tables):
        file = run / "scores" / "val_single.npz"
        write_scores(file, table)
        table.meta["file"] = str(file)
    own = write_threshold(runs[0], tables[0], 0.1)
    assert read_threshold([(runs[0], "a")], "l2", None) == own.value
    assert read_threshold([(runs[0], "a"), (runs[1], "b")], "l2", None) == 0.0  # the flow run has none
    write_threshold(runs[1], tables[1], 0.2)
    facts = json.loads((runs[1] / "threshold.json").read_text())
    assert facts["scores"] == "scores/val_single.npz"  # the run can move
    moved = [(run.rename(tmp_path / f"moved_{run.name}"), "a") for run in runs]
    mean = sum(softmax(table.logits, axis=1) for table in tables) / 2
    wanted = choose_threshold(mean, tables[0], 0.1).value
    assert read_threshold(moved, "probabilities", None) == pytest.approx(wanted, abs=1e-12)
    file = moved[0][0] / "threshold.json"
    facts = json.loads(file.read_text()) | {"model_sha256": "b"}
    for content in ("{}", "[", json.dumps(facts)):
        file.write_text(content)
        with pytest.raises(
            ScoreError, match=r"threshold\.json: damaged, or chosen for other weights; .* --false-alarms"
        ):
            read_threshold(moved, "l2", None)


def test_below_it_the_first_class_is_none_of_these() -> None:
    guesses = [("jump", 0.4), ("run", 0.3)]
    assert mark_none(guesses, 0.4) == guesses
    assert mark_none(guesses, 0.5) == [("none of these (below 50 %)", 0.4), *guesses]
    assert mark_none([], 0.5) == []


def test_commands_show_it(exported_world: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    run, video = str(exported_world / "rgb"), str(exported_world / "videos" / "left" / "v_g3.mp4")
    command = ["predict", video, "--rgb", run, "--device", "cpu"]
    assert (
        main([*command, "--threshold", "1", "--csv", "p.csv", "--timeline", "t.png", "--json", "p.json"]) == 0
    )
    assert "none of these: the best probability is below 100.0 %" in " ".join(capsys.readouterr().out.split())
    (found,) = json.loads(Path("p.json").read_text())
    assert found["none_of_these"] is True
    header, row = Path("p.csv").read_text().splitlines()
    assert header.split(",")[0] == "id"
    assert sum(map(float, row.split(",")[1:])) == pytest.approx(1)
    assert all("none of these" in line for line in Path("t.csv").read_text().splitlines()[1:])
    assert main(command) == 0
    assert "none of these" not in capsys.readouterr().out
    assert (
        main(["stream", video, "--rgb", run, "--device", "cpu", "--threshold", "0.999", "--json", "s.jsonl"])
        == 0
    )
    lines = [json.loads(line) for line in Path("s.jsonl").read_text().splitlines()]
    assert lines
    assert all(line["none_of_these"] for line in lines)
    world = tmp_path / "world"
    shutil.copytree(exported_world, world)
    monkeypatch.chdir(world)
    held = ["evaluate", str(world / "rgb"), "--device", "cpu", "--part", "val", "--false-alarms", "0.9"]
    assert main(held) == 0
    assert "threshold 0" in capsys.readouterr().err
    assert json.loads((world / "rgb" / "threshold.json").read_text())["false_alarms"] == 0.9
    assert main([*command[:3], str(world / "rgb"), *command[4:], "--json", "p.json"]) == 0
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", run, "--device", "cpu", "--false-alarms", "0.1"]) == 2
    assert "--false-alarms needs a run folder and --part val" in capsys.readouterr().err
