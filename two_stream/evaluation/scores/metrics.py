"""Metrics of score tables with 95 % intervals: accuracies, mean average precision, calibration and confusions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import entry_points
from typing import Any

import numpy as np
from numpy.typing import NDArray

from two_stream.errors import ScoreError
from two_stream.evaluation.scores.statistics import (
    LEVEL,
    Difference,
    Estimate,
    Interval,
    Sample,
    difference_of,
    estimate_mean,
    estimate_units,
    smallest_gain,
)
from two_stream.types import ScoreTable

TOP_K = (1, 3, 5)
ECE_BINS = 15
MAP_UNITS = 10
"""least number of sources for an interval of mAP; with fewer sources, the coverage of the jackknife is too low"""
BLOCKS = 1000
"""largest number of groups for the jackknife; if there are more sources, they are put into groups"""
_OWN_BLOCKS = 100
"""largest number of groups for the jackknife of metrics of other packages"""
_CHUNK = 100
"""number of rows of weights that are processed at a time, to limit memory"""
Scores = NDArray[np.float64]
Targets = NDArray[np.bool_]


@dataclass(frozen=True)
class ClassRow:
    """A line of the per-class table."""

    name: str
    videos: int
    correct: int
    accuracy: float | None
    """accuracy, or average precision for a multi-label data set; None for a class without videos"""
    precision: float | None
    """fraction of the videos predicted as this class that are of this class, 0 if there are none; None for a
    multi-label data set. The recall is `accuracy`"""
    f1: float | None
    """harmonic mean of precision and recall"""
    confusion: str
    """class that is most often predicted instead; empty if there are no mistakes"""
    confusion_count: int


@dataclass(frozen=True)
class Summary:
    """Metrics of a score table."""

    videos: int
    groups: int | None
    """number of source videos; None if unknown, in which case every video is treated as a source"""
    top: dict[int, Interval | None]
    """top-k accuracy for each k; None if k is not below the number of classes. In a multi-label data set, any class of
    the video counts"""
    mean_class: Interval | None
    """mean of the accuracies of the classes that occur; None for a multi-label data set"""
    precision: float | None
    """mean of the precisions of the classes that occur; None for a multi-label data set"""
    f1: float | None
    """mean of the F1 scores of the classes that occur (macro F1); None for a multi-label data set"""
    ece: float | None
    """expected calibration error; None if the scores are not log-probabilities (up to a constant)"""
    chance: float
    """accuracy of a constant prediction: the fraction of videos of the most frequent class"""
    map: Interval | None = None
    """mean average precision over the classes that occur; None if each video has one class"""
    map_classes: int = 0
    """number of classes that occur"""
    own: dict[str, Interval] = field(default_factory=dict)
    """metrics of other installed packages, see `own_metrics`"""

    @property
    def main(self) -> Interval:
        """The metric for comparing tables: mAP for a multi-label data set, otherwise top-1 accuracy."""
        found = self.map or self.top[1]
        assert found is not None
        return found

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        values = asdict(self)
        values["top"] = {str(k): value for k, value in values["top"].items()}
        return values


def ranks(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the rank `(N,)` of the true class, from 0.

    Of equal scores, the lower class number comes first, as in argmax.
    """
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    earlier = np.arange(logits.shape[1])[None, :] < labels[:, None]
    return np.asarray(((logits > own) | ((logits == own) & earlier)).sum(axis=1), dtype=np.int64)


def table_ranks(table: ScoreTable) -> NDArray[np.int64]:
    """Return the rank `(N,)` of the true class (or the best of several true classes), from 0; see `ranks` for ties."""
    if table.targets is None:
        return ranks(table.logits, table.labels)
    order = np.argsort(-table.logits, axis=1, kind="stable")
    return np.asarray(np.take_along_axis(table.targets, order, axis=1).argmax(axis=1), dtype=np.int64)


def main_value(logits: NDArray[np.float64], table: ScoreTable) -> float:
    """Return the main metric of scores `(N, K)` of a table's videos: mAP for a multi-label table, otherwise top-1."""
    if table.targets is not None:
        return mean_average_precision(logits, table.targets)
    return top_k_accuracy(logits, table.labels)


def top_k_accuracy(logits: NDArray[np.float64], labels: NDArray[np.int64], k: int = 1) -> float:
    """Return the fraction of videos whose true class is among the `k` highest logits `(N, K)`."""
    return float((ranks(logits, labels) < k).mean())


def mean_class_accuracy(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Return the mean of the accuracies of the classes that occur."""
    hits = (ranks(logits, labels) == 0).astype(np.float64)
    counts = np.bincount(labels, minlength=logits.shape[1])
    sums = np.bincount(labels, weights=hits, minlength=logits.shape[1])
    return float((sums[counts > 0] / counts[counts > 0]).mean())


def confusion_matrix(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the confusion matrix as counts `(K, K)`: rows are true classes, columns are predicted classes."""
    counts_KK = np.zeros((logits.shape[1],) * 2, np.int64)
    np.add.at(counts_KK, (labels, logits.argmax(axis=1)), 1)
    return counts_KK


def per_class(table: ScoreTable) -> list[ClassRow]:
    """Return the per-class table in the order of the classes."""
    names = table.class_names
    if table.targets is not None:
        hit = table.targets & (np.arange(len(names)) == table.logits.argmax(axis=1)[:, None])
        found = average_precisions(table.logits, table.targets)
        return [
            ClassRow(
                name, int(videos), int(correct), None if np.isnan(own) else float(own), None, None, "", 0
            )
            for name, videos, correct, own in zip(names, table.targets.sum(0), hit.sum(0), found)
        ]
    classes, best = len(names), table.logits.argmax(axis=1)
    wrong = best != table.labels
    pairs, counts = np.unique(table.labels[wrong] * classes + best[wrong], return_counts=True)
    worst: dict[int, tuple[int, int]] = {}  # of equal counts, the lower class number
    for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True):
        label, other = divmod(pair, classes)
        if count > worst.get(label, (0, 0))[0]:
            worst[label] = (count, other)
    sums = (np.bincount(of, minlength=classes).tolist() for of in (table.labels, table.labels[~wrong], best))
    rows = []
    for index, (videos, correct, predicted) in enumerate(zip(*sums, strict=True)):
        number, other = worst.get(index, (0, 0))
        accuracy = correct / videos if videos else None
        precision = correct / predicted if predicted else 0.0
        f1 = 2 * correct / (videos + predicted) if videos else None
        confusion = names[other] if number else ""
        rows.append(ClassRow(names[index], videos, correct, accuracy, precision, f1, confusion, number))
    return rows


def macro_means(table: ScoreTable) -> tuple[float | None, float | None]:
    """Return the means of precision and F1 over the classes that occur; None for a multi-label table."""
    if table.targets is not None:
        return None, None
    rows = [row for row in per_class(table) if row.videos]
    return float(np.mean([row.precision for row in rows])), float(np.mean([row.f1 for row in rows]))


def calibration_error(logits: NDArray[np.float64], labels: NDArray[np.int64], bins: int = ECE_BINS) -> float:
    """Return the expected calibration error (Guo et al. 2017) of softmax(logits) in equal-width bins.

    The error is the mean of |accuracy - mean confidence| over bins of confidence `(low, high]`, weighted by the number
    of videos.
    """
    from scipy.special import softmax  # slow to import

    probabilities = softmax(logits, axis=1)
    confidence = probabilities.max(axis=1)
    correct = (logits.argmax(axis=1) == labels).astype(np.float64)
    place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    gap = np.bincount(place, weights=correct - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(labels))


def video_sources(table: ScoreTable) -> tuple[NDArray[np.int64], int | None]:
    """Return the source index of each video, `(N,)`, and the number of sources (None if the sources are unknown).

    Videos of the same source are not independent. A video without a source is its own source.
    """
    if not any(table.groups or ()):
        return np.arange(len(table.ids), dtype=np.int64), None
    place = source_units(table.ids, table.groups or ())
    return place, int(place.max()) + 1


def source_units(ids: Sequence[str], groups: Sequence[str]) -> NDArray[np.int64]:
    """Return the source index of each row, `(N,)`. A row without a source gets its video as the source."""
    keys = [f"g:{group}" if group else f"v:{name}" for group, name in zip(groups, ids, strict=True)]
    return np.asarray(np.unique(np.asarray(keys), return_inverse=True)[1], dtype=np.int64)


def source_accuracies(table: ScoreTable) -> list[float]:
    """Return the top-1 accuracy of each source; empty if the sources are unknown or the data set is multi-label."""
    unit, groups = video_sources(table)
    if groups is None or table.targets is not None:
        return []
    return list(np.bincount(unit, table_ranks(table) == 0) / np.bincount(unit))


def difference(first: ScoreTable, second: ScoreTable, level: float = LEVEL) -> Difference:
    """Compare the top-1 accuracy (or mAP) of two joined tables.

    Raises:
        ScoreError: The tables are not joined.
    """
    if first.ids != second.ids:
        raise ScoreError("a paired difference requires joined tables; call `join` first")
    unit = video_sources(first)[0]
    if first.targets is not None:
        one, two = pseudo_values([first.logits, second.logits], first.targets, unit)
        found = estimate_map((one - two)[:, None], unit)
        return Difference(found, found.interval(level), found.p_zero())
    one, two = (
        (ranks(table.logits, table.labels) == 0)[:, None].astype(np.float64) for table in (first, second)
    )
    return difference_of(one, two, Sample.even(unit), level)


def gain(fused: ScoreTable, streams: Sequence[ScoreTable]) -> Interval:
    """Return the difference between a fusion and the best of its streams. The tables must be joined."""

    def test(stream: ScoreTable, level: float) -> Interval:
        return difference(fused, stream, level).interval

    return smallest_gain([partial(test, stream) for stream in streams])


def summarise(table: ScoreTable, *, top: Sequence[int] = TOP_K) -> Summary:
    """Return the metrics of a table with their intervals.

    Raises:
        ScoreError: The table contains no video.
    """
    if not table.ids:
        raise ScoreError(
            f"{table.meta.get('file', 'scores')}: the table contains no videos, so there is no accuracy"
        )
    place = table_ranks(table)
    unit, groups = video_sources(table)
    several = table.targets is not None
    precision, f1 = macro_means(table)
    classes = table.logits.shape[1]
    hits = {k: (place < k).astype(np.float64) for k in {1, *top}}
    return Summary(
        videos=len(table.ids),
        groups=groups,
        top={k: _share(hits[k], Sample.even(unit)) if k == 1 or k < classes else None for k in top},
        mean_class=None if several else _share(hits[1], Sample.by_class(unit, table.labels)),
        precision=precision,
        f1=f1,
        ece=None
        if several or table.meta.get("scale") == "ranking"
        else calibration_error(table.logits, table.labels),
        chance=chance(table),
        map=_map(table, unit) if several else None,
        own=own_metrics(table),
        map_classes=int(table.targets.any(axis=0).sum()) if table.targets is not None else 0,
    )


def own_metrics(table: ScoreTable) -> dict[str, Interval]:
    """Return the metrics that other installed packages define, with jackknife intervals over sources.

    A package declares a metric as an entry point of the group `two_stream.metrics`. The metric is a function of logits
    `(N, K)` and labels `(N,)` (targets `(N, K)` for a multi-label data set) that returns a fraction.

    Raises:
        ScoreError: A metric raises an exception or returns something other than a finite number.
    """
    truth = table.labels if table.targets is None else table.targets
    unit, found = video_sources(table)[0], {}
    for entry in entry_points(group="two_stream.metrics"):
        name = f"metric {entry.name!r} ({entry.value})"
        try:
            measure = entry.load()

            def value(rows: NDArray[np.bool_]) -> float:
                one = float(measure(table.logits[rows], truth[rows]))  # noqa: B023 - called in this iteration
                if not np.isfinite(one):
                    raise ScoreError(f"{name} returned {one}; expected a finite number")  # noqa: B023
                return one

            found[entry.name] = jackknife_interval(value, unit)
        except ScoreError:
            raise
        except Exception as error:
            raise ScoreError(f"{name} failed: {type(error).__name__}: {error}") from error
    return found


def jackknife_interval(measure: Callable[[NDArray[np.bool_]], float], unit: NDArray[np.int64]) -> Interval:
    """Return a metric with its jackknife interval over sources.

    `measure` returns the metric, a fraction, of the rows in a mask `(N,)`. `unit` `(N,)` is the source index of each
    row. With more than a hundred sources, groups of sources are left out.
    """
    unit = unit % _OWN_BLOCKS
    size = int(unit.max()) + 1
    value = measure(np.ones(len(unit), np.bool_))
    left = [measure(unit != one) for one in range(size) if size > 1]
    pseudo = _shifted(value, np.array(left)) if left else np.array([value])
    share = np.bincount(unit) / len(unit)
    return estimate_units(pseudo[:, None], share, MAP_UNITS).share_interval()


def chance(table: ScoreTable) -> float:
    """Return the accuracy of a constant prediction: the fraction of videos of the most frequent class."""
    if table.targets is not None:
        return float(table.targets.mean(axis=0).max())
    return float(np.bincount(table.labels).max() / len(table.labels))


def _share(hits_V: NDArray[np.float64], sample: Sample) -> Interval:
    found = estimate_mean(hits_V[:, None], sample).share_interval()
    if sample.stratum.any() and sample.units_by_stratum.min() < 2:  # a stratum with one source has no spread
        return Interval(found.value, 0.0, 1.0, known=False)
    return found


def _map(table: ScoreTable, unit: NDArray[np.int64]) -> Interval:
    assert table.targets is not None
    (values,) = pseudo_values([table.logits], table.targets, unit)
    return estimate_map(values[:, None], unit).share_interval()


def agreement(first: ScoreTable, second: ScoreTable) -> dict[str, int]:
    """Count the videos predicted correctly by both tables, by only one, or by neither. The tables must be joined."""
    one, two = (table_ranks(table) == 0 for table in (first, second))
    return {
        "both": int((one & two).sum()),
        "only_first": int((one & ~two).sum()),
        "only_second": int((~one & two).sum()),
        "neither": int((~one & ~two).sum()),
    }


def score_gaps(table: ScoreTable) -> NDArray[np.float64]:
    """Return by how much the predicted class's score exceeds the true class's score, `(N,)`."""
    own = np.take_along_axis(table.logits, table.labels[:, None], axis=1)[:, 0]
    if table.targets is not None:
        own = np.where(table.targets, table.logits, -np.inf).max(axis=1)
    return np.asarray(table.logits.max(axis=1) - own, dtype=np.float64)


def confident_mistakes(table: ScoreTable, count: int) -> list[int]:
    """Return the rows of the `count` mistakes with the largest `score_gaps`."""
    gap = score_gaps(table)
    wrong = np.flatnonzero(table_ranks(table) > 0)
    return [int(row) for row in wrong[np.argsort(-gap[wrong], kind="stable")][:count]]


def probabilities(logits: NDArray[np.float64], *, multi_label: bool = False) -> NDArray[np.float64]:
    """Return the softmax over the last axis, or the sigmoid of each class if `multi_label` is true."""
    from scipy.special import expit, softmax  # slow to import

    if multi_label:
        return np.asarray(expit(logits), dtype=np.float64)
    return np.asarray(softmax(logits, axis=-1), dtype=np.float64)


def average_precisions(logits_NK: Scores, targets_NK: Targets) -> NDArray[np.float64]:
    """Return the average precision of each class, `(K,)`; NaN for a class without videos."""
    from sklearn.metrics import average_precision_score  # slow to import, and only needed for several labels

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
    """Return jackknife pseudo-values `(G,)` of the mAP for each array of scores.

    The pseudo-values are shifted so that their mean is the mAP.

    The method is that of the multi-reader analysis of Dorfman, Berbaum and Metz (1992). If there are more than `BLOCKS`
    units, groups of units are left out instead of single units (Kott 2001).

    `tables` are scores `(N, K)`. `unit` `(N,)` is the source index of each video. `count` is the number of units; it is
    required if some units have no video in these tables.
    """
    unit = unit % BLOCKS
    size = min(count or int(unit.max()) + 1, BLOCKS)
    left = reweighted(tables, targets_NK, unit, 1 - np.eye(size, dtype=np.int64))
    values = [mean_average_precision(logits_NK, targets_NK) for logits_NK in tables]
    return [_shifted(value, one) for value, one in zip(values, left, strict=True)]


def _shifted(value: float, left_G: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return jackknife pseudo-values with the mean `value`, from the values with each unit left out."""
    return np.asarray(value - (len(left_G) - 1.0) * (left_G - left_G.mean()))


def estimate_map(values_GS: NDArray[np.float64], unit: NDArray[np.int64]) -> Estimate:
    """Return the mean of `pseudo_values`, or of their differences, with its standard error."""
    return estimate_units(values_GS, np.bincount(unit % BLOCKS) / len(unit), MAP_UNITS)


def reweighted(
    tables: list[Scores], targets_NK: Targets, unit: NDArray[np.int64], weights_RG: NDArray[np.int64]
) -> list[NDArray[np.float64]]:
    """Return the mAP `(R,)` of each array of scores in R repetitions with the integer weights `(R, G)` of the units."""
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
    """Return a function from integer weights `(R, N)` of the videos to the average precision `(R,)` of a class.

    The average precision is the mean of the precision at the scores of the class's videos, where equal scores are
    counted together. The average precision is 0 if no video of the class has a weight.
    """
    order = np.argsort(-scores_N, kind="stable")
    ranked = scores_N[order]
    positives = np.flatnonzero(targets_N[order])
    ends = np.searchsorted(-ranked, -ranked[positives], side="right") - 1  # last position of an equal score
    counted = np.searchsorted(positives, ends, side="right") - 1

    def measure(weights_RN: NDArray[np.float32]) -> NDArray[np.float64]:
        passed_RN = np.cumsum(weights_RN[:, order], axis=1)  # integers, exact in float32
        own = weights_RN[:, order[positives]].astype(np.float64)
        found = np.cumsum(own, axis=1)[:, counted]
        precision = found / np.maximum(passed_RN[:, ends], 1.0)
        return np.asarray((own * precision).sum(axis=1) / np.maximum(own.sum(axis=1), 1.0))

    return measure
