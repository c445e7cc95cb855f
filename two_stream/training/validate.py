"""Validation during training, with one centred clip per video: loss, top-1, top-5, and confusion matrix or mAP."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from two_stream.errors import DataError, TwoStreamError
from two_stream.runtime import distributed
from two_stream.runtime.console import progress
from two_stream.runtime.device import autocast
from two_stream.training.losses import evaluation_loss
from two_stream.training.parallel.base import blank_clips, clip_shape
from two_stream.types import Batch


@dataclass(frozen=True)
class Validation:
    """Metrics of a validation, as means over its clips."""

    loss: float
    """cross entropy without label smoothing and class weights; binary cross entropy for a multi-label data set"""
    top1: float
    """top-1 accuracy, 0 to 1; for a multi-label data set, the prediction is right if it is any class of the clip"""
    top5: float
    """top-5 accuracy, 0 to 1; always 1 with five classes or fewer"""
    confusion: NDArray[np.int64] | None
    """confusion matrix `(K, K)`: rows are true classes, columns predicted classes; None for a multi-label data set"""
    clips: int
    map: float | None = None
    """for a multi-label data set: mean average precision over the classes that occur; otherwise None"""

    @property
    def score(self) -> float:
        """Metric that selects the best epoch: mAP for a multi-label data set, otherwise top-1."""
        return self.top1 if self.map is None else self.map


def validate(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    device: torch.device,
    precision: str,
    num_classes: int,
    total: int | None = None,
    stopped: Callable[[], bool] = lambda: False,
    lockstep: bool = False,
) -> Validation | None:
    """Score every clip and return the metrics; None if `stopped` returned true in any process.

    Args:
        model: Network that maps clips to logits.
        batches: This process's share of the clips.
        device: Device of the model.
        precision: Autocast type.
        num_classes: Number of classes K.
        total: Number of clips for all processes together, for the progress display.
        stopped: Function that returns whether to stop early.
        lockstep: Whether every forward pass requires all processes.

    Raises:
        DataError: There are no clips, or a clip cannot be read.
    """
    model.eval()
    tally = Tally(num_classes)
    reading = _Reading(batches, stopped)
    with torch.no_grad(), progress("validate", total) as advance:
        for batch in _in_step(reading, model, device, precision) if lockstep else reading:
            labels = batch.labels.to(device, non_blocking=True)
            with autocast(device, precision):
                logits = model(batch.clips.to(device, non_blocking=True))
            logits_BK = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
            tally.add(logits_BK, labels)
            advance(len(batch.ids) * distributed.world_size())
    multi_label, failed = distributed.largest([int(bool(tally.scores)), int(reading.error is not None)])
    if failed:
        distributed.raise_first(reading.error)
    return tally.result(stopped=reading.was_stopped, multi_label=bool(multi_label))


class Tally:
    """Running sums over this process's clips. `result` combines the sums of all processes."""

    def __init__(self, num_classes: int) -> None:
        self.loss, self.right1, self.right5, self.clips = 0.0, 0, 0, 0
        self.confusion = np.zeros((num_classes, num_classes), dtype=np.int64)
        self.scores: list[NDArray[np.float64]] = []
        """scores of a multi-label data set; average precision requires the scores and `targets` of all clips"""
        self.targets: list[NDArray[np.bool_]] = []

    def add(self, logits_BK: torch.Tensor, labels: torch.Tensor) -> None:
        """Add the results of a batch."""
        ranked = logits_BK.topk(min(5, logits_BK.shape[1]), dim=1).indices
        if labels.ndim == 1:
            hits = ranked == labels.unsqueeze(1)
            np.add.at(self.confusion, (labels.cpu().numpy(), ranked[:, 0].cpu().numpy()), 1)
        else:
            hits = labels.gather(1, ranked) > 0
            self.scores.append(logits_BK.double().cpu().numpy())
            self.targets.append(labels.cpu().numpy() > 0)
        self.loss += float(evaluation_loss(logits_BK, labels))
        self.right1 += int(hits[:, 0].sum())
        self.right5 += int(hits.any(1).sum())
        self.clips += len(labels)

    def result(self, *, stopped: bool, multi_label: bool) -> Validation | None:
        """Combine the sums of all processes; None if a process stopped early. All processes must call this method.

        Raises:
            DataError: There are no clips.
        """
        sums = [
            self.loss,
            self.right1,
            self.right5,
            self.clips,
            float(stopped),
            *self.confusion.ravel().tolist(),
        ]
        rows = distributed.gather_numbers(sums)
        loss, right1, right5, clips, any_stopped, *cells = (sum(column) for column in zip(*rows, strict=True))
        if any_stopped:
            return None
        if not clips:
            raise distributed.shared_error(
                DataError("no validation clip could be read; run `two-stream check` on the data set")
            )
        confusion = None if multi_label else np.array(cells, dtype=np.int64).reshape(self.confusion.shape)
        precision = self._precision() if multi_label else None
        return Validation(loss / clips, right1 / clips, right5 / clips, confusion, int(clips), precision)

    def _precision(self) -> float:
        from two_stream.evaluation.scores.metrics import mean_average_precision

        parts = distributed.all_objects((self.scores, self.targets))
        scores = [block for blocks, _ in parts for block in blocks]
        targets = [block for _, blocks in parts for block in blocks]
        return mean_average_precision(np.concatenate(scores), np.concatenate(targets))


class _Reading:
    """Yields non-empty batches until a stop or an error.

    With several processes, the error is stored and raised later.
    """

    def __init__(self, batches: Iterable[Batch], stopped: Callable[[], bool]) -> None:
        self.was_stopped = False
        self.error: TwoStreamError | None = None
        self._batches = batches
        self._stopped = stopped

    def __iter__(self) -> Iterator[Batch]:
        try:
            for batch in self._batches:
                if self._stopped():
                    self.was_stopped = True
                    return
                if batch.ids:
                    yield batch
        except TwoStreamError as error:
            if distributed.world_size() == 1:
                raise
            self.error = error


def _in_step(
    batches: Iterable[Batch], model: nn.Module, device: torch.device, precision: str
) -> Iterator[Batch]:
    """Yield this process's batches, then run the model on blank clips until all processes have finished."""
    own = iter(batches)
    shape: tuple[int, ...] | None = clip_shape(model)
    while True:
        batch = next(own, None)
        (anyone,) = distributed.largest([int(batch is not None)])
        if not anyone:
            return
        if batch is not None:
            shape = tuple(batch.clips.shape[1:])
            yield batch
        else:
            with autocast(device, precision):
                model(blank_clips(shape, 1, device))
