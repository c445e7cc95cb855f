"""Counted costs of a model: parameters and operations for one clip, in total and for each stage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from two_stream.config.model import ModelOptions
from two_stream.recognizer import Recognizer
from two_stream.surgery import alter

CONVENTION = "a multiply-add is one multiplication and one addition, which torch counts as two FLOPs"
FVCORE = (
    "operations as fvcore counts them (one per multiply-add, two per element for BatchNorm, five for LayerNorm; "
    "without LSTMs and fused attention)"
)
_BATCH_NORM, _OTHER_NORM = 2, 5
"""Number of operations per element that fvcore counts for normalisations with weights, in evaluation."""


@dataclass
class StageCost:
    """Costs of a stage of a model for one clip."""

    name: str
    output: tuple[int, ...]
    """shape of the stage's output, without the batch dimension"""
    parameters: int
    multiply_adds: int
    milliseconds: float | None = None
    """median time of a batch; None if it was not measured"""
    beside: tuple[tuple[int, ...], ...] = ()


def meta_model(options: ModelOptions, num_classes: int) -> Recognizer:
    """Build a model on the meta device, without memory for its weights."""
    with torch.device("meta"):
        return Recognizer(options, num_classes).eval()


def meta_twin(model: Recognizer) -> Recognizer:
    """Return a copy of a model on the meta device.

    The copy lacks the channels that pruning removed from the model. For an int8 network, the copy is the float version.
    """
    twin = meta_model(model.options, model.num_classes)
    for alteration in model.alterations:
        if alteration.reshapes:
            alter(twin, alteration)
    return twin


def parameter_count(model: nn.Module) -> int:
    """Return the number of parameters, including frozen ones."""
    return sum(parameter.numel() for parameter in model.parameters())


def multiply_adds(model: Recognizer) -> int:
    """Return the multiply-adds for one clip (see `CONVENTION`). Normalisations and activations are not counted."""
    return sum(stage.multiply_adds for stage in stage_costs(model))


def stage_costs(model: Recognizer) -> list[StageCost]:
    """Return the output shape, parameters and multiply-adds of each stage for one clip, counted on the meta device."""
    twin = meta_twin(model)
    clip = torch.empty(clip_shape(twin, 1), device="meta", dtype=torch.uint8)
    shapes: dict[str, list[tuple[int, ...]]] = {name: [] for name, _ in callables(twin)}

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
            del module, args
            maps = (output,) if isinstance(output, torch.Tensor) else output
            shapes[name] += [tuple(map_.shape[1:]) for map_ in maps]

        return hook

    hooks = [part.register_forward_hook(note(name)) for name, part in callables(twin)]
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        twin(clip)
    for hook in hooks:
        hook.remove()
    counts = {scope: sum(ops.values()) // 2 for scope, ops in counter.get_flop_counts().items()}
    names = {id(part): f"{type(twin).__name__}.{name}" for name, part in twin.named_modules()}
    costs = []
    for name, stage in twin.stages():
        inside = sum(counts.get(names[id(part)], 0) for other, part in callables(twin) if other == name)
        first, *beside = shapes[name] or [()]  # a dense model does not call its head
        costs.append(StageCost(name, first, parameter_count(stage), inside, beside=tuple(beside)))
    missing = counts["Global"] - sum(cost.multiply_adds for cost in costs)
    head = next(cost for cost in costs if cost.name == "head")
    head.multiply_adds += missing  # heads also compute while pooling, outside their forward
    return costs


def clip_shape(model: Recognizer, batch_size: int) -> tuple[int, int, int, int, int]:
    """Return the shape `(B, C, T, H, W)` of a model's input clips."""
    spec = model.spec
    return batch_size, spec.channels, spec.clip_length, *spec.size


def fvcore_operations(model: Recognizer) -> int:
    """Return the number of operations for one clip as fvcore counts them (see `FVCORE`)."""
    twin = meta_twin(model)
    elements = 0

    def hook(module: nn.Module, args: Any, output: torch.Tensor) -> None:
        nonlocal elements
        del args
        batch = isinstance(module, nn.modules.batchnorm._BatchNorm)
        affine = getattr(module, "weight", None) is not None
        each = _BATCH_NORM if batch else _OTHER_NORM
        elements += output.numel() * (each if affine else each - 1)

    kinds = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)
    hooks = [part.register_forward_hook(hook) for part in twin.modules() if isinstance(part, kinds)]
    with torch.inference_mode():
        twin(torch.empty(clip_shape(twin, 1), device="meta", dtype=torch.uint8))
    for one in hooks:
        one.remove()
    return multiply_adds(model) + elements


def callables(model: Recognizer) -> list[tuple[str, nn.Module]]:
    """Return the names and modules of the stages.

    A list of heads is replaced by the heads, because the list itself has no forward pass.
    """
    called: list[tuple[str, nn.Module]] = []
    for name, stage in model.stages():
        called += [(name, part) for part in stage] if isinstance(stage, nn.ModuleList) else [(name, stage)]
    return called
