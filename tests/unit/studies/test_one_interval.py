"""One score file has one interval, whichever command tells it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from two_stream import cli
from two_stream.config.schema import Experiment
from two_stream.evaluation.scores.files import read_scores, write_scores
from two_stream.types import ScoreTable


def uneven(table: ScoreTable) -> ScoreTable:
    """Forty per cent of the videos are of one source."""
    return replace(table, groups=["g0"] * 48 + [f"g{1 + place // 6}" for place in range(72)])


def all_right(table: ScoreTable) -> ScoreTable:
    return replace(table, logits=table.logits + 20 * np.eye(4)[table.labels])


def several_classes(table: ScoreTable) -> ScoreTable:
    """A multi-label set: the class after a video's own belongs to every third video, too."""
    targets = np.eye(4, dtype=bool)[table.labels]
    targets[::3] |= np.roll(targets[::3], 1, axis=1)
    return replace(table, targets=targets)


def few_sources(table: ScoreTable) -> ScoreTable:
    return replace(table, groups=["g0"] * 50 + ["g1"] * 70)


CASES: dict[str, Callable[[ScoreTable], ScoreTable]] = {
    "equal sources": lambda table: table,
    "one large source": uneven,
    "all right": all_right,
    "no sources": lambda table: replace(table, groups=None),
    "two sources": few_sources,
    "several classes": several_classes,
}


def printed(capsys: pytest.CaptureFixture[str], *args: object) -> dict:
    capsys.readouterr()
    assert cli.main([str(arg) for arg in args]) == 0
    return json.loads(capsys.readouterr().out)


def shuffled(table: ScoreTable) -> ScoreTable:
    """The same rows in another order: another stream's file need not have the same."""
    order = np.random.default_rng(1).permutation(len(table.ids))
    groups = None if table.groups is None else [table.groups[place] for place in order]
    targets = None if table.targets is None else table.targets[order]
    ids = [table.ids[place] for place in order]
    moved = replace(table, ids=ids, labels=table.labels[order], logits=table.logits[order])
    return replace(moved, groups=groups, targets=targets)


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `evaluate` take a score file for the run whose network gave it."""
    experiment = Experiment()
    network = SimpleNamespace(experiment=experiment, model=SimpleNamespace(device=torch.device("cpu")))
    monkeypatch.setattr("two_stream.commands.evaluate.network_settings", lambda folder: experiment)
    monkeypatch.setattr(
        "two_stream.commands.evaluate.load_network",
        lambda folder, *_: SimpleNamespace(**vars(network), file=folder),
    )
    monkeypatch.setattr(
        "two_stream.evaluation.runs.run.evaluate_run", lambda run, *_, **__: (read_scores(run.file), run.file)
    )


@pytest.mark.parametrize("case", CASES)
def test_every_command_tells_the_same_interval(studio, scored, tmp_path: Path, capsys, case: str) -> None:
    files = []
    for name, skill in (("rgb", 1.2), ("flow", 0.9)):
        (file,) = studio.run(name, skill, modality=name).glob("scores/test_*.npz")
        table = CASES[case](read_scores(file))
        table.meta.pop("file", None)
        write_scores(file, shuffled(table) if name == "flow" else table)
        files.append(file)
    measure = ("map",) if case == "several classes" else ("top", "1")

    def stated(values: dict) -> dict:
        for key in measure:
            values = values[key]
        return values

    fused = printed(capsys, "fuse", *files, "--json")["streams"]
    compared = printed(capsys, "compare", *files, "--json")["variants"]
    (board,) = printed(capsys, "leaderboard", studio.root, "--json")["boards"]
    page = tmp_path / "page.html"
    assert cli.main(["report", *map(str, files), "--out", str(page)]) == 0
    reported = json.loads(page.with_suffix(".json").read_text())["streams"]
    for place, (file, name) in enumerate(zip(files, ("rgb", "flow"), strict=True)):
        evaluated = stated(printed(capsys, "evaluate", file, "--json", "--device", "cpu"))
        assert evaluated["low"] <= evaluated["value"] <= evaluated["high"] + 1e-12
        assert evaluated["known"] == (case != "two sources")
        expected = pytest.approx(evaluated, abs=1e-12)
        assert stated(fused[place]) == expected
        assert stated(reported[place]) == expected
        assert next(one["accuracy"] for one in compared if one["name"] == name) == expected
        assert next(one["accuracy"] for one in board["standings"] if one["name"] == name) == expected
