"""Pruning during training, at the start or in steps. Removed weights stay removed.

The levels and thresholds are defined as in Distiller, which compressed-video-classification uses. The schedule is that
of Zhu and Gupta, "To prune, or not to prune" (arXiv 1710.01878).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from two_stream.compression.layers import chosen_layers
from two_stream.config.compress import Prune
from two_stream.config.schema import Experiment
from two_stream.errors import SettingsError
from two_stream.recognizer import Recognizer
from two_stream.training.step import EXTENSIONS, Extension

Masks = dict[str, torch.Tensor]
"""Masks by layer name; True where a weight is kept."""


@EXTENSIONS.register(Prune)
class Pruning(Extension):
    """Applies masks after each step, or removes channels before the first step."""

    def __init__(self, experiment: Experiment) -> None:
        assert isinstance(experiment.compress, Prune)
        self.options = experiment.compress
        epochs, end = experiment.train.epochs, self.options.end
        if end is not None and end > epochs:
            raise SettingsError(
                f"`compress.end` is {end}, but `train.epochs` is {epochs}, so the run would end before the "
                "pruning schedule; train for more epochs, or set a smaller `compress.end`"
            )
        self.steps = 1
        self.layers: list[str] = []
        self.masks: Masks = {}

    def start(self, model: Recognizer, *, resumed: bool) -> None:
        """Remove channels, or compute the first masks. A resumed run loads the changed network from its checkpoint."""
        if self.options.what == "weights":
            self.layers = list(chosen_layers(model, self.options))
            self._mark(model, 0)
            apply_masks(model, self.masks)
        elif not resumed:
            from two_stream.compression.channels import narrow_channels

            narrow_channels(model, self.options)

    def set_epoch_length(self, steps_per_epoch: int) -> None:
        """Store the number of steps per epoch."""
        self.steps = steps_per_epoch

    def restored(self, models: Sequence[nn.Module]) -> None:
        """Restore the masks from the weights, because only removed weights are exactly 0."""
        self.masks = {name: weight != 0 for name, weight in self._weights(models[0]).items()}

    def stepped(self, models: Sequence[nn.Module], step: int) -> None:
        """Set removed weights to 0. The masks are updated in the first step of each epoch of the schedule."""
        epoch, place = divmod(step, self.steps)
        if self.options.end is not None and place == 0:
            self._mark(models[0], epoch)
        for model in models:
            apply_masks(model, self.masks)

    def counts(self, epoch: int) -> bool:
        """Return whether the network of an epoch has its final sparsity."""
        end = self.options.end
        return end is None or epoch >= last_step(self.options.begin, end, self.options.frequency)

    def facts(self) -> dict[str, str]:
        """Return a description of what is pruned."""
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
        """Compute the masks of an epoch. Weights that are 0 are the smallest, so they stay removed."""
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


def level_threshold(weights: torch.Tensor, level: float) -> float | None:
    """Return the largest of the k smallest absolute values of n weights, with `k = int(level · n)`; None if k is 0."""
    count = int(level * weights.numel())
    if count == 0:
        return None
    return float(weights.abs().flatten().kthvalue(count).values)


def keep_mask(weights: torch.Tensor, threshold: float | None) -> torch.Tensor:
    """Return a mask that is True where the absolute value is greater than a threshold."""
    if threshold is None:
        return torch.ones_like(weights, dtype=torch.bool)
    return weights.abs() > threshold


def level_masks(weights: Mapping[str, torch.Tensor], levels: Mapping[str, float]) -> Masks:
    """Return masks that remove a fraction of the weights of each layer."""
    return {name: keep_mask(w, level_threshold(w, levels[name])) for name, w in weights.items()}


def global_masks(weights: Mapping[str, torch.Tensor], level: float) -> Masks:
    """Return masks that remove a fraction of the weights of all layers together, with one threshold."""
    threshold = level_threshold(torch.cat([w.flatten() for w in weights.values()]), level)
    return {name: keep_mask(w, threshold) for name, w in weights.items()}


def sensitivity_masks(weights: Mapping[str, torch.Tensor], sensitivity: float) -> Masks:
    """Return masks that remove weights with a small absolute value (Han et al. 2015).

    The limit is `sensitivity` times the layer's standard deviation.
    """
    return {name: keep_mask(w, sensitivity * float(w.std())) for name, w in weights.items()}


def gradual_level(
    epoch: int, *, initial: float, final: float, begin: int, end: int, frequency: int
) -> float | None:
    """Return the fraction to remove in an epoch; None before `begin`.

    The fraction is `s_f + (s_i - s_f) · (1 - progress)³` (Zhu and Gupta, equation 1), which rises quickly at first. The
    fraction changes every `frequency` epochs. The last change before `end` reaches the final fraction.
    """
    if epoch < begin:
        return None
    step = min((epoch - begin) // frequency * frequency, last_step(begin, end, frequency) - begin)
    progress = step / (last_step(begin, end, frequency) - begin)
    return final + (initial - final) * (1.0 - progress) ** 3


def last_step(begin: int, end: int, frequency: int) -> int:
    """Return the epoch in which a gradual schedule reaches its final fraction."""
    return begin + (end - 1 - begin) // frequency * frequency


@torch.no_grad()
def apply_masks(model: nn.Module, masks: Mapping[str, torch.Tensor]) -> None:
    """Set the removed weights to 0."""
    for name, mask in masks.items():
        weight = model.get_submodule(name).weight
        assert isinstance(weight, torch.Tensor)
        weight.mul_(mask.to(weight.device))
