"""Intervals and tests on plain arrays, each with its source (docs/statistics.md); every number printed comes from here.

Suffixes of array names: V videos (of every split, one after another), G units (source videos, or videos where no
source is known), S trainings (seeds).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, inf, sqrt

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest
from scipy.stats import t as student

LEVEL = 0.95
POWER = 0.8
LEAST_UNITS = 3
"""sources that an interval needs"""
Values = NDArray[np.float64]
Index = NDArray[np.int64]


@dataclass(frozen=True)
class Interval:
    """A value between 0 and 1 (or a difference of two) and its interval."""

    value: float
    low: float
    high: float
    known: bool = True
    """false where there are too few sources to know anything: the ends are those of the scale"""


@dataclass(frozen=True)
class Sample:
    """What each video counts, and which videos belong together."""

    weight: Values
    """`(V,)`, the same within a stratum; all sum to 1"""
    stratum: Index
    """`(V,)`: 0-based split or class, from whose mean a video's deviation is taken"""
    unit: Index
    """`(V,)`, 0-based"""

    @classmethod
    def even(cls, unit_V: Index) -> Sample:
        """Return a sample whose videos count alike."""
        count = len(unit_V)
        return cls(np.full(count, 1 / count), np.zeros(count, np.int64), unit_V)

    @classmethod
    def by_class(cls, unit_V: Index, label_V: Index) -> Sample:
        """Return a sample whose classes count alike, and videos alike within a class."""
        _, stratum_V, counts = np.unique(label_V, return_inverse=True, return_counts=True)
        return cls(1 / (len(counts) * counts[stratum_V]), stratum_V.astype(np.int64), unit_V)

    @property
    def shares(self) -> Values:
        """Each unit's part of the whole `(G,)`."""
        return np.bincount(self.unit, weights=self.weight).astype(np.float64)

    @property
    def effective(self) -> float:
        """Units of equal size that say as much: (Σn)² / Σn²."""
        return _effective(self.shares)

    def variance_of_mean(self, correlation: float) -> float:
        """Return the variance of the mean of videos of variance 1 whose units have this correlation (Kish 1965)."""
        squares_G = np.bincount(self.unit, weights=self.weight**2)
        return float((correlation * self.shares**2 + (1 - correlation) * squares_G).sum())

    @property
    def units_by_stratum(self) -> Index:
        """Number of units in each stratum."""
        pairs = np.unique(np.stack([self.stratum, self.unit]), axis=1)
        return np.bincount(pairs[0]).astype(np.int64)


@dataclass(frozen=True)
class Estimate:
    """A mean with its standard error over units, and over trainings where there are several."""

    value: float
    se: float
    """standard error of the mean; never 0, see `constant`"""
    df: float
    """degrees of freedom of the standard error"""
    units: int
    effective: float
    """units of equal size that say as much: (Σn)² / Σn²"""
    trials: float
    """independent videos that say as much, where the data show no spread"""
    constant: bool = False
    """every video of every training has one value, so that the data show no spread; then the standard error is what one
    deviating unit would give, and test and interval are those of a binomial count of deviating units"""
    least: int = LEAST_UNITS
    """units that an interval needs"""

    def interval(self, level: float = LEVEL) -> Interval:
        """Return the t interval of a difference; of constant values the Clopper-Pearson one."""
        if self.units < self.least:
            return Interval(self.value, -1.0, 1.0, known=False)
        low, high = self.value, self.value
        if self.constant:
            same = ((1 - level) / 2) ** (1 / self.effective)  # at least this share of sources has the value
            low, high = self.value * same - (1 - same), self.value * same + (1 - same)
        else:
            half = _quantile((1 + level) / 2, self.df) * self.se
            low, high = low - half, high + half
        return Interval(self.value, max(-1.0, low), min(1.0, high))

    def share_interval(self, level: float = LEVEL) -> Interval:
        """Return Wilson's interval of a share, its number of trials being what gives this standard error.

        It stays between 0 and 1 and covers near both ends, where a t interval does not (Kott and Carr 1997; Dean and
        Pagano 2015, "Evaluating confidence interval methods for binomial proportions in clustered surveys").
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
        """Return the two-sided p value of a true mean of 0: t test; of constant values the sign test over units."""
        if self.units < self.least:
            return 1.0
        if self.constant:
            return 1.0 if self.value == 0 else float(min(1.0, 2.0 ** (1 - self.effective)))
        return float(min(1.0, 2 * student.sf(abs(self.value) / self.se, self.df)))


def estimate_mean(values_VS: Values, sample: Sample, *, share: bool = True) -> Estimate:
    """Return the weighted mean of videos × trainings with a standard error for units and trainings being random.

    A mean over videos is a ratio of sums over units. Its variance over units is the larger of two: that of the
    linearised sums (Wolter 2007, chapter 6; the square of a unit that is the part q of its stratum is divided by
    1 - 2q + Σq², which makes it unbiased for units that vary alike: m / (m - 1) for m equal ones), and what the
    intraclass correlation ρ of the units gives, σ² Σ (ρ h² + (1 - ρ) Σ w²), with h the units' parts and w the videos'
    weights (Kish 1965). The first is uncertain where few units make up most of the videos. Degrees of freedom are the
    effective units less one.

    Args:
        values_VS: Value of each video in each training.
        sample: Weights, strata and units.
        share: The values are hits. With few misses ρ is hardly known, so that it is taken to be one effective unit's
            part at least.
    """
    weight_V, stratum_V, unit_V = sample.weight, sample.stratum, sample.unit
    units, effective = int(unit_V.max()) + 1, sample.effective
    mean_V = values_VS.mean(axis=1)
    in_stratum = np.bincount(stratum_V, weights=weight_V)
    sums = np.bincount(stratum_V, weights=values_VS.sum(axis=1))  # of whole numbers: alike for as many hits
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
    """Return the mean of one value per unit and training, such as jackknife pseudo-values.

    The variance is taken G / (G - 1) times the jackknife's, which is too small for a mAP over ten sources.

    Args:
        values_GS: `(G, S)`.
        share_G: Each unit's part of the videos.
        least: Units that an interval needs.
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
    """Join the variance of a mean over units with that over trainings.

    The two-way random-effects analysis of multi-reader multi-case studies (Dorfman, Berbaum and Metz 1992; Hillis
    2007): readers are trainings, cases are sources. The variance of the mean is that over trainings plus what the units
    add to their interaction with trainings. Two things differ, on the side of caution: it never falls below what the
    units alone say, and the degrees of freedom are those of trainings over their part of the variance. Hillis squares
    that part; with three trainings, whose variance is often small by chance, equal variants then differ too often.

    Args:
        value: The mean.
        variance: Of the mean, over units.
        rest_GS: Each unit's deviation in each training, scaled so that means over units are the trainings' deviations.
        effective: Effective units.
        trials: See `Estimate`.
        constant: See `Estimate`.
        least: See `Estimate`.
    """
    units, trainings = rest_GS.shape
    value = value if abs(value) > 1e-12 else 0.0  # what is left of rounding has no sign
    df = max(effective - 1, 1e-3)
    if trainings > 1 and units > 1:
        by_unit, by_training = rest_GS.mean(axis=1), rest_GS.mean(axis=0)
        both = rest_GS - by_unit[:, None] - by_training[None, :] + rest_GS.mean()
        interaction = float((both**2).sum()) / ((units - 1) * (trainings - 1) * units * trainings)
        over_trainings = float(by_training.var(ddof=1)) / trainings
        # where units agree on average and trainings do, by chance, what is left is their interaction
        variance = max(over_trainings + max(variance - interaction, 0.0), variance) or interaction
        if over_trainings > 0:
            df = min(df, (trainings - 1) * variance / over_trainings)
    se = sqrt(variance) if variance > 1e-18 and not constant else 1 / units
    return Estimate(value, se, df, units, effective, trials, constant or variance <= 1e-18, least)


def _effective(share_G: Values) -> float:
    return float(share_G.sum() ** 2 / (share_G**2).sum())


def _intraclass(rest_V: Values, unit_V: Index) -> float:
    """Return the intraclass correlation by analysis of variance, between 0 and 1; 0 where no unit has two videos."""
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
    """How much one array of hits is above another on the same videos."""

    estimate: Estimate
    interval: Interval
    p: float
    exact: bool = False
    """McNemar's exact test, not the t test"""


def difference_of(first_VS: Values, second_VS: Values, sample: Sample, level: float = LEVEL) -> Difference:
    """Test whether the first array of hits is above the second.

    The t test of `estimate`; with one training of videos that are all independent McNemar's exact test, whose
    interval is the wider of the two.
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


def smallest_gain(tests: Sequence[tuple[Interval, Interval]]) -> Interval:
    """Return the interval of the smallest of several differences, such as a fusion's above the best of its streams.

    The intersection-union test (Berger 1982): which stream is best need not be known. The lower end is the smallest of
    the lower ends, the upper end the smallest of the upper ends at half the error.

    Args:
        tests: For each difference its interval at the level, and that with half as much error.
    """
    return Interval(
        min(usual.value for usual, _ in tests),
        min(usual.low for usual, _ in tests),
        min(wide.high for _, wide in tests),
        known=all(usual.known for usual, _ in tests),
    )


def expected_interval(unit_V: Index, share: float = 0.75, correlation: float = 0.3) -> Interval:
    """Return the 95 % interval to expect of an accuracy before anything is trained.

    Args:
        unit_V: Unit of each video.
        share: Accuracy that is hoped for.
        correlation: Intraclass correlation of hits within a source.
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
        ValueError: Fewer than two values.
    """
    found = np.asarray(values, dtype=np.float64)
    if found.size < 2:
        raise ValueError(f"{found.size} value: an interval needs two or more")
    mean, se = float(found.mean()), float(found.std(ddof=1)) / sqrt(found.size)
    half = _quantile((1 + level) / 2, found.size - 1) * se
    return Interval(mean, mean - half, mean + half)


def mcnemar_exact(first_only: int, second_only: int) -> float:
    """Return the two-sided p value of McNemar's exact test: are discordant pairs split evenly? 1 without any."""
    total = first_only + second_only
    return float(binomtest(first_only, total).pvalue) if total else 1.0


def mcnemar_interval(first_only: int, second_only: int, videos: int, level: float) -> Interval:
    """Return the difference of two shares with the interval that belongs to McNemar's exact test.

    Clopper-Pearson's interval of the first's share of the discordant pairs, carried over to the difference: it holds 0
    just where the test does not reject.
    """
    total = first_only + second_only
    value = (first_only - second_only) / videos
    if not total:
        return Interval(value, value, value)
    found = binomtest(first_only, total).proportion_ci(level, method="exact")
    low, high = (total / videos * (2 * float(share) - 1) for share in (found.low, found.high))
    return Interval(value, low, high)


def holm(ps: Sequence[float]) -> list[float]:
    """Return p values adjusted for a family of tests by Holm's step-down procedure (Holm 1979), in the order given."""
    adjusted = [0.0] * len(ps)
    highest = 0.0
    for place, index in enumerate(sorted(range(len(ps)), key=lambda index: ps[index])):
        highest = max(highest, min(1.0, (len(ps) - place) * ps[index]))
        adjusted[index] = highest
    return adjusted


def detectable(se: float, df: float, alpha: float, power: float = POWER) -> float:
    """Return the smallest true difference that a two-sided t test at `alpha` finds with probability `power`.

    (t of 1 - alpha/2 + t of power) · se: the usual approximation by central t distributions (Bloom 1995, "Minimum
    detectable effects"). 1 at most: a difference of shares is never larger.
    """
    return min(1.0, (_quantile(1 - alpha / 2, df) + _quantile(power, df)) * se)


def in_clips(share: float, videos: float) -> int:
    """Return the whole number of videos that a share of them needs."""
    return ceil(share * videos - 1e-9)


def _quantile(probability: float, df: float) -> float:
    return float(student.ppf(probability, df))
