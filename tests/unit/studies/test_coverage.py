"""Do 95 % intervals hold the truth in 95 % of data sets? The simulations are those of eval/benchmarks/coverage.py."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy.stats import binomtest

from two_stream.evaluation.scores import statistics
from two_stream.evaluation.scores.statistics import Sample

CLAIMS = ("accuracies", "mean-class", "map", "fusion", "boards", "independent")
"""what must hold; `few-trainings` shows what does not"""
STUDIES = 1000
LOW, HIGH = 0.93, 0.97


@pytest.fixture
def coverage(repository: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark; not under its own name, which is that of a package."""
    path = repository / "eval" / "benchmarks" / "coverage.py"
    spec = importlib.util.spec_from_file_location("coverage_benchmark", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def check(cells: Iterable) -> int:
    """Assert what every cell promises, within the error of its simulation; return how many had data.

    Of hundreds of cells some are beyond a 95 % interval by chance. False verdicts, whose share is 5 % where videos are
    many, are held against one of 99.9 %, and all cells together against 5 %.
    """
    with_data = [cell for cell in cells if cell.sets]
    for cell in with_data:
        told = f"{cell.claim}: {cell.world}: {cell.to_json()}"
        assert cell.to_json()["coverage_interval"][1] >= 0.93, told
        assert binomtest(cell.false, cell.sets).proportion_ci(0.999, method="wilson").low <= 0.05, told
    verdicts = [cell for cell in with_data if cell.claim not in ("accuracy", "mean class accuracy", "mAP")]
    assert sum(cell.false for cell in verdicts) <= 0.05 * sum(cell.sets for cell in verdicts)
    return len(with_data)


def test_a_few_worlds_are_covered(coverage: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    worlds = [
        coverage.World(5, "equal", accuracy=0.9),
        coverage.World(20, "Pareto"),
        coverage.World(20, "one with 40 %", accuracy=0.97),
        coverage.World(10, "equal", trainings=3),
        coverage.World(60, "Pareto", trainings=5, accuracy=0.5),
    ]
    monkeypatch.setattr(coverage, "worlds", lambda: iter([(str(world), world) for world in worlds]))
    assert check(coverage.accuracies(400)) == 10


def test_a_few_fusions_boards_and_independent_videos_are_covered(
    coverage: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coverage, "SOURCES", (0, 20))
    monkeypatch.setattr(coverage, "SHAPES", ("equal", "Pareto"))
    monkeypatch.setattr(coverage, "ACCURACIES", (0.67,))
    assert check(coverage.fusion(100)) == 6
    assert check(coverage.independent(100)) == 6
    assert check(coverage.mean_class(40)) == 8


def test_the_claims_are_known(coverage: ModuleType) -> None:
    assert set(coverage.CLAIMS) == {*CLAIMS, "few-trainings"}


@pytest.mark.slow
@pytest.mark.parametrize("claim", CLAIMS)
def test_every_claim_holds(coverage: ModuleType, claim: str) -> None:
    assert check(coverage.CLAIMS[claim](400)) >= 18


@pytest.mark.slow
def test_only_one_training_each_breaks_the_promise(coverage: ModuleType) -> None:
    one, two = {}, []
    for cell in coverage.few_trainings(400):
        if cell.world.startswith("1 "):
            one[cell.world] = cell.to_json()["false_interval"][0]
        else:
            two.append(cell)
    assert len(one) == 2
    assert min(one.values()) > 0.1
    assert check(two) == 2


def test_a_wrong_interval_is_seen(coverage: ModuleType) -> None:
    """Gate of the gate: intervals of 90 % and verdicts at 10 % are refused."""
    narrow = coverage.Cell("accuracy", "x", sets=400, held=350)
    hasty = coverage.Cell("difference", "x", sets=400, held=380, false=40)
    for cell in (narrow, hasty):
        with pytest.raises(AssertionError, match=cell.claim):
            check([cell])
    often = [coverage.Cell("difference", str(place), sets=400, held=372, false=28) for place in range(3)]
    with pytest.raises(AssertionError, match="84"):
        check(often)


def test_one_training_each_calls_equal_heads_different_far_too_often(coverage: ModuleType) -> None:
    """Why a verdict on variants asks for three trainings."""
    world = coverage.World(60, trainings=3, training=0.2, both=0.3)
    rng = np.random.default_rng(20261121)
    false = np.zeros(2)
    for _ in range(400):
        unit = world.units(rng)
        first, second = world.hits(unit, rng, (0.0, 0.0))
        sample = Sample.even(unit)
        false += [
            statistics.difference_of(first[:, :1], second[:, :1], sample).p < 0.05,
            statistics.difference_of(first, second, sample).p < 0.05,
        ]
    one, three = false / 400
    assert one > 0.25
    assert three < 0.08


@pytest.mark.parametrize("seeds", [3, 5])
def test_the_t_interval_over_seeds_covers(seeds: int) -> None:
    generator = np.random.default_rng(5)
    chances = generator.uniform(0.3, 0.95, size=120)  # of these very videos
    found = 0
    for _ in range(STUDIES):
        shift = 0.05 * generator.normal(size=(seeds, 1))
        hits = generator.random((seeds, 120)) < np.clip(chances + shift, 0, 1)
        interval = statistics.t_interval(hits.mean(axis=1))
        found += interval.low <= chances.mean() <= interval.high
    assert LOW <= found / STUDIES <= HIGH


def test_mcnemars_test_and_interval_keep_their_promise() -> None:
    """Exact tests err on the safe side: at most 5 % false alarms, coverage not below 93 %."""
    generator = np.random.default_rng(9)
    false_alarms = covered = 0
    for _ in range(STUDIES):
        draws = generator.choice(3, p=[0.82, 0.12, 0.06], size=200)  # the first is better by 6 points
        wins, losses = int((draws == 1).sum()), int((draws == 2).sum())
        interval = statistics.mcnemar_interval(wins, losses, 200, 0.95)
        covered += interval.low <= 0.06 <= interval.high
        even = generator.binomial(wins + losses, 0.5)
        false_alarms += statistics.mcnemar_exact(even, wins + losses - even) < 0.05
    assert covered / STUDIES >= LOW
    assert false_alarms / STUDIES <= 0.05


def test_the_page_shows_the_last_whole_run(coverage: ModuleType, repository: Path) -> None:
    rows = json.loads(coverage.OUT.read_text(encoding="utf-8"))["rows"]
    assert coverage.tables(rows) in (repository / "docs" / "statistics.md").read_text(encoding="utf-8")
    assert (
        min(row["coverage"] for row in rows if row["sets"] and row["claim"] != "training runs unseen") >= 0.93
    )
