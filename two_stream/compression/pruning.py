"""Pruning during training: at its start or in steps; what is removed stays removed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from two_stream.compression.layers import chosen_layers
from two_stream.compression.masks import (
    Masks,
    apply_masks,
    global_masks,
    gradual_level,
    last_step,
    level_masks,
    sensitivity_masks,
)
from two_stream.config.compress import Prune
from two_stream.config.schema import Experiment
from two_stream.errors import SettingsError
from two_stream.recognizer import Recognizer
from two_stream.training.extension import Extension


class Pruning(Extension):
    """Applies masks after every step, or removes channels before the first one."""

    def __init__(self, experiment: Experiment) -> None:
        super().__init__(experiment)
        assert isinstance(experiment.compress, Prune)
        self.options = experiment.compress
        epochs, end = experiment.train.epochs, self.options.end
        if end is not None and end > epochs:
            raise SettingsError(
                f"`compress.end` is {end} and `train.epochs` {epochs}: the run would end before the pruning "
                "schedule; train longer or end the schedule earlier"
            )
        self.steps = 1
        self.layers: list[str] = []
        self.masks: Masks = {}

    def start(self, model: Recognizer, *, resumed: bool) -> None:
        """Remove channels, or the first weights; the checkpoint of a resumed run contains both."""
        if self.options.what == "weights":
            self.layers = list(chosen_layers(model, self.options))
            self._mark(model, 0)
            apply_masks(model, self.masks)
        elif not resumed:
            from two_stream.compression.channels import narrow_channels

            narrow_channels(model, self.options)

    def planned(self, steps_per_epoch: int) -> None:
        """Store the number of steps per epoch."""
        self.steps = steps_per_epoch

    def restored(self, models: Sequence[nn.Module]) -> None:
        """Restore the masks from the weights: removed ones are 0, and training leaves no others at exactly 0."""
        self.masks = {name: weight != 0 for name, weight in self._weights(models[0]).items()}

    def stepped(self, models: Sequence[nn.Module], step: int) -> None:
        """Update the masks in the first step of an epoch of the schedule; set removed weights to 0 again."""
        epoch, place = divmod(step, self.steps)
        if self.options.end is not None and place == 0:
            self._mark(models[0], epoch)
        for model in models:
            apply_masks(model, self.masks)

    def counts(self, epoch: int) -> bool:
        """Whether an epoch's network has reached its final sparsity."""
        end = self.options.end
        return end is None or epoch >= last_step(self.options.begin, end, self.options.frequency)

    def facts(self) -> dict[str, str]:
        """Return what is pruned."""
        if self.options.what == "channels":
            return {"pruned": "channels"}
        return {"pruned": f"weights of {len(self.layers)} layers"}

    def _weights(self, model: nn.Module) -> dict[str, torch.Tensor]:
        found = {}
        for name in self.layers:
            weight = model.get_submodule(name).weight
            assert isinstance(weight, torch.Tensor)
            found[name] = weight.detach()
        return found

    def _mark(self, model: nn.Module, epoch: int) -> None:
        """Compute the masks of an epoch; weights that are 0 stay 0, since they are the smallest."""
        options, share = self.options, 1.0
        if options.end is not None:
            level = gradual_level(
                epoch,
                initial=options.initial,
                final=options.amount,
                begin=options.begin,
                end=options.end,
                frequency=options.frequency,
            )
            if level is None:
                return
            share = level / options.amount
        weights = self._weights(model)
        if options.rule == "sensitivity":
            self.masks = sensitivity_masks(weights, options.amount)
        elif options.scope == "global":
            self.masks = global_masks(weights, options.amount * share)
        else:
            levels = {name: options.by_layer.get(name, options.amount) * share for name in weights}
            self.masks = level_masks(weights, levels)
