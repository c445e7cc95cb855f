"""Scoring: the views of every video through a network, and each video's logits averaged over its views."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import log_expit, log_softmax, logsumexp
from torch import nn

from two_stream.errors import ScoreError, SettingsError
from two_stream.evaluation.scoring.batching import Canvas, VideoProgress, scored_views
from two_stream.runtime import distributed
from two_stream.runtime.console import progress
from two_stream.runtime.precision import resolve_precision
from two_stream.types import VideoViews

AGGREGATES = ("logits", "probabilities", "sigmoids")


class VideoScores(NamedTuple):
    """What `score_videos` returns, in the order the videos came."""

    ids: list[str]
    labels: NDArray[np.int64]
    """`(N,)`"""
    logits: NDArray[np.float64]
    """`(N, K)`: mean of the views' logits, or the logarithm of the mean of their probabilities"""
    view_logits: NDArray[np.float32] | None
    """`(sum of V, K)` when kept"""
    counts: NDArray[np.int64]
    """`(N,)` views of each video"""


def aggregate_views(view_logits_VK: NDArray[np.floating], aggregate: str = "logits") -> NDArray[np.float64]:
    """Return one vector `(K,)` for the views of a video, computed in float64.

    `logits`: their mean (the paper's). `probabilities`: the logarithm of the mean of softmax over views, so that
    argmax, fusion and calibration read it like any other logits: its softmax is that mean. `sigmoids`: the same for
    classes that do not exclude each other; the sigmoid of the result is the mean of the views' sigmoids.

    Raises:
        SettingsError: Another `aggregate`.
    """
    values = np.asarray(view_logits_VK, dtype=np.float64)
    if aggregate == "logits":
        return np.asarray(values.mean(axis=0), dtype=np.float64)
    if aggregate == "probabilities":
        mean = logsumexp(log_softmax(values, axis=1), axis=0) - np.log(len(values))
        return np.asarray(mean, dtype=np.float64)
    if aggregate == "sigmoids":
        yes, no = (logsumexp(log_expit(sign * values), axis=0) for sign in (1.0, -1.0))
        return np.asarray(yes - no, dtype=np.float64)
    raise SettingsError(f"unknown aggregate {aggregate!r}; known: {', '.join(AGGREGATES)}")


def score_videos(
    model: nn.Module,
    loader: Iterable[VideoViews],
    *,
    device: torch.device,
    precision: str = "fp32",
    batch_views: int = 16,
    aggregate: str = "logits",
    keep_views: bool = False,
    total: int | None = None,
) -> VideoScores:
    """Score every video of a loader.

    Views of neighbouring videos share batches, so that every forward pass but the last has `batch_views` clips, however
    many views a video has. What waits in memory is the batch and the frames of one chunk, whatever a video's length.

    Args:
        model: A recognizer, or what `ready` makes of it; or anything that maps uint8 `(B, C, T, H, W)` to logits
            `(B, K)`. Put into evaluation mode and back.
        loader: The `VideoViews` of each video, one or several. A video of which some are missing is left out if the
            loader has listed it among its `skipped`.
        device: Where the model is.
        precision: fp32, bf16 or fp16 autocast; `auto` as the device can.
        batch_views: Views per forward pass.
        aggregate: What is averaged over views: see `aggregate_views`.
        keep_views: Return the logits of every view too.
        total: Number of videos, for the progress display.

    Raises:
        ScoreError: A video comes without views, incomplete or twice, or its logits are not finite; names it.
        SettingsError: Unknown aggregate.
    """
    videos: dict[str, VideoProgress] = {}
    training = model.training
    model.eval()
    canvas = Canvas(model, device, resolve_precision(precision, device), batch_views)
    try:
        complete = scored_views(loader, videos, canvas)
        scores = collected(complete, aggregate=aggregate, keep_views=keep_views, total=total)
    finally:
        model.train(training)
    check_incomplete(videos.values(), loader)
    return scores


def collected(
    complete: Iterable[VideoProgress], *, aggregate: str, keep_views: bool, total: int | None = None
) -> VideoScores:
    """Average each video's logits over its views as it becomes complete, with a progress display.

    Raises:
        SettingsError: Unknown aggregate.
    """
    if aggregate not in AGGREGATES:
        raise SettingsError(f"unknown aggregate {aggregate!r}; known: {', '.join(AGGREGATES)}")
    whole: list[VideoProgress] = []
    means: dict[str, NDArray[np.float64]] = {}
    with progress("scoring", total) as advance:
        for video in complete:
            means[video.id] = aggregate_views(video.logits, aggregate)
            if not keep_views:
                video.logits = np.zeros((0, 0), np.float32)
            whole.append(video)
            advance()
    if not whole:
        return VideoScores([], np.zeros(0, np.int64), np.zeros((0, 0)), None, np.zeros(0, np.int64))
    return VideoScores(
        ids=[video.id for video in whole],
        labels=np.asarray([video.label for video in whole], dtype=np.int64),
        logits=np.stack([means[video.id] for video in whole]),
        view_logits=np.concatenate([video.logits for video in whole]) if keep_views else None,
        counts=np.asarray([video.views for video in whole], dtype=np.int64),
    )


def check_incomplete(videos: Iterable[VideoProgress], loader: Iterable[VideoViews]) -> None:
    """Refuse videos of which views are missing though their loader has not listed them among its `skipped`.

    Raises:
        ScoreError: Names the first.
    """
    skipped = {name for name, _ in getattr(loader, "skipped", [])}
    for video in videos:
        if not video.complete and video.id not in skipped:
            raise ScoreError(
                f"{video.id}: only {video.seen} of its {video.clips} clips came, so it cannot be scored"
            )


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
