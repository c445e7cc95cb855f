"""Standard errors, intervals and tests over sources and trainings, against scipy and sums the long way."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from two_stream.evaluation.scores import statistics
from two_stream.evaluation.scores.statistics import Interval, Sample

SHAPES = [(5, 8), (10, 4), (20, 2), (40, 1)]
"""sources × videos of each: 40 videos"""


def column(values) -> np.ndarray:
    """Values of one training `(V, 1)`."""
    return np.asarray(values, dtype=np.float64)[:, None]


def equal_sources(sources: int, each: int) -> np.ndarray:
    return np.repeat(np.arange(sources), each)


# --- one training: sources


@pytest.mark.parametrize("each", [1, 3, 8])
def test_equal_sources_that_differ_are_a_t_test_of_their_means(each: int) -> None:
    generator = np.random.default_rng(1)
    unit = equal_sources(15, each)
    values = generator.normal(0.2, 0.3, size=15)[unit] + 0.1 * generator.normal(size=len(unit))
    means = values.reshape(15, each).mean(axis=1)
    found = statistics.estimate_mean(column(values), Sample.even(unit), share=False)
    expected = stats.ttest_1samp(means, 0)
    assert found.value == pytest.approx(values.mean())
    assert found.se**2 == pytest.approx(means.var(ddof=1) / 15)
    assert (found.df, found.units, found.effective) == pytest.approx((14, 15, 15))
    assert found.p_zero() == pytest.approx(expected.pvalue)
    for level in (0.9, 0.95, 0.99):
        interval, shown = expected.confidence_interval(level), found.interval(level)
        assert (shown.low, shown.high) == pytest.approx((interval.low, interval.high))


def test_sources_that_agree_too_well_are_no_surer_than_independent_videos() -> None:
    """Each source has one hit and one miss: its means do not differ at all, which is chance."""
    unit, values = equal_sources(10, 2), column([1, 0] * 10)
    found = statistics.estimate_mean(values, Sample.even(unit), share=False)
    assert found.se**2 == pytest.approx(0.25 / 20)
    share = statistics.estimate_mean(values, Sample.even(unit))
    assert share.se**2 == pytest.approx(0.25 * (0.1 / 10 + 0.9 / 20))  # ρ = 1 / 10 at least


def textbook_correlation(groups: list[np.ndarray]) -> float:
    """Intraclass correlation of one-way analysis of variance, sizes that differ (Donner 1986)."""
    videos, count = sum(map(len, groups)), len(groups)
    grand = sum(group.sum() for group in groups) / videos
    between = sum(len(group) * (group.mean() - grand) ** 2 for group in groups) / (count - 1)
    within = sum(((group - group.mean()) ** 2).sum() for group in groups) / (videos - count)
    size = (videos - sum(len(group) ** 2 for group in groups) / videos) / (count - 1)
    return min(1.0, max(0.0, (between - within) / (between + (size - 1) * within)))


def by_hand(values: np.ndarray, unit: np.ndarray, *, share: bool) -> tuple[float, float]:
    """Both variances of a mean over videos that count alike, source by source."""
    groups = [values[unit == source] for source in np.unique(unit)]
    parts = [len(group) / len(values) for group in groups]
    squares = sum(part**2 for part in parts)
    linear = sum(  # a mean of independent values, less their common mean: variance times 1 - 2 part + squares
        (part * (group.mean() - values.mean())) ** 2 / (1 - 2 * part + squares)
        for part, group in zip(parts, groups, strict=True)
    )
    correlation = textbook_correlation(groups)
    if share:
        correlation = max(correlation, squares)
    design = sum(
        part**2 * (correlation + (1 - correlation) / len(group))
        for part, group in zip(parts, groups, strict=True)
    )
    return linear, values.var() * design


def test_the_variance_is_the_larger_of_linearised_and_intraclass() -> None:
    generator = np.random.default_rng(2)
    larger = []
    for _ in range(60):
        sizes = generator.integers(1, 12, size=generator.integers(4, 20))
        unit = np.repeat(np.arange(len(sizes)), sizes)
        chances = np.clip(generator.normal(0.6, 0.25, size=len(sizes)), 0.05, 0.95)
        hits = (generator.random(len(unit)) < chances[unit]).astype(float)
        for share in (True, False):
            linear, intraclass = by_hand(hits, unit, share=share)
            found = statistics.estimate_mean(column(hits), Sample.even(unit), share=share)
            assert found.se**2 == pytest.approx(max(linear, intraclass))
            assert found.df == pytest.approx(sizes.sum() ** 2 / (sizes**2).sum() - 1)
            larger.append(linear > intraclass)
    assert 10 < sum(larger) < 110  # both happen


def test_the_intraclass_correlation_of_shrout_and_fleiss() -> None:
    """Shrout and Fleiss 1979, tables 2 and 4: six targets, four judges, ICC(1, 1) = 0.17."""
    ratings = np.asarray(
        [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]], dtype=float
    )
    found = statistics._intraclass(ratings.ravel() - ratings.mean(), equal_sources(6, 4))
    assert found == pytest.approx((11.24 - 6.26) / (11.24 + 3 * 6.26), abs=5e-4)
    assert found == pytest.approx(textbook_correlation(list(ratings)))
    assert statistics._intraclass(np.arange(6.0), np.arange(6)) == 0  # single videos tell nothing


@pytest.mark.parametrize("hits", [30, 1000, 1400, 1960, 1999, 2000])
def test_of_single_videos_it_is_wilsons_interval(hits: int) -> None:
    values = column([1] * hits + [0] * (2000 - hits))
    found = statistics.estimate_mean(values, Sample.even(np.arange(2000))).share_interval()
    expected = stats.binomtest(hits, 2000).proportion_ci(0.95, method="wilson")
    # t of 1,999 instead of the normal quantile: 0.06 % wider
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=3e-5)


def test_of_few_single_videos_it_is_wilsons_with_the_quantile_of_t() -> None:
    found = statistics.estimate_mean(column([1] * 45 + [0] * 5), Sample.even(np.arange(50))).share_interval()
    square, n = stats.t.ppf(0.975, 49) ** 2, 49  # the variance has n - 1 below
    ends = np.roots(
        [1 + square / n, -(2 * 0.9 + square / n), 0.9**2]
    )  # |share - end|² = t² end (1 - end) / n
    assert (found.low, found.high) == pytest.approx(tuple(sorted(ends)))
    expected = stats.binomtest(45, 50).proportion_ci(0.95, method="wilson")
    assert found.low < expected.low < found.low + 0.01


@pytest.mark.parametrize("right", [150, 270, 300])
def test_sources_of_one_fate_count_once(right: int) -> None:
    """Five videos of each source, right or wrong together: Wilson's interval of the sources."""
    values = column(np.repeat([1] * right + [0] * (300 - right), 5))
    found = statistics.estimate_mean(values, Sample.even(equal_sources(300, 5))).share_interval()
    expected = stats.binomtest(right, 300).proportion_ci(0.95, method="wilson")
    # of all right no correlation is seen, so that one of 1 / 300 is supposed
    limit = 0.001 if right < 300 else 0.011
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=limit)


def test_all_right_counts_by_the_correlation_that_is_supposed() -> None:
    found = statistics.estimate_mean(column([1] * 40), Sample.even(equal_sources(5, 8)))
    assert found.trials == pytest.approx(1 / (0.2 / 5 + 0.8 / 40))  # ρ = 1 / 5
    square = stats.t.ppf(0.975, 4) ** 2
    shown = found.share_interval()
    assert (shown.low, shown.high) == pytest.approx((found.trials / (found.trials + square), 1.0))


@pytest.mark.parametrize(("sources", "each"), SHAPES)
def test_more_right_never_lowers_an_end(sources: int, each: int) -> None:
    """From all right to all wrong, misses spread over the sources."""
    unit = equal_sources(sources, each)
    spread = np.argsort(np.tile(np.arange(each), sources), kind="stable")  # one of each source, then the next
    ends = []
    for right in range(41):
        hits = np.ones(40)
        hits[spread[: 40 - right]] = 0
        ends.append(statistics.estimate_mean(column(hits), Sample.even(unit)).share_interval())
    assert [end.value for end in ends] == pytest.approx(np.arange(41) / 40)
    assert (np.diff([end.low for end in ends]) > 0).all()
    assert (np.diff([end.high for end in ends]) > 0).all()
    assert all(0 <= end.low <= end.value + 1e-12 <= end.high + 2e-12 <= 1 + 2e-12 for end in ends)
    assert (ends[0].low, ends[-1].high) == (pytest.approx(0, abs=1e-12), pytest.approx(1))
    turned = [(1 - end.high, 1 - end.low) for end in reversed(ends)]
    np.testing.assert_allclose([(end.low, end.high) for end in ends], turned, atol=1e-12)


@pytest.mark.parametrize("sources", [1, 2])
def test_fewer_than_three_sources_say_nothing(sources: int) -> None:
    generator = np.random.default_rng(3)
    unit = equal_sources(sources, 20)
    hits, other = (column(generator.random(len(unit)) < chance) for chance in (0.9, 0.1))
    found = statistics.estimate_mean(hits, Sample.even(unit)).share_interval()
    assert found == Interval(pytest.approx(hits.mean()), 0.0, 1.0, known=False)
    test = statistics.difference_of(hits, other, Sample.even(unit))
    assert test.interval == Interval(pytest.approx(hits.mean() - other.mean()), -1.0, 1.0, known=False)
    assert (test.p, test.exact) == (1.0, False)
    three = np.concatenate([[sources, sources + 1][: 3 - sources], unit])
    more = column(np.concatenate([np.ones(3 - sources), hits[:, 0]]))
    assert statistics.estimate_mean(more, Sample.even(three)).share_interval().known


def test_a_dominating_source_leaves_fewer_degrees_of_freedom() -> None:
    generator = np.random.default_rng(4)
    even, one = equal_sources(11, 20), np.repeat(np.arange(11), [120] + [10] * 10)
    hits = column(generator.random(220) < 0.7)
    plain = statistics.estimate_mean(hits, Sample.even(even))
    found = statistics.estimate_mean(hits, Sample.even(one))
    assert plain.df == pytest.approx(10)
    assert found.effective == pytest.approx(220**2 / (120**2 + 10 * 10**2))  # 3.14
    assert found.df == pytest.approx(found.effective - 1)
    wide, narrow = found.share_interval(), plain.share_interval()
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_splits_weigh_alike_whatever_their_size() -> None:
    values = column([1.0, 1.0, 0.0, 0.0, 0.0, 1.0])
    stratum = np.asarray([0, 0, 1, 1, 1, 1])
    weight = np.where(stratum == 0, 1 / 4, 1 / 8)
    found = statistics.estimate_mean(values, Sample(weight, stratum, np.arange(6)))
    assert found.value == pytest.approx((1.0 + 0.25) / 2)


def test_classes_are_the_strata_of_sampling_theory() -> None:
    """Cochran, Sampling Techniques, (5.7) for sources drawn within each class, without the finite correction."""
    generator = np.random.default_rng(5)
    counts, each = [4, 6, 9], 5
    label = np.repeat([0, 2, 7], [count * each for count in counts])
    unit = equal_sources(sum(counts), each)
    values = 0.5 + 0.2 * generator.normal(size=sum(counts))[unit] + 0.02 * generator.normal(size=len(unit))
    sample = Sample.by_class(unit, label)
    found = statistics.estimate_mean(column(values), sample)
    means = values.reshape(-1, each).mean(axis=1)
    by_class = np.split(means, np.cumsum(counts)[:-1])
    assert found.value == pytest.approx(np.mean([own.mean() for own in by_class]))
    linear = sum(own.var(ddof=1) / len(own) for own in by_class) / 9
    rest = np.concatenate([own - own.mean() for own in by_class])
    groups = np.split(values - np.repeat(means - rest, each), len(means))
    correlation = textbook_correlation(groups)
    assert correlation > 1 / found.effective
    weights = np.concatenate([np.full(count, 1 / (3 * count)) for count in counts])  # of sources
    spread = float((sample.weight * (values - found.value) ** 2).sum())
    intraclass = spread * float((weights**2 * (correlation + (1 - correlation) / each)).sum())
    assert found.se**2 == pytest.approx(max(linear, intraclass))
    assert list(sample.units_by_stratum) == counts
    assert sample.weight.sum() == pytest.approx(1)
    for number, count in zip((0, 2, 7), counts):
        assert sample.weight[label == number] == pytest.approx(1 / (3 * count * each))


def test_within_a_class_only_its_own_mean_counts() -> None:
    """Classes of 0 and 1 throughout: sources agree within their class, so that only the spread of videos is left."""
    unit, label = equal_sources(10, 4), equal_sources(2, 20)
    found = statistics.estimate_mean(column(label), Sample.by_class(unit, label), share=False)
    assert found.se**2 == pytest.approx(0.25 / 40)


# --- several trainings


def two_way(values_GS: np.ndarray) -> tuple[float, float, float]:
    """Mean squares of rows, columns and rest by explicit sums, the long way."""
    rows, columns = values_GS.shape
    mean = values_GS.mean()
    ss_rows = sum(columns * (values_GS[g].mean() - mean) ** 2 for g in range(rows))
    ss_columns = sum(rows * (values_GS[:, s].mean() - mean) ** 2 for s in range(columns))
    ss_rest = ((values_GS - mean) ** 2).sum() - ss_rows - ss_columns
    return ss_rows / (rows - 1), ss_columns / (columns - 1), ss_rest / ((rows - 1) * (columns - 1))


@pytest.mark.parametrize("each", [1, 4])
def test_trainings_are_the_readers_of_the_analysis_of_variance(each: int) -> None:
    generator = np.random.default_rng(3)
    effects = generator.normal(size=(12, 1)) + 4 * generator.normal(size=(1, 3))
    means = 0.2 + effects + 0.5 * generator.normal(size=(12, 3))
    units, trainings, rest = two_way(means)
    assert units > rest  # so that the published formula stands as it is
    assert trainings > units
    unit = equal_sources(12, each)
    found = statistics.estimate_mean(means[unit], Sample.even(unit), share=False)
    variance = (trainings + units - rest) / 36
    assert found.se**2 == pytest.approx(variance)
    assert found.df == pytest.approx(2 * (trainings + units - rest) / trainings)  # Hillis 2007, not squared
    assert found.value == pytest.approx(means.mean())
    expected = 2 * stats.t.sf(abs(means.mean()) / math.sqrt(variance), found.df)
    assert found.p_zero() == pytest.approx(expected)
    alone = statistics.estimate_units(means, np.full(12, 1 / 12), 3)  # units count 12 / 11 times
    assert alone.se**2 == pytest.approx((trainings + units * 12 / 11 - rest) / 36)
    assert alone.df == pytest.approx(2 * (trainings + units * 12 / 11 - rest) / trainings)


def test_several_trainings_are_never_surer_than_their_mean_as_one() -> None:
    generator = np.random.default_rng(0)
    values = np.repeat(generator.normal(size=(10, 1)), 3, axis=1)
    values = values + np.asarray([[1e-9, 0, -1e-9]])  # trainings agree: there is one training's knowledge
    sample = Sample.even(np.arange(10))
    alone = statistics.estimate_mean(values[:, 1:2], sample, share=False)
    together = statistics.estimate_mean(values, sample, share=False)
    assert together.se == pytest.approx(alone.se)
    assert (together.df, alone.df) == pytest.approx((9, 9))
    for _ in range(50):
        unit = np.sort(generator.integers(0, 9, size=40))
        unit = np.unique(unit, return_inverse=True)[1]
        hits = (generator.random((40, 3)) < generator.random((40, 1))).astype(float)
        mean = statistics.estimate_mean(hits.mean(axis=1, keepdims=True), Sample.even(unit))
        found = statistics.estimate_mean(hits, Sample.even(unit))
        assert found.se >= mean.se * (1 - 1e-9)
        assert found.df <= mean.df


def test_means_that_agree_by_chance_are_not_certain() -> None:
    """Every video is right in one of two trainings: only what trainings make of a video is left."""
    found = statistics.estimate_mean(np.asarray([[1.0, 0.0], [0.0, 1.0]] * 3), Sample.even(np.arange(6)))
    rest = two_way(np.asarray([[1.0, 0.0], [0.0, 1.0]] * 3))[2]
    assert found.se == pytest.approx(math.sqrt(rest / 12))
    assert not found.constant
    shown = found.share_interval()
    assert shown.low < 0.2
    assert shown.high > 0.8


# --- differences


def test_constant_values_keep_an_interval() -> None:
    """No discordant video in 30: the true difference may still be a few points (the rule of three)."""
    none = statistics.estimate_mean(np.zeros((30, 1)), Sample.even(np.arange(30)), share=False)
    assert none.p_zero() == 1.0
    shown = none.interval(0.95)
    assert shown.high == pytest.approx(1 - 0.025 ** (1 / 30))
    assert shown.low == -shown.high
    assert none.se == pytest.approx(1 / 30)
    every = statistics.estimate_mean(np.ones((30, 1)), Sample.even(equal_sources(6, 5)), share=False)
    assert every.p_zero() == pytest.approx(2 * 0.5**6)  # the sign test of six sources
    assert every.interval(0.95).high == 1.0
    assert every.interval(0.95).low == pytest.approx(2 * 0.025 ** (1 / 6) - 1)


@pytest.mark.parametrize("sources", [4, 5, 6, 7, 12])
def test_of_constant_values_interval_and_test_agree(sources: int) -> None:
    found = statistics.estimate_mean(np.ones((sources, 1)), Sample.even(np.arange(sources)), share=False)
    assert (found.interval(0.95).low > 0) == (found.p_zero() < 0.05) == (sources >= 6)


def test_independent_videos_of_one_training_are_mcnemars_test() -> None:
    first, second = column([1] * 30 + [0] * 10), column([1] * 21 + [0] * 9 + [1] + [0] * 9)
    found = statistics.difference_of(first, second, Sample.even(np.arange(40)))
    assert (found.exact, found.p) == (True, pytest.approx(2 * 11 / 1024))  # 9 against 1
    own = statistics.mcnemar_interval(9, 1, 40, 0.95)
    plain = stats.ttest_1samp((first - second)[:, 0], 0).confidence_interval(0.95)
    assert found.interval.low == pytest.approx(min(own.low, plain.low))
    assert found.interval.high == pytest.approx(max(own.high, plain.high))
    assert found.interval.value == pytest.approx(0.2)


def test_a_source_of_two_videos_or_a_second_training_make_it_a_t_test() -> None:
    generator = np.random.default_rng(6)
    first, second = (column(generator.random(40) < chance) for chance in (0.8, 0.5))
    paired = statistics.difference_of(first, second, Sample.even(equal_sources(20, 2)))
    means = (first - second).reshape(20, 2).mean(axis=1)
    linear = stats.ttest_1samp(means, 0)
    assert not paired.exact
    assert paired.p >= linear.pvalue * (1 - 1e-12)
    twice = [np.concatenate([hits, hits], axis=1) for hits in (first, second)]
    several = statistics.difference_of(*twice, Sample.even(np.arange(40)))
    assert not several.exact
    assert several.p == pytest.approx(stats.ttest_1samp((first - second)[:, 0], 0).pvalue)


def test_a_difference_turned_round_says_the_same() -> None:
    generator = np.random.default_rng(7)
    for trainings, unit in ((1, np.arange(30)), (1, equal_sources(10, 3)), (3, equal_sources(10, 3))):
        first, second = ((generator.random((30, trainings)) < chance).astype(float) for chance in (0.8, 0.6))
        here, there = (
            statistics.difference_of(one, two, Sample.even(unit))
            for one, two in ((first, second), (second, first))
        )
        assert here.p == pytest.approx(there.p)
        assert (here.interval.low, here.interval.high) == pytest.approx(
            (-there.interval.high, -there.interval.low)
        )


def test_pseudo_values_are_a_t_test_over_sources_a_little_wider() -> None:
    values = np.random.default_rng(8).normal(0.3, 0.6, size=(12, 1))
    found = statistics.estimate_units(values, np.full(12, 1 / 12), least=10)
    expected = stats.ttest_1samp(values[:, 0], 0)
    wider = math.sqrt(12 / 11)
    assert (found.value, found.df) == pytest.approx((values.mean(), 11))
    assert found.se == pytest.approx(stats.sem(values[:, 0]) * wider)
    assert found.p_zero() == pytest.approx(2 * stats.t.sf(abs(expected.statistic) / wider, 11))
    assert found.p_zero() > expected.pvalue
    shares = np.asarray([0.45] + [0.05] * 11)
    assert statistics.estimate_units(values, shares, least=10).df == pytest.approx(
        1 / (0.45**2 + 11 * 0.05**2) - 1
    )
    few = statistics.estimate_units(values[:9], np.full(9, 1 / 9), least=10)
    assert few.share_interval() == Interval(few.value, 0.0, 1.0, known=False)
    assert few.interval() == Interval(few.value, -1.0, 1.0, known=False)
    assert few.p_zero() == 1.0


def test_the_smallest_gain_is_the_intersection_of_both_tests() -> None:
    first = {0.95: Interval(0.05, 0.01, 0.09), 0.975: Interval(0.05, 0.0, 0.1)}.__getitem__
    second = {0.95: Interval(0.08, -0.02, 0.18), 0.975: Interval(0.08, -0.05, 0.21)}.__getitem__
    assert statistics.smallest_gain([first, second]) == Interval(0.05, -0.02, 0.1)
    assert statistics.smallest_gain([second, first]) == Interval(0.05, -0.02, 0.1)
    assert statistics.smallest_gain([first]) == Interval(0.05, 0.01, 0.1)
    unknown = Interval(0.2, -1, 1, known=False)
    assert not statistics.smallest_gain([first, lambda level: unknown]).known


# --- what is to be expected


def test_the_interval_to_expect_of_single_videos_is_wilsons() -> None:
    found = statistics.expected_interval(np.arange(2000))
    expected = stats.binomtest(1500, 2000).proportion_ci(0.95, method="wilson")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=3e-5)


def test_the_interval_to_expect_of_sources_is_that_of_their_design_effect() -> None:
    """2,000 videos in sources of eight, ρ = 0.3: as many as 2,000 / (1 + 7 · 0.3)."""
    found = statistics.expected_interval(equal_sources(250, 8))
    trials = 2000 / 3.1
    square = stats.t.ppf(0.975, 249) ** 2
    ends = np.roots([1 + square / trials, -(1.5 + square / trials), 0.75**2])
    assert (found.low, found.high) == pytest.approx(tuple(sorted(ends)))
    assert statistics.expected_interval(equal_sources(2, 40)) == Interval(0.75, 0.0, 1.0, known=False)


def test_a_detectable_difference_is_found_four_times_in_five() -> None:
    generator = np.random.default_rng(7)
    count, sd = 25, 0.4
    true = statistics.detectable(sd / math.sqrt(count), count - 1, 0.05)
    draws = generator.normal(true, sd, size=(4000, count))
    found = stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05
    assert found.mean() == pytest.approx(0.8, abs=0.02)
    # the classical figure for many units: 2.8 standard errors
    assert statistics.detectable(0.1, 1e6, 0.05) == pytest.approx(0.1959964 + 0.0841621, abs=1e-4)
    assert statistics.detectable(1.0, 1e6, 0.05) == 1.0  # no difference of shares is larger


def test_a_difference_in_clips_is_rounded_up() -> None:
    assert statistics.in_clips(0.05, 300) == 15
    assert statistics.in_clips(0.051, 300) == 16


@pytest.mark.parametrize(("sources", "gap"), [(5, 0.3), (12, 0.25), (40, 0.4)])
def test_the_data_that_is_said_to_be_needed_finds_the_difference_in_four_of_five_studies(
    sources, gap
) -> None:
    spread = 1.0
    estimate = statistics.Estimate(gap, spread / sources**0.5, sources - 1, sources, sources, sources)
    needed = round(statistics.data_needed(estimate, 0.05) * sources)
    assert needed > sources
    values = gap + spread * np.random.default_rng(1).normal(size=(20_000, needed))
    t = values.mean(axis=1) / (values.std(axis=1, ddof=1) / needed**0.5)
    found = (np.abs(t) > stats.t.ppf(0.975, needed - 1)).mean()
    assert found == pytest.approx(0.8, abs=0.025)


def test_no_data_is_named_for_no_difference_and_for_too_few_sources() -> None:
    estimate = statistics.Estimate(0.1, 0.05, 1, 2, 2, 2)
    assert statistics.data_needed(estimate, 0.05) == 0
    assert statistics.data_needed(replace(estimate, units=9, df=8, value=0.0), 0.05) == 0
