"""Intervals and tests on arrays; all printed intervals are computed here. For the methods see docs/statistics.md.

Suffixes of array names: V for videos (of all splits), G for units (source videos, or videos of unknown source), S for
training runs (seeds).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, inf, sqrt

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
POWER = 0.8
LEAST_UNITS = 3
"""least number of sources for an interval"""
Values = NDArray[np.float64]
Index = NDArray[np.int64]


@dataclass(frozen=True)
class Interval:
    """A value between 0 and 1, or a difference of two such values, with its interval."""

    value: float
    low: float
    high: float
    known: bool = True
    """False if there are too few sources; the interval is then the full range of possible values"""


@dataclass(frozen=True)
class Sample:
    """Weights, strata and units of videos."""

    weight: Values
    """weight of each video, `(V,)`; equal within a stratum, with sum 1"""
    stratum: Index
    """index of the split or class of each video, `(V,)`; deviations are computed from the mean of the stratum"""
    unit: Index
    """index of the unit (source) of each video, `(V,)`"""

    @classmethod
    def even(cls, unit_V: Index) -> Sample:
        """Return a sample in which all videos have the same weight."""
        count = len(unit_V)
        return cls(np.full(count, 1 / count), np.zeros(count, np.int64), unit_V)

    @classmethod
    def by_class(cls, unit_V: Index, label_V: Index) -> Sample:
        """Return a sample in which all classes have the same weight, and so do the videos of a class."""
        _, stratum_V, counts = np.unique(label_V, return_inverse=True, return_counts=True)
        return cls(1 / (len(counts) * counts[stratum_V]), stratum_V.astype(np.int64), unit_V)

    @property
    def shares(self) -> Values:
        """Total weight of each unit, `(G,)`."""
        return np.bincount(self.unit, weights=self.weight).astype(np.float64)

    @property
    def effective(self) -> float:
        """Effective number of units: (Σn)² / Σn², where n are the weights of the units."""
        return _effective(self.shares)

    def variance_of_mean(self, correlation: float) -> float:
        """Return the variance of the mean of videos with variance 1 and a correlation within units (Kish 1965)."""
        squares_G = np.bincount(self.unit, weights=self.weight**2)
        return float((correlation * self.shares**2 + (1 - correlation) * squares_G).sum())

    @property
    def units_by_stratum(self) -> Index:
        """Number of units in each stratum."""
        pairs = np.unique(np.stack([self.stratum, self.unit]), axis=1)
        return np.bincount(pairs[0]).astype(np.int64)


@dataclass(frozen=True)
class Estimate:
    """A mean with its standard error over units, and over training runs if there are several."""

    value: float
    se: float
    """standard error of the mean; it is never 0, see `constant`"""
    df: float
    """degrees of freedom of the standard error"""
    units: int
    effective: float
    """effective number of units, see `Sample.effective`"""
    trials: float
    """effective number of independent videos; it is used if the values are constant"""
    constant: bool = False
    """whether all values are equal. The standard error is then computed as if one unit differed; the test and the
    interval treat the number of differing units as binomial"""
    least: int = LEAST_UNITS
    """least number of units for an interval"""

    def interval(self, level: float = LEVEL) -> Interval:
        """Return the t interval of a difference, or the Clopper-Pearson interval if the values are constant."""
        if self.units < self.least:
            return Interval(self.value, -1.0, 1.0, known=False)
        low, high = self.value, self.value
        if self.constant:
            same = ((1 - level) / 2) ** (1 / self.effective)  # least fraction of sources with the value
            low, high = self.value * same - (1 - same), self.value * same + (1 - same)
        else:
            half = _quantile((1 + level) / 2, self.df) * self.se
            low, high = low - half, high + half
        return Interval(self.value, max(-1.0, low), min(1.0, high))

    def share_interval(self, level: float = LEVEL) -> Interval:
        """Return Wilson's interval of a fraction, with the number of trials that corresponds to the standard error.

        Unlike a t interval, Wilson's interval is within 0 and 1 and has good coverage near 0 and 1 (Kott and Carr 1997;
        Dean and Pagano 2015, "Evaluating confidence interval methods for binomial proportions in clustered surveys").
        """
        share = min(1.0, max(0.0, self.value))
        if self.units < self.least:
            return Interval(self.value, 0.0, 1.0, known=False)
        spread = share * (1 - share)
        trials = self.trials if self.constant or spread <= 0 else spread / self.se**2
        square = _quantile((1 + level) / 2, self.df) ** 2
        middle = (share + square / (2 * trials)) / (1 + square / trials)
        half = sqrt(square * (spread / trials + square / (4 * trials**2))) / (1 + square / trials)
        return Interval(self.value, max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half)))

    def p_zero(self) -> float:
        """Return the two-sided p value for a true mean of 0, by a t test (a sign test if the values are constant)."""
        from scipy.special import stdtr  # slow to import

        if self.units < self.least:
            return 1.0
        if self.constant:
            return 1.0 if self.value == 0 else float(min(1.0, 2.0 ** (1 - self.effective)))
        return float(min(1.0, 2 * stdtr(self.df, -abs(self.value) / self.se)))


def estimate_mean(values_VS: Values, sample: Sample, *, share: bool = True) -> Estimate:
    """Return the weighted mean over videos and training runs; its standard error treats units and runs as random.

    A mean over videos is a ratio of sums over units. The variance of the mean over units is the larger of two
    estimates. The first estimate is the variance of the linearised sums (Wolter 2007, chapter 6). In the first
    estimate, the squared sum of a unit that has the fraction q of its stratum's weight is divided by 1 - 2q + Σq². The
    division makes the estimate unbiased if all units have the same variance; for m equal units, the factor is
    m / (m - 1). The second estimate follows from the intraclass correlation ρ of the units: σ² Σ (ρ h² + (1 - ρ) Σ w²),
    where h are the weights of the units and w those of their videos (Kish 1965). The second estimate is required
    because the first one is uncertain if few units contain most of the videos. The degrees of freedom are the effective
    number of units minus one.

    Args:
        values_VS: Values `(V, S)` of V videos in S training runs.
        sample: Weights, strata and units of the videos.
        share: Whether the values are hits. With few misses, ρ is uncertain, so it is set to at least 1 / effective
            number of units.
    """
    weight_V, stratum_V, unit_V = sample.weight, sample.stratum, sample.unit
    units, effective = int(unit_V.max()) + 1, sample.effective
    mean_V = values_VS.mean(axis=1)
    in_stratum = np.bincount(stratum_V, weights=weight_V)
    sums = np.bincount(stratum_V, weights=values_VS.sum(axis=1))  # of integers: equal hits give equal sums
    centre = sums / (np.bincount(stratum_V) * values_VS.shape[1])
    rest_V = mean_V - centre[stratum_V]
    pair_V = unit_V * len(in_stratum) + stratum_V
    pairs = np.arange(int(pair_V.max()) + 1)
    part = np.bincount(pair_V, weights=weight_V) / in_stratum[pairs % len(in_stratum)]
    squares = np.bincount(pairs % len(in_stratum), weights=part**2)
    factor_V = 1 / np.sqrt(np.maximum(1 - 2 * part[pair_V] + squares[stratum_V], 1e-12))
    linear = float((np.bincount(unit_V, weights=weight_V * factor_V * rest_V) ** 2).sum())
    correlation = _intraclass(rest_V, unit_V)
    sums_GS = np.zeros((units, values_VS.shape[1]))
    np.add.at(sums_GS, unit_V, weight_V[:, None] * (values_VS - centre[stratum_V][:, None]))
    value = float((in_stratum / in_stratum.sum() * centre).sum())
    spread = float((weight_V * (mean_V - value) ** 2).sum())
    least = max(correlation, 1 / effective)
    return _crossed(
        value,
        max(linear, spread * sample.variance_of_mean(least if share else correlation)),
        sums_GS * units,
        effective,
        1 / sample.variance_of_mean(least),
        constant=bool(np.ptp(values_VS) < 1e-12),
    )


def estimate_units(values_GS: Values, share_G: Values, least: int) -> Estimate:
    """Return the mean of values for each unit and training run, such as jackknife pseudo-values.

    The variance is G / (G - 1) times that of the jackknife, because the jackknife's variance is too small for the mAP
    of few sources, such as ten.

    `values_GS` are values `(G, S)`. `share_G` is the fraction of the videos in each unit. `least` is the least number
    of units for an interval.
    """
    by_unit = values_GS.mean(axis=1)
    variance = float(by_unit.var(ddof=1)) / (len(by_unit) - 1) if len(by_unit) > 1 else 0.0
    constant = bool(np.ptp(values_GS) < 1e-12)
    effective = _effective(share_G)
    trials = effective if constant else inf
    value = float(values_GS.mean())
    return _crossed(value, variance, values_GS - value, effective, trials, constant=constant, least=least)


def _crossed(
    value: float,
    variance: float,
    rest_GS: Values,
    effective: float,
    trials: float,
    *,
    constant: bool,
    least: int = LEAST_UNITS,
) -> Estimate:
    """Combine the variance of a mean over units with its variance over training runs.

    The method is the two-way random-effects analysis of multi-reader multi-case studies (Dorfman, Berbaum and Metz
    1992; Hillis 2007), where readers are training runs and cases are sources. The variance of the mean is the variance
    over training runs, plus the variance over units, minus their interaction. Two changes make the analysis more
    conservative. First, the variance is never smaller than the variance over units. Second, the degrees of freedom are
    those of the training runs, divided by the fraction of the variance that is due to training runs. Hillis squares the
    fraction. Because the variance of three training runs is often small by chance, the square would too often lead to
    a significant difference between equal variants.

    `variance` is the variance of the mean over units. `rest_GS` are the deviations of the units in each training run,
    scaled so that their means over units are the deviations of the training runs. For the other arguments see
    `Estimate`.
    """
    units, trainings = rest_GS.shape
    value = value if abs(value) > 1e-12 else 0.0  # a rounding error has no sign
    df = max(effective - 1, 1e-3)
    if trainings > 1 and units > 1:
        by_unit, by_training = rest_GS.mean(axis=1), rest_GS.mean(axis=0)
        both = rest_GS - by_unit[:, None] - by_training[None, :] + rest_GS.mean()
        interaction = float((both**2).sum()) / ((units - 1) * (trainings - 1) * units * trainings)
        over_trainings = float(by_training.var(ddof=1)) / trainings
        # if the means over units and over training runs are equal by chance, only their interaction remains
        variance = max(over_trainings + max(variance - interaction, 0.0), variance) or interaction
        if over_trainings > 0:
            df = min(df, (trainings - 1) * variance / over_trainings)
    se = sqrt(variance) if variance > 1e-18 and not constant else 1 / units
    return Estimate(value, se, df, units, effective, trials, constant or variance <= 1e-18, least)


def _effective(share_G: Values) -> float:
    return float(share_G.sum() ** 2 / (share_G**2).sum())


def _intraclass(rest_V: Values, unit_V: Index) -> float:
    """Return the intraclass correlation, from 0 to 1, by analysis of variance; 0 if no unit has two videos."""
    sizes_G = np.bincount(unit_V).astype(np.float64)
    videos, units = len(unit_V), len(sizes_G)
    if videos == units or units < 2:
        return 0.0
    mean_G = np.bincount(unit_V, weights=rest_V) / sizes_G
    between = float((sizes_G * (mean_G - rest_V.mean()) ** 2).sum()) / (units - 1)
    within = float(((rest_V - mean_G[unit_V]) ** 2).sum()) / (videos - units)
    size = (videos - float((sizes_G**2).sum()) / videos) / (units - 1)
    total = between + (size - 1) * within
    return min(1.0, max(0.0, (between - within) / total)) if total > 0 else 0.0


@dataclass(frozen=True)
class Difference:
    """Difference between two arrays of hits on the same videos."""

    estimate: Estimate
    interval: Interval
    p: float
    exact: bool = False
    """whether `p` is from McNemar's exact test; otherwise it is from a t test"""


def difference_of(first_VS: Values, second_VS: Values, sample: Sample, level: float = LEVEL) -> Difference:
    """Test whether the means of two arrays of hits differ.

    The test is the t test of `Estimate`. For one training run with independent videos, the test is McNemar's exact
    test, and the interval covers those of both tests.
    """
    gap_VS = first_VS - second_VS
    found = estimate_mean(gap_VS, sample, share=False)
    interval = found.interval(level)
    if gap_VS.shape[1] > 1 or found.units < max(len(gap_VS), LEAST_UNITS):
        return Difference(found, interval, found.p_zero())
    wins, losses = int((gap_VS > 0).sum()), int((gap_VS < 0).sum())
    own = mcnemar_interval(wins, losses, len(gap_VS), level)
    wider = Interval(interval.value, min(interval.low, own.low), max(interval.high, own.high))
    return Difference(found, wider, mcnemar_exact(wins, losses), exact=True)


def smallest_gain(tests: Sequence[Callable[[float], Interval]], level: float = LEVEL) -> Interval:
    """Return the interval of the smallest of several differences, such as those of a fusion from each of its streams.

    The method is the intersection-union test (Berger 1982), so the best stream does not have to be known. The lower end
    is the smallest lower end of all intervals. The upper end is the smallest upper end of intervals with half the error
    probability.

    `tests` contains, for each difference, a function of the level that returns the interval.
    """
    usual = [test(level) for test in tests]
    return Interval(
        min(found.value for found in usual),
        min(found.low for found in usual),
        min(test((1 + level) / 2).high for test in tests),
        known=all(found.known for found in usual),
    )


def expected_interval(unit_V: Index, share: float = 0.75, correlation: float = 0.3) -> Interval:
    """Return the expected 95 % interval of an accuracy before any training.

    `unit_V` is the unit of each video. `share` is the assumed accuracy. `correlation` is the assumed intraclass
    correlation of hits within a source.
    """
    sample = Sample.even(unit_V)
    effective = sample.effective
    trials = 1 / sample.variance_of_mean(max(correlation, 1 / effective))
    df = max(effective - 1, 1e-3)
    se = sqrt(share * (1 - share) / trials)
    return Estimate(share, se, df, len(sample.shares), effective, trials).share_interval()


def t_interval(values: Sequence[float] | Values, level: float = LEVEL) -> Interval:
    """Return the mean and its t interval.

    Raises:
        ValueError: There are fewer than two values.
    """
    found = np.asarray(values, dtype=np.float64)
    if found.size < 2:
        raise ValueError(f"found {found.size} value; an interval requires two or more")
    mean, se = float(found.mean()), float(found.std(ddof=1)) / sqrt(found.size)
    half = _quantile((1 + level) / 2, found.size - 1) * se
    return Interval(mean, mean - half, mean + half)


def mcnemar_exact(first_only: int, second_only: int) -> float:
    """Return the two-sided p value of McNemar's exact test from the numbers of discordant pairs."""
    from scipy.special import bdtr  # slow to import

    total = first_only + second_only
    return float(min(1.0, 2 * bdtr(min(first_only, second_only), total, 0.5))) if total else 1.0


def mcnemar_interval(first_only: int, second_only: int, videos: int, level: float) -> Interval:
    """Return the difference of two accuracies with the interval of McNemar's exact test.

    The interval is the Clopper-Pearson interval of the fraction of discordant pairs that only the first gets right,
    transformed to the difference. This interval contains 0 if and only if the test does not reject.
    """
    from scipy.special import betaincinv  # slow to import

    total = first_only + second_only
    value = (first_only - second_only) / videos
    if not total:
        return Interval(value, value, value)
    tail = (1 - level) / 2
    least = betaincinv(first_only, second_only + 1, tail) if first_only else 0.0
    most = betaincinv(first_only + 1, second_only, 1 - tail) if second_only else 1.0
    low, high = (total / videos * (2 * float(share) - 1) for share in (least, most))
    return Interval(value, low, high)


def holm(ps: Sequence[float]) -> list[float]:
    """Return p values of a family of tests after Holm's step-down correction (Holm 1979), in the order of the input."""
    adjusted = [0.0] * len(ps)
    highest = 0.0
    for place, index in enumerate(sorted(range(len(ps)), key=lambda index: ps[index])):
        highest = max(highest, min(1.0, (len(ps) - place) * ps[index]))
        adjusted[index] = highest
    return adjusted


def detectable(se: float, df: float, alpha: float, power: float = POWER) -> float:
    """Return the smallest true difference that a two-sided t test at `alpha` finds with probability `power`.

    The difference is the sum of the t quantiles of 1 - alpha/2 and of `power`, times the standard error (Bloom 1995,
    "Minimum detectable effects"). The result is at most 1, the largest difference of two fractions.
    """
    return min(1.0, (_quantile(1 - alpha / 2, df) + _quantile(power, df)) * se)


def data_needed(estimate: Estimate, alpha: float, power: float = POWER) -> float:
    """Return the factor by which the data must grow for a two-sided t test at `alpha` to find the estimated difference.

    The difference is found with probability `power` if its true value is the estimated one. It is assumed that sources
    and training runs grow in proportion. The standard error then falls with the square root of the amount of data, and
    its degrees of freedom are proportional to that amount. The result is 0 if it is unknown: for a difference of 0, or
    with too few units for a test.
    """
    if estimate.units < estimate.least or estimate.value == 0:
        return 0.0
    times = 1.0
    for _ in range(50):  # a contraction; it converges in a few steps
        df = max(1.0, estimate.df * times)
        quantiles = _quantile(1 - alpha / 2, df) + _quantile(power, df)
        times = (quantiles * estimate.se / abs(estimate.value)) ** 2
    return float(times)


def in_clips(share: float, videos: float) -> int:
    """Return a fraction of videos as a number of videos, rounded up."""
    return ceil(share * videos - 1e-9)


def _quantile(probability: float, df: float) -> float:
    from scipy.special import stdtrit  # slow to import

    return float(stdtrit(df, probability))
