"""What a training says when it returns."""

from __future__ import annotations

from dataclasses import dataclass

from two_stream.types import RunPaths


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
    """`holdout` or `test-selected`"""
    finished: bool
    already_finished: bool = False
    """there was nothing left to do"""
    interrupted: int | None = None
    """number of the signal that stopped it"""
    metric: str = "top-1"
    """what the best epoch was picked by"""
