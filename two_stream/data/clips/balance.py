"""Class-balanced sampling: an epoch in which every class is as likely as any other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from two_stream.runtime.seeding import rng
from two_stream.types import VideoRecord


def balanced_order(records: Sequence[VideoRecord], seed: int, epoch: int) -> list[int]:
    """Return as many draws with replacement as there are videos; it depends on seed and epoch alone.

    A video is drawn with a probability inverse to the size of its class (the mean over its classes, where it has
    several). The second draw of video i in an epoch is `i + len(records)`, the third `i + 2 * len(records)`, so that
    each has a clip and augmentation of its own.
    """
    counts = Counter(label for record in records for label in record.all_labels)
    share = np.array([np.mean([1.0 / counts[label] for label in record.all_labels]) for record in records])
    drawn = rng("order", seed, epoch).choice(len(records), size=len(records), p=share / share.sum())
    seen: Counter[int] = Counter()
    order = []
    for index in map(int, drawn):
        order.append(index + seen[index] * len(records))
        seen[index] += 1
    return order


def class_counts(records: Sequence[VideoRecord], num_classes: int) -> tuple[int, ...]:
    """Return the videos of each class; one with several classes counts in each."""
    counts = Counter(label for record in records for label in record.all_labels)
    return tuple(counts[label] for label in range(num_classes))
