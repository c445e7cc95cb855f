"""Pruning as a training: what goes is chosen at its start or step by step, and what is gone stays gone."""

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
from two_stream.training.extension import EXTENSIONS, Extension


@EXTENSIONS.register(Prune)
class Pruning(Extension):
    """Masks that hold after every step, or fewer channels from the first one on."""

    def __init__(self, experiment: Experiment) -> None:
        assert isinstance(experiment.compress, Prune)
        self.options = experiment.compress
        epochs, end = experiment.train.epochs, self.options.end
        if end is not None and end > epochs:
            raise SettingsError(
                f"`compress.end` is {end} and `train.epochs` {epochs}: the run would end before it is pruned; "
                "train longer or end the schedule earlier"
            )
        self.steps = 1
        self.layers: list[str] = []
        self.masks: Masks = {}

    def start(self, model: Recognizer, *, resumed: bool) -> None:
        """Take out channels, or the first weights; a resumed run finds both in its checkpoint."""
        if self.options.what == "weights":
            self.layers = list(chosen_layers(model, self.options))
            self._mark(model, 0)
            apply_masks(model, self.masks)
        elif not resumed:
            from two_stream.compression.channels import narrow

            narrow(model, self.options)

    def set_epoch_length(self, steps_per_epoch: int) -> None:
        """Keep the length of an epoch."""
        self.steps = steps_per_epoch

    def restored(self, models: Sequence[nn.Module]) -> None:
        """Read the masks off the weights: what was taken out is 0, and training leaves nothing else at exactly 0."""
        self.masks = {name: weight != 0 for name, weight in self._weights(models[0]).items()}

    def stepped(self, models: Sequence[nn.Module], step: int) -> None:
        """Take more out in the first step of an epoch of the schedule; set everything taken out back to 0."""
        epoch, place = divmod(step, self.steps)
        if self.options.end is not None and place == 0:
            self._mark(models[0], epoch)
        for model in models:
            apply_masks(model, self.masks)

    def counts(self, epoch: int) -> bool:
        """Whether an epoch's network has lost all that it shall lose."""
        end = self.options.end
        return end is None or epoch >= last_step(self.options.begin, end, self.options.frequency)

    def facts(self) -> dict[str, str]:
        """Say what is pruned."""
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
        """Choose what stays at an epoch; what was 0 stays 0, being the smallest."""
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
