"""Shares by layer for a budget: the step that costs the least loss for what it saves, until the budget is met."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

from two_stream.compression.masks import apply_masks, level_masks
from two_stream.compression.sensitivity import Sensitivity, SensitivityPoint, latency_of, narrowed_copy
from two_stream.config.compress import Prune
from two_stream.errors import SettingsError
from two_stream.profiling import multiply_adds
from two_stream.profiling.network_cost import nonzero_parameters
from two_stream.recognizer import Recognizer

Measure = Literal["parameters", "macs", "latency"]
Levels = dict[str, float]
_LEAST = 1e-6
"""Loss that a step costs at least: one that seems to help is taken for chance."""


@dataclass(frozen=True)
class LevelChoice:
    """Shares that meet a budget."""

    levels: Levels
    measure: Measure
    budget: float
    """share of the whole network"""
    reached: float
    """share of the network with these levels, counted or measured on it"""
    loss: float
    """sum of the losses that the layers cost by themselves; together they cost more or less"""


def choose_levels(
    model: Recognizer, found: Sensitivity, options: Prune, measure: Measure, budget: float
) -> LevelChoice:
    """Choose a share for each layer.

    Greedy: of all next levels of all layers take the one with the smallest loss for what it saves by itself, apply what
    was chosen so far, and count (or time) the whole. Of weights only their number falls.

    Args:
        model: The network, on the CPU; it stays as it is.
        found: What each layer bears.
        options: How channels are taken out.
        measure: What the budget is of.
        budget: Share of the whole that may be left, above 0 and below 1.

    Raises:
        SettingsError: Pruning weights lowers no multiply-adds; latencies were not measured; or the budget cannot be met
            (says what can).
    """
    if not 0 < budget < 1:
        raise SettingsError(f"a budget of {budget:g}: expected a share above 0 and below 1")
    if found.what == "weights" and measure != "parameters":
        raise SettingsError(
            f"a budget of {measure} is met by taking out channels; weights of 0 are computed like any others; give "
            "--what channels, or a budget of parameters"
        )
    cost = _cost(measure)
    whole = cost(model)
    steps = {layer: _steps(found, layer, measure) for layer in found.layers}
    levels: Levels = {}
    at = dict.fromkeys(steps, 0)
    loss, reached = 0.0, 1.0
    while reached > budget:
        open_ = [layer for layer in steps if at[layer] < len(steps[layer])]
        if not open_:
            raise SettingsError(
                f"a budget of {budget:g} of the {measure} cannot be met with these levels: the lowest is "
                f"{reached:.3f}; allow more, or measure higher --levels"
            )
        layer = min(open_, key=lambda name: steps[name][at[name]].price)
        step = steps[layer][at[layer]]
        at[layer] += 1
        levels[layer] = step.level
        loss += step.loss
        reached = cost(_applied(model, options, levels)) / whole
    ordered = {layer: levels[layer] for layer in found.layers if layer in levels}
    return LevelChoice(ordered, measure, budget, reached, loss)


@dataclass(frozen=True)
class _Step:
    level: float
    loss: float
    """that it adds to the level before"""
    price: float
    """loss per unit saved"""


def _steps(found: Sensitivity, layer: str, measure: Measure) -> list[_Step]:
    """Return the levels of a layer that save something, with the loss that each adds; a higher level costs no less."""
    points = sorted((one for one in found.points if one.layer == layer), key=lambda one: one.level)
    losses = list(accumulate((max(0.0, one.loss - found.base.loss) for one in points), max))
    steps = []
    before, loss_before = _value(found.base, measure), 0.0
    for point, loss in zip(points, losses, strict=True):
        saved = before - _value(point, measure)
        if saved <= 0:
            continue
        added = max(_LEAST, loss - loss_before)
        steps.append(_Step(point.level, added, added / saved))
        before, loss_before = _value(point, measure), loss
    return steps


def _value(point: SensitivityPoint, measure: Measure) -> float:
    if measure == "parameters":
        return point.parameters
    if measure == "macs":
        return point.multiply_adds
    if point.latency_ms is None:
        raise SettingsError("a budget of latency needs latencies, which were not measured")
    return point.latency_ms


def _cost(measure: Measure) -> Callable[[Recognizer], float]:
    costs: Mapping[Measure, Callable[[Recognizer], float]] = {
        "parameters": nonzero_parameters,
        "macs": multiply_adds,
        "latency": latency_of,
    }
    return costs[measure]


def _applied(model: Recognizer, options: Prune, levels: Levels) -> Recognizer:
    if options.what == "channels":
        return narrowed_copy(model, options, levels) or model
    made = copy.deepcopy(model)
    weights = {name: made.get_parameter(f"{name}.weight").detach() for name in levels}
    apply_masks(made, level_masks(weights, levels))
    return made


def best_points(found: Sensitivity) -> Sequence[tuple[str, list[SensitivityPoint]]]:
    """Return each layer with its points by rising level, the layers that bear most first."""
    rows = [
        (layer, sorted((p for p in found.points if p.layer == layer), key=lambda p: p.level))
        for layer in found.layers
    ]
    return sorted(rows, key=lambda row: max(point.loss for point in row[1]))
