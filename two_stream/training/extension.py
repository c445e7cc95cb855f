"""Hooks of a training run: a different start, a different loss, and work after each step.

Pruning, quantization-aware training and distillation (`two_stream.compression`) are training runs with such an
extension.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from two_stream.config.schema import Experiment
from two_stream.registry import Registry

if TYPE_CHECKING:
    from two_stream.recognizer import Recognizer
    from two_stream.training.data import TrainingData
    from two_stream.training.losses import Loss
    from two_stream.types import Batch, RunPaths

EXTENSIONS: Registry[Callable[[Experiment], Extension]] = Registry("compression")
"""Functions that build an extension, by `compress.kind`; importing `two_stream.compression` registers them."""


class Extension:
    """Base of all extensions; adds nothing. Subclasses are built from the experiment, once per training run."""

    def start(self, model: Recognizer, *, resumed: bool) -> None:
        """Change the network in place before the optimizer is built.

        Args:
            model: With its initial weights, on the CPU, not yet frozen, compiled or sharded.
            resumed: Whether a checkpoint of this run is loaded afterwards; the structure must then fit it.
        """

    def data(self, data: TrainingData) -> TrainingData:
        """Return the training data; its batches may hold additional clips (`Batch.beside`)."""
        return data

    def set_epoch_length(self, steps_per_epoch: int) -> None:
        """Receive the number of optimizer steps per epoch, before the first step."""

    def restored(self, models: Sequence[nn.Module]) -> None:
        """Act on weights that have just been loaded from a checkpoint; `models` as for `stepped`."""

    def counts(self, epoch: int) -> bool:
        """Whether an epoch (from 0) may be the best one; early stopping ignores the others."""
        del epoch
        return True

    def loss(self, plain: Loss, logits_BK: torch.Tensor, targets: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the sum of the losses of a micro-batch.

        Args:
            plain: The training loss of the settings.
            logits_BK: Logits of the network, float32 or float64.
            targets: Labels, or shares `(B, K)` after mixup.
            batch: The micro-batch: `clips` are on the device, after mixup; `beside` is as the loader yields it.
        """
        del batch
        return plain(logits_BK, targets)

    def stepped(self, models: Sequence[nn.Module], step: int) -> None:
        """Act on the weights after optimizer step `step` (from 0 since the run began).

        Args:
            models: The trained network and, if there is one, its moving average.
            step: Number of the step.
        """

    def extra_parameters(self, device: torch.device) -> list[nn.Parameter]:
        """Return parameters on the device that are trained but not part of the network; `state` contains them."""
        del device
        return []

    def state(self) -> dict[str, torch.Tensor]:
        """Return the extension's part of a checkpoint."""
        return {}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Restore `state`."""

    def finished(self, paths: RunPaths) -> None:
        """Act on the folder of a finished run, including a run that had already finished before this call."""

    def facts(self) -> dict[str, str]:
        """Return entries for the run's `environment.json`."""
        return {}


def build_extension(experiment: Experiment) -> Extension:
    """Return the training extension for an experiment's `compress` section."""
    kind = experiment.compress.kind
    return Extension() if kind == "none" else EXTENSIONS[kind](experiment)
