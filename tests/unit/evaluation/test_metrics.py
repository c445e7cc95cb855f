import math

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import binomtest
from scipy.stats import t as student
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score

from two_stream.errors import ScoreError
from two_stream.evaluation.scores import metrics
from two_stream.types import ScoreTable

NAMES = ["a", "b", "c"]
LABELS = np.asarray([0, 0, 1, 1, 1, 2])
PREDICTED = np.asarray([0, 1, 1, 1, 0, 1])


def logits_of(predicted, classes=3, gap=2.0):
    return np.eye(classes)[predicted] * gap


def make(logits, labels, groups=None, **meta):
    names = [f"c{i}" for i in range(logits.shape[1])]
    return ScoreTable([f"v{i}" for i in range(len(labels))], labels, names, logits, meta, groups=groups)


def test_hand_computed_case():
    logits = logits_of(PREDICTED)
    assert metrics.top_k_accuracy(logits, LABELS) == pytest.approx(3 / 6)
    assert metrics.mean_class_accuracy(logits, LABELS) == pytest.approx((1 / 2 + 2 / 3 + 0) / 3)
    np.testing.assert_array_equal(metrics.confusion_matrix(logits, LABELS), [[1, 1, 0], [1, 2, 0], [0, 1, 0]])
    rows = metrics.per_class(ScoreTable([str(i) for i in range(6)], LABELS, NAMES, logits))
    assert [(r.name, r.videos, r.correct, r.confusion, r.confusion_count) for r in rows] == [
        ("a", 2, 1, "b", 1),
        ("b", 3, 2, "a", 1),
        ("c", 1, 0, "b", 1),
    ]
    assert rows[1].accuracy == pytest.approx(2 / 3)


def test_a_class_without_videos_has_no_accuracy_and_does_not_count():
    rows = metrics.per_class(ScoreTable(["x"], np.asarray([0]), NAMES, np.asarray([[1.0, 0, 0]])))
    assert rows[1].accuracy is None
    assert rows[0].confusion == ""
    assert metrics.mean_class_accuracy(np.asarray([[1.0, 0, 0]]), np.asarray([0])) == 1.0


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_scikit_learn(seed: int):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 7, size=80)
    logits = generator.normal(size=(80, 7)) + 1.5 * np.eye(7)[labels]
    for k in (1, 3, 5):
        expected = top_k_accuracy_score(labels, logits, k=k, labels=np.arange(7))
        assert metrics.top_k_accuracy(logits, labels, k) == pytest.approx(expected)
    expected = balanced_accuracy_score(labels, logits.argmax(axis=1))
    assert metrics.mean_class_accuracy(logits, labels) == pytest.approx(expected)


def test_ties_follow_argmax():
    logits = np.asarray([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
    labels = np.asarray([0, 1])
    np.testing.assert_array_equal(metrics.ranks(logits, labels), [0, 1])
    assert metrics.top_k_accuracy(logits, labels) == (logits.argmax(axis=1) == labels).mean()


def test_calibration_error_by_hand_and_at_the_extremes():
    confident = np.log([[0.9, 0.1], [0.9, 0.1], [0.62, 0.38], [0.62, 0.38]])
    labels = np.asarray([0, 1, 0, 0])  # bin of .9: half right; bin of .62: all right
    expected = 0.5 * abs(0.5 - 0.9) + 0.5 * abs(1.0 - 0.62)
    assert metrics.calibration_error(confident, labels) == pytest.approx(expected)
    assert metrics.calibration_error(np.asarray([[1000.0, 0.0]]), np.asarray([0])) == 0.0
    assert metrics.calibration_error(np.asarray([[1000.0, 0.0]]), np.asarray([1])) == 1.0


def test_calibration_error_is_small_for_labels_drawn_from_the_probabilities():
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(20000, 4))
    draws = (softmax(logits, axis=1).cumsum(axis=1) < generator.random((20000, 1))).sum(axis=1)
    assert metrics.calibration_error(logits, np.minimum(draws, 3)) < 0.02
    assert metrics.calibration_error(3 * logits, np.minimum(draws, 3)) > 0.2


def top1(right: np.ndarray, groups: list[str] | None = None):
    """The top-1 interval of videos of one class that are right or wrong."""
    table = make(logits_of(np.where(right, 0, 1), classes=3), np.zeros(len(right), np.int64), groups)
    return metrics.summarise(table).top[1]


def test_independent_videos_have_wilsons_interval():
    right = np.arange(400) < 300
    found = top1(right)
    wilson = binomtest(300, 400).proportion_ci(method="wilson")
    assert found.value == 0.75
    assert (found.low, found.high) == pytest.approx(
        (wilson.low, wilson.high), abs=1e-3
    )  # t of 399 for the normal


def test_videos_of_one_source_widen_the_interval():
    right = np.repeat([True, True, True, False] * 5, 10)  # ten clips of a source are right or wrong together
    alone, grouped = top1(right), top1(right, [f"g{n // 10}" for n in range(200)])
    ratio = (grouped.high - grouped.low) / (alone.high - alone.low)
    assert ratio == pytest.approx(math.sqrt(10), rel=0.15)


def test_perfect_scores_still_have_an_interval():
    found = top1(np.ones(20, bool))
    square = student.ppf(0.975, 19) ** 2
    assert found.value == found.high == 1.0
    assert found.low == pytest.approx(20 / (20 + square))  # Wilson's lower end at 20 of 20
    assert top1(np.zeros(20, bool)).high == pytest.approx(1 - found.low)


def test_the_interval_of_the_mean_class_accuracy_holds_it():
    table = make(logits_of(PREDICTED), LABELS)
    found = metrics.summarise(table).mean_class
    assert found.value == pytest.approx(metrics.mean_class_accuracy(table.logits, LABELS))
    assert 0 <= found.low < found.value < found.high <= 1


def test_summary_leaves_out_what_says_nothing():
    table = make(logits_of(np.asarray([0, 1, 1]), classes=3), np.asarray([0, 1, 0]), ["g1", "g1", ""])
    found = metrics.summarise(table)
    assert found.top[1].value == pytest.approx(2 / 3)
    assert found.top[3] is None
    assert found.top[5] is None
    assert found.groups == 2
    assert found.chance == pytest.approx(2 / 3)
    assert found.ece is not None
    assert found.to_json()["top"]["1"]["value"] == pytest.approx(2 / 3)
    assert metrics.summarise(make(table.logits, table.labels, scale="ranking")).ece is None
    with pytest.raises(ScoreError, match="no videos"):
        metrics.summarise(make(np.zeros((0, 3)), np.zeros(0, dtype=np.int64)))


@pytest.mark.parametrize("sources", [1, 2])
def test_fewer_than_three_sources_give_no_interval(sources):
    logits = logits_of(np.asarray([0, 1, 0, 1]), classes=3)
    table = make(logits, np.asarray([0, 1, 1, 0]), [f"g{n % sources}" for n in range(4)])
    found = metrics.summarise(table)
    assert found.groups == sources
    assert (found.top[1].low, found.top[1].high, found.top[1].known) == (0.0, 1.0, False)
    assert not metrics.difference(table, table).interval.known


def test_a_class_of_one_source_leaves_the_mean_class_accuracy_without_interval():
    labels = np.asarray([0, 0, 0, 0, 1, 1])
    groups = ["a", "b", "c", "d", "e", "e"]
    logits = logits_of(np.asarray([0, 0, 1, 0, 1, 0]), classes=2)
    found = metrics.summarise(make(logits, labels, groups))
    assert found.top[1].known
    assert not found.mean_class.known
    groups[5] = "f"
    assert metrics.summarise(make(logits, labels, groups)).mean_class.known


def test_paired_difference():
    labels = np.zeros(100, dtype=np.int64)
    first = make(logits_of(np.asarray([0] * 90 + [1] * 10)), labels)
    second = make(logits_of(np.asarray([0] * 80 + [1] * 20)), labels)
    test = metrics.difference(first, second)
    assert test.exact
    assert test.interval.value == pytest.approx(0.10)
    assert test.interval.low > 0.0  # paired: the ten videos differ in one direction only
    assert test.p == pytest.approx(2 * 0.5**10)
    same = metrics.difference(first, first)
    assert same.interval.low < same.interval.value == 0.0 < same.interval.high
    assert same.p == 1.0
    assert metrics.agreement(first, second) == {"both": 80, "only_first": 10, "only_second": 0, "neither": 10}
    second.ids.reverse()
    with pytest.raises(ScoreError, match="joined"):
        metrics.difference(first, second)


def test_confident_mistakes_come_surest_first():
    logits = np.asarray([[3.0, 0, 0], [0, 1.0, 0], [5.0, 0, 0], [0, 0, 2.0]])
    table = make(logits, np.asarray([0, 0, 1, 0]))
    assert metrics.confident_mistakes(table, 2) == [2, 3]
    assert metrics.confident_mistakes(table, 9) == [2, 3, 1]


def test_the_class_table_is_that_of_the_confusion_matrix() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 19, 90)
    logits = np.eye(20)[random.integers(0, 20, 90)]
    table = ScoreTable([f"v{n}" for n in range(90)], labels, [f"c{n}" for n in range(20)], logits, {})
    counts = metrics.confusion_matrix(logits, labels)
    for index, row in enumerate(metrics.per_class(table)):
        wrong = counts[index] * (np.arange(20) != index)
        assert (row.videos, row.correct) == (counts[index].sum(), counts[index, index])
        assert (row.confusion, row.confusion_count) == (
            f"c{wrong.argmax()}" if wrong.any() else "",
            wrong.max(),
        )
        assert row.precision == (
            counts[index, index] / counts[:, index].sum() if counts[:, index].any() else 0.0
        )
