"""Chooses how the processes of a run share one optimizer step."""

from __future__ import annotations

import torch
from torch import nn

from two_stream.config.schema import TrainOptions
from two_stream.runtime import distributed
from two_stream.training.parallel.base import Parallel
from two_stream.training.parallel.ddp import Replicas


def parallel(model: nn.Module, options: TrainOptions, device: torch.device) -> Parallel:
    """Join a model, already on its device, with its counterparts in the other processes."""
    if distributed.world_size() == 1:
        return Parallel(model, device)
    spanning = options.sync_batchnorm
    if options.strategy == "fsdp":
        from two_stream.training.parallel.fsdp import Sharded

        return Sharded(model, device, spanning=spanning)
    return Replicas(model, device, spanning=spanning)
