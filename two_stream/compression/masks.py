"""Pruning masks: level and sensitivity pruning, and the gradual schedule.

Levels and thresholds are those of Distiller, which compressed-video-classification uses; the schedule is that of Zhu
and Gupta, "To prune, or not to prune" (arXiv 1710.01878).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

Masks = dict[str, torch.Tensor]
"""True where a weight stays, by the name of its layer."""


def level_threshold(weights: torch.Tensor, level: float) -> float | None:
    """Return the largest of the `int(level · n)` smallest absolute values; None where that is no value."""
    count = int(level * weights.numel())
    if count == 0:
        return None
    return float(weights.abs().flatten().kthvalue(count).values)


def keep_mask(weights: torch.Tensor, threshold: float | None) -> torch.Tensor:
    """Return True where an absolute value is strictly greater than a threshold."""
    if threshold is None:
        return torch.ones_like(weights, dtype=torch.bool)
    return weights.abs() > threshold


def level_masks(weights: Mapping[str, torch.Tensor], levels: Mapping[str, float]) -> Masks:
    """Return masks that remove a share of each layer."""
    return {name: keep_mask(w, level_threshold(w, levels[name])) for name, w in weights.items()}


def global_masks(weights: Mapping[str, torch.Tensor], level: float) -> Masks:
    """Return masks that remove a share of all layers together, with one threshold."""
    threshold = level_threshold(torch.cat([w.flatten() for w in weights.values()]), level)
    return {name: keep_mask(w, threshold) for name, w in weights.items()}


def sensitivity_masks(weights: Mapping[str, torch.Tensor], sensitivity: float) -> Masks:
    """Return masks that remove weights up to `sensitivity` standard deviations of their layer (Han et al. 2015)."""
    return {name: keep_mask(w, sensitivity * float(w.std())) for name, w in weights.items()}


def gradual_level(
    epoch: int, *, initial: float, final: float, begin: int, end: int, frequency: int
) -> float | None:
    """Return the share at an epoch; None before `begin`. It rises fast first and slowly last.

    Zhu and Gupta, equation 1: `s_f + (s_i - s_f) · (1 - progress)³`. The last step, `frequency` epochs before `end`,
    reaches the final share; between steps and after the last one it is constant.
    """
    if epoch < begin:
        return None
    step = min((epoch - begin) // frequency * frequency, last_step(begin, end, frequency) - begin)
    progress = step / (last_step(begin, end, frequency) - begin)
    return final + (initial - final) * (1.0 - progress) ** 3


def last_step(begin: int, end: int, frequency: int) -> int:
    """Return the epoch from which a gradual schedule has its final share."""
    return begin + (end - 1 - begin) // frequency * frequency


@torch.no_grad()
def apply_masks(model: nn.Module, masks: Mapping[str, torch.Tensor]) -> None:
    """Set the removed weights to 0."""
    for name, mask in masks.items():
        weight = model.get_submodule(name).weight
        assert isinstance(weight, torch.Tensor)
        weight.mul_(mask.to(weight.device))
