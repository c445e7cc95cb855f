"""Passes over the training part without learning: what a frozen network gives for every clip."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from two_stream.errors import DataError
from two_stream.heads.base import Standard
from two_stream.recognizer import Recognizer
from two_stream.runtime import distributed
from two_stream.runtime.console import progress
from two_stream.runtime.device import autocast
from two_stream.training.data import TrainingData
from two_stream.types import Batch

CONSTANT = 1e-6
"""deviation relative to the mean below which a channel is constant but for float32's rounding"""


@dataclass(frozen=True)
class Vectors:
    """What the classifier sees of the training part, one row per clip; rows of a video have its number in common."""

    rows: NDArray[np.float64]
    """`(N, D)`"""
    labels: NDArray[np.int64]
    """`(N,)`: those of mirror images where the data set's mirror exchanges classes"""
    videos: NDArray[np.int64]
    """`(N,)`: places in `TrainingData.records`"""


def scales(deviation: NDArray[np.float64], mean: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what to divide channels by: their deviation, or 1 where they are constant."""
    return np.where(deviation <= CONSTANT * np.abs(mean), 1.0, deviation)


@torch.no_grad()
def measure_tokens(model: Recognizer, data: TrainingData, device: torch.device, precision: str) -> None:
    """Set the statistics by which a network standardises its tokens; those that it holds already stay.

    They are mean and deviation of each channel over the centred clips of the training part and over time, summed in
    float64 over the clips of all processes.

    Raises:
        DataError: A clip cannot be read and `data.on_error` is `raise`, or none can be read.
    """
    standards = [cast(Standard, standard) for standard in model.standards]
    if not standards or all(standard.measured for standard in standards):
        return
    model.to(device).eval()
    sums = [np.zeros(2 * len(standard.mean) + 1) for standard in standards]
    with distributed.raise_on_all_ranks():
        for batch in _shown(data.centred(), "measuring tokens", data.num_train):
            with autocast(device, precision):
                tokens = model.forward_tokens(batch.clips.to(device))
            for total, x_BTD in zip(sums, tokens, strict=True):
                x = x_BTD.flatten(0, 1).double().cpu().numpy()
                total += np.concatenate(([len(x)], x.sum(0), np.square(x).sum(0)))
    flat = np.array(distributed.gather_numbers(np.concatenate(sums).tolist())).sum(0)
    for standard, part in zip(standards, np.split(flat, np.cumsum([len(s) for s in sums])[:-1]), strict=True):
        count, width = part[0], len(standard.mean)
        if not count:
            raise distributed.shared_error(
                DataError("no training clip could be read; run `two-stream check` on the data set")
            )
        mean = part[1 : width + 1] / count
        variance = np.maximum(part[width + 1 :] / count - mean**2, 0.0)
        standard.mean.copy_(torch.from_numpy(mean))
        standard.deviation.copy_(torch.from_numpy(scales(np.sqrt(variance), mean)))


@torch.no_grad()
def training_vectors(
    model: Recognizer,
    data: TrainingData,
    views: int,
    *,
    device: torch.device,
    precision: str,
    stopped: Callable[[], bool],
) -> Vectors | None:
    """Return what the classifier sees of every training video: its centred clip, then its first augmented ones.

    Args:
        model: On `device`.
        data: One class per video.
        views: Augmented clips per video: those of the first epochs of a training.
        device: Where the model is.
        precision: Autocast type.
        stopped: Whether to leave early; then None is returned.

    Raises:
        DataError: A clip cannot be read and `data.on_error` is `raise`, or none can be read.
    """
    model.eval()
    places = {record.id: place for place, record in enumerate(data.records)}
    rows: list[NDArray[np.float64]] = []
    labels: list[NDArray[np.int64]] = []
    videos: list[int] = []
    for number in range(1 + views):
        loader = data.centred() if number == 0 else data.train(number - 1, 0)
        title = f"clips {number + 1}/{1 + views}"
        for batch in _shown(loader, title, len(data.records)):
            if stopped():
                return None
            with autocast(device, precision):
                z_BD = model.forward_vectors(batch.clips.to(device))
            rows.append(z_BD.double().cpu().numpy())
            labels.append(batch.labels.cpu().numpy())
            videos += [places[video] for video in batch.ids]
    if not rows:
        raise DataError("no training clip could be read; run `two-stream check` on the data set")
    return Vectors(np.concatenate(rows), np.concatenate(labels), np.array(videos))


def _shown(batches: Iterable[Batch], title: str, total: int) -> Iterable[Batch]:
    with progress(title, total) as advance:
        for batch in batches:
            yield batch
            advance(len(batch.ids) * distributed.world_size())
