"""FSDP2 for networks too large for one GPU: weights, gradients and optimizer state are sharded over the processes.

Each stage of the backbone is one shard group; the head and the classifier form another group. A process gathers the
weights of one group at a time. Checkpoints contain full tensors, so a run can resume with any `train.strategy`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.modules.batchnorm import _BatchNorm

from two_stream.runtime import distributed
from two_stream.training.parallel.base import Parallel, blank_clips, clip_shape
from two_stream.training.parallel.batchnorm import RunningStatistics


class Sharded(Parallel):
    """Model with sharded weights.

    A forward pass gathers the weights stage by stage, so all processes must run it together.
    """

    lockstep = True

    def __init__(self, model: nn.Module, device: torch.device, *, spanning: bool) -> None:
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
        cast(FSDPModule, self.model).set_requires_gradient_sync(last)
        yield

    def end_step(self) -> None:
        """Average the running statistics of BatchNorm over the processes."""
        if self.statistics is not None:
            self.statistics.end_step()

    def gather(self, tree: Any) -> Any:
        """Return a state dict with full tensors on the CPU. All processes must call this method."""
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

    A `ModuleList` has no forward pass of its own, so its weights are left to the root group.
    """
    for _, stage in cast(Any, model).stages()[:-1]:
        if not isinstance(stage, nn.ModuleList) and next(stage.parameters(), None) is not None:
            yield stage


def _shaped(value: Any, weight: torch.Tensor) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim > 0 and value.shape == weight.shape


def _like(present: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    if not isinstance(present, DTensor):
        return value
    return distribute_tensor(value, present.device_mesh, present.placements)
