"""A variant as one array: joined by id, splits alike, sources as units."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from two_stream.errors import ScoreError
from two_stream.evaluation.scores.metrics import top_k_accuracy
from two_stream.evaluation.scores.statistics import Interval, difference_of
from two_stream.evaluation.scores.tables import reorder
from two_stream.studies.statistics.comparison import match_cells, pair_panels, panel_of
from two_stream.types import ScoreTable


def test_the_mean_is_that_of_the_splits_however_many_videos_they_have(studio) -> None:
    tables = {(1, 1): studio.table(videos=120), (2, 1): studio.table(split=2, videos=40, skill=0.3)}
    accuracies = [top_k_accuracy(table.logits, table.labels) for table in tables.values()]
    panel = panel_of("a", tables)
    assert accuracies[0] != accuracies[1]
    assert panel.estimate().value == pytest.approx(np.mean(accuracies))
    assert panel.weight.sum() == pytest.approx(1)
    assert panel.videos == 80


def test_rows_are_joined_by_id_whatever_their_order(studio) -> None:
    tables = studio.tables()
    shuffled = {
        cell: reorder(table, np.random.default_rng(place).permutation(len(table.ids)))
        for place, (cell, table) in enumerate(tables.items())
    }
    np.testing.assert_array_equal(panel_of("a", tables).hits, panel_of("a", shuffled).hits)
    assert panel_of("a", tables).estimate() == panel_of("a", shuffled).estimate()


def test_a_missing_video_is_named(studio) -> None:
    tables = studio.tables()
    tables[1, 2] = reorder(tables[1, 2], np.arange(119))
    with pytest.raises(ScoreError, match=r"videos of .* are missing: 'turn right/test_s1_119'"):
        panel_of("a", tables)


def test_holdout_parts_of_several_seeds_are_told_apart(studio) -> None:
    tables = {(1, seed): studio.table(seed=seed, part="val") for seed in (1, 2)}
    assert panel_of("a", tables).seeds == [1, 2]
    tables[1, 2] = replace(tables[1, 2], ids=[f"{name}x" for name in tables[1, 2].ids])
    with pytest.raises(ScoreError, match="each seed has its own holdout part; compare the training runs on"):
        panel_of("a", tables)


def test_one_source_in_several_splits_is_one_unit(studio) -> None:
    tables = {(split, 1): studio.table(split=split) for split in (1, 2)}
    assert (panel_of("a", tables).units, panel_of("a", tables).groups) == (60, 60)
    shared = {
        cell: replace(table, groups=[f"g{i // 4}" for i in range(120)]) for cell, table in tables.items()
    }
    assert panel_of("a", shared).units == 30


def test_a_video_without_a_source_is_its_own_unit_and_one_source_is_one(studio) -> None:
    table = studio.table(videos=8)
    some = replace(table, groups=["g1", "g1", "g2", "g2", "", "", "", ""])
    assert panel_of("a", {(1, 1): some}).units == 6
    single = replace(table, groups=["g1"] * 8)
    known = panel_of("a", {(1, 1): single})
    assert (known.units, known.groups) == (1, 1)
    assert known.interval(0.95) == Interval(pytest.approx(np.mean(known.hits)), 0.0, 1.0, known=False)
    for groups in (None, [""] * 8):
        unknown = panel_of("a", {(1, 1): replace(table, groups=groups)})
        assert (unknown.units, unknown.groups) == (8, None)
        assert unknown.interval(0.95).known


def test_a_video_in_two_splits_is_not_independent(studio) -> None:
    table = studio.table(sources=False)
    panel = panel_of("a", {(1, 1): table, (2, 1): table})
    assert panel.units == 120
    other = panel_of("b", {(split, 1): studio.table(stream=1, sources=False) for split in (1, 2)})
    assert not difference_of(panel.hits, other.hits, panel.sample).exact


def test_trainings_that_not_all_splits_have_are_left_out(studio) -> None:
    tables = studio.tables()
    del tables[2, 3]
    panel = panel_of("a", tables)
    assert (panel.splits, panel.seeds) == ([1, 2], [1, 2])


def test_without_a_common_seed_the_trainings_stand_in_their_order(studio) -> None:
    tables = {(1, 1): studio.table(), (1, 2): studio.table(seed=2), (2, 7): studio.table(split=2, seed=7)}
    panel = panel_of("a", tables)
    assert (panel.splits, panel.seeds) == ([1, 2], [1])
    assert panel.tables[2, 1].meta["seed"] == 7


def test_matched_cells() -> None:
    one = {(1, 1): "a11", (1, 2): "a12", (2, 1): "a21", (3, 1): "a31"}
    two = {(1, 2): "b12", (1, 3): "b13", (2, 5): "b25"}
    first, second = match_cells([one, two])  # type: ignore[list-item]
    assert first == {(1, 2): "a12", (2, 1): "a21"}
    assert second == {(1, 2): "b12", (2, 1): "b25"}


def test_variants_without_a_common_split_are_refused(studio) -> None:
    one, two = (panel_of("x", {(split, 1): studio.table(split=split)}) for split in (1, 2))
    with pytest.raises(ScoreError, match="a and b have no split in common, found splits 1 and 2"):
        pair_panels(one, two, ("a", "b"))


def multi(seed: int, videos: int = 30) -> ScoreTable:
    generator = np.random.default_rng(seed)
    targets = np.random.default_rng(0).random((videos, 3)) < 0.4
    targets[~targets.any(axis=1), 0] = True
    logits = generator.normal(size=(videos, 3)) + targets
    labels = targets.argmax(axis=1)
    return ScoreTable(
        [f"v{i:02d}" for i in range(videos)],
        labels,
        ["a", "b", "c"],
        logits,
        {},
        groups=[f"g{i // 3}" for i in range(videos)],
        targets=targets,
    )


def test_mean_average_precision_by_the_jackknife() -> None:
    table = multi(1)
    panel = panel_of("a", {(1, 1): table, (1, 2): multi(2)})

    def score(rows: np.ndarray) -> float:
        return float(
            np.mean(
                [average_precision_score(table.targets[rows, k], table.logits[rows, k]) for k in range(3)]
            )
        )

    whole, groups = score(np.arange(30)), np.arange(30) // 3
    order = np.argsort([f"g{g}" for g in range(10)])
    left = np.asarray([score(np.flatnonzero(groups != g)) for g in order])
    pseudo = 10 * whole - 9 * left
    np.testing.assert_allclose(panel.pseudo_values[:, 0], pseudo - pseudo.mean() + whole)
    assert panel.pseudo_values.mean(axis=0) == pytest.approx(panel.by_training)
    assert panel.by_training[0] == pytest.approx(whole)
    assert panel.multi_label
