"""Scores of several processes put together: each video was scored by exactly one of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from two_stream.errors import ScoreError
from two_stream.evaluation.scoring.score import VideoScores
from two_stream.runtime import distributed

Skipped = list[tuple[str, str]]
"""(id, reason) of the videos that could not be read."""


def gathered(scores: VideoScores, skipped: Skipped, order: Sequence[str]) -> tuple[VideoScores, Skipped]:
    """Return what all processes scored, in the order given, on the main one; on the others what they have.

    Args:
        scores: This process's videos.
        skipped: Those of its videos that could not be read.
        order: Ids of all videos.

    Raises:
        ScoreError: Another process has gone, or two have scored the same video.
    """
    try:
        parts = distributed.gather_objects((scores, list(skipped)))
    except RuntimeError as error:
        if not distributed.is_peer_failure(error):
            raise
        raise ScoreError("another process of this evaluation has stopped; its own message says why") from None
    if parts is None:
        return scores, skipped
    return merged([part for part, _ in parts], order), [entry for _, listed in parts for entry in listed]


def merged(parts: Sequence[VideoScores], order: Sequence[str]) -> VideoScores:
    """Join the scores of disjoint sets of videos.

    Args:
        parts: Their scores; a part may be empty.
        order: Ids of all videos, in the order wanted; those in no part are left out.

    Raises:
        ScoreError: A video stands in two parts, or in none of the `order`.
    """
    held = [part for part in parts if part.ids]
    if len(parts) == 1 or not held:
        return parts[0]
    ids = [name for part in held for name in part.ids]
    place = {name: row for row, name in enumerate(ids)}
    if len(place) < len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        raise ScoreError(f"{twice}: two processes scored this video; its id must be unique in the split list")
    rows = [place[name] for name in order if name in place]
    if len(rows) < len(ids):
        strange = next(name for name in ids if name not in set(order))
        raise ScoreError(f"{strange}: a process scored this video, but it is not in the split list")
    counts = np.concatenate([part.counts for part in held])
    return VideoScores(
        ids=[ids[row] for row in rows],
        labels=np.concatenate([part.labels for part in held])[rows],
        logits=np.concatenate([part.logits for part in held])[rows],
        view_logits=_views(held, counts, rows),
        counts=counts[rows],
    )


def _views(
    parts: Sequence[VideoScores], counts: NDArray[np.int64], rows: Sequence[int]
) -> NDArray[np.float32] | None:
    blocks = [part.view_logits for part in parts if part.view_logits is not None]
    if len(blocks) < len(parts):
        return None
    joined = np.concatenate(blocks)
    ends = np.cumsum(counts)
    return np.concatenate([joined[ends[row] - counts[row] : ends[row]] for row in rows])
