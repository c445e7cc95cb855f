"""Optimizers and their parameter groups: no decay for norms, biases and positions; smaller steps deeper down."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from two_stream.config.optimization import AdamW, Logistic, OptimizerOptions, Sgd
from two_stream.errors import SettingsError

Stages = Sequence[tuple[str, nn.Module]]
"""Named parts of a recognizer from the input to the classifier."""

_POSITIONAL = re.compile(r"pos_embed|position|time_embed|(^|[._])(cls|class|reg|dist)_?token")
_FUSED = {"cpu", "cuda"}


def build_optimizer(
    model: nn.Module,
    stages: Stages,
    options: Sgd | AdamW,
    *,
    layer_decay: float = 1.0,
    stage_rates: Mapping[str, float] | None = None,
    device: torch.device | None = None,
) -> torch.optim.Optimizer:
    """Build SGD or AdamW over `parameter_groups`, fused where the device has such a kernel.

    Raises:
        SettingsError: Nothing is left to train, or a rate is given for no stage.
    """
    groups = parameter_groups(model, stages, options, layer_decay, stage_rates)
    fused = (device or torch.device("cpu")).type in _FUSED
    if isinstance(options, Sgd):
        divided = any(hasattr(p, "device_mesh") for group in groups for p in group["params"])
        return torch.optim.SGD(
            groups,
            lr=options.lr,
            momentum=options.momentum,
            dampening=options.dampening,
            nesterov=options.nesterov,
            fused=fused and not divided,  # FSDP2 has no fused SGD
        )
    return torch.optim.AdamW(groups, lr=options.lr, betas=options.betas, eps=options.eps, fused=fused)


def update_rule(options: OptimizerOptions) -> Sgd | AdamW:
    """Return the options as those of an optimizer that steps; `training.solver` takes the others."""
    assert not isinstance(options, Logistic)
    return options


def parameter_groups(
    model: nn.Module,
    stages: Stages,
    options: Sgd | AdamW,
    layer_decay: float = 1.0,
    stage_rates: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Divide the trainable parameters by weight decay and by depth.

    Each group carries `lr_scale` (the schedule multiplies its rate by it) and a `name` for logs. The classifier,
    the last stage, has scale 1, the stage before it `layer_decay`, then `layer_decay ** 2`, … With
    `layer_decay` 1 there are at most two groups. `stage_rates` gives the scale of single stages in its place; what
    belongs to no stage has scale 1.

    Raises:
        SettingsError: Nothing is left to train, or a rate is given for no stage.
    """
    scales = _scales(stages, layer_decay, stage_rates or {})
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decays = options.decay_all or not is_exempt(name, parameter)
        label, scale = scales.get(id(parameter), ("0", 1.0))
        key = f"{'decay' if decays else 'no_decay'}_{label}"
        group = groups.setdefault(
            key,
            {
                "params": [],
                "name": key,
                "lr_scale": scale,
                "lr": options.lr * scale,
                "weight_decay": options.weight_decay if decays else 0.0,
            },
        )
        group["params"].append(parameter)
    if not groups:
        raise SettingsError("`train.freeze_until` freezes every weight: nothing is left to train")
    return list(groups.values())


def is_exempt(name: str, parameter: torch.Tensor) -> bool:
    """Whether a parameter usually goes without decay: norms, biases, positions, class tokens."""
    return parameter.ndim < 2 or _POSITIONAL.search(name) is not None


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load a saved state, keeping this machine's choice of kernel: the run may resume on another device."""
    fused = [group.get("fused") for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, value in zip(optimizer.param_groups, fused, strict=True):
        group["fused"] = value


def _scales(
    stages: Stages, layer_decay: float, stage_rates: Mapping[str, float]
) -> dict[int, tuple[str, float]]:
    """Map each parameter to the label and the scale of its group; those of scale 1 need no entry."""
    names = [name for name, _ in stages]
    stray = next((name for name in stage_rates if name not in names), None)
    if stray is not None:
        raise SettingsError(f"`train.stage_rates` names {stray!r}: expected stages among {', '.join(names)}")
    found: dict[int, tuple[str, float]] = {}
    for below, (name, module) in enumerate(reversed(list(stages))):
        entry = (name, stage_rates[name]) if name in stage_rates else (str(below), layer_decay**below)
        if name not in stage_rates and layer_decay == 1.0:
            continue
        for parameter in module.parameters():
            found.setdefault(id(parameter), entry)
    return found
