"""Metrics of bouts: values computed by hand, and a slow computation from sets of frames."""

from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from scipy.stats import t

from two_stream.data.bouts import Bout, merge_bouts
from two_stream.evaluation.scores.timeline_metrics import (
    MAP_OVERLAPS,
    SEGMENT_OVERLAPS,
    average_precision,
    class_values,
    count_recording,
    edit_score,
    segment_counts,
    summarise_timeline,
    timeline_values,
)

CLASSES = ["cut", "pour", "stir"]


def bouts(text: str) -> list[Bout]:
    """Return bouts from text such as `cut 0-4, pour 6-8 0.9`."""
    made = []
    for part in text.split(","):
        name, span, *confidence = part.split()
        start, end = map(float, span.split("-"))
        made.append(Bout(start, end, name, *map(float, confidence)))
    return made


def frames(found: list[Bout], count: int) -> np.ndarray:
    labels = np.full(count, -1)
    for bout in found:
        labels[int(bout.start) : int(bout.end)] = CLASSES.index(bout.name)
    return labels


def counted(truth: list[Bout], found: list[Bout], count: int = 100):
    return count_recording(truth, found, frames(truth, count), frames(found, count), CLASSES)


def test_segmental_f1_by_hand() -> None:
    truth, found = bouts("cut 0-10, pour 20-30"), bouts("cut 0-4, cut 5-10, pour 25-45, stir 60-61")
    # IoU: 4/10, 5/10, 5/25 = 0.2; the second cut meets a bout that is already matched
    assert segment_counts(truth, found, 0.10) == (2, 2, 0)
    assert segment_counts(truth, found, 0.25) == (1, 3, 1)
    assert segment_counts(truth, found, 0.50) == (1, 3, 1)  # now the second cut is the match
    assert segment_counts(truth, found, 0.51) == (0, 4, 2)
    values = timeline_values([counted(truth, found)])
    assert values["f1@10"] == pytest.approx(2 * 2 / (4 + 2))
    assert values["f1@50"] == pytest.approx(2 * 1 / (4 + 2))


def test_frame_f1_edit_and_map_by_hand() -> None:
    truth, found = (
        bouts("cut 0-10, pour 20-30"),
        bouts("cut 0-5 0.9, cut 15-20 0.8, pour 20-30 0.7, cut 50-60 0.95"),
    )
    values = timeline_values([counted(truth, found)])
    # cut: 5 of 10 true frames, 20 predicted; pour: all. `stir` does not occur
    assert values["frame_f1"] == pytest.approx((2 * 5 / (10 + 20) + 1) / 2)
    assert values["edit"] == pytest.approx(1 - 2 / 4)  # cut pour against cut cut pour cut
    # cut: false at 0.95, true at 0.9 (IoU 0.5), false at 0.8: precision 1/2 at recall 1
    assert values["map@0.5"] == pytest.approx((0.5 + 1) / 2)
    assert values["map@0.6"] == pytest.approx((0 + 1) / 2)
    assert values["map"] == pytest.approx((3 * 0.75 + 2 * 0.5) / 5)


def test_edit_distance_by_hand() -> None:
    assert edit_score(list("abc"), list("abc")) == 1
    assert edit_score(list("kitten"), list("sitting")) == pytest.approx(1 - 3 / 7)
    assert edit_score([], list("ab")) == 0
    assert edit_score([], []) == 1


def test_average_precision_by_hand() -> None:
    hits = np.asarray([True, False, True, False, True])
    # precision 1, 2/3, 3/5 at the three hits; one of four true bouts is never found
    found = average_precision(np.asarray([0.9, 0.8, 0.7, 0.6, 0.5]), hits, 4)
    assert found == pytest.approx((1 + 2 / 3 + 3 / 5) / 4)
    # interpolation: the precision 1/2 at the first hit becomes the 2/3 of the second
    assert average_precision(np.asarray([3, 2, 1.0]), np.asarray([False, True, True]), 2) == pytest.approx(
        2 / 3
    )


def test_a_detection_takes_the_next_best_bout() -> None:
    truth = bouts("cut 0-10, cut 11-21")
    found = bouts(
        "cut 0-10 0.9, cut 1-15 0.8"
    )  # IoU 9/15 with the first, which is taken, and 4/20 with the second
    assert counted(truth, found).detections[0][1].tolist() == [[True] * 5, [False] * 5]
    found = bouts("cut 0-10 0.9, cut 4-18 0.8")  # 6/18 and 7/17
    assert counted(truth, found).detections[0][1][1].tolist() == [True, True, False, False, False]


def test_nothing_to_find_and_nothing_found_is_right() -> None:
    assert set(timeline_values([counted([], [])]).values()) == {1.0}
    wrong = timeline_values([counted([], bouts("cut 0-5"))])
    assert set(wrong.values()) == {0.0}
    assert set(timeline_values([counted(bouts("cut 0-5"), [])]).values()) == {0.0}


def test_touching_bouts_of_a_class_are_one() -> None:
    assert merge_bouts(bouts("cut 5-8, cut 0-5, pour 8-9")) == bouts("cut 0-8, pour 8-9")
    assert timeline_values([counted(bouts("cut 0-5, cut 5-8"), bouts("cut 0-8"))])["edit"] == 1


@cache
def levenshtein(a: tuple, b: tuple) -> int:
    if not a or not b:
        return len(a) + len(b)
    if a[0] == b[0]:
        return levenshtein(a[1:], b[1:])
    return 1 + min(levenshtein(a[1:], b), levenshtein(a, b[1:]), levenshtein(a[1:], b[1:]))


def slow(recordings: list[tuple[list[Bout], list[Bout]]]) -> dict[str, float]:
    """Compute the metrics from sets of frame numbers, one decision at a time."""

    def cells(bout: Bout) -> set[int]:
        return set(range(int(bout.start), int(bout.end)))

    def iou(a: Bout, b: Bout) -> float:
        return len(cells(a) & cells(b)) / len(cells(a) | cells(b)) if a.name == b.name else 0.0

    values = {}
    f1s = []
    for name in CLASSES:
        tp = fp = fn = 0
        for truth, found in recordings:
            true, made = (set().union(*(cells(b) for b in side if b.name == name)) for side in (truth, found))
            tp, fp, fn = tp + len(true & made), fp + len(made - true), fn + len(true - made)
        if tp + fn:
            f1s.append(2 * tp / (2 * tp + fp + fn))
    values["frame_f1"] = sum(f1s) / len(f1s)
    for least in SEGMENT_OVERLAPS:
        tp = fp = fn = 0
        for truth, found in recordings:
            free = list(truth)
            for bout in found:
                best = max(truth, key=lambda true: iou(bout, true), default=None)
                if best is not None and best in free and iou(bout, best) >= least:
                    free.remove(best)
                    tp += 1
                else:
                    fp += 1
            fn += len(free)
        values[f"f1@{100 * least:.0f}"] = 2 * tp / (2 * tp + fp + fn)
    edits = []
    for truth, found in recordings:
        a, b = (tuple(bout.name for bout in side) for side in (truth, found))
        edits.append(1 - levenshtein(a, b) / max(len(a), len(b)) if a or b else 1.0)
    values["edit"] = sum(edits) / len(edits)
    for least in MAP_OVERLAPS:
        precisions = []
        for name in CLASSES:
            true = [(r, b) for r, (truth, _) in enumerate(recordings) for b in truth if b.name == name]
            made = [(r, b) for r, (_, found) in enumerate(recordings) for b in found if b.name == name]
            if not true:
                continue
            free, curve, hits = list(true), [], 0
            for place, (r, bout) in enumerate(sorted(made, key=lambda one: -one[1].confidence), 1):
                best = max(
                    (one for one in free if one[0] == r), key=lambda one: iou(bout, one[1]), default=None
                )
                if best is not None and iou(bout, best[1]) >= least:
                    free.remove(best)
                    hits += 1
                curve.append((hits, hits / place))
            area = sum(max((p for h, p in curve if h >= n), default=0) for n in range(1, len(true) + 1))
            precisions.append(area / len(true))
        values[f"map@{least:g}"] = sum(precisions) / len(precisions)
    values["map"] = sum(values[f"map@{least:g}"] for least in MAP_OVERLAPS) / len(MAP_OVERLAPS)
    return values


def random_side(generator: np.random.Generator) -> list[Bout]:
    labels = np.repeat(generator.integers(-1, 3, 12), generator.integers(1, 12, 12))
    starts = [0, *(np.flatnonzero(np.diff(labels)) + 1).tolist(), len(labels)]
    spans = [(a, b) for a, b in pairwise(starts) if labels[a] >= 0]
    return [Bout(float(a), float(b), CLASSES[labels[a]], float(generator.random())) for a, b in spans]


def test_equals_a_slow_computation() -> None:
    generator = np.random.default_rng(0)
    for _ in range(40):
        recordings = []
        for _ in range(3):
            truth = random_side(generator)
            shift = int(generator.integers(0, 4))  # similar to the truth, so that there are matches
            near = [Bout(b.start + shift, b.end + shift, b.name, float(generator.random())) for b in truth]
            recordings.append((truth, near if generator.random() < 0.6 else random_side(generator)))
        found = timeline_values([counted(*one, count=200) for one in recordings])
        expected = slow(recordings)
        assert found == pytest.approx(expected, abs=1e-12), expected


def test_values_of_classes() -> None:
    found = class_values([counted(bouts("cut 0-10"), bouts("cut 0-5 0.5, stir 5-10"))])
    assert found[0] == pytest.approx([2 * 5 / 15, 1, 1, 1, 0, 0])
    assert np.isnan(found[1:]).all()


def test_intervals_are_jackknife_intervals_over_sources() -> None:
    ends = np.linspace(3, 10, 12)
    counts = [counted(bouts("cut 0-10"), bouts(f"cut 0-{end:.0f}")) for end in ends]
    unit = np.arange(12)
    found = summarise_timeline(counts, unit)["frame_f1"]
    value = timeline_values(counts)["frame_f1"]
    left = [timeline_values([c for j, c in enumerate(counts) if j != i])["frame_f1"] for i in range(12)]
    variance = 11 / 12 * np.sum((np.asarray(left) - np.mean(left)) ** 2) * 12 / 11
    square = t.ppf(0.975, 11) ** 2
    trials = value * (1 - value) / variance  # Wilson's interval with this number of trials
    middle = (value + square / (2 * trials)) / (1 + square / trials)
    half = np.sqrt(square * (value * (1 - value) / trials + square / (4 * trials**2))) / (1 + square / trials)
    assert (found.value, found.low, found.high) == pytest.approx((value, middle - half, middle + half))
    assert not summarise_timeline(counts, unit // 2)["frame_f1"].known  # six sources are too few
