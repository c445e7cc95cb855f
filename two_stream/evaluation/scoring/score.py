"""Scores the views of videos in full batches, and averages the logits of each video over its views.

Crops are cut on the device and written to the batch as normalised values.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from two_stream.errors import ScoreError, SettingsError
from two_stream.evaluation.scores.tables import view_rows
from two_stream.evaluation.scoring.network import Compiled, evaluation_mode
from two_stream.recognizer import Recognizer
from two_stream.runtime import distributed
from two_stream.runtime.console import progress
from two_stream.runtime.device import autocast, resolve_precision
from two_stream.types import VideoViews

_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
AGGREGATES = ("logits", "probabilities", "sigmoids")
Skipped = list[tuple[str, str]]
"""`(id, reason)` for each video that could not be read."""
Storage = Callable[[str, tuple[int, int]], Any]
"""Returns an object for the rows `(V, K)` of a video, given its id; rows are assigned by lists of their numbers."""


@dataclass
class VideoProgress:
    """A video whose views are received in chunks and scored in one or several batches."""

    id: str
    label: int
    clips: int
    """number of clips in the complete video"""
    crops: int
    flips: Sequence[bool] = ()
    """whether each crop is mirrored"""
    mirror_labels: Sequence[int] | None = None
    """for each class, the class of its mirror images; see `VideoViews`"""
    seen: int = 0
    """number of clips received so far"""
    scored: int = 0
    """number of views that have logits so far"""
    logits: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    """logits `(V, K)` of the views; the clips of each crop are consecutive"""
    storage: Storage | None = None
    """where the logits are kept; by default, in memory"""

    @property
    def views(self) -> int:
        """Number of views of the complete video."""
        return self.clips * self.crops

    @property
    def complete(self) -> bool:
        """Whether all views have logits."""
        return self.scored == self.views

    def take(self, rows: list[int], logits_VK: NDArray[np.float32]) -> None:
        """Store the logits of some views.

        If mirroring exchanges classes, the classes of mirrored views are swapped back.

        Raises:
            ScoreError: The logits are not finite.
        """
        if not np.isfinite(logits_VK).all():
            raise ScoreError(
                f"{self.id}: the logits are not finite, because the model is damaged or fp16 overflows; try "
                "`evaluate.precision: fp32`"
            )
        if not self.scored:
            shape = (self.views, logits_VK.shape[1])
            self.logits = self.storage(self.id, shape) if self.storage else np.empty(shape, np.float32)
        if self.mirror_labels is not None:
            mirrored = np.asarray(self.flips)[np.asarray(rows) // self.clips]
            logits_VK = np.where(mirrored[:, None], logits_VK[:, list(self.mirror_labels)], logits_VK)
        self.logits[rows] = logits_VK
        self.scored += len(rows)


_Owners = list[tuple[VideoProgress, list[int]]]
"""the views of a batch: pairs of a video and the numbers of its views"""


class Canvas:
    """A batch that views are written to, and its forward pass.

    A recognizer receives normalised values in its own memory format and in the autocast precision. Any other model
    receives uint8 clips.
    """

    def __init__(
        self,
        model: nn.Module,
        device: torch.device,
        precision: str,
        size: int,
        compute: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        """Prepare a batch; its memory is allocated with the first view.

        Args:
            model: Network that maps clips `(B, C, T, H, W)` to logits `(B, K)`.
            device: Device of the model.
            precision: Autocast precision: `fp32`, `bf16` or `fp16`.
            size: Number of views in a full batch.
            compute: Function that computes another output `(B, D)` from a batch instead of logits.
        """
        self.model = model
        self.device = device
        self.precision = precision
        self.size = size
        self.fixed = isinstance(model, Compiled)
        inner = model.model if isinstance(model, Compiled) else model
        self._recognizer = inner if isinstance(inner, Recognizer) else None
        usual = model.forward_normalised if isinstance(model, (Compiled, Recognizer)) else model
        self._run = compute or usual
        self._batch_BCTHW: torch.Tensor | None = None

    @torch.inference_mode()
    def draw(self, place: int, view_THWC: torch.Tensor) -> None:
        """Write a view, uint8 `(T, h, w, C)`, to position `place` of the batch."""
        if self._batch_BCTHW is None or self._batch_BCTHW.shape[2:] != view_THWC.shape[:3]:
            self._batch_BCTHW = self._empty(view_THWC)
        slot_THWC = self._batch_BCTHW[place].permute(1, 2, 3, 0)
        if self._recognizer is None:
            slot_THWC.copy_(view_THWC)
            return
        scale, shift = self._recognizer.input_scale.view(-1), self._recognizer.input_shift.view(-1)
        if slot_THWC.dtype == scale.dtype:
            slot_THWC.copy_(view_THWC).mul_(scale).add_(shift)
        else:
            slot_THWC.copy_(view_THWC.to(scale.dtype).mul_(scale).add_(shift))

    def _empty(self, view_THWC: torch.Tensor) -> torch.Tensor:
        time, height, width, channels = view_THWC.shape
        shape = (self.size, channels, time, height, width)
        if self._recognizer is None:
            return torch.empty(shape, dtype=torch.uint8, device=self.device)
        exact = self._recognizer.options.modality == "rgbdiff"  # rounded frames have wrong differences
        dtype = torch.float32 if exact else _TYPES[self.precision]
        batch = torch.zeros(shape, dtype=dtype, device=self.device)
        form = self._recognizer.memory_format
        return batch if form == torch.preserve_format else batch.contiguous(memory_format=form)

    @torch.inference_mode()
    def logits(self, count: int) -> torch.Tensor:
        """Return the logits `(count, K)` of the first `count` views of the batch, as float32 on the device."""
        assert self._batch_BCTHW is not None
        x_BCTHW = self._batch_BCTHW if self.fixed else self._batch_BCTHW[:count]
        with autocast(self.device, self.precision):
            made: torch.Tensor = self._run(x_BCTHW)
        # compiled code overwrites its result in the next call
        return made[:count].to(torch.float32, copy=self.fixed)


def scored_views(
    loader: Iterable[VideoViews],
    videos: dict[str, VideoProgress],
    canvas: Canvas,
    storage: Storage | None = None,
) -> Iterator[VideoProgress]:
    """Score the views of a loader and yield each video when it is complete.

    All forward passes except the last one have a full batch. On a GPU, the results of a batch are fetched while the
    next batch is computed.

    All videos of the loader are added to `videos` in the order of their first chunks, including incomplete ones.
    `storage` returns where the results of a video are kept; by default, in memory.

    Raises:
        ScoreError: A video has no views or occurs twice, or its logits are not finite.
    """
    behind = 0 if canvas.device.type == "cpu" else 1
    waiting: deque[tuple[_Owners, torch.Tensor]] = deque()
    for owners in _fill(loader, videos, canvas, storage):
        waiting.append((owners, canvas.logits(sum(len(rows) for _, rows in owners))))
        if len(waiting) > behind:
            yield from _distribute(*waiting.popleft())
    while waiting:
        yield from _distribute(*waiting.popleft())


def _fill(
    loader: Iterable[VideoViews],
    videos: dict[str, VideoProgress],
    canvas: Canvas,
    storage: Storage | None,
) -> Iterator[_Owners]:
    """Write views to the canvas; yield the views in it each time it is full, and at the end."""
    owners: _Owners = []
    place = 0
    for item in loader:
        video = _register(item, videos, storage)
        chunk = _to_device(item, canvas.device)
        rows: list[int] | None = None
        for index in range(chunk.num_views):
            if rows is None:
                rows = []
                owners.append((video, rows))
            canvas.draw(place, chunk.view(index))
            crop, clip = divmod(index, len(chunk.clips))
            rows.append(crop * video.clips + chunk.first + clip)
            place += 1
            if place == canvas.size:
                yield owners
                owners, rows, place = [], None, 0
    if place:
        yield owners


def _register(item: VideoViews, videos: dict[str, VideoProgress], storage: Storage | None) -> VideoProgress:
    if not item.num_views:
        raise ScoreError(f"{item.id}: the video has no views, so it cannot be scored")
    video = videos.get(item.id)
    if video is None:
        clips, crops = item.total_clips or len(item.clips), len(item.boxes)
        video = VideoProgress(
            item.id, item.label, clips, crops, item.flips, item.mirror_labels, storage=storage
        )
        videos[item.id] = video
    elif item.first == 0:
        raise ScoreError(f"{item.id}: the video occurs twice; expected unique ids in the split list")
    video.seen += len(item.clips)
    return video


def _to_device(item: VideoViews, device: torch.device) -> VideoViews:
    if device.type == "cpu":
        return item
    frames = item.frames.pin_memory() if device.type == "cuda" else item.frames
    return replace(item, frames=frames.to(device, non_blocking=True))


def _distribute(owners: _Owners, logits_VK: torch.Tensor) -> Iterator[VideoProgress]:
    """Store the logits of the videos of a batch, and yield the videos that are complete."""
    values = logits_VK.cpu().numpy()
    start = 0
    for video, rows in owners:
        video.take(rows, values[start : start + len(rows)])
        start += len(rows)
        if video.complete:
            yield video


class VideoScores(NamedTuple):
    """Scores of videos, in the order of the loader."""

    ids: list[str]
    labels: NDArray[np.int64]
    """class indices `(N,)`"""
    logits: NDArray[np.float64]
    """logits `(N, K)`, aggregated over views (see `aggregate_views`)"""
    view_logits: NDArray[np.float32] | None
    """logits of all views `(sum of counts, K)`; None without `keep_views`"""
    counts: NDArray[np.int64]
    """number of views of each video, `(N,)`"""


def aggregate_views(view_logits_VK: NDArray[np.floating], aggregate: str = "logits") -> NDArray[np.float64]:
    """Aggregate the logits of a video's views to one vector `(K,)`, in float64.

    With `logits`, the result is the mean of the logits, as in the paper. With `probabilities`, the result is the
    logarithm of the mean softmax, so that the softmax of the result is the mean softmax. With `sigmoids`, for
    multi-label data sets, the sigmoid of the result is the mean sigmoid.

    Raises:
        SettingsError: `aggregate` is unknown.
    """
    values = np.asarray(view_logits_VK, dtype=np.float64)
    if aggregate == "logits":
        return np.asarray(values.mean(axis=0), dtype=np.float64)
    from scipy.special import log_expit, log_softmax, logsumexp  # slow to import

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

    A batch can contain views of several videos, so all forward passes except the last one have `batch_views` clips.
    Only the batch and the frames of one chunk are kept in memory, so videos can have any length.

    Args:
        model: A recognizer, the result of `prepare_for_inference`, or a module that maps uint8 `(B, C, T, H, W)` to
            logits `(B, K)`.
        loader: Yields the `VideoViews` of each video in one or several chunks. Incomplete videos are left out if they
            are in `loader.skipped`.
        device: Device of the model.
        precision: Autocast precision: `fp32`, `bf16` or `fp16`; `auto` depends on the device.
        batch_views: Number of views per forward pass.
        aggregate: How views are aggregated, see `aggregate_views`.
        keep_views: Whether to return the logits of all views, too.
        total: Number of videos, for the progress display.

    Raises:
        ScoreError: A video has no views, is incomplete or occurs twice, or its logits are not finite.
        SettingsError: `aggregate` is unknown.
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
    """Aggregate the logits of each complete video over its views, with a progress display."""
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
        ScoreError: A video is incomplete.
    """
    skipped = {name for name, _ in getattr(loader, "skipped", [])}
    for video in videos:
        if not video.complete and video.id not in skipped:
            raise ScoreError(
                f"{video.id}: only {video.seen} of the video's {video.clips} clips were read; "
                "expected all of them"
            )


def gather_scores(scores: VideoScores, skipped: Skipped, order: Sequence[str]) -> tuple[VideoScores, Skipped]:
    """Return the scores of all processes on the main process; other processes return their own scores.

    `skipped` are the videos that this process could not read. `order` contains the ids of all videos.

    Raises:
        ScoreError: Another process has exited, or two processes have scored the same video.
    """
    try:
        parts = distributed.gather_objects((scores, list(skipped)))
    except RuntimeError as error:
        if not distributed.is_peer_failure(error):
            raise
        raise ScoreError("another process has stopped; see the error message of that process") from None
    if parts is None:
        return scores, skipped
    return merge_scores([part for part, _ in parts], order), [
        entry for _, listed in parts for entry in listed
    ]


def merge_scores(parts: Sequence[VideoScores], order: Sequence[str]) -> VideoScores:
    """Combine the scores of disjoint sets of videos.

    Parts can be empty. `order` contains the ids of all videos in the order of the result; ids without scores are left
    out.

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
        raise ScoreError(f"{twice}: two processes scored this video; expected unique ids in the split list")
    rows = [place[name] for name in order if name in place]
    if len(rows) < len(ids):
        strange = next(name for name in ids if name not in set(order))
        raise ScoreError(
            f"{strange}: a process scored this video, but the split list does not contain the video; "
            "use the same list in all processes"
        )
    counts = np.concatenate([part.counts for part in held])
    views = [part.view_logits for part in held if part.view_logits is not None]
    return VideoScores(
        ids=[ids[row] for row in rows],
        labels=np.concatenate([part.labels for part in held])[rows],
        logits=np.concatenate([part.logits for part in held])[rows],
        view_logits=view_rows(np.concatenate(views), counts, rows) if len(views) == len(held) else None,
        counts=counts[rows],
    )
