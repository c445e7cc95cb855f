"""How the processes of a run compute an optimizer step: as a single process, as replicas (DDP) or as shards (FSDP2).

In a *row*, each process computes one micro-batch; a step consists of one or more rows. Gradients are exchanged once per
step, in the last row. At the end of an epoch, or if clips are unreadable, a process can lack a micro-batch in the last
row. It then contributes a gradient of zero, so that the other processes do not wait.

FSDP2 is for networks that are too large for one GPU. Each stage of the backbone is one shard group; the head and the
classifier form another group. A process gathers the weights of one group at a time. Checkpoints contain full tensors,
so a run can resume with any `train.strategy`.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from two_stream.config.schema import TrainOptions
from two_stream.runtime import distributed
from two_stream.training.batchnorm import RunningStatistics


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
        """Run a row without a micro-batch. Returns a loss of zero, or None if no backward pass is needed."""
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


class Sharded(Parallel):
    """Model with sharded weights.

    A forward pass gathers the weights stage by stage, so all processes must run it together.
    """

    lockstep = True

    def __init__(self, model: nn.Module, device: torch.device, *, spanning: bool) -> None:
        from torch.distributed.fsdp import fully_shard  # slow to import, like all of DTensor

        super().__init__(model, device)
        self.world = distributed.world_size()
        self.spanning = spanning
        self.statistics = None if spanning else RunningStatistics(model)
        self._twin = copy.deepcopy(model).to("meta")
        self._shape = clip_shape(model)
        mesh = init_device_mesh(device.type, (self.world,))
        # FSDP2 can shard no other memory layout; clips keep their own
        model.to(memory_format=torch.contiguous_format)
        for part in _parts(model):
            fully_shard(part, mesh=mesh)
        fully_shard(model, mesh=mesh)

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        """Return the logits of a micro-batch."""
        self._shape = tuple(clips.shape[1:])
        return super().forward(clips)

    def idle(self, *, last: bool) -> torch.Tensor | None:
        """Run a row without a micro-batch: compute a blank clip without changing the BatchNorm statistics."""
        del last
        if self.spanning:
            return self.forward(blank_clips(self._shape, 0, self.device)).sum()
        training = [m for m in self.model.modules() if isinstance(m, _BatchNorm) and m.training]
        for module in training:
            module.training = False
        try:
            return self.forward(blank_clips(self._shape, 1, self.device)).sum() * 0.0
        finally:
            for module in training:
                module.training = True

    @contextmanager
    def micro_step(self, active: int, *, last: bool) -> Iterator[None]:
        """Context manager for a row; gradients are reduced across processes in the last row only."""
        if self.statistics is not None:
            self.statistics.begin_micro_step(active)
        cast(Any, self.model).set_requires_gradient_sync(last)
        yield

    def end_step(self) -> None:
        """Average the running statistics of BatchNorm over the processes."""
        if self.statistics is not None:
            self.statistics.end_step()

    def gather(self, tree: Any) -> Any:
        """Return a state dict with full tensors on the CPU. All processes must call this method."""
        from torch.distributed.tensor import DTensor

        if isinstance(tree, DTensor):
            return tree.full_tensor().cpu()
        if isinstance(tree, torch.Tensor):
            return tree.detach().cpu()
        if isinstance(tree, dict):
            return {key: self.gather(value) for key, value in tree.items()}
        if isinstance(tree, list):
            return [self.gather(value) for value in tree]
        return tree

    def full_model(self, model: nn.Module) -> nn.Module:
        """Return a copy of the model with full tensors. All processes must call this method."""
        weights = self.gather(model.state_dict())
        return self._filled(weights)

    def load(self, weights: dict[str, torch.Tensor]) -> None:
        """Shard a state dict of full tensors and load it into the model.

        Raises:
            RuntimeError: The weights do not fit the model.
        """
        self._filled(weights)  # checks names and shapes
        for key, present in self.model.state_dict().items():
            present.copy_(_like(present, weights[key].to(self.device)))

    def _filled(self, weights: dict[str, torch.Tensor]) -> nn.Module:
        twin = copy.deepcopy(self._twin)
        twin.load_state_dict(weights, assign=True)
        return twin

    def shard(self, state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Return this process's shard of a full optimizer state."""
        weights = [p for group in optimizer.param_groups for p in group["params"]]
        sharded = {}
        for index, values in state["state"].items():
            weight = weights[index]
            sharded[index] = {
                key: _like(weight, value.to(self.device)) if _shaped(value, weight) else value
                for key, value in values.items()
            }
        return {**state, "state": sharded}


def _parts(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the shard groups.

    A `ModuleList` has no forward pass of its own, so its weights belong to the root group.
    """
    for _, stage in cast(Any, model).stages()[:-1]:
        if not isinstance(stage, nn.ModuleList) and next(stage.parameters(), None) is not None:
            yield stage


def _shaped(value: Any, weight: torch.Tensor) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim > 0 and value.shape == weight.shape


def _like(present: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(present, DTensor):
        return value
    return distribute_tensor(value, present.device_mesh, present.placements)


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
        from two_stream.training.parallel import Sharded

        return Sharded(model, device, spanning=spanning)
    return Replicas(model, device, spanning=spanning)
