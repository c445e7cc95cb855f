"""BatchNorm in several processes, with the results of a single process or with statistics over all clips.

By default each process normalises with the statistics s of its own micro-batch, as a single process does. A single
process updates its running statistics r with momentum m after each micro-batch: `r <- (1 - m) r + m s`. To get the same
result for a row of q micro-batches, one per process, every process uses the momentum `p = 1 - (1 - m)^q`. The running
statistics are then averaged over the processes with the weights `m (1 - m)^(q - 1 - rank) / p`, which sum to one.
Because the average is linear, it can be taken after several rows. The result differs from that of a single process only
by rounding.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

from two_stream.runtime.distributed import rank


class RunningStatistics:
    """Keeps the running statistics of BatchNorm equal to those that a single process would have."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.active = 0
        """number of processes with a micro-batch in the current row; 0 between steps"""
        self._norms: list[_BatchNorm] = []
        self._momenta: list[float] = []
        self._counted: torch.Tensor | None = None

    def begin_micro_step(self, active: int) -> None:
        """Prepare a row in which the first `active` processes have a micro-batch.

        All processes must call this method.
        """
        if active == self.active:
            return
        if self.active:
            self._average()
        else:
            self._norms = [m for m in self.model.modules() if isinstance(m, _BatchNorm) and _moves(m)]
            self._momenta = [float(norm.momentum or 0.0) for norm in self._norms]
            self._counted = _counts(self._norms)
        self.active = active
        for norm, momentum in zip(self._norms, self._momenta, strict=True):
            norm.momentum = 1.0 - (1.0 - momentum) ** active

    def end_step(self) -> None:
        """Average the running statistics of all processes. All processes must call this method."""
        self._average()
        self.active = 0
        for norm, momentum in zip(self._norms, self._momenta, strict=True):
            norm.momentum = momentum

    @torch.no_grad()
    def _average(self) -> None:
        if not self._norms or self._counted is None:
            return
        pairs = [(norm.running_mean, norm.running_var) for norm in self._norms]
        buffers = [buffer for pair in pairs for buffer in pair if buffer is not None]
        weights = [w for momentum in self._momenta for w in 2 * [self._weight(momentum)]]
        total = torch.cat([buffer.double() * weight for buffer, weight in zip(buffers, weights, strict=True)])
        distributed.all_reduce(total)
        for buffer, value in zip(buffers, torch.split(total, [len(b) for b in buffers]), strict=True):
            buffer.copy_(value)
        moved = _counts(self._norms) - self._counted
        distributed.all_reduce(moved)
        self._counted += moved
        for norm, count in zip(self._norms, self._counted, strict=True):
            assert norm.num_batches_tracked is not None
            norm.num_batches_tracked.copy_(count)

    def _weight(self, momentum: float) -> float:
        here, active = rank(), self.active
        if here >= active:
            return 0.0
        return momentum * (1.0 - momentum) ** (active - 1 - here) / (1.0 - (1.0 - momentum) ** active)


def _moves(norm: _BatchNorm) -> bool:
    """Return whether training updates the running statistics; those of frozen layers are not updated."""
    return norm.training and bool(norm.momentum) and norm.num_batches_tracked is not None


def _counts(norms: Iterable[_BatchNorm]) -> torch.Tensor:
    counts = [norm.num_batches_tracked for norm in norms if norm.num_batches_tracked is not None]
    return torch.stack(counts) if counts else torch.zeros(0, dtype=torch.int64)


def synchronise_batchnorm(model: nn.Module, device: torch.device) -> nn.Module:
    """Replace every BatchNorm with one that normalises over the clips of all processes.

    Names and weights do not change.

    The replacement is `torch.nn.SyncBatchNorm` on a GPU and `SpanningBatchNorm` elsewhere. The norms of timm keep their
    activation.
    """
    if device.type == "cuda":
        if any(isinstance(part, _BatchNorm) and _inner_modules(part) for part in model.modules()):
            from timm.layers.norm_act import convert_sync_batchnorm

            joined: nn.Module = convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
            return joined
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return converted
    for name, child in model.named_children():
        if isinstance(child, _BatchNorm):
            setattr(model, name, SpanningBatchNorm.of(child))
        else:
            synchronise_batchnorm(child, device)
    return model


def _inner_modules(norm: _BatchNorm) -> list[tuple[str, nn.Module]]:
    """Return the dropout and the activation that a norm of timm applies after normalising."""
    return list(norm.named_children())


class SpanningBatchNorm(_BatchNorm):
    """BatchNorm over the clips of all processes, for any device. A process may have no clips."""

    @classmethod
    def of(cls, norm: _BatchNorm) -> SpanningBatchNorm:
        """Return a layer that shares the weights and running statistics of `norm` and has the same mode."""
        new = cls(
            norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats, device="meta"
        )
        new.weight, new.bias = norm.weight, norm.bias
        new.running_mean, new.running_var = norm.running_mean, norm.running_var
        new.num_batches_tracked = norm.num_batches_tracked
        for name, part in _inner_modules(norm):
            new.add_module(name, part)
        return new.train(norm.training)

    def _check_input_dim(self, input: torch.Tensor) -> None:
        del input

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalise input of shape `(B, C, …)`, then apply the norm's own dropout and activation, if it has them."""
        out = self._normalised(input) if self.training else super().forward(input)
        for part in self.children():
            out = part(out)
        return out

    def _normalised(self, input: torch.Tensor) -> torch.Tensor:
        dims = [0, *range(2, input.ndim)]
        shape = [1, -1, *(1 for _ in dims[1:])]
        wide = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
        own = wide.new_tensor([wide.numel() / wide.shape[1]])
        sums = _Sum.apply(torch.cat((wide.sum(dims), own)))
        count = float(sums[-1].detach())
        mean = sums[:-1] / max(1.0, count)
        centred = wide - mean.view(shape)
        variance = _Sum.apply(centred.square().sum(dims)) / max(1.0, count)
        if count:
            self._move(mean.detach(), variance.detach(), count)
        out = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            out = out * self.weight.view(shape) + self.bias.view(shape)
        normalised: torch.Tensor = out.to(input.dtype)
        return normalised

    @torch.no_grad()
    def _move(self, mean: torch.Tensor, variance: torch.Tensor, count: float) -> None:
        """Update the running statistics, with the unbiased variance as in torch."""
        if self.running_mean is None or self.running_var is None:
            return
        if self.num_batches_tracked is not None:  # None when a stage is recomputed in the backward pass
            self.num_batches_tracked.add_(1)
        share = self.momentum
        if share is None:  # a plain average over all micro-batches
            share = 1.0 / max(1.0, float(self.num_batches_tracked or 1))
        self.running_mean.lerp_(mean.to(self.running_mean), share)
        self.running_var.lerp_((variance * (count / max(1.0, count - 1.0))).to(self.running_var), share)


class _Sum(torch.autograd.Function):
    """Sum over the processes.

    The results of all processes depend on each input, so the gradients are summed as well.
    """

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
        del ctx
        total = value.contiguous().clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        del ctx
        total = gradients[0].contiguous().clone()
        distributed.all_reduce(total)
        return total
