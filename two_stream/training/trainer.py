"""The training loop: steps, validation, selection, checkpoints, interruption. Knows neither files of videos nor YAML.

A run is a sequence of optimizer steps that depends on settings and data alone. A checkpoint is taken between two
steps and holds everything the rest of the sequence needs, so a resumed run and an uninterrupted one are the same run.
Of several processes each computes its share of every step, and the main one writes.
"""

from __future__ import annotations

import copy
import time
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import nn

from two_stream.config.schema import Experiment
from two_stream.errors import CheckpointError, DataError, SettingsError
from two_stream.runtime import distributed
from two_stream.runtime.console import note, progress, warn
from two_stream.runtime.interrupt import StopRequest
from two_stream.runtime.provenance import code_version
from two_stream.runtime.seeding import rng_state, set_rng_state
from two_stream.training.checkpoint import WriteModel, load_newest, save_checkpoint
from two_stream.training.data import TrainingData
from two_stream.training.extension import Extension
from two_stream.training.feed import Feed
from two_stream.training.losses import Labels
from two_stream.training.optim import build_optimizer, restore_optimizer, update_rule
from two_stream.training.parallel.join import parallel
from two_stream.training.progress import Progress
from two_stream.training.result import SELECTION_LABELS, TrainResult, checkpoint_meta, training_result
from two_stream.training.schedule import Schedule, build_schedule
from two_stream.training.short_maps import mind_short_maps
from two_stream.training.step import Position, Stepper
from two_stream.training.tracking import Tracker, write_metrics
from two_stream.training.validate import Validation, validate
from two_stream.types import RunPaths

SHORT_EPOCHS = 60.0
"""seconds between checkpoints of a run over stored features, whose epochs take less than writing the whole network"""


class Staged(Protocol):
    """What the trainer asks of a model beyond `nn.Module`."""

    def stages(self) -> list[tuple[str, nn.Module]]:
        """Return the named parts from input to classifier."""


class Trainer:
    """Trains a model on given data and keeps the run's folder."""

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
        """Prepare a run from its start.

        Args:
            experiment: Settings.
            model: Clips of pixel values to logits; has `stages()`.
            data: Both parts.
            paths: The run's folder.
            device: Where the model goes.
            write_model: Writes the weights of a checkpoint.
            extension: What is added to the training.

        Raises:
            DataError: A part has no videos.
        """
        options = experiment.train
        for part, count in (("training", data.num_train), ("validation", data.num_val)):
            if not count:
                raise distributed.shared_error(
                    DataError(f"the {part} part has no videos; check the split list and `data.holdout`")
                )
        self.experiment = experiment
        self.options = options
        self.model = model.to(device)
        self.data = data
        self.paths = paths
        self.device = device
        self.write_model = write_model
        self._count(options.accumulate * distributed.world_size())
        mind_short_maps(self.model, device, options.precision)
        self.parallel = parallel(self.model, options, device)
        stages = cast(Staged, model).stages()
        with distributed.raise_on_all_ranks():
            self.optimizer = build_optimizer(
                model,
                stages,
                update_rule(options.optimizer),
                layer_decay=options.layer_decay,
                stage_rates=options.stage_rates,
                device=device,
            )
            if extension is not None:
                self._train_beside(extension.trained_beside(device))
            self.schedule = self._schedule()
            self.stepper = Stepper(
                model,
                self.optimizer,
                self.schedule,
                options,
                labels=data.labels or Labels(len(data.class_names)),
                seed=experiment.seed,
                device=device,
                parallel=self.parallel,
            )
        self.extension = self.stepper.extension = extension or Extension(experiment)
        self.extension.planned(self.steps)
        self.progress = Progress()
        self._least_seconds = SHORT_EPOCHS if data.features is not None else 0.0
        self._saved_at, self._saved_step = time.monotonic(), -1
        self._best: tuple[nn.Module, dict[str, Any], dict[str, Any]] | None = None

    def _count(self, group: int) -> None:
        """Count the micro-batches of an epoch and its steps of `group` micro-batches each, of all processes."""
        options, clips = self.options, self.data.num_train
        self.group = group
        self.batches = -(-clips // options.batch_size)
        if options.last_group == "drop":
            self.batches -= self.batches % group
        if not self.batches:
            error = DataError(
                f"the training part has {clips} videos, too few for one step of {group} × {options.batch_size} clips; "
                "lower `train.accumulate` or set `train.last_group: step`"
            )
            raise distributed.shared_error(error)
        self.steps = -(-self.batches // group)

    def _train_beside(self, parameters: list[nn.Parameter]) -> None:
        """Give an extension's weights to the optimizer, decayed as the network's own: biases go without."""
        rule = update_rule(self.experiment.train.optimizer)
        decayed = [p for p in parameters if rule.decay_all or p.ndim > 1]
        exempt = [p for p in parameters if not (rule.decay_all or p.ndim > 1)]
        for part, decay in ((decayed, rule.weight_decay), (exempt, 0.0)):
            if part:
                self.optimizer.add_param_group({"params": part, "name": "beside", "weight_decay": decay})

    def _schedule(self) -> Schedule:
        options = self.options
        return build_schedule(
            options.schedule,
            self.optimizer,
            base_lr=update_rule(options.optimizer).lr,
            steps_per_epoch=self.steps,
            epochs=options.epochs,
        )

    @property
    def evaluated(self) -> nn.Module:
        """The weights that are validated and kept in `best/`: the moving average where there is one."""
        return self.model if self.stepper.ema is None else cast(nn.Module, self.stepper.ema.module)

    def restore(self) -> None:
        """Continue from the newest checkpoint of the run's folder, which the main process reads.

        Raises:
            CheckpointError: It is damaged or does not fit the model.
            SettingsError: The videos of the run changed.
        """
        weights, state, undamaged = distributed.on_main(lambda: load_newest(self.paths))
        if state["fingerprint"] != self.data.fingerprint:
            error = SettingsError(
                f"{self.paths.root}: the split lists or stored features changed since the run began, so it cannot "
                "continue; restore them or start over with --overwrite"
            )
            raise distributed.shared_error(error)
        self._regroup(state.get("group", self.options.accumulate))
        trained, averaged = (weights, state["other"])
        if state["holds"] == "averaged":
            trained, averaged = averaged, trained
        try:
            self.parallel.load(trained)
            if self.stepper.ema is not None:
                self.stepper.ema.module.load_state_dict(averaged)
            restore_optimizer(self.optimizer, self.parallel.divided(state["optimizer"], self.optimizer))
        except (RuntimeError, ValueError) as failure:
            reason = str(failure).splitlines()[-1].strip()
            misfit = CheckpointError(f"{self.paths.last}: does not fit the model ({reason})")
            raise distributed.shared_error(misfit) from None
        self.extension.load_state(state.get("extension", {}))
        self.extension.restored(self.stepper.models)
        self.schedule.load_state_dict(state["schedule"])
        self.stepper.scaler.load_state_dict(state["scaler"])
        self.progress = Progress.from_state(state["progress"])
        set_rng_state(state["rng"])
        if distributed.is_main():
            write_metrics(self.paths, self.progress.history)  # lines of lost steps go
        if not undamaged:
            self._save_last()

    def _regroup(self, group: int) -> None:
        """Keep to the steps the run began with, also when other processes than then divide them."""
        if group == self.group:
            return
        note(
            f"{self.paths.root}: began with {group} × {self.options.batch_size} clips per step and keeps to them; "
            f"processes now: {distributed.world_size()}"
        )
        self._count(group)
        self.schedule = self.stepper.schedule = self._schedule()

    def fit(self) -> TrainResult:
        """Train to the end, or until a signal asks to stop.

        Raises:
            TrainingError: Loss or gradient is not finite; the last checkpoint stays.
            DataError: A clip cannot be read and `data.on_error` is `raise`, or none can be read.
        """
        if self.progress.finished:
            return self._result(already_finished=True)
        done = self.progress.step  # the next step to record is one more
        first = done + 1 if done else 0
        tracker = Tracker(self.paths, self.experiment, first_step=first, active=distributed.is_main())
        with closing(tracker), StopRequest() as stop:
            while True:
                at = self.progress
                if not self._epoch(stop, tracker) or (stop and at.step != self._saved_step):
                    self._save_last()
                if at.finished or stop:
                    return self._result(interrupted=None if at.finished else stop.signal)

    def _epoch(self, stop: StopRequest, tracker: Tracker) -> bool:
        """Train what is left of the epoch and validate; false when stopped before its end."""
        if self.progress.batch < self.batches:
            self._train(stop, tracker)
            if stop:
                return False
            self.progress.batch = self.batches
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
            stopped=lambda: stop.asked is not None,
            lockstep=self.parallel.lockstep,
        )
        self._report_skipped(getattr(loader, "skipped", []))
        stop.agree()
        if validation is None:
            return False
        self._end_epoch(validation, time.perf_counter() - begin, tracker)
        return True

    def _train(self, stop: StopRequest, tracker: Tracker) -> None:
        """Make the remaining steps of the epoch, or those until a stop is asked for."""
        at = self.progress
        dealt = {} if distributed.world_size() == 1 else {"group": self.group}
        with distributed.raise_on_all_ranks():
            loader = self.data.train(at.epoch, at.batch, **dealt)
            feed = Feed(loader, self.device)
        self.stepper.ahead = feed.ahead
        pictures = at.step == 0 and tracker.active and self.data.features is None
        shown = feed.first() if pictures else None
        if shown is not None:
            tracker.clips(shown, 0)
        self.model.train()
        title = f"epoch {at.epoch + 1}/{self.options.epochs}"
        try:
            with progress(title, self.batches) as advance:
                advance(at.batch)
                while at.batch < self.batches and not stop:
                    begin = time.perf_counter()
                    count = min(self.group, self.batches - at.batch)
                    position = Position(at.epoch, at.step, at.batch)
                    micro_batches = feed.group(at.batch, count)
                    result = self.stepper.run(micro_batches, count, self._planned(at.batch, count), position)
                    if stop.agree(failed=feed.error is not None):
                        distributed.raise_first(feed.error)
                    at.add(result, at.batch + count)
                    at.seconds += time.perf_counter() - begin
                    if result.clips:
                        tracker.step(at.step, result.loss / result.clips, result.lr, result.grad_norm)
                    advance(
                        count,
                        loss=f"{at.loss / max(1, at.clips):.4f}",
                        lr=f"{result.lr:.3g}",
                        speed=f"{at.clips / at.seconds:.1f} clips/s",
                    )
                    every = self.options.checkpoint_every
                    if every and at.step % every == 0 and at.batch < self.batches and not stop:
                        self._save_last()
        finally:
            feed.close()
        self._report_skipped(loader.skipped)

    def _planned(self, batch: int, count: int) -> int:
        """Clips of the micro-batches `batch` to `batch + count` if none is left out."""
        size, total = self.options.batch_size, self.data.num_train
        return min(total, (batch + count) * size) - min(total, batch * size)

    def _report_skipped(self, own: list[tuple[str, str]]) -> None:
        skipped = [video for part in distributed.gather_objects(own) or [] for video in part]
        if skipped:
            video, reason = skipped[0]
            more = f", and {len(skipped) - 1} more" if len(skipped) > 1 else ""
            warn(f"left out: {video} ({reason}){more}")

    def _end_epoch(self, validation: Validation, seconds: float, tracker: Tracker) -> None:
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
            "val_loss": validation.loss,
            "val_top1": validation.top1,
            "val_top5": validation.top5,
            **({} if validation.map is None else {"val_map": validation.map}),
            "lr": at.lr,
            "skipped": self._planned(0, self.batches) - at.clips,
            "val_skipped": self.data.num_val - validation.clips,
            "selection": SELECTION_LABELS[self.options.selection],
            "seconds": at.seconds + seconds,
            "clips_per_second": at.clips / max(at.seconds, 1e-9),
        }
        extension = self.stepper.extension
        best = at.end_epoch(line, validation, counts=extension is None or extension.counts(at.epoch))
        at.step = at.epoch * self.steps  # steps lost to unreadable clips do not shift the schedule
        self.schedule.end_epoch(validation.loss)
        self._finish_if_due()
        left = 0.0
        if not at.finished:
            left = sum(past["seconds"] for past in at.history) / at.epoch * (self.options.epochs - at.epoch)
        tracker.epoch(at.history[-1], validation.confusion, self.data.class_names, left)
        if at.finished:
            name = "val_top1" if validation.map is None else "val_map"
            tracker.hparams({name: at.best_top1, "val_loss": at.best_loss})
        if best:
            self._save_best()
        if at.finished or time.monotonic() - self._saved_at >= self._least_seconds:
            self._save_last()
        elif distributed.is_main():
            write_metrics(self.paths, at.history)

    def _finish_if_due(self) -> None:
        at, patience = self.progress, self.options.early_stopping
        at.finished = at.epoch >= self.options.epochs
        if not at.finished and patience is not None and at.stale >= patience:
            at.finished = True
            note(f"stopping early: {at.stale} epochs without a lower validation loss")

    def _save_last(self) -> None:
        """Write the lines so far, then `last/`: a kill between leaves lines that the resumed run writes again."""
        if distributed.is_main():
            write_metrics(self.paths, self.progress.history)
        if self._best is not None:
            self._save(self.paths.best, *self._best)
            self._best = None
        averaged = None if self.stepper.ema is None else self.stepper.ema.module.state_dict()
        self._save(
            self.paths.last,
            self.model,
            self._state("trained", averaged),
            checkpoint_meta(self.experiment, self.data, self.progress),
        )
        self._saved_at, self._saved_step = time.monotonic(), self.progress.step

    def _save_best(self) -> None:
        """Write `best/`, before `last/`: after a kill between them the epoch is repeated and `best/` with it.

        Where epochs take seconds a copy is held until `last/` is due.
        """
        averaged = self.stepper.ema is not None
        other = self.model.state_dict() if averaged else None
        best = (
            self.evaluated,
            self._state("averaged" if averaged else "trained", other),
            checkpoint_meta(self.experiment, self.data, self.progress),
        )
        if self._least_seconds:  # what is frozen never changes and needs no copy
            frozen = {id(p): p for p in self.model.parameters() if not p.requires_grad}
            self._best = copy.deepcopy(best, frozen)
        else:
            self._save(self.paths.best, *best)

    def _save(self, folder: Path, model: nn.Module, state: dict[str, Any], meta: dict[str, Any]) -> None:
        """Gather what is divided; let the main process write, and the others wait until it has."""
        model, state = self.parallel.writable(model), self.parallel.whole(state)
        if distributed.is_main():
            save_checkpoint(folder, model, state, meta, self.write_model)
        distributed.barrier()

    def _state(self, holds: str, other: dict[str, Any] | None) -> dict[str, Any]:
        """Return the training state beside weights that are the `trained` or the `averaged` ones."""
        return {
            "holds": holds,
            "group": self.group,
            "other": other,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "extension": self.extension.state(),
            "scaler": self.stepper.scaler.state_dict(),
            "progress": self.progress.state_dict(),
            "rng": rng_state(),
            "fingerprint": self.data.fingerprint,
            "code_version": code_version(),
        }

    def _result(self, *, already_finished: bool = False, interrupted: int | None = None) -> TrainResult:
        selection = self.options.selection
        return training_result(self.paths, self.progress, selection, already_finished, interrupted)
