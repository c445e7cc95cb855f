"""How far a run is: position, running sums of the epoch, the best so far. Everything a resumed run must know."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from two_stream.errors import CheckpointError
from two_stream.training.step import StepResult
from two_stream.training.validate import Validation


@dataclass
class Progress:
    """Counted from 0; plain values only, so that it reads back under `weights_only=True`."""

    epoch: int = 0
    """epochs that are over: trained, validated, recorded"""
    batch: int = 0
    """micro-batches of the current epoch that went into a step"""
    step: int = 0
    """optimizer steps since the run began"""
    loss: float = 0.0
    """sum of the losses of the current epoch"""
    correct: int = 0
    clips: int = 0
    seconds: float = 0.0
    lr: float = 0.0
    """rate of the last step"""
    best_epoch: int = 0
    """the selected epoch, counted from 1; 0 when there is none yet"""
    best_top1: float = -1.0
    """of the selected epoch: validation top-1, of a multi-label set mAP"""
    best_loss: float = math.inf
    """validation loss of the selected epoch"""
    lowest_loss: float = math.inf
    """lowest validation loss of any epoch, for early stopping"""
    stale: int = 0
    """epochs since `lowest_loss`"""
    finished: bool = False
    history: list[dict[str, Any]] = field(default_factory=list)
    """the lines of metrics.jsonl"""

    def add(self, result: StepResult, batch: int) -> None:
        """Count one optimizer step; `batch` is the number of micro-batches of the epoch now used up."""
        self.batch = batch
        self.step += 1
        self.loss += result.loss
        self.correct += result.correct
        self.clips += result.clips
        self.lr = result.lr

    def end_epoch(self, line: dict[str, Any], validation: Validation, *, counts: bool = True) -> bool:
        """Close the epoch; return whether it is the best so far.

        The best epoch has the highest validation top-1 accuracy (mAP of a multi-label set); of equals, the lower
        validation loss, then the earlier. One that does not count is neither the best nor waited for.
        """
        loss = validation.loss if math.isfinite(validation.loss) else math.inf
        better = counts and (validation.score, -loss) > (self.best_top1, -self.best_loss)
        if counts:
            self.stale = 0 if loss < self.lowest_loss else self.stale + 1
            self.lowest_loss = min(loss, self.lowest_loss)
        self.epoch += 1
        if better:
            self.best_epoch, self.best_top1, self.best_loss = self.epoch, validation.score, loss
        self.history.append(line | {"best": better})
        self.batch, self.clips, self.correct, self.loss, self.seconds = 0, 0, 0, 0.0, 0.0
        return better

    def state_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Progress:
        """Read `state_dict` back.

        Raises:
            CheckpointError: Written by another version with other fields.
        """
        try:
            return cls(**state)
        except TypeError as error:
            raise CheckpointError(f"the checkpoint's progress cannot be read ({error})") from None
