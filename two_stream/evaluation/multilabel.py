"""Mean average precision: what is reported where a video may have several classes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from two_stream.errors import ScoreError

RESAMPLES = 1000
LEVEL = 0.95
_CHUNK = 100
"""Resamples drawn at once; bounds the memory of the bootstrap."""

Scores = NDArray[np.float64]
Targets = NDArray[np.bool_]


def average_precisions(logits_NK: Scores, targets_NK: Targets) -> NDArray[np.float64]:
    """Return the average precision of each class `(K,)`, NaN for a class that no video has."""
    found = np.full(logits_NK.shape[1], np.nan)
    for index in np.flatnonzero(targets_NK.any(axis=0)):
        found[index] = average_precision_score(targets_NK[:, index], logits_NK[:, index])
    return found


def mean_average_precision(logits_NK: Scores, targets_NK: Targets) -> float:
    """Return the mean of the average precisions of the classes that occur (macro mAP).

    Raises:
        ScoreError: No video has a class.
    """
    if not targets_NK.any():
        raise ScoreError("no video has a class, so there is no mean average precision")
    return float(np.nanmean(average_precisions(logits_NK, targets_NK)))


def resampled(
    tables: list[Scores],
    targets_NK: Targets,
    unit: NDArray[np.int64],
    *,
    seed: int = 0,
) -> list[NDArray[np.float64]]:
    """Return the mAP of each array of scores in the same bootstrap resamples of units.

    Args:
        tables: Arrays `(N, K)` of scores.
        targets_NK: Classes of the videos.
        unit: `(N,)` resampling unit of each video, 0-based.
        seed: Seed of the draws.
    """
    generator = np.random.default_rng(seed)
    size = int(unit.max()) + 1
    draws_RG = generator.multinomial(size, np.full(size, 1 / size), size=RESAMPLES)
    return reweighted(tables, targets_NK, unit, draws_RG)


def reweighted(
    tables: list[Scores], targets_NK: Targets, unit: NDArray[np.int64], weights_RG: NDArray[np.int64]
) -> list[NDArray[np.float64]]:
    """Return the mAP `(R,)` of each array of scores for each row of whole weights `(R, G)` of the units."""
    rows = len(weights_RG)
    sums = [np.zeros(rows) for _ in tables]
    counts = np.zeros(rows)
    classes = np.flatnonzero(targets_NK.any(axis=0))
    for start in range(0, rows, _CHUNK):
        part = slice(start, start + _CHUNK)
        weights_RN = weights_RG[part][:, unit].astype(np.float32)
        for index in classes:
            present = weights_RN @ targets_NK[:, index] > 0
            counts[part] += present
            for total, logits_NK in zip(sums, tables, strict=True):
                total[part] += _weighted(logits_NK[:, index], targets_NK[:, index])(weights_RN)
    return [total / np.maximum(counts, 1) for total in sums]


def interval(draws: NDArray[np.float64], value: float) -> tuple[float, float]:
    """Return the 95 % percentile interval of resampled values, moved to be centred as the sample's own value.

    A resample's mAP lies above the sample's (a video drawn twice stands beside itself in the ranking), the more the
    fewer videos have a class; the interval is moved by that bias.
    """
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) - draws.mean() + value
    return float(low), float(high)


def _weighted(scores_N: Scores, targets_N: Targets) -> Callable[[NDArray[np.float32]], NDArray[np.float64]]:
    """Return a function: whole weights `(R, N)` of the videos -> average precision `(R,)`, 0 where the class is absent.

    The sum over the videos that have the class of the precision at their score; equal scores pass together.
    """
    order = np.argsort(-scores_N, kind="stable")
    ranked = scores_N[order]
    positives = np.flatnonzero(targets_N[order])
    ends = np.searchsorted(-ranked, -ranked[positives], side="right") - 1  # last place of an equal score
    counted = np.searchsorted(positives, ends, side="right") - 1

    def measure(weights_RN: NDArray[np.float32]) -> NDArray[np.float64]:
        passed_RN = np.cumsum(weights_RN[:, order], axis=1)  # whole numbers, exact in float32
        own = weights_RN[:, order[positives]].astype(np.float64)
        found = np.cumsum(own, axis=1)[:, counted]
        precision = found / np.maximum(passed_RN[:, ends], 1.0)
        return np.asarray((own * precision).sum(axis=1) / np.maximum(own.sum(axis=1), 1.0))

    return measure
