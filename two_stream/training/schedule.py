"""Learning rate over time, as a function of the optimizer step and, for the plateau, of what validation said.

A schedule holds no rate of its own: it computes one from the step, so a resumed run cannot drift from an
uninterrupted one. Steps and epochs are counted from 0.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch

from two_stream.config.optimization import Constant, Cosine, MultiStep, Plateau, ScheduleOptions

PLATEAU_THRESHOLD = 1e-4
"""relative improvement of the loss that counts, as in `torch.optim.lr_scheduler.ReduceLROnPlateau`"""


class Schedule(ABC):
    """Sets the rate of every group before each optimizer step: `rate(step) * group["lr_scale"]`."""

    def __init__(
        self, optimizer: torch.optim.Optimizer, base_lr: float, steps_per_epoch: int, epochs: int
    ) -> None:
        self.optimizer = optimizer
        self.base_lr = base_lr
        self.steps_per_epoch = max(1, steps_per_epoch)
        self.epochs = epochs

    @abstractmethod
    def rate(self, step: int) -> float:
        """Return the rate of an optimizer step for a group of scale 1."""

    def apply(self, step: int) -> float:
        """Set the rate of every group for a step; return the unscaled rate."""
        rate = self.rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        return rate

    def end_epoch(self, val_loss: float) -> None:  # noqa: B027 - a hook; most schedules hear nothing
        """Hear the validation loss of an epoch."""

    def state_dict(self) -> dict[str, Any]:
        """Return what must survive an interruption, as plain values."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027 - most schedules keep nothing
        """Put `state_dict` back."""


class ConstantSchedule(Schedule):
    """The same rate throughout."""

    def rate(self, step: int) -> float:
        """Return the base rate."""
        del step
        return self.base_lr


class MultiStepSchedule(Schedule):
    """The rate falls by `gamma` after each milestone epoch."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        base_lr: float,
        steps_per_epoch: int,
        epochs: int,
        options: MultiStep,
    ) -> None:
        super().__init__(optimizer, base_lr, steps_per_epoch, epochs)
        self.options = options

    def rate(self, step: int) -> float:
        """Return the base rate times `gamma` per milestone passed."""
        epoch = step // self.steps_per_epoch
        return self.base_lr * self.options.gamma ** sum(epoch >= mark for mark in self.options.milestones)


class CosineSchedule(Schedule):
    """Linear warm-up from one warm-up step's share to the base rate, then half a cosine to `min_lr`."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        base_lr: float,
        steps_per_epoch: int,
        epochs: int,
        options: Cosine,
    ) -> None:
        super().__init__(optimizer, base_lr, steps_per_epoch, epochs)
        self.total = self.steps_per_epoch * epochs
        self.warmup = min(self.total, round(options.warmup_epochs * self.steps_per_epoch))
        self.floor = min(options.min_lr, base_lr)

    def rate(self, step: int) -> float:
        """Return the rate of SGDR without restarts (arXiv 1608.03983, equation 5), after a linear warm-up."""
        if step < self.warmup:
            return self.base_lr * (step + 1) / self.warmup
        done = min(1.0, (step - self.warmup) / max(1, self.total - self.warmup))
        return self.floor + (self.base_lr - self.floor) * 0.5 * (1.0 + math.cos(math.pi * done))


class PlateauSchedule(Schedule):
    """The rate falls by `factor` after more than `patience` epochs without a better validation loss."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        base_lr: float,
        steps_per_epoch: int,
        epochs: int,
        options: Plateau,
    ) -> None:
        super().__init__(optimizer, base_lr, steps_per_epoch, epochs)
        self.options = options
        self.best = math.inf
        self.bad_epochs = 0
        self.drops = 0

    def rate(self, step: int) -> float:
        """Return the base rate after the falls so far, never below `min_lr`."""
        del step
        floor = min(self.options.min_lr, self.base_lr)
        return max(floor, self.base_lr * self.options.factor**self.drops)

    def end_epoch(self, val_loss: float) -> None:
        """Count the epoch; a loss that is not a number counts as no improvement."""
        if val_loss < self.best * (1.0 - PLATEAU_THRESHOLD):
            self.best, self.bad_epochs = val_loss, 0
            return
        self.bad_epochs += 1
        if self.bad_epochs > self.options.patience:
            self.drops, self.bad_epochs = self.drops + 1, 0

    def state_dict(self) -> dict[str, Any]:
        """Return the best loss, the epochs since it and the falls so far."""
        return {"best": self.best, "bad_epochs": self.bad_epochs, "drops": self.drops}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put `state_dict` back."""
        self.best = float(state["best"])
        self.bad_epochs = int(state["bad_epochs"])
        self.drops = int(state["drops"])


def build_schedule(
    options: ScheduleOptions,
    optimizer: torch.optim.Optimizer,
    *,
    base_lr: float,
    steps_per_epoch: int,
    epochs: int,
) -> Schedule:
    """Build the schedule of the settings over an optimizer whose groups may carry `lr_scale`."""
    if isinstance(options, MultiStep):
        return MultiStepSchedule(optimizer, base_lr, steps_per_epoch, epochs, options)
    if isinstance(options, Cosine):
        return CosineSchedule(optimizer, base_lr, steps_per_epoch, epochs, options)
    if isinstance(options, Plateau):
        return PlateauSchedule(optimizer, base_lr, steps_per_epoch, epochs, options)
    assert isinstance(options, Constant)
    return ConstantSchedule(optimizer, base_lr, steps_per_epoch, epochs)
