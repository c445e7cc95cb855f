"""How the processes of a run make one optimizer step together: alone, as replicas (DDP), or divided (FSDP2).

The gradients of a step are exchanged once, in the last row of micro-batches. A process that has no micro-batch there
still takes part, with a gradient of zero, so an uneven end of an epoch or a clip that cannot be read holds nobody up.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from two_stream.config.schema import TrainOptions
from two_stream.runtime import distributed
from two_stream.training.norms import RunningStatistics

_NEW_NAME = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
_BUFFERS_APART: dict[str, Any] = {"forward_sync_buffers" if _NEW_NAME else "broadcast_buffers": False}


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
    def row(self, active: int, *, last: bool) -> Iterator[None]:
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


class Replicas(Parallel):
    """A whole copy of the network per process; gradients are averaged while they are computed."""

    def __init__(self, model: nn.Module, device: torch.device, *, spanning: bool) -> None:
        super().__init__(model, device)
        self.world = distributed.world_size()
        self.spanning = spanning
        self.statistics = None if spanning else RunningStatistics(model)
        self._shape = clip_shape(model)
        # a pointwise convolution's layouts differ in name only
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        # buffers: RunningStatistics does better; no static graph: a process without a micro-batch has another one
        self._wrapped = DistributedDataParallel(
            _Entry(model),
            device_ids=[device.index] if device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            **_BUFFERS_APART,
        )

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        """Return the logits of a micro-batch."""
        self._shape = tuple(clips.shape[1:])
        logits: torch.Tensor = self._wrapped(clips)
        return logits

    def idle(self, *, last: bool) -> torch.Tensor | None:
        """Take part in the exchange of gradients, and of BatchNorm's statistics where they span the processes."""
        if self.spanning:  # the others wait in each of its layers
            return self.forward(blank(self._shape, 0, self.device)).sum()
        return cast(torch.Tensor, self._wrapped(None)) if last else None

    @contextmanager
    def row(self, active: int, *, last: bool) -> Iterator[None]:
        """Exchange gradients in the last row only."""
        if self.statistics is not None:
            self.statistics.begin_row(active)
        if last:
            yield
            return
        with self._wrapped.no_sync():
            yield

    def end_step(self) -> None:
        """Average BatchNorm's running statistics."""
        if self.statistics is not None:
            self.statistics.end_step()


class _Entry(nn.Module):
    """What DDP sees: the model, or no clips and a zero that depends on every weight."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, clips: torch.Tensor | None) -> torch.Tensor:
        if clips is not None:
            logits: torch.Tensor = self.model(clips)
            return logits
        weights = [p for p in self.model.parameters() if p.requires_grad]
        return torch.stack([p[(0,) * p.ndim].float() for p in weights]).sum() * 0.0


def parallel(model: nn.Module, options: TrainOptions, device: torch.device) -> Parallel:
    """Join a model, already on its device, with its counterparts in the other processes."""
    if distributed.world_size() == 1:
        return Parallel(model, device)
    spanning = options.sync_batchnorm
    if options.strategy == "fsdp":
        from two_stream.training.sharding import Sharded

        return Sharded(model, device, spanning=spanning)
    return Replicas(model, device, spanning=spanning)


def clip_shape(model: nn.Module) -> tuple[int, ...] | None:
    """Return `(C, T, H, W)` of a model's clips, where it says so."""
    spec = getattr(model, "spec", None)
    return None if spec is None else (spec.channels, spec.clip_length, *spec.size)


def blank(shape: tuple[int, ...] | None, count: int, device: torch.device) -> torch.Tensor:
    """Return `count` black clips of shape `(C, T, H, W)`."""
    assert shape is not None, "a model that does not say what clips it takes"
    return torch.zeros((count, *shape), dtype=torch.uint8, device=device)
