"""The statistics of studies, on plain arrays: textbook functions, each with its source (docs/statistics.md).

Suffixes of array names: V videos (of every split, one after another), G units (source videos, or videos where no
source is known), S trainings (seeds).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, sqrt

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest
from scipy.stats import t as student

from two_stream.evaluation.metrics import Interval, resampled_means

RESAMPLES = 10_000
POWER = 0.8
Values = NDArray[np.float64]
Index = NDArray[np.int64]


@dataclass(frozen=True)
class Estimate:
    """A mean with its standard error, as `crossed` finds it."""

    value: float
    se: float
    """standard error of the mean; never 0, see `constant`"""
    df: float
    """degrees of freedom of the standard error"""
    units: int
    trainings: int
    constant: bool
    """every unit of every training has one value, so that the data show no spread; then the standard error is what one
    deviating unit would give, and test and interval are those of a binomial count of deviating units"""

    def interval(self, level: float) -> Interval:
        """Return the t interval; of constant values the Clopper-Pearson one (values lie between -1 and 1)."""
        if self.constant:
            same = ((1 - level) / 2) ** (1 / self.units)  # at least this share of sources has the value
            low, high = self.value * same - (1 - same), self.value * same + (1 - same)
            return Interval(self.value, max(-1.0, low), min(1.0, high))
        half = _quantile((1 + level) / 2, self.df) * self.se
        return Interval(self.value, self.value - half, self.value + half)

    def share_interval(self, level: float) -> Interval:
        """Return Wilson's interval of a share, its number of trials being what gives this standard error.

        It stays between 0 and 1 and covers near both ends, where a t interval does not (Kott and Carr 1997; Dean and
        Pagano 2015, "Evaluating confidence interval methods for binomial proportions in clustered surveys").
        """
        share = self.value
        spread = share * (1 - share)
        plain = self.constant or spread <= 0
        trials = float(self.units) if plain else spread / self.se**2
        square = _quantile((1 + level) / 2, self.df) ** 2
        middle = (share + square / (2 * trials)) / (1 + square / trials)
        half = sqrt(square * (spread / trials + square / (4 * trials**2))) / (1 + square / trials)
        return Interval(share, max(0.0, middle - half), min(1.0, middle + half))

    def p_zero(self) -> float:
        """Return the two-sided p value of a true mean of 0: t test; of constant values the sign test over units."""
        if self.constant:
            return 1.0 if self.value == 0 else float(min(1.0, 2.0 ** (1 - self.units)))
        return float(min(1.0, 2 * student.sf(abs(self.value) / self.se, self.df)))


def crossed(values_GS: Values) -> Estimate:
    """Return the mean of units × trainings with a standard error for both being random.

    The two-way random-effects analysis of multi-reader multi-case studies (Dorfman, Berbaum and Metz 1992; Hillis
    2007): readers are trainings, cases are source videos. With the mean squares of units, trainings and their
    interaction (G, S, GS) the variance of the grand mean is (MS_S + max(MS_G - MS_GS, 0)) / (G·S), with Hillis's
    degrees of freedom, V² / (MS_S² / (S - 1)). One thing is added, on the side of caution: it never falls below
    MS_G / (G·S), what the units alone say; with two or three trainings MS_S is often too small by chance, and the
    published form then covered down to 92.3 % in simulations. With one training it is the mean over units with its t
    distribution of G - 1 degrees of freedom.

    Args:
        values_GS: `(G, S)`; unit sums scaled as `unit_values` does.

    Raises:
        ValueError: Fewer than two units.
    """
    units, trainings = values_GS.shape
    if units < 2:
        raise ValueError(f"{units} unit: a spread needs two or more")
    mean = float(values_GS.mean())
    mean = mean if abs(mean) > 1e-12 else 0.0  # what is left of rounding has no sign
    if np.ptp(values_GS) < 1e-12:
        return Estimate(mean, 1 / units, units - 1.0, units, trainings, constant=True)
    by_unit, by_training = values_GS.mean(axis=1), values_GS.mean(axis=0)
    ms_units = trainings * float(((by_unit - mean) ** 2).sum()) / (units - 1)
    if trainings == 1:
        return Estimate(mean, sqrt(ms_units / units), units - 1.0, units, 1, constant=False)
    ms_trainings = units * float(((by_training - mean) ** 2).sum()) / (trainings - 1)
    rest = values_GS - by_unit[:, None] - by_training[None, :] + mean
    ms_rest = float((rest**2).sum()) / ((units - 1) * (trainings - 1))
    total = max(ms_trainings + max(ms_units - ms_rest, 0.0), ms_units)
    if total < 1e-12:  # units agree on average and trainings do, by chance: what is left is their interaction
        total = ms_rest
    df = units * trainings - 1.0
    if ms_trainings > 0:
        df = min(df, total**2 / (ms_trainings**2 / (trainings - 1)))
    return Estimate(mean, sqrt(total / (units * trainings)), df, units, trainings, constant=False)


def unit_values(values_VS: Values, weight_V: Values, stratum_V: Index, unit_V: Index) -> Values:
    """Return one value per unit and training `(G, S)` whose means over units are the trainings' weighted means.

    Units hold different numbers of videos, so a mean over videos is a ratio of sums over units. It is linearised: each
    unit gets the mean plus G times the weighted sum of its videos' deviations from the mean of their stratum (Taylor
    linearisation of a ratio, Wolter 2007, chapter 6).

    Args:
        values_VS: Value of each video in each training.
        weight_V: Weight of each video; all sum to 1.
        stratum_V: 0-based split of each video, whose mean over trainings deviations are taken from.
        unit_V: 0-based unit.
    """
    units = int(unit_V.max()) + 1
    weighted_VS = weight_V[:, None] * values_VS
    means = np.bincount(stratum_V, weights=weighted_VS.mean(axis=1)) / np.bincount(
        stratum_V, weights=weight_V
    )
    sums_GS = np.zeros((units, values_VS.shape[1]))
    np.add.at(sums_GS, unit_V, weighted_VS - (weight_V * means[stratum_V])[:, None])
    return np.asarray(weighted_VS.sum(axis=0).mean() + units * sums_GS)


def t_interval(values: Sequence[float] | Values, level: float = 0.95) -> Interval:
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


def paired_bootstrap(
    difference_V: Values,
    unit_V: Index,
    stratum_V: Index | None = None,
    *,
    level: float = 0.95,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> tuple[Interval, float]:
    """Return the mean difference with its percentile interval over units, and the two-sided p value of no difference.

    Args:
        difference_V: Difference of two variants on each video (a mean over trainings).
        unit_V: 0-based unit of each video; units are drawn with replacement.
        stratum_V: Split of each video: then the mean over splits of the means within them is taken.
        level: Coverage of the interval.
        seed: Seed of the draws; the result depends on nothing else.
        resamples: Number of draws.
    """
    draws = resampled_means(difference_V, unit_V, stratum_V, seed=seed, resamples=resamples)
    strata = np.zeros_like(unit_V) if stratum_V is None else stratum_V
    means = np.bincount(strata, weights=difference_V) / np.bincount(strata)
    return draws_summary(float(means.mean()), draws, level)


def draws_summary(value: float, draws: Values, level: float) -> tuple[Interval, float]:
    """Return a value with the percentile interval of its resamples, and twice the smaller tail beyond 0 as p value.

    One is added to both counts, so that no p value is 0 (Davison and Hinkley 1997, 4.2.3).
    """
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    tail = min(int((draws <= 1e-12).sum()), int((draws >= -1e-12).sum()))
    return Interval(value, float(low), float(high)), min(1.0, 2 * (tail + 1) / (len(draws) + 1))


def detectable(se: float, df: float, alpha: float, power: float = POWER) -> float:
    """Return the smallest true difference that a two-sided t test at `alpha` finds with probability `power`.

    (t of 1 - alpha/2 + t of power) · se: the usual approximation by central t distributions (Bloom 1995, "Minimum
    detectable effects").
    """
    return (_quantile(1 - alpha / 2, df) + _quantile(power, df)) * se


def in_clips(share: float, videos: float) -> int:
    """Return the whole number of videos that a share of them needs."""
    return ceil(share * videos - 1e-9)


def _quantile(probability: float, df: float) -> float:
    return float(student.ppf(probability, df))
