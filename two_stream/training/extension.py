"""What may be added to a training from above: another start, another loss, work after each step.

Pruning, quantisation-aware training and distillation are trainings with something added. They stand above this package,
so it knows their homes by name alone; an experiment with a `compress` section then trains the same way wherever it is
trained, by `two-stream compress`, `train --resume` or in a study.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING

import torch
from torch import nn

from two_stream.config.schema import Experiment

if TYPE_CHECKING:
    from two_stream.recognizer import Recognizer
    from two_stream.training.data import TrainingData
    from two_stream.training.losses import Loss
    from two_stream.types import Batch, RunPaths

HOMES = {
    "none": "two_stream.training.extension:Extension",
    "prune": "two_stream.compression.pruning:Pruning",
    "quantize": "two_stream.compression.quantization:QuantizationAware",
    "distill": "two_stream.compression.distillation:Distillation",
}
"""Class of each kind of `Experiment.compress`."""


class Extension:
    """Adds nothing; the base of what adds something. Built as `ExtensionClass(experiment)`, once per training."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment

    def start(self, model: Recognizer, *, resumed: bool) -> None:
        """Change the network in place before the optimizer is made; it holds the weights to start from.

        Args:
            model: On the CPU, not yet frozen, compiled or divided.
            resumed: A checkpoint of this run is loaded over it afterwards, so it must get that one's structure.
        """

    def data(self, data: TrainingData) -> TrainingData:
        """Return what is trained on; batches may carry more (`Batch.beside`)."""
        return data

    def planned(self, steps_per_epoch: int) -> None:
        """Learn how many optimizer steps an epoch has, before the first of them."""

    def restored(self, models: Sequence[nn.Module]) -> None:
        """Learn from the weights of a checkpoint, which have just been loaded; `models` as for `stepped`."""

    def counts(self, epoch: int) -> bool:
        """Whether an epoch (from 0) may be the best one; before it does, early stopping does not count either."""
        del epoch
        return True

    def loss(self, plain: Loss, logits_BK: torch.Tensor, targets: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the sum of the losses of a micro-batch.

        Args:
            plain: The training loss of the settings.
            logits_BK: What the network says, float32 or float64.
            targets: Labels, or shares `(B, K)` after mixup.
            batch: What it saw: `clips` on the device and as mixed, `beside` as the loader gave it.
        """
        del batch
        return plain(logits_BK, targets)

    def stepped(self, models: Sequence[nn.Module], step: int) -> None:
        """Act on the weights after optimizer step `step` (from 0 since the run began).

        Args:
            models: The network that is trained and, where there is one, its moving average.
            step: Its number.
        """

    def trained_beside(self, device: torch.device) -> list[nn.Parameter]:
        """Return parameters, on the device, that learn with the network and are no part of it; `state` holds them."""
        del device
        return []

    def state(self) -> dict[str, torch.Tensor]:
        """Return what a checkpoint must hold beside the network."""
        return {}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Put `state` back."""

    def finished(self, paths: RunPaths) -> None:
        """Act on the folder of a run that is trained to its end; also of one that was so before."""

    def facts(self) -> dict[str, str]:
        """Return what the run's `environment.json` tells of it."""
        return {}


def extension_of(experiment: Experiment) -> Extension:
    """Return what an experiment's `compress` section adds to its training."""
    module, _, name = HOMES[experiment.compress.kind].partition(":")
    made = getattr(import_module(module), name)(experiment)
    assert isinstance(made, Extension)
    return made
