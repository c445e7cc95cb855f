"""Validation during training: one centred clip per video; loss, top-1, top-5 and the confusion matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from two_stream.errors import DataError
from two_stream.runtime.console import progress
from two_stream.runtime.device import autocast
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
) -> Validation | None:
    """Score every clip; None when `stopped` turned true on the way.

    Raises:
        DataError: There was no clip.
    """
    model.eval()
    loss, right1, right5, clips = 0.0, 0, 0, 0
    confusion = np.zeros((num_classes, num_classes), dtype=np.int64)
    with torch.no_grad(), progress("validate", total) as advance:
        for batch in batches:
            if stopped():
                return None
            if not batch.ids:
                continue
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
            advance(len(batch.ids))
    if not clips:
        raise DataError("no validation clip could be read; run `two-stream check` on the data set")
    return Validation(loss / clips, right1 / clips, right5 / clips, confusion, clips)
