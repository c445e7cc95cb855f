"""One optimizer step over a group of micro-batches; the gradient is the mean over all clips of the group.

Every clip has the same weight: micro-batches of 3, 3 and 2 clips give the gradient of one batch of 8 clips. Clips also
have the same weight in a smaller last group of an epoch, and if `data.on_error: skip` skips other clips. The random
numbers of a step depend only on the seed, the epoch, the step and the rank.

Several processes share a group: for example, three processes compute 6 micro-batches in two rows of three. The result
equals that of one process that accumulates 6 micro-batches, except for random dropout and token masks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from two_stream.config.schema import TrainOptions
from two_stream.errors import TrainingError
from two_stream.runtime import distributed
from two_stream.runtime.device import autocast
from two_stream.runtime.seeding import derive
from two_stream.training.extension import Extension
from two_stream.training.losses import Labels, build_loss, hits
from two_stream.training.mixup import mix_batch
from two_stream.training.optim import Schedule
from two_stream.training.parallel.base import Parallel
from two_stream.types import Batch

SMALLEST_SCALE = 2.0**-20
"""smallest fp16 loss scale; if gradients overflow at this scale, the scale is not the cause"""


@dataclass(frozen=True)
class Position:
    """Position of an optimizer step in its run; all numbers start at 0."""

    epoch: int
    step: int
    """number of optimizer steps before this step, since the run began"""
    batch: int
    """number of micro-batches in the epoch before this step"""


@dataclass
class StepResult:
    """Sums over the clips of one group, for all processes together."""

    loss: float = 0.0
    """training loss, summed over the clips"""
    correct: int = 0
    clips: int = 0
    ids: list[str] = field(default_factory=list)
    """ids of the clips that this process read"""
    lr: float = 0.0
    grad_norm: float = 0.0
    """norm of the gradient before clipping; 0 if all clips of the group were skipped"""


class Stepper:
    """Makes optimizer steps and owns the state that they change: weights, optimizer, loss scale and moving average."""

    def __init__(
        self,
        parallel: Parallel,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        options: TrainOptions,
        *,
        labels: Labels,
        seed: int,
        extension: Extension | None = None,
    ) -> None:
        self.model, self.device = parallel.model, parallel.device
        self.parallel = parallel
        self.optimizer = optimizer
        self.schedule = schedule
        self.options = options
        self.num_classes = labels.num_classes
        self.loss = build_loss(options, labels)
        self.extension = extension or Extension()
        self.seed = seed
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=options.precision == "fp16")
        self.ema: Any = None
        if options.ema:
            from timm.utils.model_ema import ModelEmaV3

            # without the warm-up, the random initial weights would dominate the average of a short run
            self.ema = ModelEmaV3(self.model, decay=options.ema, use_warmup=True)
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def run(
        self,
        batches: Iterator[Batch | None],
        count: int,
        planned: int,
        at: Position,
        prefetch: Callable[[], None] = lambda: None,
    ) -> StepResult:
        """Make one optimizer step over a group of micro-batches, together with the other processes.

        Args:
            batches: This process's micro-batches. None stands for a micro-batch without a readable clip. The iterator
                may end early.
            count: Number of micro-batches in the group, for all processes together.
            planned: Number of clips in the group if none is skipped. The loss is divided by this number, which keeps
                fp16 gradients in range. If clips were skipped, the gradient is corrected before the step.
            at: Position of the step.
            prefetch: Function that is called when the work of the step has been queued on the device.

        Returns:
            The sums over the group. If all clips were skipped, no step is made.

        Raises:
            TrainingError: The loss or the gradient is not finite. The weights are unchanged.
        """
        torch.manual_seed(derive(self.seed, "step", at.epoch, at.step, distributed.rank()))
        result = StepResult(lr=self.schedule.apply(at.step))
        wide = torch.device("cpu") if self.device.type == "mps" else self.device  # MPS has no float64
        loss_sum = torch.zeros((), dtype=torch.float64, device=wide)
        correct = torch.zeros((), dtype=torch.int64, device=self.device)
        world = self.parallel.world
        share = planned / world  # the exchange averages over the processes, but the sum is needed
        for first in range(0, count, world):
            batch, last = next(batches, None), first + world >= count
            with self.parallel.micro_step(min(world, count - first), last=last):
                if batch is None:
                    self._idle(last=last)
                    continue
                loss, right = self._forward(batch, at.epoch, at.batch + first + distributed.rank())
                self.scaler.scale(loss / share).backward()  # type: ignore[no-untyped-call]
            loss_sum += loss.detach().to(loss_sum)
            correct += right
            result.ids += batch.ids
        prefetch()
        rows = distributed.gather_numbers([float(loss_sum), float(correct), float(len(result.ids))])
        result.loss = sum(row[0] for row in rows)
        result.correct, result.clips = (int(sum(row[place] for row in rows)) for place in (1, 2))
        if not math.isfinite(result.loss):
            guilty = not math.isfinite(float(loss_sum))
            self._stop("loss", result.loss / result.clips, result.ids if guilty else [], at)
        self._update(result, planned, at)
        return result

    def _idle(self, *, last: bool) -> None:
        """Run a row in which this process has no micro-batch."""
        with autocast(self.device, self.options.precision):
            zero = self.parallel.idle(last=last)
        if zero is not None:
            self.scaler.scale(zero.float()).backward()  # type: ignore[no-untyped-call]

    def _forward(self, batch: Batch, epoch: int, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss of a micro-batch, summed over clips, and the number of correctly classified clips."""
        clips = batch.clips.to(self.device, non_blocking=True)
        labels = batch.labels.to(self.device, non_blocking=True)
        key = (self.seed, epoch, number, 0)  # the same for any number of processes
        clips, targets = mix_batch(clips, labels, self.num_classes, self.options, key=key)
        with autocast(self.device, self.options.precision):
            logits = self.parallel.forward(clips)
        logits_BK = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        right = hits(logits_BK.detach(), labels).sum()
        seen = Batch(clips, labels, batch.ids, batch.beside)
        return self.extension.loss(self.loss, logits_BK, targets, seen), right

    def _update(self, result: StepResult, planned: int, at: Position) -> None:
        if not result.clips:
            self.optimizer.zero_grad(set_to_none=True)
            self.parallel.end_step()
            return
        self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if result.clips != planned:  # clips were skipped: take the mean over the others
            torch._foreach_mul_(gradients, planned / result.clips)
        norm = nn.utils.get_total_norm(gradients)
        result.grad_norm = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
        if not self.scaler.is_enabled() and not math.isfinite(result.grad_norm):
            self._stop("gradient", result.grad_norm, result.ids, at)
        if self.options.clip_grad is not None:
            nn.utils.clip_grads_with_norm_(self.parameters, self.options.clip_grad, norm)
        if math.isfinite(result.grad_norm):  # a fused SGD that skips its first step would lose its momentum
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.scaler.is_enabled() and self.scaler.get_scale() < SMALLEST_SCALE:
            self._stop("fp16 gradient", math.inf, result.ids, at)
        self.parallel.end_step()
        if self.ema is not None:
            self.ema.update(self.model, step=at.step + 1)
        self.extension.stepped(self.models, at.step)

    @property
    def models(self) -> list[nn.Module]:
        """The trained network and, if there is one, its moving average."""
        return [self.model] if self.ema is None else [self.model, self.ema.module]

    def _stop(self, what: str, value: float, ids: list[str], at: Position) -> None:
        """Raise an error in every process. The message lists the clips `ids` of all processes."""
        self.optimizer.zero_grad(set_to_none=True)
        named = [clip for part in distributed.all_objects(ids) for clip in part]
        error = TrainingError(
            f"the {what} is not finite ({value}) in epoch {at.epoch + 1}, step {at.step + 1}; clips of the step: "
            f"{', '.join(named)}; check these clips, lower the learning rate, or set `train.clip_grad`"
        )
        raise distributed.shared_error(error)


class ShortConv3d(nn.Conv3d):
    """A 3D convolution that is computed in float32 if its input is smaller than its kernel.

    This avoids an error in oneDNN's bfloat16 kernel for weight gradients on a CPU (`jit_bf16:avx512_core_bf16`, found
    with torch 2.14 on Zen 4). If the input has fewer time steps, rows or columns than the convolution kernel, for
    example two frames for a 3×3×3 kernel, the oneDNN kernel reads and writes outside its buffers. The gradient is then
    wrong or not finite, or the process crashes. Inputs smaller than the kernel require little computation, so float32
    costs little time.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Convolve input of shape `(B, C, T, H, W)`."""
        if not torch.is_grad_enabled() or not self._short(input.shape[2:]):
            return super().forward(input)
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.float()).to(torch.bfloat16)

    def _short(self, sizes: torch.Size) -> bool:
        """Return whether the input is smaller than the kernel; size 1 with kernel 3 and stride 1 is safe."""
        return any(
            size < kernel and (size, kernel, stride) != (1, 3, 1)
            for size, kernel, stride in zip(sizes, self.kernel_size, self.stride, strict=True)
        )


def protect_short_maps(model: nn.Module, device: torch.device, precision: str) -> None:
    """Turn a model's 3D convolutions into `ShortConv3d`, if it is trained in bfloat16 on a CPU."""
    if device.type != "cpu" or precision != "bf16":
        return
    for module in model.modules():
        if type(module) is nn.Conv3d:
            module.__class__ = ShortConv3d
