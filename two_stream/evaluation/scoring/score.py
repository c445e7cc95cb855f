"""Scores the views of every video with a network, and averages each video's logits over its views."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import log_expit, log_softmax, logsumexp
from torch import nn

from two_stream.errors import ScoreError, SettingsError
from two_stream.evaluation.scores.files import view_rows
from two_stream.evaluation.scoring.batching import Canvas, VideoProgress, scored_views
from two_stream.evaluation.scoring.network import evaluation_mode
from two_stream.runtime import distributed
from two_stream.runtime.console import progress
from two_stream.runtime.precision import resolve_precision
from two_stream.types import VideoViews

AGGREGATES = ("logits", "probabilities", "sigmoids")


class VideoScores(NamedTuple):
    """Scores of videos, in the order of the loader."""

    ids: list[str]
    labels: NDArray[np.int64]
    """`(N,)`"""
    logits: NDArray[np.float64]
    """`(N, K)`: aggregated over views, see `aggregate_views`"""
    view_logits: NDArray[np.float32] | None
    """`(sum of V, K)`, with `keep_views`"""
    counts: NDArray[np.int64]
    """`(N,)`: number of views of each video"""


def aggregate_views(view_logits_VK: NDArray[np.floating], aggregate: str = "logits") -> NDArray[np.float64]:
    """Return one vector `(K,)` for the views of a video, computed in float64.

    `logits`: mean of logits, as in the paper. `probabilities`: logarithm of the mean softmax, which can be used like
    logits: its softmax is that mean. `sigmoids`: the same for multi-label classes: the sigmoid of the result is the
    mean sigmoid.

    Raises:
        SettingsError: Unknown `aggregate`.
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
    raise SettingsError(f"unknown aggregate {aggregate!r}; expected one of: {', '.join(AGGREGATES)}")


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

    Views of neighbouring videos share batches, so every forward pass but the last has `batch_views` clips. Memory holds
    the batch and the frames of one chunk, however long a video is.

    Args:
        model: A recognizer, the result of `prepare_for_inference`, or a module that maps uint8 `(B, C, T, H, W)` to
            logits `(B, K)`.
        loader: `VideoViews` of each video, in one or several chunks. An incomplete video is left out if the loader has
            it in its `skipped`.
        device: Device of the model.
        precision: fp32, bf16 or fp16 autocast; `auto`: depends on the device.
        batch_views: Views per forward pass.
        aggregate: See `aggregate_views`.
        keep_views: Return the logits of every view too.
        total: Number of videos, for the progress display.

    Raises:
        ScoreError: A video has no views, is incomplete or comes twice, or its logits are not finite; names the video.
        SettingsError: Unknown aggregate.
    """
    videos: dict[str, VideoProgress] = {}
    canvas = Canvas(model, device, resolve_precision(precision, device), batch_views)
    with evaluation_mode(model):
        complete = scored_views(loader, videos, canvas)
        scores = collect_scores(complete, aggregate=aggregate, keep_views=keep_views, total=total)
    check_incomplete(videos.values(), loader)
    return scores


def collect_scores(
    complete: Iterable[VideoProgress], *, aggregate: str, keep_views: bool, total: int | None = None
) -> VideoScores:
    """Average the logits of each complete video over its views, with a progress display."""
    if aggregate not in AGGREGATES:
        raise SettingsError(f"unknown aggregate {aggregate!r}; expected one of: {', '.join(AGGREGATES)}")
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
    """Check that all videos are complete, except those that the loader has skipped.

    Raises:
        ScoreError: A video is incomplete; names the first.
    """
    skipped = {name for name, _ in getattr(loader, "skipped", [])}
    for video in videos:
        if not video.complete and video.id not in skipped:
            raise ScoreError(
                f"{video.id}: only {video.seen} of its {video.clips} clips were read, so it cannot be scored"
            )


Skipped = list[tuple[str, str]]
"""(id, reason) of the videos that could not be read."""


def gather_scores(scores: VideoScores, skipped: Skipped, order: Sequence[str]) -> tuple[VideoScores, Skipped]:
    """Return the scores of all processes on the main process, and a process's own scores on the others.

    `skipped` are videos of this process that could not be read, `order` has the ids of all videos.

    Raises:
        ScoreError: Another process has exited, or two processes have scored the same video.
    """
    try:
        parts = distributed.gather_objects((scores, list(skipped)))
    except RuntimeError as error:
        if not distributed.is_peer_failure(error):
            raise
        raise ScoreError(
            "another process of this evaluation has stopped; see that process's error message"
        ) from None
    if parts is None:
        return scores, skipped
    return merge_scores([part for part, _ in parts], order), [
        entry for _, listed in parts for entry in listed
    ]


def merge_scores(parts: Sequence[VideoScores], order: Sequence[str]) -> VideoScores:
    """Join the scores of disjoint sets of videos.

    Parts may be empty. `order` has the ids of all videos in the order of the result; ids without scores are left out.

    Raises:
        ScoreError: A video is in two parts, or not in `order`.
    """
    held = [part for part in parts if part.ids]
    if len(parts) == 1 or not held:
        return parts[0]
    ids = [name for part in held for name in part.ids]
    place = {name: row for row, name in enumerate(ids)}
    if len(place) < len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        raise ScoreError(f"{twice}: two processes scored this video; ids must be unique in the split list")
    rows = [place[name] for name in order if name in place]
    if len(rows) < len(ids):
        strange = next(name for name in ids if name not in set(order))
        raise ScoreError(f"{strange}: a process scored this video, but it is not in the split list")
    counts = np.concatenate([part.counts for part in held])
    views = [part.view_logits for part in held if part.view_logits is not None]
    return VideoScores(
        ids=[ids[row] for row in rows],
        labels=np.concatenate([part.labels for part in held])[rows],
        logits=np.concatenate([part.logits for part in held])[rows],
        view_logits=view_rows(np.concatenate(views), counts, rows) if len(views) == len(held) else None,
        counts=counts[rows],
    )
