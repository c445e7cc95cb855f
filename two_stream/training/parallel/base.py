"""How the processes of a run make one optimizer step: a single process, replicas (DDP) or shards (FSDP2).

The gradients of a step are exchanged once, in the last row of micro-batches. A process without a micro-batch in that
row takes part with a gradient of zero, so no process waits at an uneven end of an epoch or for an unreadable clip.
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
    """whether all processes must take part in every forward pass"""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.model = model
        self.device = device

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        """Return the logits of a micro-batch."""
        logits: torch.Tensor = self.model(clips)
        return logits

    def idle(self, *, last: bool) -> torch.Tensor | None:
        """Take part without a micro-batch: return a loss of zero for the backward pass, or None."""
        del last
        return None

    @contextmanager
    def micro_step(self, active: int, *, last: bool) -> Iterator[None]:
        """Context for forward and backward pass of a row, in which `active` processes have a micro-batch."""
        del active, last
        yield

    def end_step(self) -> None:
        """Synchronise what the step changed on each process."""

    def gather(self, tree: Any) -> Any:
        """Return a state dict with full tensors; a collective call."""
        return tree

    def full_model(self, model: nn.Module) -> nn.Module:
        """Return the model with full tensors; a collective call."""
        return model

    def load(self, weights: dict[str, torch.Tensor]) -> None:
        """Load full weights into the model.

        Raises:
            RuntimeError: The weights do not fit the model.
        """
        self.model.load_state_dict(weights)

    def shard(self, state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Return this process's part of a full optimizer state."""
        del optimizer
        return state


def clip_shape(model: nn.Module) -> tuple[int, ...] | None:
    """Return `(C, T, H, W)` of a model's clips; None if it has no `spec`."""
    spec = getattr(model, "spec", None)
    return None if spec is None else (spec.channels, spec.clip_length, *spec.size)


def blank_clips(shape: tuple[int, ...] | None, count: int, device: torch.device) -> torch.Tensor:
    """Return `count` black clips of shape `(C, T, H, W)`."""
    assert shape is not None, "the model has no `spec`"
    return torch.zeros((count, *shape), dtype=torch.uint8, device=device)
