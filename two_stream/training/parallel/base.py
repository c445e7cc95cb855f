"""How the processes of a run make one optimizer step together: alone, as replicas (DDP), or divided (FSDP2).

The gradients of a step are exchanged once, in the last row of micro-batches. A process that has no micro-batch there
still takes part, with a gradient of zero, so an uneven end of an epoch or a clip that cannot be read holds nobody up.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


class Parallel:
    """One process: every method is the plain thing."""

    world = 1
    lockstep = False
    """every forward pass needs all processes"""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.model = model
        self.device = device

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        """Return the logits of a micro-batch."""
        logits: torch.Tensor = self.model(clips)
        return logits

    def idle(self, *, last: bool) -> torch.Tensor | None:
        """Stand in for a micro-batch that is not there: a loss of zero to go backward from, or None."""
        del last
        return None

    @contextmanager
    def micro_step(self, active: int, *, last: bool) -> Iterator[None]:
        """Surround forward and backward pass of a row in which `active` processes have a micro-batch."""
        del active, last
        yield

    def end_step(self) -> None:
        """Make what the steps of all processes left behind the same."""

    def whole(self, tree: Any) -> Any:
        """Return a state dict with undivided tensors; every process calls it."""
        return tree

    def writable(self, model: nn.Module) -> nn.Module:
        """Return the model as a single process holds it; every process calls it."""
        return model

    def load(self, weights: dict[str, torch.Tensor]) -> None:
        """Put undivided weights into the model.

        Raises:
            RuntimeError: They do not fit.
        """
        self.model.load_state_dict(weights)

    def divided(self, state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Return an undivided optimizer state as this process keeps it."""
        del optimizer
        return state


def clip_shape(model: nn.Module) -> tuple[int, ...] | None:
    """Return `(C, T, H, W)` of a model's clips, where it says so."""
    spec = getattr(model, "spec", None)
    return None if spec is None else (spec.channels, spec.clip_length, *spec.size)


def blank(shape: tuple[int, ...] | None, count: int, device: torch.device) -> torch.Tensor:
    """Return `count` black clips of shape `(C, T, H, W)`."""
    assert shape is not None, "a model that does not say what clips it takes"
    return torch.zeros((count, *shape), dtype=torch.uint8, device=device)
