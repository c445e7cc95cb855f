"""Tests that need no sources: McNemar, Holm, Student's t interval; against textbooks, scipy and statsmodels."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from two_stream.evaluation.scores import statistics


@pytest.mark.parametrize(
    ("first_only", "second_only", "expected"),
    [
        # Fagerland, Lydersen and Laake 2013 (BMC Medical Research Methodology 13:91), their two examples
        (1, 7, 0.0703),
        (6, 16, 0.0525),
        (0, 6, 0.03125),  # 2 · 0.5⁶
        (5, 5, 1.0),
        (0, 0, 1.0),
        (1, 0, 1.0),
    ],
)
def test_mcnemar_exact(first_only: int, second_only: int, expected: float) -> None:
    assert statistics.mcnemar_exact(first_only, second_only) == pytest.approx(expected, rel=1e-3)
    assert statistics.mcnemar_exact(second_only, first_only) == pytest.approx(expected, rel=1e-3)


def test_mcnemar_exact_is_the_binomial_tail() -> None:
    tail = Fraction(
        2 * sum(math.comb(236, k) for k in range(87)), 2**236
    )  # Agresti's approval ratings: 150 and 86
    assert statistics.mcnemar_exact(150, 86) == pytest.approx(float(tail), rel=1e-12)


@pytest.mark.parametrize(
    ("first_only", "second_only"), [(9, 1), (8, 2), (7, 2), (6, 0), (5, 0), (12, 3), (12, 4)]
)
def test_mcnemars_interval_holds_0_just_where_the_test_does_not_reject(
    first_only: int, second_only: int
) -> None:
    found = statistics.mcnemar_interval(first_only, second_only, 100, 0.95)
    rejects = statistics.mcnemar_exact(first_only, second_only) < 0.05
    assert (found.low > 0) == rejects
    assert found.low <= found.value == (first_only - second_only) / 100 <= found.high
    low = stats.beta.ppf(0.025, first_only, second_only + 1)  # Clopper-Pearson by its beta form
    assert found.low == pytest.approx((first_only + second_only) / 100 * (2 * low - 1))


def test_holm_by_the_textbook() -> None:
    # by hand, as Holm (1979) and R's p.adjust define it: 4 · 0.005, 3 · 0.01, 2 · 0.03, then not below the one before
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.0001, 0.02, 0.9, 0.6, 0.021]) == pytest.approx([0.0005, 0.08, 1.0, 1.0, 0.08])
    assert statistics.holm([0.3]) == [0.3]
    assert statistics.holm([]) == []


def test_mcnemar_and_holm_are_those_of_statsmodels() -> None:
    tables = pytest.importorskip("statsmodels.stats.contingency_tables")
    multiple = pytest.importorskip("statsmodels.stats.multitest")
    generator = np.random.default_rng(0)
    for one, two in generator.integers(0, 30, size=(20, 2)):
        expected = tables.mcnemar([[50, one], [two, 9]], exact=True).pvalue
        assert statistics.mcnemar_exact(int(one), int(two)) == pytest.approx(min(1.0, expected))
    ps = generator.random(30) ** 3
    assert statistics.holm(list(ps)) == pytest.approx(list(multiple.multipletests(ps, method="holm")[1]))


def test_t_interval_by_the_textbook() -> None:
    found = statistics.t_interval([0.71, 0.74, 0.69])
    assert found.value == pytest.approx(0.7133333, abs=1e-7)
    expected = stats.t.interval(0.95, 2, 0.7133333333, np.std([0.71, 0.74, 0.69], ddof=1) / math.sqrt(3))
    assert (found.low, found.high) == pytest.approx(expected)
    # by hand: 4.302653 (table of t, 2 degrees of freedom) · 0.0251661 / √3 = 0.0625161
    assert (found.low, found.high) == pytest.approx((0.6508172, 0.7758494), abs=2e-7)
    with pytest.raises(ValueError, match="1 value"):
        statistics.t_interval([0.7])
