"""Class-balanced sampling: frequencies, what the order depends on, and clips of repeated videos."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from two_stream.data.clips.loader import balanced_order, class_counts
from two_stream.types import VideoRecord

RARE = [VideoRecord(f"v{i}", 10, 1 if i < 5 else 0) for i in range(100)]


def test_every_class_is_drawn_as_often() -> None:
    labels = Counter(RARE[i % 100].label for epoch in range(100) for i in balanced_order(RARE, 0, epoch))
    assert labels[1] / 10_000 == pytest.approx(0.5, abs=0.02)
    videos = Counter(i % 100 for epoch in range(100) for i in balanced_order(RARE, 0, epoch))
    assert np.ptp([videos[i] for i in range(5)]) < 200, "videos of a class are alike"


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    assert balanced_order(RARE, 3, 4) == balanced_order(list(RARE), 3, 4)
    assert balanced_order(RARE, 3, 4) != balanced_order(RARE, 3, 5)
    assert balanced_order(RARE, 3, 4) != balanced_order(RARE, 4, 4)


def test_no_draw_of_an_epoch_repeats_another() -> None:
    order = balanced_order(RARE, 0, 0)
    assert len(order) == len(set(order)) == 100
    assert max(order) >= 100, "a rare video is drawn several times, so its later draws count on"


def test_a_video_of_several_classes_counts_in_each() -> None:
    several = [VideoRecord("a", 10, 0, labels=(0, 2)), VideoRecord("b", 10, 2, labels=(2,))]
    assert class_counts(several, 4) == (1, 0, 2, 0)
    drawn = Counter(i % 2 for epoch in range(2000) for i in balanced_order(several, 0, epoch))
    assert drawn[0] / 4000 == pytest.approx(0.75 / 1.25, abs=0.03)
