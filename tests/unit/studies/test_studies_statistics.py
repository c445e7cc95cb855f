"""The statistics against textbook cases, scipy's own functions and numbers worked out elsewhere."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from two_stream.studies import statistics


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


def test_t_interval_by_the_textbook() -> None:
    found = statistics.t_interval([0.71, 0.74, 0.69])
    assert found.value == pytest.approx(0.7133333, abs=1e-7)
    expected = stats.t.interval(0.95, 2, 0.7133333333, np.std([0.71, 0.74, 0.69], ddof=1) / math.sqrt(3))
    assert (found.low, found.high) == pytest.approx(expected)
    # by hand: 4.302653 (table of t, 2 degrees of freedom) · 0.0251661 / √3 = 0.0625161
    assert (found.low, found.high) == pytest.approx((0.6508172, 0.7758494), abs=2e-7)
    with pytest.raises(ValueError, match="1 value"):
        statistics.t_interval([0.7])


def two_way(values_GS: np.ndarray) -> tuple[float, float, float]:
    """Mean squares of rows, columns and rest by explicit sums, the long way."""
    rows, columns = values_GS.shape
    mean = values_GS.mean()
    ss_rows = sum(columns * (values_GS[g].mean() - mean) ** 2 for g in range(rows))
    ss_columns = sum(rows * (values_GS[:, s].mean() - mean) ** 2 for s in range(columns))
    ss_rest = ((values_GS - mean) ** 2).sum() - ss_rows - ss_columns
    return ss_rows / (rows - 1), ss_columns / (columns - 1), ss_rest / ((rows - 1) * (columns - 1))


def test_crossed_is_the_analysis_of_variance_of_readers_and_cases() -> None:
    generator = np.random.default_rng(3)
    effects = generator.normal(size=(12, 1)) + 4 * generator.normal(size=(1, 3))
    values = 0.2 + effects + 0.5 * generator.normal(size=(12, 3))
    units, trainings, rest = two_way(values)
    assert units > rest  # so that the published formula stands as it is
    assert trainings > units
    found = statistics.crossed(values)
    variance = (trainings + units - rest) / 36
    assert found.se**2 == pytest.approx(variance)
    assert found.df == pytest.approx((trainings + units - rest) ** 2 / (trainings**2 / 2))  # Hillis 2007
    assert found.value == pytest.approx(values.mean())
    expected = 2 * stats.t.sf(abs(values.mean()) / math.sqrt(variance), found.df)
    assert found.p_zero() == pytest.approx(expected)
    half = stats.t.ppf(0.975, found.df) * math.sqrt(variance)
    assert found.interval(0.95).high == pytest.approx(values.mean() + half)


def test_crossed_is_never_surer_than_units_alone() -> None:
    values = np.repeat(np.random.default_rng(0).normal(size=(10, 1)), 3, axis=1)
    values = values + np.asarray([[1e-9, 0, -1e-9]])  # trainings agree: there is one training's knowledge
    alone = statistics.crossed(values[:, :1])
    together = statistics.crossed(values)
    assert together.se == pytest.approx(alone.se)
    assert math.isfinite(together.df)


def test_means_that_agree_by_chance_are_not_certain() -> None:
    found = statistics.crossed(np.asarray([[1.0, 0.0], [0.0, 1.0]]))
    assert found.se == pytest.approx(math.sqrt(1.0 / 4))
    assert found.share_interval(0.95).low < 0.2


def test_one_training_is_a_t_test_over_units() -> None:
    values = np.random.default_rng(1).normal(0.3, 1, size=(15, 1))
    found, expected = statistics.crossed(values), stats.ttest_1samp(values[:, 0], 0)
    assert found.p_zero() == pytest.approx(expected.pvalue)
    interval = expected.confidence_interval(0.95)
    shown = found.interval(0.95)
    assert (shown.low, shown.high) == pytest.approx((interval.low, interval.high))


def test_unit_values_are_the_linearised_ratio() -> None:
    """Equal units: plain means. Unequal ones: the standard error of survey statistics' ratio estimator."""
    generator = np.random.default_rng(2)
    values = generator.random((12, 1))
    weight, stratum = np.full(12, 1 / 12), np.zeros(12, np.int64)
    even = statistics.unit_values(values, weight, stratum, np.repeat(np.arange(4), 3))
    np.testing.assert_allclose(even[:, 0], values.reshape(4, 3).mean(axis=1))
    unit = np.asarray([0, 0, 0, 0, 0, 0, 1, 1, 2, 2, 2, 3])
    found = statistics.unit_values(values, weight, stratum, unit)
    assert found.mean() == pytest.approx(values.mean())
    sums, sizes = np.bincount(unit, weights=values[:, 0]), np.bincount(unit)
    rest = sums - values.mean() * sizes
    expected = (
        math.sqrt((rest**2).sum() / 3 / 4) / sizes.mean()
    )  # Cochran, Sampling Techniques, (6.13) without fpc
    assert statistics.crossed(found).se == pytest.approx(expected)


def test_splits_weigh_alike_whatever_their_size() -> None:
    values = np.asarray([[1.0], [1.0], [0.0], [0.0], [0.0], [1.0]])
    stratum = np.asarray([0, 0, 1, 1, 1, 1])
    weight = np.where(stratum == 0, 1 / 4, 1 / 8)
    found = statistics.unit_values(values, weight, stratum, np.arange(6))
    assert found.mean() == pytest.approx((1.0 + 0.25) / 2)


def test_the_bootstrap_repeats_and_agrees_with_scipys() -> None:
    gap = np.random.default_rng(5).choice([-1.0, 0.0, 1.0], p=[0.1, 0.7, 0.2], size=200)
    found, p = statistics.paired_bootstrap(gap, np.arange(200), seed=4)
    assert (found, p) == statistics.paired_bootstrap(gap, np.arange(200), seed=4)
    expected = stats.bootstrap((gap,), np.mean, method="percentile", rng=1).confidence_interval
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.006)
    normal = 2 * stats.norm.sf(gap.mean() / (gap.std(ddof=1) / math.sqrt(200)))
    assert p == pytest.approx(normal, abs=0.01)


def test_the_bootstrap_draws_sources_not_videos() -> None:
    gap = np.repeat(np.random.default_rng(6).choice([-1.0, 1.0], p=[0.4, 0.6], size=30), 10)
    alone, _ = statistics.paired_bootstrap(gap, np.arange(300))
    grouped, _ = statistics.paired_bootstrap(gap, np.repeat(np.arange(30), 10))
    assert grouped.high - grouped.low == pytest.approx(math.sqrt(10) * (alone.high - alone.low), rel=0.1)


def test_the_bootstraps_p_value_is_never_0_nor_above_1() -> None:
    always = statistics.paired_bootstrap(np.ones(20), np.arange(20), resamples=999)[1]
    assert always == pytest.approx(2 * 1 / 1000)
    assert statistics.paired_bootstrap(np.zeros(20), np.arange(20), resamples=999)[1] == 1.0


def test_constant_values_keep_an_interval() -> None:
    """No discordant video in 30: the true difference may still be a few points (the rule of three)."""
    none = statistics.crossed(np.zeros((30, 1)))
    assert none.p_zero() == 1.0
    shown = none.interval(0.95)
    assert shown.high == pytest.approx(1 - 0.025 ** (1 / 30))
    assert shown.low == -shown.high
    every = statistics.crossed(np.ones((6, 1)))
    assert every.p_zero() == pytest.approx(2 * 0.5**6)
    assert every.interval(0.95).high == 1.0
    assert -1 < every.interval(0.95).low < 1


def test_the_interval_of_a_share_is_wilsons_for_independent_videos() -> None:
    hits = np.asarray([1.0] * 45 + [0.0] * 5)
    values = statistics.unit_values(hits[:, None], np.full(50, 0.02), np.zeros(50, np.int64), np.arange(50))
    found = statistics.crossed(values).share_interval(0.95)
    expected = stats.binomtest(45, 50).proportion_ci(0.95, method="wilson")
    # t instead of normal quantile, and 49 instead of 50 trials: a little wider
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.006)
    assert found.low < expected.low
    certain = statistics.crossed(np.ones((20, 3))).share_interval(0.95)
    assert certain.high == 1.0
    assert 0.75 < certain.low < 0.9


def test_a_detectable_difference_is_found_four_times_in_five() -> None:
    generator = np.random.default_rng(7)
    count, sd = 25, 0.4
    true = statistics.detectable(sd / math.sqrt(count), count - 1, 0.05)
    draws = generator.normal(true, sd, size=(4000, count))
    found = stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05
    assert found.mean() == pytest.approx(0.8, abs=0.02)
    # the classical figure for many units: 2.8 standard errors
    assert statistics.detectable(1.0, 1e6, 0.05) == pytest.approx(1.959964 + 0.841621, abs=1e-3)


def test_a_difference_in_clips_is_rounded_up() -> None:
    assert statistics.in_clips(0.05, 300) == 15
    assert statistics.in_clips(0.051, 300) == 16
