"""The training loop: steps, validation, selection of the best epoch, checkpoints and interruption.

A run is a sequence of optimizer steps that depends only on the settings and the data. A checkpoint is saved between two
steps and contains the complete training state, so a resumed run equals an uninterrupted run bit for bit. With several
processes, each process computes its share of every step, and the main process writes the files.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from two_stream.config.schema import Experiment
from two_stream.errors import CheckpointError, DataError, SettingsError, TwoStreamError
from two_stream.runtime import distributed
from two_stream.runtime.console import note, progress, warn
from two_stream.runtime.device import autocast, rng_state, set_rng_state
from two_stream.runtime.distributed import StopRequest
from two_stream.runtime.provenance import code_version
from two_stream.runtime.text import learning_rate, plural
from two_stream.training.data import EpochLoader, TrainingData
from two_stream.training.losses import Labels, evaluation_loss
from two_stream.training.optim import Schedule, build_optimizer, restore_optimizer, update_rule
from two_stream.training.parallel import blank_clips, build_parallel, clip_shape
from two_stream.training.run_folder import WriteModel, load_newest, save_checkpoint
from two_stream.training.step import Extension, Position, Stepper, StepResult, protect_short_maps
from two_stream.training.tracking import Tracker, write_metrics
from two_stream.types import Batch, RunPaths

MOST_CONFUSED = 1000
"""largest number of classes for which a validation computes the confusion matrix, which is only drawn"""


@dataclass(frozen=True)
class Validation:
    """Metrics of a validation, as means over its clips."""

    loss: float
    """cross entropy without label smoothing and class weights; binary cross entropy for a multi-label data set"""
    top1: float
    """top-1 accuracy, 0 to 1; for a multi-label data set, the prediction is right if it is any class of the clip"""
    top5: float
    """top-5 accuracy, 0 to 1; always 1 with five classes or fewer"""
    confusion: NDArray[np.int64] | None
    """confusion matrix `(K, K)`: rows are true classes, columns predicted classes; None for a multi-label data set or
    more than `MOST_CONFUSED` classes"""
    clips: int
    map: float | None = None
    """for a multi-label data set: mean average precision over the classes that occur; otherwise None"""

    @property
    def score(self) -> float:
        """Metric that selects the best epoch: mAP for a multi-label data set, otherwise top-1."""
        return self.top1 if self.map is None else self.map


def validate(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    device: torch.device,
    precision: str,
    num_classes: int,
    total: int | None = None,
    stopped: Callable[[], bool] = lambda: False,
    lockstep: bool = False,
) -> Validation | None:
    """Score every clip and return the metrics; None if `stopped` returned true in any process.

    Args:
        model: Network that maps clips to logits.
        batches: This process's share of the clips.
        device: Device of the model.
        precision: Autocast type.
        num_classes: Number of classes K.
        total: Number of clips for all processes together, for the progress display.
        stopped: Function that returns whether to stop early.
        lockstep: Whether every forward pass requires all processes.

    Raises:
        DataError: There are no clips, or a clip cannot be read.
    """
    model.eval()
    tally = Tally(num_classes)
    reading = _Reading(batches, stopped)
    with torch.no_grad(), progress("validate", total) as advance:
        for batch in _in_step(reading, model, device, precision) if lockstep else reading:
            labels = batch.labels.to(device, non_blocking=True)
            with autocast(device, precision):
                logits = model(batch.clips.to(device, non_blocking=True))
            logits_BK = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
            tally.add(logits_BK, labels)
            advance(len(batch.ids) * distributed.world_size())
    multi_label, failed = distributed.largest([int(bool(tally.scores)), int(reading.error is not None)])
    if failed:
        distributed.raise_first(reading.error)
    return tally.result(stopped=reading.was_stopped, multi_label=bool(multi_label))


class Tally:
    """Running sums over this process's clips. `result` combines the sums of all processes."""

    def __init__(self, num_classes: int) -> None:
        self.loss, self.right1, self.right5, self.clips = 0.0, 0, 0, 0
        self.num_classes = num_classes
        self.pairs: list[NDArray[np.int64]] = []
        """true and predicted class of each clip, as rows"""
        self.scores: list[NDArray[np.float64]] = []
        """scores of a multi-label data set; average precision requires the scores and `targets` of all clips"""
        self.targets: list[NDArray[np.bool_]] = []

    def add(self, logits_BK: torch.Tensor, labels: torch.Tensor) -> None:
        """Add the results of a batch."""
        ranked = logits_BK.topk(min(5, logits_BK.shape[1]), dim=1).indices
        if labels.ndim == 1:
            hits = ranked == labels.unsqueeze(1)
            if self.num_classes <= MOST_CONFUSED:
                self.pairs.append(torch.stack([labels, ranked[:, 0]], dim=1).cpu().numpy())
        else:
            hits = labels.gather(1, ranked) > 0
            self.scores.append(logits_BK.double().cpu().numpy())
            self.targets.append(labels.cpu().numpy() > 0)
        self.loss += float(evaluation_loss(logits_BK, labels))
        self.right1 += int(hits[:, 0].sum())
        self.right5 += int(hits.any(1).sum())
        self.clips += len(labels)

    def result(self, *, stopped: bool, multi_label: bool) -> Validation | None:
        """Combine the sums of all processes; None if a process stopped early. All processes must call this method.

        Raises:
            DataError: There are no clips.
        """
        rows = distributed.gather_numbers([self.loss, self.right1, self.right5, self.clips, float(stopped)])
        loss, right1, right5, clips, any_stopped = (sum(column) for column in zip(*rows, strict=True))
        if any_stopped:
            return None
        if not clips:
            raise distributed.shared_error(
                DataError("no validation clip could be read; run `two-stream check` on the data set")
            )
        confusion = None if multi_label else self._confusion()
        precision = self._precision() if multi_label else None
        return Validation(loss / clips, right1 / clips, right5 / clips, confusion, int(clips), precision)

    def _confusion(self) -> NDArray[np.int64] | None:
        if self.num_classes > MOST_CONFUSED:
            return None
        counts_KK = np.zeros((self.num_classes, self.num_classes), dtype=np.int64)
        for pairs in distributed.all_objects(self.pairs):
            for pairs_B2 in pairs:
                np.add.at(counts_KK, (pairs_B2[:, 0], pairs_B2[:, 1]), 1)
        return counts_KK

    def _precision(self) -> float:
        from two_stream.evaluation.scores.metrics import mean_average_precision

        parts = distributed.all_objects((self.scores, self.targets))
        scores = [block for blocks, _ in parts for block in blocks]
        targets = [block for _, blocks in parts for block in blocks]
        return mean_average_precision(np.concatenate(scores), np.concatenate(targets))


class _Reading:
    """Yields non-empty batches until a stop is requested or an error occurs.

    With several processes, the error is stored and raised later.
    """

    def __init__(self, batches: Iterable[Batch], stopped: Callable[[], bool]) -> None:
        self.was_stopped = False
        self.error: TwoStreamError | None = None
        self._batches = batches
        self._stopped = stopped

    def __iter__(self) -> Iterator[Batch]:
        try:
            for batch in self._batches:
                if self._stopped():
                    self.was_stopped = True
                    return
                if batch.ids:
                    yield batch
        except TwoStreamError as error:
            if distributed.world_size() == 1:
                raise
            self.error = error


def _in_step(
    batches: Iterable[Batch], model: nn.Module, device: torch.device, precision: str
) -> Iterator[Batch]:
    """Yield this process's batches, then run the model on blank clips until all processes have finished."""
    own = iter(batches)
    shape: tuple[int, ...] | None = clip_shape(model)
    while True:
        batch = next(own, None)
        (anyone,) = distributed.largest([int(batch is not None)])
        if not anyone:
            return
        if batch is not None:
            shape = tuple(batch.clips.shape[1:])
            yield batch
        else:
            with autocast(device, precision):
                model(blank_clips(shape, 1, device))


SELECTION_LABELS = {"holdout": "holdout", "folds": "cross-validated", "paper": "test-selected"}
SHORT_EPOCHS = 60.0
"""least number of seconds between two checkpoints if the run uses stored features, because its epochs are very short"""


@dataclass(frozen=True)
class TrainResult:
    """The result of a training run."""

    run: RunPaths
    epochs: int
    """number of completed epochs"""
    best_epoch: int
    """number of the best epoch, from 1; 0 before the first epoch is complete"""
    best_top1: float
    """best validation top-1 accuracy (mAP for a multi-label data set)"""
    best_loss: float
    selection: str
    """how the best epoch was selected; a value of `SELECTION_LABELS`"""
    finished: bool
    already_finished: bool = False
    """whether the run was complete before this call"""
    interrupted: int | None = None
    """number of the signal that stopped the run"""
    metric: str = "top-1"
    """metric that selected the best epoch"""


@dataclass
class Progress:
    """Position in a run, running sums of the current epoch, and the best epoch so far.

    The values are plain, so that `torch.load(..., weights_only=True)` can read them.
    """

    epoch: int = 0
    """number of epochs that have been trained, validated and recorded"""
    batch: int = 0
    """number of micro-batches of the current epoch that have been used"""
    step: int = 0
    """number of optimizer steps since the run began"""
    loss: float = 0.0
    """sum of the losses of all clips in the current epoch"""
    correct: int = 0
    clips: int = 0
    seconds: float = 0.0
    lr: float = 0.0
    """learning rate of the last step"""
    best_epoch: int = 0
    """number of the selected epoch, from 1; 0 before the first epoch is complete"""
    best_top1: float = -1.0
    """validation top-1 accuracy of the selected epoch (mAP for a multi-label data set)"""
    best_loss: float = math.inf
    """validation loss of the selected epoch"""
    lowest_loss: float = math.inf
    """lowest validation loss of any epoch, for early stopping"""
    stale: int = 0
    """number of epochs since the lowest loss"""
    finished: bool = False
    history: list[dict[str, Any]] = field(default_factory=list)
    """the lines of `metrics.jsonl`"""

    def add(self, result: StepResult, batch: int) -> None:
        """Record an optimizer step; `batch` is the number of micro-batches of the epoch used so far."""
        self.batch = batch
        self.step += 1
        self.loss += result.loss
        self.correct += result.correct
        self.clips += result.clips
        self.lr = result.lr

    def end_epoch(self, line: dict[str, Any], validation: Validation | None, *, counts: bool = True) -> bool:
        """Record a completed epoch and return whether it is the best so far.

        The best epoch has the highest validation top-1 accuracy (mAP for a multi-label data set). Ties are broken by
        the lower validation loss, then by the earlier epoch. An epoch without validation cannot be the best. If
        `counts` is false, the epoch cannot be the best either, and early stopping ignores it.
        """
        score, loss = (-1.0, math.inf) if validation is None else (validation.score, validation.loss)
        loss = loss if math.isfinite(loss) else math.inf
        better = counts and validation is not None and (score, -loss) > (self.best_top1, -self.best_loss)
        if counts:
            self.stale = 0 if loss < self.lowest_loss else self.stale + 1
            self.lowest_loss = min(loss, self.lowest_loss)
        self.epoch += 1
        if better:
            self.best_epoch, self.best_top1, self.best_loss = self.epoch, score, loss
        self.history.append(line | {"best": better})
        self.batch, self.clips, self.correct, self.loss, self.seconds = 0, 0, 0, 0.0, 0.0
        return better

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Progress:
        """Return the progress from the plain values in a checkpoint.

        Raises:
            CheckpointError: A different version of two-stream wrote the checkpoint.
        """
        try:
            return cls(**state)
        except TypeError as error:
            raise CheckpointError(
                f"the checkpoint was written by a different version of two-stream ({error}); "
                "resume with that version, or start over with --overwrite"
            ) from None

    def result(
        self,
        paths: RunPaths,
        selection: str,
        *,
        already_finished: bool = False,
        interrupted: int | None = None,
    ) -> TrainResult:
        """Return the result of a run that ends at this position."""
        return TrainResult(
            run=paths,
            epochs=self.epoch,
            best_epoch=self.best_epoch,
            best_top1=self.best_top1,
            best_loss=self.best_loss,
            selection=SELECTION_LABELS[selection],
            finished=self.finished,
            already_finished=already_finished,
            interrupted=interrupted,
            metric="mAP" if any("val_map" in line for line in self.history) else "top-1",
        )


def checkpoint_meta(experiment: Experiment, data: TrainingData, progress: Progress) -> dict[str, Any]:
    """Return the metadata for a checkpoint's model file."""
    latest = progress.history[-1] if progress.history else {}
    return {
        "class_names": data.class_names,
        "mirror": data.mirror.allowed,
        "mirror_labels": data.mirror.labels,
        "dataset": data.dataset,
        **({"extraction": data.extraction} if data.extraction else {}),
        **({"multi_label": True} if data.labels and data.labels.multi_label else {}),
        "split": experiment.data.split,
        **data.lists,
        "epoch": progress.epoch,
        "step": progress.step,
        "selection": SELECTION_LABELS[experiment.train.selection],
        "val_top1": latest.get("val_top1"),
        **({"val_map": latest["val_map"]} if "val_map" in latest else {}),
        "val_loss": latest.get("val_loss"),
        "seed": experiment.seed,
        "code_version": code_version(),
    }


class Feed:
    """Yields the micro-batches of one epoch in groups; None stands for a micro-batch without a readable clip.

    On a GPU, the next micro-batch is copied while the current one is computed.

    Attributes:
        error: The exception that ended reading early. The trainer raises this exception in all processes together.
    """

    def __init__(self, loader: EpochLoader, device: torch.device) -> None:
        self.loader = loader
        self.device = device
        self.error: TwoStreamError | None = None
        self._batches = iter(loader)
        self._exhausted = False
        self._next: tuple[int, Batch] | None = None
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def group(self, start: int, count: int) -> Iterator[Batch | None]:
        """Yield this process's share of `count` micro-batches, starting with number `start`."""
        for number in range(start + distributed.rank(), start + count, distributed.world_size()):
            yield self._take(number)

    def first(self) -> Batch | None:
        """Return the next micro-batch without removing it: `group` yields it again."""
        self._fetch()
        return None if self._next is None else self._next[1]

    def prefetch(self) -> None:
        """Start to copy the next micro-batch to the GPU.

        Call this method when the computation of the current micro-batch has been queued on the GPU.
        """
        if self._stream is not None:
            self._fetch()

    def close(self) -> None:
        """Stop the loader's processes now, without waiting for garbage collection."""
        if hasattr(self._batches, "close"):
            self._batches.close()

    def _take(self, number: int) -> Batch | None:
        self._fetch()
        if self._next is None or self._next[0] != number:
            return None
        batch, self._next = self._next[1], None
        if self._stream is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_stream(self._stream)
            for tensor in (batch.clips, batch.labels, *batch.beside):
                tensor.record_stream(current)
        return batch

    def _fetch(self) -> None:
        """Fetch the next micro-batch from the loader. In a run of one process, read errors are raised here."""
        if self._next is not None or self._exhausted:
            return
        try:
            batch = next(self._batches, None)
        except TwoStreamError as error:
            if distributed.world_size() == 1:
                raise
            self.error, batch = error, None
        if batch is None:
            self._exhausted = True
            return
        if self._stream is not None:
            with torch.cuda.stream(self._stream):
                clips, labels, *beside = (
                    tensor.to(self.device, non_blocking=True)
                    for tensor in (batch.clips, batch.labels, *batch.beside)
                )
            batch = Batch(clips, labels, batch.ids, tuple(beside))
        self._next = (self.loader.position - 1, batch)


R = TypeVar("R")


def completed(steps: Generator[None, None, R]) -> R:
    """Run a generator to its end and return its result."""
    while True:
        try:
            next(steps)
        except StopIteration as ended:
            return cast(R, ended.value)


class Trainer:
    """Trains a model on given data and writes the run's folder."""

    def __init__(
        self,
        experiment: Experiment,
        model: nn.Module,
        data: TrainingData,
        paths: RunPaths,
        *,
        device: torch.device,
        write_model: WriteModel,
        extension: Extension | None = None,
    ) -> None:
        """Prepare a new run.

        Args:
            experiment: Settings.
            model: Network that maps clips of pixel values to logits. Its `stages()` lists its named parts from the
                input to the classifier.
            data: Training and validation data.
            paths: The run's folder.
            device: Device to train on.
            write_model: Function that writes the weights of a checkpoint.
            extension: Hooks that change the training.

        Raises:
            DataError: The training or validation part has no videos, or the training part has too few for one step.
        """
        options = experiment.train
        for part, count in (("training", data.num_train), ("validation", data.num_val)):
            if not count:
                raise distributed.shared_error(
                    DataError(
                        f"the {part} part has no videos; expected at least one; check the split list and "
                        "`data.holdout`"
                    )
                )
        self.experiment = experiment
        self.options = options
        self.model = model.to(device)
        self.data = data
        self.paths = paths
        self.device = device
        self.write_model = write_model
        self.extension = extension or Extension()
        self._set_group(options.accumulate * distributed.world_size())
        protect_short_maps(self.model, device, options.precision)
        self.parallel = build_parallel(self.model, options, device)
        with distributed.raise_on_all_ranks():
            rule = update_rule(options.optimizer)
            self.optimizer = build_optimizer(
                model,
                cast(Any, model).stages(),
                rule,
                layer_decay=options.layer_decay,
                stage_rates=options.stage_rates,
                device=device,
            )
            self._add_parameters(self.extension.extra_parameters(device))
            self.schedule = Schedule(
                options.schedule,
                self.optimizer,
                base_lr=rule.lr,
                steps_per_epoch=self.steps,
                epochs=options.epochs,
            )
            self.stepper = Stepper(
                self.parallel,
                self.optimizer,
                self.schedule,
                options,
                labels=data.labels or Labels(len(data.class_names)),
                seed=experiment.seed,
                extension=self.extension,
            )
        self.extension.set_epoch_length(self.steps)
        self.progress = Progress()
        self._least_seconds = SHORT_EPOCHS if data.features is not None else 0.0
        self._saved_at, self._saved_step = time.monotonic(), -1
        self._best: tuple[nn.Module, dict[str, Any], dict[str, Any]] | None = None

    def _set_group(self, group: int) -> None:
        """Set the number of micro-batches per step, for all processes together, and compute the steps per epoch."""
        options, clips = self.options, self.data.num_train
        self.group = group
        self.batches = -(-clips // options.batch_size)
        if options.last_group == "drop":
            self.batches -= self.batches % group
        if not self.batches:
            error = DataError(
                f"the training part has {clips} videos, too few for one step of {group} × {options.batch_size} "
                "clips; lower `train.accumulate` or set `train.last_group: step`"
            )
            raise distributed.shared_error(error)
        self.steps = -(-self.batches // group)

    def _add_parameters(self, parameters: list[nn.Parameter]) -> None:
        """Add an extension's parameters to the optimizer. As in the network, biases have no weight decay."""
        rule = update_rule(self.options.optimizer)
        decayed = [p for p in parameters if rule.decay_all or p.ndim > 1]
        exempt = [p for p in parameters if not (rule.decay_all or p.ndim > 1)]
        for part, decay in ((decayed, rule.weight_decay), (exempt, 0.0)):
            if part:
                self.optimizer.add_param_group({"params": part, "name": "beside", "weight_decay": decay})

    @property
    def evaluated(self) -> nn.Module:
        """The model that is validated and saved in `best/`: the moving average, if there is one."""
        return self.stepper.models[-1]

    def restore(self) -> None:
        """Load the newest checkpoint of the run's folder. The main process reads the files.

        Raises:
            CheckpointError: The checkpoints are damaged or do not fit the model.
            SettingsError: The split lists or the stored features have changed.
        """
        weights, state, undamaged = distributed.on_main(lambda: load_newest(self.paths))
        if state["fingerprint"] != self.data.fingerprint:
            error = SettingsError(
                f"{self.paths.root}: the split lists or stored features changed since the run began, so the run "
                "cannot continue; restore them or start over with --overwrite"
            )
            raise distributed.shared_error(error)
        self._keep_group(state.get("group", self.options.accumulate))
        trained, averaged = (weights, state["other"])
        if state["holds"] == "averaged":
            trained, averaged = averaged, trained
        try:
            self.parallel.load(trained)
            if self.stepper.ema is not None:
                self.stepper.ema.module.load_state_dict(averaged)
            restore_optimizer(self.optimizer, self.parallel.shard(state["optimizer"], self.optimizer))
        except (RuntimeError, ValueError) as failure:
            reason = str(failure).splitlines()[-1].strip()
            misfit = CheckpointError(f"{self.paths.last}: the checkpoint does not fit the model ({reason})")
            raise distributed.shared_error(misfit) from None
        self.extension.load_state(state.get("extension", {}))
        self.extension.restored(self.stepper.models)
        self.schedule.load_state_dict(state["schedule"])
        self.stepper.scaler.load_state_dict(state["scaler"])
        self.progress = at = Progress.from_state(state["progress"])
        # more epochs than before were requested; a run that early stopping ended would also have ended as a longer run
        at.finished &= at.epoch >= self.options.epochs or at.stale >= (
            self.options.early_stopping or math.inf
        )
        set_rng_state(state["rng"])
        if distributed.is_main():
            # removes the lines of epochs after the checkpoint
            write_metrics(self.paths, self.progress.history)
        if not undamaged:
            self._save_last()

    def _keep_group(self, group: int) -> None:
        """Keep the number of clips per step if the run continues with another number of processes."""
        if group == self.group:
            return
        note(
            f"{self.paths.root}: the run began with {group} × {self.options.batch_size} clips per step and keeps "
            f"this number with {distributed.world_size()} processes"
        )
        self._set_group(group)
        self.schedule.steps_per_epoch = self.steps

    def fit(self) -> TrainResult:
        """Train until the last epoch is complete or a signal requests a stop.

        Raises:
            TrainingError: The loss or the gradient is not finite. The last checkpoint is kept.
            DataError: A clip cannot be read and `data.on_error` is `raise`, or no clip can be read.
        """
        return completed(self.fit_steps())

    def fit_steps(self, stop: StopRequest | None = None) -> Generator[None, None, TrainResult]:
        """Train like `fit`, as a generator that yields before each optimizer step and returns the result.

        `stop` is an active request that several trainers of a process share. By default, the trainer sets its own
        signal handlers.
        """
        at, selection = self.progress, self.options.selection
        if at.finished:
            return at.result(self.paths, selection, already_finished=True)
        first = at.step + 1 if at.step else 0  # recorded steps start at 1
        tracker = Tracker(self.paths, self.experiment, first_step=first, active=distributed.is_main())
        with closing(tracker), StopRequest() if stop is None else nullcontext(stop) as stop:
            while True:
                completed = yield from self._epoch(stop, tracker)
                if not completed or (stop and at.step != self._saved_step):
                    self._save_last()
                if at.finished or stop:
                    interrupted = None if at.finished else stop.signal
                    return at.result(self.paths, selection, interrupted=interrupted)

    def _epoch(self, stop: StopRequest, tracker: Tracker) -> Generator[None, None, bool]:
        """Train the rest of the epoch, and validate if a validation is due.

        Returns False if a stop was requested before the end of the epoch.
        """
        at = self.progress
        if at.batch < self.batches:
            yield from self._train(stop, tracker)
            if stop:
                return False
            at.batch = self.batches
        if at.epoch + 1 < self.options.epochs and (at.epoch + 1) % self.options.validate_every:
            self._end_epoch(None, 0.0, tracker)
            return True
        begin = time.perf_counter()
        with distributed.raise_on_all_ranks():
            loader = self.data.validation()
        validation = validate(
            self.evaluated,
            loader,
            device=self.device,
            precision=self.options.precision,
            num_classes=len(self.data.class_names),
            total=self.data.num_val,
            stopped=lambda: stop.received is not None,
            lockstep=self.parallel.lockstep,
        )
        self._report_skipped(getattr(loader, "skipped", []))
        stop.agree()
        if validation is None:
            return False
        self._end_epoch(validation, time.perf_counter() - begin, tracker)
        return True

    def _train(self, stop: StopRequest, tracker: Tracker) -> Generator[None]:
        """Make the remaining steps of the epoch, unless a stop is requested. Yields before each step."""
        at = self.progress
        share = {} if distributed.world_size() == 1 else {"group": self.group}
        with distributed.raise_on_all_ranks():
            loader = self.data.train(at.epoch, at.batch, **share)
            feed = Feed(loader, self.device)
        if at.step == 0 and tracker.active and self.data.features is None:
            shown = feed.first()
            if shown is not None:
                tracker.clips(shown, 0)
        self.model.train()
        title = f"epoch {at.epoch + 1}/{self.options.epochs}"
        try:
            with progress(title, self.batches) as advance:
                advance(at.batch)
                while at.batch < self.batches and not stop:
                    yield
                    begin = time.perf_counter()
                    count = min(self.group, self.batches - at.batch)
                    result = self.stepper.run(
                        feed.group(at.batch, count),
                        count,
                        self._planned_clips(at.batch, count),
                        Position(at.epoch, at.step, at.batch),
                        feed.prefetch,
                    )
                    if stop.agree(failed=feed.error is not None):
                        distributed.raise_first(feed.error)
                    at.add(result, at.batch + count)
                    at.seconds += time.perf_counter() - begin
                    if result.clips:
                        tracker.step(at.step, result.loss / result.clips, result.lr, result.grad_norm)
                    advance(
                        count,
                        loss=f"{at.loss / max(1, at.clips):.4f}",
                        lr=learning_rate(result.lr),
                        speed=f"{at.clips / at.seconds:.1f} clips/s",
                    )
                    every = self.options.checkpoint_every
                    if every and at.step % every == 0 and at.batch < self.batches and not stop:
                        self._save_last()
        finally:
            feed.close()
        self._report_skipped(loader.skipped)

    def _planned_clips(self, batch: int, count: int) -> int:
        """Return the number of clips in micro-batches `batch` to `batch + count - 1` if none is skipped."""
        size, total = self.options.batch_size, self.data.num_train
        return min(total, (batch + count) * size) - min(total, batch * size)

    def _report_skipped(self, own: list[tuple[str, str]]) -> None:
        skipped = [video for part in distributed.gather_objects(own) or [] for video in part]
        if skipped:
            video, reason = skipped[0]
            more = f", and {len(skipped) - 1} more" if len(skipped) > 1 else ""
            warn(f"skipped: {video} ({reason}){more}")

    def _end_epoch(self, validation: Validation | None, seconds: float, tracker: Tracker) -> None:
        at = self.progress
        if not at.clips:
            raise distributed.shared_error(
                DataError("no training clip could be read; run `two-stream check` on the data set")
            )
        line = {
            "epoch": at.epoch + 1,
            "step": at.step,
            "train_loss": at.loss / at.clips,
            "train_top1": at.correct / at.clips,
            **({} if validation is None else self._measured(validation)),
            "lr": at.lr,
            "skipped": self._planned_clips(0, self.batches) - at.clips,
            "selection": SELECTION_LABELS[self.options.selection],
            "seconds": at.seconds + seconds,
            "clips_per_second": at.clips / max(at.seconds, 1e-9),
        }
        best = at.end_epoch(line, validation, counts=self.extension.counts(at.epoch))
        at.step = (
            at.epoch * self.steps
        )  # steps without a readable clip do not shift the learning rate schedule
        if validation is not None:
            self.schedule.end_epoch(validation.loss)
        at.finished = at.epoch >= self.options.epochs
        if (
            validation is not None
            and not at.finished
            and at.stale >= (self.options.early_stopping or math.inf)
        ):
            at.finished = True
            note(f"early stopping: the validation loss has not decreased for {plural(at.stale, 'epoch')}")
        left = 0.0
        if not at.finished:
            left = sum(past["seconds"] for past in at.history) / at.epoch * (self.options.epochs - at.epoch)
        confusion = None if validation is None else validation.confusion
        tracker.epoch(at.history[-1], confusion, self.data.class_names, left)
        if at.finished:
            name = "val_map" if "val_map" in at.history[-1] else "val_top1"
            tracker.hparams({name: at.best_top1, "val_loss": at.best_loss})
        if best:
            self._save_best()
        if at.finished or time.monotonic() - self._saved_at >= self._least_seconds:
            self._save_last()
        elif distributed.is_main():
            write_metrics(self.paths, at.history)

    def _measured(self, validation: Validation) -> dict[str, Any]:
        """Return the fields of a line in `metrics.jsonl` that a validation measures."""
        return {
            "val_loss": validation.loss,
            "val_top1": validation.top1,
            "val_top5": validation.top5,
            **({} if validation.map is None else {"val_map": validation.map}),
            "val_skipped": self.data.num_val - validation.clips,
        }

    def _save_last(self) -> None:
        """Write `metrics.jsonl`, then `last/`.

        If the process is killed before `last/` is written, the resumed run writes the same lines again.
        """
        if distributed.is_main():
            write_metrics(self.paths, self.progress.history)
        if self._best is not None:
            self._save(self.paths.best, *self._best)
            self._best = None
        averaged = None if self.stepper.ema is None else self.stepper.ema.module.state_dict()
        self._save(self.paths.last, self.model, *self._state("trained", averaged))
        self._saved_at, self._saved_step = time.monotonic(), self.progress.step

    def _save_best(self) -> None:
        """Write `best/` before `last/` is written.

        If the process is killed before `last/` is written, the resumed run repeats the epoch.

        With stored features, epochs are short, so a copy of the best model is kept in memory until `last/` is written.
        """
        averaged = self.stepper.ema is not None
        other = self.model.state_dict() if averaged else None
        best = (self.evaluated, *self._state("averaged" if averaged else "trained", other))
        if self._least_seconds:
            # the backbone and other frozen parameters never change, so they are not copied
            modules = cast(Any, self.model).backbone.modules()
            parameters = (p for p in self.model.parameters() if not p.requires_grad)
            self._best = copy.deepcopy(best, {id(part): part for part in (*modules, *parameters)})
        else:
            self._save(self.paths.best, *best)

    def _save(self, folder: Path, model: nn.Module, state: dict[str, Any], meta: dict[str, Any]) -> None:
        """Gather sharded tensors and write a checkpoint. The main process writes while the other processes wait."""
        model, state = self.parallel.full_model(model), self.parallel.gather(state)
        if distributed.is_main():
            save_checkpoint(folder, model, state, meta, self.write_model)
        distributed.barrier()

    def _state(self, holds: str, other: dict[str, Any] | None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the training state and the metadata of a checkpoint."""
        state = {
            "holds": holds,
            "group": self.group,
            "other": other,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "extension": self.extension.state(),
            "scaler": self.stepper.scaler.state_dict(),
            "progress": asdict(self.progress),
            "rng": rng_state(),
            "fingerprint": self.data.fingerprint,
            "code_version": code_version(),
        }
        return state, checkpoint_meta(self.experiment, self.data, self.progress)
