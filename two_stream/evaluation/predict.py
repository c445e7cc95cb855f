"""Scoring: views of many videos packed into full batches, and each video's logits averaged over its views."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax, logsumexp
from torch import nn

from two_stream.errors import ScoreError, SettingsError
from two_stream.runtime.console import progress
from two_stream.runtime.device import autocast
from two_stream.types import VideoViews

AGGREGATES = ("logits", "probabilities")


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


@dataclass
class _Video:
    """A video on its way: its views are scored in as many batches as it takes, then it is complete."""

    id: str
    label: int
    views: int
    scored: int = 0
    blocks: list[NDArray[np.float32]] = field(default_factory=list)


def aggregate_views(view_logits_VK: NDArray[np.floating], aggregate: str = "logits") -> NDArray[np.float64]:
    """Return one vector `(K,)` for the views of a video, computed in float64.

    `logits`: their mean (the paper's). `probabilities`: the logarithm of the mean of softmax over views, so that
    argmax, fusion and calibration read it like any other logits: its softmax is that mean.

    Raises:
        SettingsError: Another `aggregate`.
    """
    values = np.asarray(view_logits_VK, dtype=np.float64)
    if aggregate == "logits":
        return np.asarray(values.mean(axis=0), dtype=np.float64)
    if aggregate == "probabilities":
        mean = logsumexp(log_softmax(values, axis=1), axis=0) - np.log(len(values))
        return np.asarray(mean, dtype=np.float64)
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
    many views a video has. At most one batch more than the video being read waits in memory, as uint8.

    Args:
        model: Maps uint8 `(B, C, T, H, W)` to logits `(B, K)`; put into evaluation mode and back.
        loader: One `VideoViews` per video.
        device: Where the model is.
        precision: fp32, bf16 or fp16 autocast.
        batch_views: Views per forward pass.
        aggregate: What is averaged over views: see `aggregate_views`.
        keep_views: Return the logits of every view too.
        total: Number of videos, for the progress display.

    Raises:
        ScoreError: A video comes without views or twice, or its logits are not finite; names it.
        SettingsError: Unknown aggregate.
    """
    if aggregate not in AGGREGATES:
        raise SettingsError(f"unknown aggregate {aggregate!r}; known: {', '.join(AGGREGATES)}")
    videos: dict[str, _Video] = {}
    rows: list[NDArray[np.float64]] = []
    kept: list[NDArray[np.float32]] = []
    training = model.training
    model.eval()
    try:
        with progress("scoring", total) as advance:
            for owners, batch in _batches(loader, videos, batch_views):
                scored = _forward(model, batch, device, precision)
                for video in _hand_out(scored, owners):
                    views = np.concatenate(video.blocks)
                    video.blocks = []
                    rows.append(aggregate_views(views, aggregate))
                    if keep_views:
                        kept.append(views)
                    advance()
    finally:
        model.train(training)
    if not videos:
        return VideoScores([], np.zeros(0, np.int64), np.zeros((0, 0)), None, np.zeros(0, np.int64))
    return VideoScores(
        ids=list(videos),
        labels=np.asarray([video.label for video in videos.values()], dtype=np.int64),
        logits=np.stack(rows),
        view_logits=np.concatenate(kept) if keep_views else None,
        counts=np.asarray([video.views for video in videos.values()], dtype=np.int64),
    )


def forward_views(
    model: nn.Module,
    views_VCTHW: Iterable[torch.Tensor],
    *,
    device: torch.device,
    precision: str,
    batch_views: int,
) -> NDArray[np.float32]:
    """Return the logits `(V, K)` of one video's views, given as uint8 tensors `(n, C, T, H, W)` of any n."""
    whole = (VideoViews("video", 0, views) for views in views_VCTHW)
    queue: dict[str, _Video] = {}
    found = [
        _forward(model, batch, device, precision)
        for _, batch in _batches(whole, queue, batch_views, one_video=True)
    ]
    return np.concatenate(found)


def _batches(
    loader: Iterable[VideoViews], videos: dict[str, _Video], size: int, *, one_video: bool = False
) -> Iterator[tuple[list[_Video], torch.Tensor]]:
    """Yield (owner of each view, views `(B, C, T, H, W)`) with B = `size` except in the last batch."""
    waiting: deque[tuple[_Video, torch.Tensor]] = deque()
    held = 0
    for item in loader:
        if not len(item.views):
            raise ScoreError(f"{item.id}: the video came without a view, so it cannot be scored")
        if item.id in videos and not one_video:
            raise ScoreError(f"{item.id}: the video came twice; its id must be unique in the split list")
        video = videos[item.id] = _Video(item.id, item.label, len(item.views))
        waiting.append((video, item.views))
        held += len(item.views)
        while held >= size:
            yield _take(waiting, size)
            held -= size
    if held:
        yield _take(waiting, held)


def _take(waiting: deque[tuple[_Video, torch.Tensor]], size: int) -> tuple[list[_Video], torch.Tensor]:
    owners: list[_Video] = []
    parts: list[torch.Tensor] = []
    while len(owners) < size:
        video, views = waiting.popleft()
        room = size - len(owners)
        if len(views) > room:
            waiting.appendleft((video, views[room:]))
            views = views[:room]
        parts.append(views)
        owners += [video] * len(views)
    return owners, parts[0] if len(parts) == 1 else torch.cat(parts)


def _forward(
    model: nn.Module, batch: torch.Tensor, device: torch.device, precision: str
) -> NDArray[np.float32]:
    with torch.inference_mode(), autocast(device, precision):
        logits: torch.Tensor = model(batch.to(device, non_blocking=True))
    return np.asarray(logits.float().cpu().numpy(), dtype=np.float32)


def _hand_out(scored: NDArray[np.float32], owners: list[_Video]) -> Iterator[_Video]:
    """Give each video its rows; yield those that are complete, in order."""
    start = 0
    while start < len(owners):
        video = owners[start]
        end = start
        while end < len(owners) and owners[end] is video:
            end += 1
        block = scored[start:end]
        if not np.isfinite(block).all():
            raise ScoreError(
                f"{video.id}: logits are not finite; the model is damaged or fp16 overflows (try fp32)"
            )
        video.blocks.append(block)
        video.scored += end - start
        start = end
        if video.scored == video.views:
            yield video
