"""Optimizers, their parameter groups and the learning rate schedule.

By default, norms, biases and position embeddings have no weight decay. Layers near the input can have a smaller
learning rate.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from two_stream.config.schema import (
    AdamW,
    Cosine,
    Logistic,
    MultiStep,
    OptimizerOptions,
    Plateau,
    ScheduleOptions,
    Sgd,
)
from two_stream.errors import SettingsError

Stages = Sequence[tuple[str, nn.Module]]
"""Named parts of a recognizer from the input to the classifier."""

_POSITIONAL = re.compile(r"pos_embed|position|time_embed|(^|[._])(cls|class|reg|dist)_?token")
_FUSED = {"cpu", "cuda"}
PLATEAU_THRESHOLD = 1e-4
"""smallest relative decrease of the loss that counts as an improvement, as in
`torch.optim.lr_scheduler.ReduceLROnPlateau`"""


def build_optimizer(
    model: nn.Module,
    stages: Stages,
    options: Sgd | AdamW,
    *,
    layer_decay: float = 1.0,
    stage_rates: Mapping[str, float] | None = None,
    device: torch.device | None = None,
) -> torch.optim.Optimizer:
    """Build SGD or AdamW for `parameter_groups`, with the fused kernel if the device has one.

    Raises:
        SettingsError: All weights are frozen, or `stage_rates` names an unknown stage.
    """
    groups = parameter_groups(model, stages, options, layer_decay, stage_rates)
    fused = (device or torch.device("cpu")).type in _FUSED
    if isinstance(options, Sgd):
        divided = any(hasattr(p, "device_mesh") for group in groups for p in group["params"])
        return _without_compiler(torch.optim.SGD)(
            groups,
            lr=options.lr,
            momentum=options.momentum,
            dampening=options.dampening,
            nesterov=options.nesterov,
            fused=fused and not divided,  # FSDP2 has no fused SGD
        )
    return _without_compiler(torch.optim.AdamW)(
        groups, lr=options.lr, betas=options.betas, eps=options.eps, fused=fused
    )


def _without_compiler(kind: type[torch.optim.Optimizer]) -> Callable[..., torch.optim.Optimizer]:
    """Return an optimizer class whose methods do not import torch's compiler, which takes a second.

    torch imports `torch._dynamo` to exclude these methods from compilation. Only networks are compiled here, never
    optimizers.
    """
    for name in ("add_param_group", "zero_grad", "state_dict", "load_state_dict"):
        plain = inspect.unwrap(getattr(torch.optim.Optimizer, name))
        plain.__dict__.setdefault("__dynamo_disable", plain)
    return type(kind.__name__, (kind,), {"step": torch.no_grad()(inspect.unwrap(kind.step))})


def update_rule(options: OptimizerOptions) -> Sgd | AdamW:
    """Return the options, which must be those of SGD or AdamW (`training/linear_probe.py` handles `logistic`)."""
    assert not isinstance(options, Logistic)
    return options


def parameter_groups(
    model: nn.Module,
    stages: Stages,
    options: Sgd | AdamW,
    layer_decay: float = 1.0,
    stage_rates: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Group the trainable parameters by weight decay and depth.

    Each group has an `lr_scale`, a factor of the learning rate, and a `name` for logs. The last stage, the classifier,
    has scale 1. The stage before the classifier has scale `layer_decay`, the next one towards the input `layer_decay **
    2`, and so on. `stage_rates` overrides the scale of single stages. Parameters outside all stages have scale 1.

    Raises:
        SettingsError: All weights are frozen, or `stage_rates` names an unknown stage.
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
        raise SettingsError(
            "`train.freeze_until` freezes every weight, so nothing is left to train; choose an earlier stage"
        )
    return list(groups.values())


def is_exempt(name: str, parameter: torch.Tensor) -> bool:
    """Return whether a parameter has no weight decay by default: norm, bias, position embedding or class token."""
    return parameter.ndim < 2 or _POSITIONAL.search(name) is not None


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load a saved state, but keep the value of `fused`, because the run may resume on another device."""
    fused = [group.get("fused") for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, value in zip(optimizer.param_groups, fused, strict=True):
        group["fused"] = value


def _scales(
    stages: Stages, layer_decay: float, stage_rates: Mapping[str, float]
) -> dict[int, tuple[str, float]]:
    """Map the id of a parameter to the label and the scale of its group; parameters with scale 1 can be missing."""
    names = [name for name, _ in stages]
    stray = next((name for name in stage_rates if name not in names), None)
    if stray is not None:
        raise SettingsError(
            f"`train.stage_rates`: {stray!r} is not a stage of the network; expected one of "
            f"{', '.join(names)}"
        )
    found: dict[int, tuple[str, float]] = {}
    for below, (name, module) in enumerate(reversed(list(stages))):
        entry = (name, stage_rates[name]) if name in stage_rates else (str(below), layer_decay**below)
        if name not in stage_rates and layer_decay == 1.0:
            continue
        for parameter in module.parameters():
            found.setdefault(id(parameter), entry)
    return found


class Schedule:
    """Learning rate schedule.

    The learning rate depends only on the step and, for `plateau`, on the validation losses. A resumed run therefore has
    the same learning rates. Steps and epochs are counted from 0. `apply` sets the learning rate of each group to
    `rate(step) * lr_scale`.
    """

    def __init__(
        self,
        options: ScheduleOptions,
        optimizer: torch.optim.Optimizer,
        *,
        base_lr: float,
        steps_per_epoch: int,
        epochs: int,
    ) -> None:
        self.options = options
        self.optimizer = optimizer
        self.base_lr = base_lr
        self.steps_per_epoch = steps_per_epoch
        self.epochs = epochs
        self.best, self.bad_epochs, self.drops = math.inf, 0, 0  # of `plateau`

    def rate(self, step: int) -> float:
        """Return the learning rate of an optimizer step for a group with scale 1."""
        options = self.options
        if isinstance(options, MultiStep):
            epoch = step // self.steps_per_epoch
            return self.base_lr * options.gamma ** sum(epoch >= mark for mark in options.milestones)
        if isinstance(options, Plateau):
            return max(min(options.min_lr, self.base_lr), self.base_lr * options.factor**self.drops)
        return self._cosine(options, step) if isinstance(options, Cosine) else self.base_lr

    def _cosine(self, options: Cosine, step: int) -> float:
        """Return the learning rate of SGDR without restarts (arXiv 1608.03983, equation 5) after a linear warm-up."""
        total = self.steps_per_epoch * self.epochs
        warmup = min(total, round(options.warmup_epochs * self.steps_per_epoch))
        if step < warmup:
            return self.base_lr * (step + 1) / warmup
        done = min(1.0, (step - warmup) / max(1, total - warmup))
        floor = min(options.min_lr, self.base_lr)
        return floor + (self.base_lr - floor) * 0.5 * (1.0 + math.cos(math.pi * done))

    def apply(self, step: int) -> float:
        """Set the learning rate of every group for a step. Returns the learning rate for scale 1."""
        rate = self.rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        return rate

    def end_epoch(self, val_loss: float) -> None:
        """Record an epoch's validation loss for `plateau`; NaN counts as no improvement."""
        if not isinstance(self.options, Plateau):
            return
        if val_loss < self.best * (1.0 - PLATEAU_THRESHOLD):
            self.best, self.bad_epochs = val_loss, 0
            return
        self.bad_epochs += 1
        if self.bad_epochs > self.options.patience:
            self.drops, self.bad_epochs = self.drops + 1, 0

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain values for a checkpoint."""
        if not isinstance(self.options, Plateau):
            return {}
        return {"best": self.best, "bad_epochs": self.bad_epochs, "drops": self.drops}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        if isinstance(self.options, Plateau):
            self.best, self.bad_epochs, self.drops = state["best"], state["bad_epochs"], state["drops"]
