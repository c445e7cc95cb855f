"""Metrics of predicted bouts in long recordings: frame F1, segmental F1, edit score and mAP at temporal IoU.

All values are fractions from 0 to 1. Background is never a class. If neither the truth nor the prediction contains a
bout, a value is 1. True bouts of a class that touch count as one bout, as in labels of frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from two_stream.data.bouts import Bout, merge_bouts
from two_stream.evaluation.scores.metrics import jackknife_interval
from two_stream.evaluation.scores.statistics import Interval

SEGMENT_OVERLAPS = (0.10, 0.25, 0.50)
"""IoU thresholds of the segmental F1"""
MAP_OVERLAPS = (0.3, 0.4, 0.5, 0.6, 0.7)
"""temporal IoU thresholds of the mAP, as for THUMOS'14 (Idrees et al. 2016, arXiv 1604.06182)"""
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class RecordingCounts:
    """What the metrics need to know about one recording."""

    frames: Counts
    """true positives, false positives and false negatives of each class, in frames, `(K, 3)`"""
    segments: Counts
    """the same of the bouts of all classes, for each of `SEGMENT_OVERLAPS`, `(3, 3)`"""
    edit: float
    """edit score"""
    truths: Counts
    """number of true bouts of each class, `(K,)`"""
    detections: list[tuple[NDArray[np.float64], NDArray[np.bool_]]]
    """for each class, the confidences `(P,)` of the predicted bouts in descending order, and whether they are true
    positives at each of `MAP_OVERLAPS`, `(P, 5)`"""


def count_recording(
    truth: Sequence[Bout],
    found: Sequence[Bout],
    truth_N: NDArray[np.int64],
    found_N: NDArray[np.int64],
    classes: Sequence[str],
) -> RecordingCounts:
    """Compare the predicted bouts and frames of a recording with the true ones.

    Args:
        truth: True bouts.
        found: Predicted bouts, in order of time.
        truth_N: Index of the true class of each frame, -1 for background.
        found_N: Index of the predicted class of each frame, -1 for background.
        classes: The classes without background.
    """
    truth = merge_bouts(truth)
    by_class = [([t for t in truth if t.name == k], [f for f in found if f.name == k]) for k in classes]
    detections = []
    for true, made in by_class:
        ranked = sorted(made, key=lambda bout: -bout.confidence)
        detections.append((np.asarray([bout.confidence for bout in ranked]), _detected(true, ranked)))
    return RecordingCounts(
        frame_counts(truth_N, found_N, len(classes)),
        np.asarray([segment_counts(truth, found, overlap) for overlap in SEGMENT_OVERLAPS]),
        edit_score([bout.name for bout in truth], [bout.name for bout in found]),
        np.asarray([len(true) for true, _ in by_class]),
        detections,
    )


def frame_counts(truth_N: NDArray[np.int64], found_N: NDArray[np.int64], classes: int) -> Counts:
    """Return true positives, false positives and false negatives of each class in frames, `(K, 3)`."""
    true, made, both = (
        np.bincount(labels[labels >= 0], minlength=classes)
        for labels in (truth_N, found_N, np.where(truth_N == found_N, truth_N, -1))
    )
    return np.stack([both, made - both, true - both], axis=1)


def overlaps(bout: Bout, others: Sequence[Bout]) -> NDArray[np.float64]:
    """Return the temporal intersection over union of a bout with each of the others, `(N,)`."""
    start, end = (np.asarray([getattr(other, key) for other in others]) for key in ("start", "end"))
    shared = np.maximum(0.0, np.minimum(end, bout.end) - np.maximum(start, bout.start))
    return np.asarray(shared / (end - start + bout.end - bout.start - shared))


def segment_counts(truth: Sequence[Bout], found: Sequence[Bout], overlap: float) -> tuple[int, int, int]:
    """Return true positives, false positives and false negatives of bouts, for the segmental F1.

    A predicted bout is compared with the true bout of its class that it overlaps most. It is a true positive if their
    IoU is at least `overlap` and no earlier bout was matched with this true bout (Lea et al. 2017, arXiv 1611.05267; as
    in the code of MS-TCN, Farha and Gall 2019, arXiv 1903.01945). `truth` and `found` are in order of time.
    """
    matched: set[int] = set()
    for bout in found:
        shared = [(index, true) for index, true in enumerate(truth) if true.name == bout.name]
        if shared:
            iou = overlaps(bout, [true for _, true in shared])
            best = int(iou.argmax())
            if iou[best] >= overlap:
                matched.add(shared[best][0])
    return len(matched), len(found) - len(matched), len(truth) - len(matched)


def edit_score(truth: Sequence[str], found: Sequence[str]) -> float:
    """Return 1 - the Levenshtein distance of two sequences of classes / the length of the longer one.

    The score checks the order of the bouts but not their times (Lea et al. 2017, arXiv 1611.05267).
    """
    if not truth and not found:
        return 1.0
    row = list(range(len(found) + 1))
    for place, name in enumerate(truth, 1):
        before, row = row, [place]
        for index, other in enumerate(found, 1):
            row.append(min(before[index] + 1, row[-1] + 1, before[index - 1] + (name != other)))
    return 1 - row[-1] / max(len(truth), len(found))


def _detected(truth: Sequence[Bout], ranked: Sequence[Bout]) -> NDArray[np.bool_]:
    """Return whether each predicted bout of a class is a true positive at each of `MAP_OVERLAPS`, `(P, 5)`.

    The most confident bout is matched first, with the true bout of the highest IoU that is not matched yet.
    """
    hits = np.zeros((len(ranked), len(MAP_OVERLAPS)), np.bool_)
    iou_PG = [overlaps(bout, truth) for bout in ranked]
    for column, least in enumerate(MAP_OVERLAPS):
        matched: set[int] = set()
        for row, iou in enumerate(iou_PG):
            order = (int(index) for index in np.argsort(-iou, kind="stable"))
            best = next((index for index in order if index not in matched), None)
            if best is not None and iou[best] >= least:
                matched.add(best)
                hits[row, column] = True
    return hits


def average_precision(confidence_P: NDArray[np.float64], hit_P: NDArray[np.bool_], truths: int) -> float:
    """Return the interpolated average precision of detections, as in the evaluation code of ActivityNet.

    The precision at a recall is the highest precision at this or a higher recall (Ghanem et al. 2017, "ActivityNet
    Challenge 2017 Summary", arXiv 1710.08011). `hit_P` says which detections are true positives.
    """
    hit_P = hit_P[np.argsort(-confidence_P, kind="stable")]
    precision = np.cumsum(hit_P) / np.arange(1, len(hit_P) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    return float(best[hit_P].sum() / truths)


def f1_of(counts: Any) -> NDArray[np.float64]:
    """Return 2 TP / (2 TP + FP + FN) for counts `(…, 3)` of TP, FP and FN; 1 if all counts are 0."""
    tp, fp, fn = np.moveaxis(np.asarray(counts, np.float64), -1, 0)
    total = 2 * tp + fp + fn
    return np.where(total > 0, 2 * tp / np.maximum(total, 1), 1.0)


def class_values(counts: Sequence[RecordingCounts]) -> NDArray[np.float64]:
    """Return the frame F1 and the average precision at each of `MAP_OVERLAPS` of each class, `(K, 6)`.

    The average precision of a class without true bouts, and the frame F1 of a class without true frames, are NaN.
    """
    frames = np.sum([one.frames for one in counts], axis=0)
    truths = np.sum([one.truths for one in counts], axis=0)
    values = np.full((len(frames), 1 + len(MAP_OVERLAPS)), np.nan)
    occurs = frames[:, 0] + frames[:, 2] > 0
    values[occurs, 0] = f1_of(frames[occurs])
    for label in np.flatnonzero(truths):
        confidence = np.concatenate([one.detections[label][0] for one in counts])
        hits = np.concatenate([one.detections[label][1] for one in counts])
        values[label, 1:] = [average_precision(confidence, hit, int(truths[label])) for hit in hits.T]
    return values


def timeline_values(counts: Sequence[RecordingCounts]) -> dict[str, float]:
    """Return the metrics of recordings.

    `frame_f1` is the mean over the classes that occur. `f1@10`, `f1@25` and `f1@50` count the bouts of all classes and
    recordings together. `edit` is the mean over recordings. `map@0.3` … `map@0.7` are means over the classes that
    occur, and `map` is the mean of these values.
    """
    values = class_values(counts)
    empty = float(not sum(one.segments.sum() for one in counts))  # neither true nor predicted bouts
    means = [
        float(column[~np.isnan(column)].mean()) if (~np.isnan(column)).any() else empty for column in values.T
    ]
    segments = f1_of(np.sum([one.segments for one in counts], axis=0))
    return {
        "frame_f1": means[0],
        **{f"f1@{100 * iou:.0f}": float(f1) for iou, f1 in zip(SEGMENT_OVERLAPS, segments, strict=True)},
        "edit": float(np.mean([one.edit for one in counts])),
        "map": float(np.mean(means[1:])),
        **{f"map@{iou:g}": value for iou, value in zip(MAP_OVERLAPS, means[1:], strict=True)},
    }


def summarise_timeline(counts: Sequence[RecordingCounts], unit: NDArray[np.int64]) -> dict[str, Interval]:
    """Return `timeline_values` with jackknife intervals; `unit` is the index of each recording's source, `(R,)`."""

    def value(key: str, rows: NDArray[np.bool_]) -> float:
        return timeline_values([one for one, kept in zip(counts, rows, strict=True) if kept])[key]

    return {
        key: jackknife_interval(lambda rows, key=key: value(key, rows), unit)  # type: ignore[misc]
        for key in timeline_values(counts)
    }
