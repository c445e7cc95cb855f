"""One optimizer step over a group of micro-batches: its gradient is the mean over all clips of the group.

A micro-batch weighs as much as the clips it holds, so 3 + 3 + 2 clips give the gradient of 8 at once, the last,
smaller group of an epoch and clips left out by `data.on_error: skip` included. What is drawn at random during a
step depends on (seed, epoch, step) and the process only.

Several processes divide the micro-batches of a group among themselves: a group of 6 is two rows of three processes. The
micro-batches, and so the step, are those of one process that accumulates 6; only dropout and token masks differ.
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
from two_stream.training.parallel.base import Parallel
from two_stream.training.schedule import Schedule
from two_stream.types import Batch

SMALLEST_SCALE = 2.0**-20
"""fp16 loss scale below which gradients overflow for another reason than the scale"""


@dataclass(frozen=True)
class Position:
    """Where in a run a step stands; all from 0."""

    epoch: int
    step: int
    """optimizer steps since the run began"""
    batch: int
    """micro-batches of the epoch before this step"""


@dataclass
class StepResult:
    """Sums over the clips of one group, of all processes together."""

    loss: float = 0.0
    """sum of the training losses"""
    correct: int = 0
    clips: int = 0
    ids: list[str] = field(default_factory=list)
    """those that this process read"""
    lr: float = 0.0
    grad_norm: float = 0.0
    """before clipping; 0 when no clip was left"""


class Stepper:
    """Owns what a step changes: weights, optimizer, loss scale, moving average."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        options: TrainOptions,
        *,
        labels: Labels,
        seed: int,
        device: torch.device,
        parallel: Parallel | None = None,
    ) -> None:
        self.model = model
        self.parallel = parallel or Parallel(model, device)
        self.ahead: Callable[[], None] = lambda: None
        """called when a step's work is under way: what reads may fetch more"""
        self.optimizer = optimizer
        self.schedule = schedule
        self.options = options
        self.num_classes = labels.num_classes
        self.loss = build_loss(options, labels)
        self.extension: Extension | None = None
        """what is added to the loss and after each step"""
        self.seed = seed
        self.device = device
        self.scaler = torch.amp.GradScaler(device.type, enabled=options.precision == "fp16")
        self.ema = _moving_average(model, options.ema) if options.ema else None
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def run(self, batches: Iterator[Batch | None], count: int, planned: int, at: Position) -> StepResult:
        """Take this process's micro-batches of a group off the iterator and make one step with all processes.

        Args:
            batches: Micro-batches, None for one of which no clip could be read; it may end early.
            count: Micro-batches of the group, of all processes together.
            planned: Clips of the group if none is left out; the loss is divided by it at once, which keeps fp16
                in range, and the gradient corrected before the step where fewer came.
            at: Where the run stands.

        Returns:
            The sums of the group; with no clip left there was no step.

        Raises:
            TrainingError: Loss or gradient is not finite; names the clips. The weights are unchanged.
        """
        torch.manual_seed(derive(self.seed, "step", at.epoch, at.step, distributed.rank()))
        result = StepResult(lr=self.schedule.apply(at.step))
        loss_sum = torch.zeros((), dtype=torch.float64, device=_wide(self.device))
        correct = torch.zeros((), dtype=torch.int64, device=self.device)
        world = self.parallel.world
        share = planned / world  # the exchange takes the mean over the processes, and the sum is wanted
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
        self.ahead()
        rows = distributed.gather_numbers([float(loss_sum), float(correct), float(len(result.ids))])
        result.loss = sum(row[0] for row in rows)
        result.correct, result.clips = (int(sum(row[place] for row in rows)) for place in (1, 2))
        if not math.isfinite(result.loss):
            guilty = not math.isfinite(float(loss_sum))
            self._stop("loss", result.loss / result.clips, result.ids if guilty else [], at)
        self._update(result, planned, at)
        return result

    def _idle(self, *, last: bool) -> None:
        """Take part in a row for which there is no micro-batch."""
        with autocast(self.device, self.options.precision):
            zero = self.parallel.idle(last=last)
        if zero is not None:
            self.scaler.scale(zero.float()).backward()  # type: ignore[no-untyped-call]

    def _forward(self, batch: Batch, epoch: int, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the sum of the losses of a micro-batch and how many clips it gets right."""
        clips = batch.clips.to(self.device, non_blocking=True)
        labels = batch.labels.to(self.device, non_blocking=True)
        key = (self.seed, epoch, number, 0)  # as one process would draw it
        clips, targets = mix_batch(clips, labels, self.num_classes, self.options, key=key)
        with autocast(self.device, self.options.precision):
            logits = self.parallel.forward(clips)
        logits_BK = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        right = hits(logits_BK.detach(), labels).sum()
        if self.extension is None:
            return self.loss(logits_BK, targets), right
        seen = Batch(clips, labels, batch.ids, batch.beside)
        return self.extension.loss(self.loss, logits_BK, targets, seen), right

    def _update(self, result: StepResult, planned: int, at: Position) -> None:
        if not result.clips:
            self.optimizer.zero_grad(set_to_none=True)
            self.parallel.end_step()
            return
        self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if result.clips != planned:  # clips were left out: the mean is over those that came
            torch._foreach_mul_(gradients, planned / result.clips)
        norm = nn.utils.get_total_norm(gradients)
        result.grad_norm = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
        if not self.scaler.is_enabled() and not math.isfinite(result.grad_norm):
            self._stop("gradient", result.grad_norm, result.ids, at)
        if self.options.clip_grad is not None:
            nn.utils.clip_grads_with_norm_(self.parameters, self.options.clip_grad, norm)
        if math.isfinite(
            result.grad_norm
        ):  # a fused SGD told to skip its first step goes on from no momentum at all
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.scaler.is_enabled() and self.scaler.get_scale() < SMALLEST_SCALE:
            self._stop("fp16 gradient", math.inf, result.ids, at)
        self.parallel.end_step()
        if self.ema is not None:
            self.ema.update(self.model, step=at.step + 1)
        if self.extension is not None:
            self.extension.stepped(self.models, at.step)

    @property
    def models(self) -> list[nn.Module]:
        """The network that is trained and, where there is one, its moving average."""
        return [self.model] if self.ema is None else [self.model, self.ema.module]

    def _stop(self, what: str, value: float, ids: list[str], at: Position) -> None:
        """Raise on every process; each names the clips it has to name."""
        self.optimizer.zero_grad(set_to_none=True)
        named = [clip for part in distributed.all_objects(ids) for clip in part]
        error = TrainingError(
            f"the {what} is not finite ({value}) in epoch {at.epoch + 1}, step {at.step + 1}; "
            f"clips of the step: {', '.join(named)}; look at them, or lower the learning rate or set `train.clip_grad`"
        )
        raise distributed.shared_error(error)


def _wide(device: torch.device) -> torch.device:
    """Where a float64 sum can live: MPS has no such type."""
    return torch.device("cpu") if device.type == "mps" else device


def _moving_average(model: nn.Module, decay: float) -> Any:
    """Return timm's moving average; its warm-up keeps a short run from averaging in the random start."""
    from timm.utils.model_ema import ModelEmaV3

    return ModelEmaV3(model, decay=decay, use_warmup=True)
