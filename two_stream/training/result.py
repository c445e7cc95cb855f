"""What a training says when it returns, and in its checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from two_stream.config.schema import Experiment
from two_stream.runtime.provenance import code_version
from two_stream.training.data import TrainingData
from two_stream.training.progress import Progress
from two_stream.types import RunPaths

SELECTION_LABELS = {"holdout": "holdout", "folds": "cross-validated", "paper": "test-selected"}


@dataclass(frozen=True)
class TrainResult:
    """How a run ended."""

    run: RunPaths
    epochs: int
    """epochs that are over"""
    best_epoch: int
    """counted from 1; 0 when no epoch is over"""
    best_top1: float
    """of a multi-label set mAP"""
    best_loss: float
    selection: str
    """one of `SELECTION_LABELS`"""
    finished: bool
    already_finished: bool = False
    """there was nothing left to do"""
    interrupted: int | None = None
    """number of the signal that stopped it"""
    metric: str = "top-1"
    """what the best epoch was picked by"""


def training_result(
    paths: RunPaths, progress: Progress, selection: str, already_finished: bool, interrupted: int | None
) -> TrainResult:
    """Return how a run ended that got this far."""
    return TrainResult(
        run=paths,
        epochs=progress.epoch,
        best_epoch=progress.best_epoch,
        best_top1=progress.best_top1,
        best_loss=progress.best_loss,
        selection=SELECTION_LABELS[selection],
        finished=progress.finished,
        already_finished=already_finished,
        interrupted=interrupted,
        metric="mAP" if progress.history and "val_map" in progress.history[-1] else "top-1",
    )


def checkpoint_meta(experiment: Experiment, data: TrainingData, progress: Progress) -> dict[str, Any]:
    """Return what the model file of a checkpoint says of itself."""
    latest = progress.history[-1] if progress.history else {}
    return {
        "class_names": data.class_names,
        "mirror": data.mirror.allowed,
        "mirror_labels": data.mirror.labels,
        "dataset": data.dataset,
        **({"extraction": data.extraction} if data.extraction else {}),
        **({"multi_label": True} if data.labels and data.labels.multi_label else {}),
        "split": experiment.data.split,
        "epoch": progress.epoch,
        "step": progress.step,
        "selection": SELECTION_LABELS[experiment.train.selection],
        "val_top1": latest.get("val_top1"),
        **({"val_map": latest["val_map"]} if "val_map" in latest else {}),
        "val_loss": latest.get("val_loss"),
        "seed": experiment.seed,
        "code_version": code_version(),
    }
