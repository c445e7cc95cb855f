"""DDP: one copy of the network per process; also the choice between a single process, DDP and FSDP2."""

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
from two_stream.training.parallel.base import Parallel, blank_clips, clip_shape
from two_stream.training.parallel.batchnorm import RunningStatistics

_NEW_NAME = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
_BUFFERS_APART: dict[str, Any] = {"forward_sync_buffers" if _NEW_NAME else "broadcast_buffers": False}


class Replicas(Parallel):
    """One copy of the network per process; gradients are averaged during the backward pass."""

    def __init__(self, model: nn.Module, device: torch.device, *, spanning: bool) -> None:
        super().__init__(model, device)
        self.world = distributed.world_size()
        self.spanning = spanning
        self.statistics = None if spanning else RunningStatistics(model)
        self._shape = clip_shape(model)
        # pointwise convolutions: the strides differ, but describe the same memory layout
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        # buffers: see RunningStatistics; no static_graph: without a micro-batch, the graph differs
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
        """Run a row without a micro-batch: take part in the exchange of gradients and of BatchNorm statistics."""
        if self.spanning:  # the other processes wait in each BatchNorm
            return self.forward(blank_clips(self._shape, 0, self.device)).sum()
        return cast(torch.Tensor, self._wrapped(None)) if last else None

    @contextmanager
    def micro_step(self, active: int, *, last: bool) -> Iterator[None]:
        """Context manager for a row; gradients are exchanged in the last row only."""
        if self.statistics is not None:
            self.statistics.begin_micro_step(active)
        if last:
            yield
            return
        with self._wrapped.no_sync():
            yield

    def end_step(self) -> None:
        """Average the running statistics of BatchNorm over the processes."""
        if self.statistics is not None:
            self.statistics.end_step()


class _Entry(nn.Module):
    """The module that DDP wraps.

    With clips, the module returns the logits; without clips, it returns a zero that depends on every weight.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, clips: torch.Tensor | None) -> torch.Tensor:
        if clips is not None:
            logits: torch.Tensor = self.model(clips)
            return logits
        weights = [p for p in self.model.parameters() if p.requires_grad]
        return torch.stack([p[(0,) * p.ndim].float() for p in weights]).sum() * 0.0


def build_parallel(model: nn.Module, options: TrainOptions, device: torch.device) -> Parallel:
    """Wrap a model for the current number of processes and `train.strategy`. The model must be on `device`."""
    if distributed.world_size() == 1:
        return Parallel(model, device)
    spanning = options.sync_batchnorm
    if options.strategy == "fsdp":
        from two_stream.training.parallel.fsdp import Sharded

        return Sharded(model, device, spanning=spanning)
    return Replicas(model, device, spanning=spanning)
