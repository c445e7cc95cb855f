"""Validation during training: one centred clip per video; loss, top-1, top-5 and the confusion matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from two_stream.errors import DataError, TwoStreamError
from two_stream.runtime import distributed
from two_stream.runtime.console import progress
from two_stream.runtime.device import autocast
from two_stream.training.parallel import blank, clip_shape
from two_stream.types import Batch


@dataclass(frozen=True)
class Validation:
    """Means over the validation clips."""

    loss: float
    """cross entropy, without label smoothing"""
    top1: float
    """0 to 1"""
    top5: float
    """0 to 1; 1 with five classes or fewer"""
    confusion: NDArray[np.int64]
    """`(K, K)`: rows are true classes, columns predicted ones"""
    clips: int


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
    """Score every clip; None when `stopped` turned true on the way, in any process.

    Args:
        model: Clips to logits.
        batches: This process's part of the clips; the parts have none in common.
        device: Where the model is.
        precision: Autocast type.
        num_classes: K.
        total: Clips of all processes, for the progress display.
        stopped: Whether to leave early.
        lockstep: Every forward pass needs all processes.

    Raises:
        DataError: There was no clip, or one could not be read.
    """
    model.eval()
    loss, right1, right5, clips = 0.0, 0, 0, 0
    confusion = np.zeros((num_classes, num_classes), dtype=np.int64)
    reading = _Reading(batches, stopped)
    with torch.no_grad(), progress("validate", total) as advance:
        for batch in _in_step(reading, model, device, precision) if lockstep else reading:
            labels = batch.labels.to(device, non_blocking=True)
            with autocast(device, precision):
                logits = model(batch.clips.to(device, non_blocking=True))
            logits_BK = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
            ranked = logits_BK.topk(min(5, num_classes), dim=1).indices
            hits = ranked == labels.unsqueeze(1)
            loss += float(F.cross_entropy(logits_BK, labels, reduction="sum"))
            right1 += int(hits[:, 0].sum())
            right5 += int(hits.any(1).sum())
            np.add.at(confusion, (batch.labels.numpy(), ranked[:, 0].cpu().numpy()), 1)
            clips += len(batch.ids)
            advance(len(batch.ids) * distributed.world_size())
    _, failed = distributed.largest([0, int(reading.error is not None)])
    if failed:
        distributed.raise_first(reading.error)
    sums = [loss, right1, right5, clips, float(reading.left), *confusion.ravel().tolist()]
    rows = distributed.gather_numbers(sums)
    loss, right1, right5, clips, left, *cells = (sum(column) for column in zip(*rows, strict=True))
    if left:
        return None
    if not clips:
        raise distributed.common(
            DataError("no validation clip could be read; run `two-stream check` on the data set")
        )
    confusion = np.array(cells, dtype=np.int64).reshape(num_classes, num_classes)
    return Validation(loss / clips, right1 / clips, right5 / clips, confusion, int(clips))


class _Reading:
    """Batches that hold a clip, up to a stop or an error; what ended them is for all processes to hear."""

    def __init__(self, batches: Iterable[Batch], stopped: Callable[[], bool]) -> None:
        self.left = False
        self.error: TwoStreamError | None = None
        self._batches = batches
        self._stopped = stopped

    def __iter__(self) -> Iterator[Batch]:
        try:
            for batch in self._batches:
                if self._stopped():
                    self.left = True
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
    """Yield this process's batches, and go on computing while another still has some."""
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
                model(blank(shape, 1, device))
