"""One optimizer step by the processes of a run: a single process, replicas (DDP) or shards (FSDP2).

In a *row*, each process computes one micro-batch; a step consists of one or more rows. Gradients are exchanged once per
step, in the last row. If a process has no micro-batch in the last row (at the end of an epoch, or because of unreadable
clips), it contributes a gradient of zero, so that the other processes do not wait.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


class Parallel:
    """A single process."""

    world = 1
    lockstep = False
    """whether every forward pass requires all processes"""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.model = model
        self.device = device

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        """Return the logits of a micro-batch."""
        logits: torch.Tensor = self.model(clips)
        return logits

    def idle(self, *, last: bool) -> torch.Tensor | None:
        """Run a row without a micro-batch. Returns a loss of zero for the backward pass, or None if none is needed."""
        del last
        return None

    @contextmanager
    def micro_step(self, active: int, *, last: bool) -> Iterator[None]:
        """Context manager for the forward and backward pass of a row in which `active` processes have a micro-batch."""
        del active, last
        yield

    def end_step(self) -> None:
        """Synchronise the buffers that the step changed differently in each process."""

    def gather(self, tree: Any) -> Any:
        """Return a state dict with full tensors. All processes must call this method."""
        return tree

    def full_model(self, model: nn.Module) -> nn.Module:
        """Return the model with full tensors. All processes must call this method."""
        return model

    def load(self, weights: dict[str, torch.Tensor]) -> None:
        """Load a state dict with full tensors into the model.

        Raises:
            RuntimeError: The weights do not fit the model.
        """
        self.model.load_state_dict(weights)

    def shard(self, state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Return this process's shard of a full optimizer state."""
        del optimizer
        return state


def clip_shape(model: nn.Module) -> tuple[int, ...] | None:
    """Return the shape `(C, T, H, W)` of a model's input clips; None if the model has no `spec`."""
    spec = getattr(model, "spec", None)
    return None if spec is None else (spec.channels, spec.clip_length, *spec.size)


def blank_clips(shape: tuple[int, ...] | None, count: int, device: torch.device) -> torch.Tensor:
    """Return `count` black clips of shape `(C, T, H, W)`."""
    assert shape is not None, "the model has no `spec`"
    return torch.zeros((count, *shape), dtype=torch.uint8, device=device)
