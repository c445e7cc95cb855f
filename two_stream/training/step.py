"""One optimizer step: mixup, forward and backward passes of the micro-batches, and the hooks of extensions.

Mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899) mix all frames of a clip in the same way. Each clip contributes
at least half of its mixture, so training accuracy is measured against the clip's own label.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import sqrt
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from two_stream.config.schema import Experiment, TrainOptions
from two_stream.errors import TrainingError
from two_stream.registry import Registry
from two_stream.runtime import distributed
from two_stream.runtime.device import autocast, derive, rng, seed_torch
from two_stream.training.losses import Labels, build_loss, hits
from two_stream.training.optim import Schedule
from two_stream.training.parallel import Parallel
from two_stream.types import Batch

if TYPE_CHECKING:
    from two_stream.recognizer import Recognizer
    from two_stream.training.data import TrainingData
    from two_stream.training.losses import Loss
    from two_stream.types import Batch, RunPaths


EXTENSIONS: Registry[Callable[[Experiment], Extension]] = Registry("compression")
"""Functions that build an extension, by `compress.kind`; importing `two_stream.compression` registers them."""


class Extension:
    """Base class of all extensions; its own methods change nothing."""

    def start(self, model: Recognizer, *, resumed: bool) -> None:
        """Change the network in place before the optimizer is built.

        Args:
            model: The network with its initial weights, on the CPU, before it is frozen, compiled or sharded.
            resumed: Whether a checkpoint of this run is loaded afterwards. If so, the layers must fit the checkpoint.
        """

    def data(self, data: TrainingData) -> TrainingData:
        """Return the training data; the extension may add clips to its batches (`Batch.beside`)."""
        return data

    def set_epoch_length(self, steps_per_epoch: int) -> None:
        """Store the number of optimizer steps per epoch. The trainer calls this method before the first step."""

    def restored(self, models: Sequence[nn.Module]) -> None:
        """Update the extension after a checkpoint has been loaded into `models` (see `stepped`)."""

    def counts(self, epoch: int) -> bool:
        """Return whether an epoch (from 0) may become the best one and counts for early stopping."""
        del epoch
        return True

    def loss(self, plain: Loss, logits_BK: torch.Tensor, targets: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the training loss, summed over the clips of a micro-batch.

        Args:
            plain: The training loss of the settings.
            logits_BK: Logits of the network, float32 or float64.
            targets: Class indices `(B,)`, or class probabilities `(B, K)` after mixup.
            batch: The micro-batch. Its `clips` are on the device, after mixup; its `beside` is unchanged since loading.
        """
        del batch
        return plain(logits_BK, targets)

    def stepped(self, models: Sequence[nn.Module], step: int) -> None:
        """Change the weights after an optimizer step, for example to keep pruned weights at 0.

        Args:
            models: The trained network and, if there is one, its moving average.
            step: Number of the step, counted from 0 since the run began.
        """

    def extra_parameters(self, device: torch.device) -> list[nn.Parameter]:
        """Return trained parameters that are not part of the network, on the device; `state` must contain them."""
        del device
        return []

    def state(self) -> dict[str, torch.Tensor]:
        """Return the tensors that the extension saves in a checkpoint."""
        return {}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Restore the tensors that `state` returned."""

    def finished(self, paths: RunPaths) -> None:
        """Process the folder of a finished run, even if the run had finished before this call."""

    def facts(self) -> dict[str, str]:
        """Return entries for the run's `environment.json`."""
        return {}


def build_extension(experiment: Experiment) -> Extension:
    """Return the extension that an experiment's `compress` section selects."""
    kind = experiment.compress.kind
    return Extension() if kind == "none" else EXTENSIONS[kind](experiment)


def mix_batch(
    clips_BCTHW: torch.Tensor,
    labels: torch.Tensor,
    num_classes: int,
    options: TrainOptions,
    *,
    key: tuple[object, ...],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Apply mixup, CutMix or neither to a batch, chosen at random.

    Args:
        clips_BCTHW: Pixel values 0..255, uint8 or float.
        labels: Class indices, int64 `(B,)`; for a multi-label data set, float `(B, K)`.
        num_classes: Number of classes K.
        options: Settings; `mixup`, `cutmix`, `mix_prob` and `mix_switch` are used.
        key: Values that seed the random numbers, such as the seed, the epoch and the batch number.

    Returns:
        Clips and targets. If the clips were mixed, the targets are class probabilities `(B, K)`.
    """
    both = options.mixup and options.cutmix
    whether, which = rng("mix", *key).random(2)
    if not (options.mixup or options.cutmix) or whether >= options.mix_prob:
        return clips_BCTHW, labels
    if options.cutmix and (not both or which < options.mix_switch):
        return cut_mix(clips_BCTHW, labels, num_classes, options.cutmix, key=key)
    return mix(clips_BCTHW, labels, num_classes, options.mixup, key=key)


def mix(
    clips_BCTHW: torch.Tensor,
    labels: torch.Tensor,
    num_classes: int,
    alpha: float,
    *,
    key: tuple[object, ...],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mix each clip with a random clip of the batch. For the other arguments see `mix_batch`.

    λ is drawn from Beta(alpha, alpha) for each clip; the clip's own weight is max(λ, 1 - λ).

    Returns:
        Float clips with pixel values 0..255, and class probabilities `(B, K)`.
    """
    draw = rng("mixup", *key)
    count = len(labels)
    share = draw.beta(alpha, alpha, size=count)
    own = torch.as_tensor(share, dtype=torch.float32).to(clips_BCTHW.device)
    own_B = torch.maximum(own, 1.0 - own)
    partner = torch.as_tensor(draw.permutation(count)).to(clips_BCTHW.device)
    pixels = clips_BCTHW.float()
    own_B1111 = own_B.view(-1, 1, 1, 1, 1)
    return (
        pixels * own_B1111 + pixels[partner] * (1.0 - own_B1111),
        _mixed_targets(labels, partner, own_B, num_classes),
    )


def cut_mix(
    clips_BCTHW: torch.Tensor,
    labels: torch.Tensor,
    num_classes: int,
    alpha: float,
    *,
    key: tuple[object, ...],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Paste a box from a random clip of the batch into each clip, at the same position in every frame.

    The box has the aspect ratio of the frame and covers min(λ, 1 - λ) of its area, with λ as in `mix`. The centre of
    the box is random, and parts outside the frame are cut off. Labels are mixed in proportion to the pixels.

    Returns:
        Clips with the dtype of the input, and class probabilities `(B, K)`.
    """
    draw = rng("cutmix", *key)
    count, (height, width) = len(labels), clips_BCTHW.shape[-2:]
    share = draw.beta(alpha, alpha, size=count)
    partner = draw.permutation(count)
    mixed = clips_BCTHW.clone()
    own = []
    for index, lam in enumerate(share):
        side = sqrt(min(lam, 1.0 - lam))
        centre_y, centre_x = draw.random(2)
        top, bottom = _span(centre_y, side, height)
        left, right = _span(centre_x, side, width)
        box = (slice(None), slice(None), slice(top, bottom), slice(left, right))
        mixed[index][box] = clips_BCTHW[int(partner[index])][box]
        own.append(1.0 - (bottom - top) * (right - left) / (height * width))
    own_B = torch.tensor(own, device=clips_BCTHW.device)
    return mixed, _mixed_targets(labels, torch.as_tensor(partner).to(own_B.device), own_B, num_classes)


def _span(centre: float, share: float, length: int) -> tuple[int, int]:
    start = round((centre - share / 2) * length)
    return max(0, start), min(length, start + round(share * length))


def _mixed_targets(
    labels: torch.Tensor, partner: torch.Tensor, own_B: torch.Tensor, num_classes: int
) -> torch.Tensor:
    targets_BK = (F.one_hot(labels, num_classes) if labels.ndim == 1 else labels).float()
    own_B1 = own_B.view(-1, 1)
    return targets_BK * own_B1 + targets_BK[partner] * (1.0 - own_B1)


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
    """Sums over the clips of one optimizer step, for all processes together."""

    loss: float = 0.0
    """training loss, summed over the clips"""
    correct: int = 0
    clips: int = 0
    ids: list[str] = field(default_factory=list)
    """ids of the clips that this process read"""
    lr: float = 0.0
    grad_norm: float = 0.0
    """norm of the gradient before clipping; 0 if all clips of the step were skipped"""


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
        seed_torch(derive(self.seed, "step", at.epoch, at.step, distributed.rank()), self.device)
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
        """Return whether the input is too small for the oneDNN kernel."""
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
