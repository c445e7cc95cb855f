"""Streams fused training by training."""

from __future__ import annotations

import numpy as np
import pytest

from two_stream.errors import ScoreError
from two_stream.evaluation.scores.fusion import combine, fuse, search_weights
from two_stream.evaluation.scores.metrics import top_k_accuracy
from two_stream.evaluation.scores.statistics import holm
from two_stream.studies.statistics.comparison import main_test, panel_of
from two_stream.studies.statistics.fusing import fusion_study

SEEDS = (1, 2)


def stream(studio, place: int, skill: float, modality: str = "rgb", **meta) -> dict:
    return {
        (1, seed): studio.table(skill, seed=seed, stream=place, modality=modality, **meta) for seed in SEEDS
    }


def streams(studio, **meta) -> dict:
    return {
        "rgb a": stream(studio, 0, 1.0, **meta),
        "rgb b": stream(studio, 1, 0.8, **meta),
        "flow": stream(studio, 2, 0.9, "flow", **meta),
    }


def accuracy(tables) -> float:
    return float(np.mean([top_k_accuracy(table.logits, table.labels) for table in tables]))


def test_every_rgb_with_every_flow_stream(studio) -> None:
    given = streams(studio)
    found = fusion_study(given, "l2")
    assert [(pair.first, pair.second) for pair in found.pairs] == [("rgb a", "flow"), ("rgb b", "flow")]
    pair = found.pairs[1]
    fused = [fuse([given["rgb b"][1, s], given["flow"][1, s]], "l2") for s in SEEDS]
    assert pair.accuracy.value == pytest.approx(accuracy(fused))
    alone = {name: accuracy(given[name].values()) for name in ("rgb b", "flow")}
    assert pair.better == max(alone, key=alone.get)
    assert pair.gain.value == pytest.approx(accuracy(fused) - max(alone.values()))
    one, two = ([given[name][1, s] for s in SEEDS] for name in ("rgb b", "flow"))
    same = [(a.logits.argmax(1) == b.logits.argmax(1)).mean() for a, b in zip(one, two)]
    either = [
        ((a.logits.argmax(1) == a.labels) | (b.logits.argmax(1) == b.labels)).mean() for a, b in zip(one, two)
    ]
    assert pair.agreement == pytest.approx(np.mean(same))
    assert pair.oracle == pytest.approx(np.mean(either))


def test_the_gain_is_tested_against_both_streams(studio) -> None:
    """Berger's intersection-union test: lowest lower end, lowest of the upper ends at half the error."""
    given = streams(studio)
    for pair in fusion_study(given, "l2").pairs:
        tables = [given[name] for name in (pair.first, pair.second)]
        fused = panel_of("f", {cell: fuse([one[cell] for one in tables], "l2") for cell in tables[0]})
        tests = {
            level: [main_test(("f", "s"), (fused, panel_of("s", one)), level).interval for one in tables]
            for level in (0.95, 0.975)
        }
        assert pair.gain.value == pytest.approx(min(test.value for test in tests[0.95]))
        assert pair.gain.low == pytest.approx(min(test.low for test in tests[0.95]))
        assert pair.gain.high == pytest.approx(min(test.high for test in tests[0.975]))
        assert pair.gain.low < pair.gain.value < pair.gain.high
        assert pair.gain.known


def test_streams_of_one_modality_are_paired_with_each_other(studio) -> None:
    found = fusion_study(
        {"a": stream(studio, 0, 1.0), "b": stream(studio, 1, 0.8), "c": stream(studio, 2, 0.9)}, "l2"
    )
    assert [(pair.first, pair.second) for pair in found.pairs] == [("a", "b"), ("a", "c"), ("b", "c")]


def test_what_each_stream_adds(studio) -> None:
    given = streams(studio)
    given["noise"] = stream(studio, 3, 0.0)
    found = fusion_study(given, "logits")
    everything = accuracy([fuse([tables[1, s] for tables in given.values()], "logits") for s in SEEDS])
    assert found.all_streams.value == pytest.approx(everything)
    for part in found.contributions:
        rest = [tables for name, tables in given.items() if name != part.stream]
        without = accuracy([fuse([tables[1, s] for tables in rest], "logits") for s in SEEDS])
        assert part.difference.value == pytest.approx(everything - without)
    ps = [part.p for part in found.contributions]
    assert min(ps) < 0.5
    assert [part.p_holm for part in found.contributions] == pytest.approx(holm(ps))
    adds = {part.stream: part.difference.value for part in found.contributions}
    assert min(adds, key=adds.get) == "noise"


def test_agreement_and_oracle_of_all(studio) -> None:
    given = streams(studio)
    found = fusion_study(given, "l2")
    matrix = np.asarray(found.agreement)
    np.testing.assert_allclose(np.diag(matrix), 1.0)
    np.testing.assert_allclose(matrix, matrix.T)
    assert matrix[0, 2] == pytest.approx(found.pairs[0].agreement)
    assert found.oracle >= max(pair.oracle for pair in found.pairs)
    right = [
        np.any([t[1, s].logits.argmax(1) == t[1, s].labels for t in given.values()], axis=0).mean()
        for s in SEEDS
    ]
    assert found.oracle == pytest.approx(np.mean(right))


def test_weights_are_searched_on_the_holdout_part_of_each_training(studio) -> None:
    given, fit = streams(studio), streams(studio, part="val")
    found = fusion_study(given, "l2", fit=fit)
    by_seed = [search_weights([tables[1, s] for tables in fit.values()], "l2") for s in SEEDS]
    assert list(found.weights.values()) == pytest.approx(np.mean(by_seed, axis=0))
    tuned = [
        combine([tables[1, s].logits for tables in given.values()], "l2", weights)
        for s, weights in zip(SEEDS, by_seed)
    ]
    labels = given["flow"][1, 1].labels
    assert found.tuned.value == pytest.approx(np.mean([top_k_accuracy(logits, labels) for logits in tuned]))


def test_the_test_part_is_never_fitted_on(studio) -> None:
    given = streams(studio)
    with pytest.raises(ScoreError, match="scores of the test part cannot be used to fit"):
        fusion_study(given, "l2", fit=given)
    fit = streams(studio, part="val")
    del fit["flow"]
    with pytest.raises(ScoreError, match="no scores of the holdout part found for flow"):
        fusion_study(given, "l2", fit=fit)
    other = streams(studio, part="val")
    other["flow"] = stream(studio, 2, 0.9, "flow", part="val", model_sha256="another")
    with pytest.raises(ScoreError, match="not from any of the fused models"):
        fusion_study(given, "l2", fit=other)


def test_one_stream_is_no_fusion_and_splits_must_meet(studio) -> None:
    with pytest.raises(ScoreError, match="two or more streams, found 1"):
        fusion_study({"a": stream(studio, 0, 1.0)}, "l2")
    with pytest.raises(ScoreError, match="have no split in common"):
        fusion_study({"a": stream(studio, 0, 1.0), "b": {(2, 1): studio.table(split=2)}}, "l2")


def test_many_streams_get_weights_without_trying_every_combination(studio) -> None:
    tables = [studio.table(skill, stream=place) for place, skill in enumerate((1.2, 0, 0, 0, 0, 0, 0))]
    weights = search_weights(tables, "logits")
    assert sum(weights) == pytest.approx(1)
    assert weights[0] == max(weights) > 2 / 7
    labels, logits = tables[0].labels, [table.logits for table in tables]
    even = top_k_accuracy(combine(logits, "logits", [1.0] * 7), labels)
    assert top_k_accuracy(combine(logits, "logits", weights), labels) > even
    perfect = [studio.table(50.0, stream=place) for place in range(5)]
    assert search_weights(perfect, "logits") == pytest.approx([0.2] * 5)  # of equals the most even
