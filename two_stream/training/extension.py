"""Hooks that change a training run: its initial network, its loss, and the work after each step.

`two_stream.compression` implements pruning, quantization-aware training and distillation as extensions.
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
    """Base class of all extensions, whose methods change nothing."""

    def start(self, model: Recognizer, *, resumed: bool) -> None:
        """Change the network in place before the optimizer is built.

        Args:
            model: The network with its initial weights, on the CPU, before it is frozen, compiled or sharded.
            resumed: Whether a checkpoint of this run is loaded afterwards. If so, the layers must fit the checkpoint.
        """

    def data(self, data: TrainingData) -> TrainingData:
        """Return the training data, to whose batches the extension may add clips (`Batch.beside`)."""
        return data

    def set_epoch_length(self, steps_per_epoch: int) -> None:
        """Store the number of optimizer steps per epoch. The trainer calls this method before the first step."""

    def restored(self, models: Sequence[nn.Module]) -> None:
        """Update the extension after a checkpoint has been loaded into `models` (see `stepped`)."""

    def counts(self, epoch: int) -> bool:
        """Return whether an epoch (from 0) may become the best one and counts for early stopping."""
        del epoch
        return True

    def loss(self, plain: Loss, logits_BK: torch.Tensor, targets: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the training loss, summed over the clips of a micro-batch.

        Args:
            plain: The training loss of the settings.
            logits_BK: Logits of the network, float32 or float64.
            targets: Class indices `(B,)`, or class probabilities `(B, K)` after mixup.
            batch: The micro-batch. Its `clips` are on the device, after mixup; its `beside` is unchanged since loading.
        """
        del batch
        return plain(logits_BK, targets)

    def stepped(self, models: Sequence[nn.Module], step: int) -> None:
        """Change the weights after an optimizer step, for example to keep pruned weights at 0.

        Args:
            models: The trained network and, if there is one, its moving average.
            step: Number of the step, counted from 0 since the run began.
        """

    def extra_parameters(self, device: torch.device) -> list[nn.Parameter]:
        """Return trained parameters that are not part of the network, on the device; `state` must contain them."""
        del device
        return []

    def state(self) -> dict[str, torch.Tensor]:
        """Return the tensors that the extension saves in a checkpoint."""
        return {}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Restore the tensors that `state` returned."""

    def finished(self, paths: RunPaths) -> None:
        """Process the folder of a finished run, also if the run had finished before this call."""

    def facts(self) -> dict[str, str]:
        """Return entries for the run's `environment.json`."""
        return {}


def build_extension(experiment: Experiment) -> Extension:
    """Return the extension that an experiment's `compress` section selects."""
    kind = experiment.compress.kind
    return Extension() if kind == "none" else EXTENSIONS[kind](experiment)
