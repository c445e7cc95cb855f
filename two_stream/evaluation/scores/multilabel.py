"""Mean average precision: what is reported where a video may have several classes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from two_stream.errors import ScoreError
from two_stream.evaluation.scores.statistics import Estimate, estimate_units

LEAST_UNITS = 10
"""sources that an interval of a mAP needs; the jackknife of fewer covers too little"""
BLOCKS = 1000
"""of more sources, so many groups of them are left out one after another"""
_CHUNK = 100
"""Rows of weights at once; bounds memory."""

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


def pseudo_values(
    tables: list[Scores], targets_NK: Targets, unit: NDArray[np.int64], count: int | None = None
) -> list[NDArray[np.float64]]:
    """Return jackknife pseudo-values `(G,)` of the mAP of each array of scores, moved to have that mAP as mean.

    What leaving a unit out changes, as in the multi-reader analysis of Dorfman, Berbaum and Metz (1992). More than
    `BLOCKS` units are left out in groups (Kott 2001).

    Args:
        tables: Arrays `(N, K)` of scores.
        targets_NK: Classes of the videos.
        unit: `(N,)` source of each video, 0-based.
        count: Number of units, where some have no video here.
    """
    unit = unit % BLOCKS
    size = min(count or int(unit.max()) + 1, BLOCKS)
    left = reweighted(tables, targets_NK, unit, 1 - np.eye(size, dtype=np.int64))
    values = [mean_average_precision(logits_NK, targets_NK) for logits_NK in tables]
    return [value - (size - 1.0) * (one - one.mean()) for value, one in zip(values, left, strict=True)]


def estimate_map(values_GS: NDArray[np.float64], unit: NDArray[np.int64]) -> Estimate:
    """Return the mean of `pseudo_values` of each training, or of their differences, with its standard error."""
    return estimate_units(values_GS, np.bincount(unit % BLOCKS) / len(unit), LEAST_UNITS)


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
