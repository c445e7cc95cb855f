"""The linear probe: it replaces the trainer if `train.optimizer.kind` is `logistic`.

A frozen network computes one vector per training clip, and the classifier is a logistic regression on these vectors.
The classifier is fitted in a single step, so an interrupted run starts again from the beginning.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from two_stream.config.schema import Experiment, Logistic
from two_stream.errors import DataError, SettingsError
from two_stream.evaluation.runs.run import HELD_OUT, load_run, score_table
from two_stream.evaluation.scores.files import write_scores
from two_stream.evaluation.scoring.network import prepare_for_inference
from two_stream.evaluation.scoring.score import VideoScores
from two_stream.recognizer import Recognizer
from two_stream.runtime import distributed
from two_stream.runtime.console import note, progress
from two_stream.runtime.device import autocast
from two_stream.runtime.distributed import StopRequest
from two_stream.runtime.provenance import code_version
from two_stream.runtime.text import per_cent, plural
from two_stream.training.data import TrainingData, with_progress
from two_stream.training.regression import Chosen, Vectors, choose, fit_regression, held_out_logits
from two_stream.training.run_folder import WriteModel, load_newest, save_checkpoint
from two_stream.training.tracking import Tracker, write_metrics
from two_stream.training.trainer import (
    SELECTION_LABELS,
    Progress,
    Tally,
    TrainResult,
    Validation,
    checkpoint_meta,
    validate,
)
from two_stream.types import RunPaths


def check_probe(model: Recognizer, data: TrainingData) -> None:
    """Check that the settings and the data allow a linear probe.

    Raises:
        SettingsError: A setting or the data set does not allow a linear probe.
    """
    if distributed.world_size() > 1:
        raise SettingsError(
            "`train.optimizer.kind: logistic` supports one process only; start the run without torchrun"
        )
    if data.labels is not None and data.labels.multi_label:
        raise SettingsError(
            f"`train.optimizer.kind: logistic` requires one class per video, but {data.dataset} is multi-label; "
            "use `train.optimizer.kind: sgd` or `adamw` with `train.freeze_until: head`"
        )
    if model.options.dense:
        raise SettingsError(
            "`train.optimizer.kind: logistic` and `model.dense: true` cannot be combined; "
            "set `model.dense: false`, or use `train.optimizer.kind: sgd` or `adamw`"
        )
    learns = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    below = [name for name in learns if not name.startswith("classifier.")]
    if below:
        raise SettingsError(
            f"`train.optimizer.kind: logistic` trains the classifier only, but {below[0]} and {len(below) - 1} "
            "other parameters before the classifier are not frozen; set `train.freeze_until: head`"
        )


class Probe:
    """Fits the classifier of a network and, like `Trainer`, writes the run's folder."""

    def __init__(
        self,
        experiment: Experiment,
        model: Recognizer,
        data: TrainingData,
        paths: RunPaths,
        *,
        device: torch.device,
        write_model: WriteModel,
    ) -> None:
        """Prepare a new run. The arguments are those of `Trainer`."""
        assert isinstance(experiment.train.optimizer, Logistic)
        self.experiment = experiment
        self.options = experiment.train.optimizer
        self.model = model.to(device)
        self.data = data
        self.paths = paths
        self.device = device
        self.write_model = write_model
        self.progress = Progress()
        self.held_out: VideoScores | None = None
        """with `train.selection: folds`: for each training video, the scores of classifiers that were not trained on
        the video"""

    def restore(self) -> None:
        """Load the progress of the run. If a checkpoint exists, the run is already finished.

        Raises:
            CheckpointError: The checkpoint is damaged.
            SettingsError: The split lists or the stored features have changed.
        """
        _, state, _ = load_newest(self.paths)
        if state["fingerprint"] != self.data.fingerprint:
            raise SettingsError(
                f"{self.paths.root}: the split lists or stored features changed since the run was trained; "
                "restore them or start over with --overwrite"
            )
        self.progress = Progress.from_state(state["progress"])

    def fit(self) -> TrainResult:
        """Fit the classifier, validate it and write the run's folder. If a signal stops the fit, nothing is written.

        Raises:
            DataError: A clip cannot be read and `data.on_error` is `raise`, or no clip can be read.
            TrainingError: All training videos have the same class.
        """
        selection = self.experiment.train.selection
        if self.progress.finished:
            return self.progress.result(self.paths, selection, already_finished=True)
        with StopRequest("stopping") as stop:
            self._fit(lambda: stop.received is not None)
            interrupted = None if self.progress.finished else stop.signal
            return self.progress.result(self.paths, selection, interrupted=interrupted)

    def _fit(self, stopped: Any) -> None:
        begin = time.perf_counter()
        vectors = self._vectors(stopped)
        if vectors is None:
            return
        read = time.perf_counter() - begin
        with progress("choosing C", None) as advance:
            advance(0)
            groups = [record.group for record in self.data.records]
            chosen = choose(vectors, groups, self.options, seed=self.experiment.seed, stopped=stopped)
        if chosen is None:
            return
        self._note_choice(chosen, vectors)
        weight, bias = fit_regression(vectors, chosen.c, self.options.balanced, self.model.num_classes)
        with torch.no_grad():
            self.model.classifier.weight.copy_(torch.from_numpy(weight))
            self.model.classifier.bias.copy_(torch.from_numpy(bias))
        validation = self._validated(vectors, groups, chosen, stopped)
        if validation is None:
            return
        line = self._line(vectors, chosen, validation)
        line |= {"seconds": time.perf_counter() - begin, "clips_per_second": len(vectors.rows) / read}
        self.progress.step = 1
        self.progress.end_epoch(line, validation)
        self.progress.finished = True
        self._write(validation)

    def _validated(
        self, vectors: Vectors, groups: list[str], chosen: Chosen, stopped: Any
    ) -> Validation | None:
        """Validate on the holdout or, with `train.selection: folds`, on the held-out videos of all folds."""
        classes = len(self.data.class_names)
        if self.experiment.train.selection != "folds":
            return validate(
                self.model,
                self.data.validation(),
                device=self.device,
                precision=self.experiment.train.precision,
                num_classes=classes,
                total=self.data.num_val,
                stopped=stopped,
            )
        videos, logits = held_out_logits(
            vectors, groups, self.options, chosen.c, classes, seed=self.experiment.seed
        )
        labels = np.array([self.data.records[video].label for video in videos])
        ids = [self.data.records[video].id for video in videos]
        self.held_out = VideoScores(ids, labels, logits, None, np.ones(len(ids), np.int64))
        tally = Tally(classes)
        tally.add(torch.from_numpy(logits), torch.from_numpy(labels))
        return tally.result(stopped=False, multi_label=False)

    def _vectors(self, stopped: Any) -> Vectors | None:
        views = self.options.views
        cache = self.data.features
        if views is None:
            views = 0 if cache is None else cache.facts.train_views
        # nothing below the classifier is trained, so BatchNorm may be folded as for evaluation: twice as fast
        network = (
            self.model if cache is not None else prepare_for_inference(self.model, self.experiment.evaluate)
        )
        assert isinstance(network, Recognizer)
        return training_vectors(
            network,
            self.data,
            views,
            device=self.device,
            precision=self.experiment.train.precision,
            stopped=stopped,
        )

    def _note_choice(self, chosen: Chosen, vectors: Vectors) -> None:
        count, width = vectors.rows.shape
        how = "not chosen by cross-validation: there is only one value or only one source video"
        if chosen.table:
            row = next(row for row in chosen.table if row["c"] == chosen.c)
            how = (
                f"held-out loss {row['loss']:.4f}, top-1 {per_cent(row['top1'])} in {self.options.repeats} × "
                f"{plural(chosen.folds, 'fold')} of source videos"
            )
            if chosen.c in (chosen.table[0]["c"], chosen.table[-1]["c"]):
                how += "; this is the smallest or largest value in `train.optimizer.cs`, so try a wider range"
        note(
            f"logistic regression on {plural(count, 'vector')} of {width} features with C = {chosen.c:g} ({how})"
        )

    def _line(self, vectors: Vectors, chosen: Chosen, validation: Validation) -> dict[str, Any]:
        """Return the line of `metrics.jsonl`.

        The training loss and top-1 accuracy are means over all training clips.
        """
        weight, bias = (part.detach().double().cpu().numpy() for part in self.model.classifier.parameters())
        logits = vectors.rows @ weight.T + bias
        rows = np.arange(len(logits))
        top = logits.max(1)
        losses = top + np.log(np.exp(logits - top[:, None]).sum(1)) - logits[rows, vectors.labels]
        return {
            "epoch": 1,
            "step": 1,
            "train_loss": float(losses.mean()),
            "train_top1": float((logits.argmax(1) == vectors.labels).mean()),
            "val_loss": validation.loss,
            "val_top1": validation.top1,
            "val_top5": validation.top5,
            "skipped": len(self.data.records) - len(np.unique(vectors.videos)),
            "val_skipped": self.data.num_val - validation.clips,
            "selection": SELECTION_LABELS[self.experiment.train.selection],
            "c": chosen.c,
            "cross_validation": chosen.table,
            "folds": chosen.folds,
        }

    def _write(self, validation: Validation) -> None:
        tracker = Tracker(self.paths, self.experiment, first_step=0)
        with closing(tracker):
            tracker.epoch(self.progress.history[-1], validation.confusion, self.data.class_names, 0.0)
            tracker.hparams({"val_top1": self.progress.best_top1, "val_loss": self.progress.best_loss})
        write_metrics(self.paths, self.progress.history)
        state = {
            "progress": asdict(self.progress),
            "fingerprint": self.data.fingerprint,
            "code_version": code_version(),
        }
        meta = checkpoint_meta(self.experiment, self.data, self.progress)
        for folder in (self.paths.best, self.paths.last):
            save_checkpoint(folder, self.model, state, meta, self.write_model)
        if self.held_out is not None:
            facts = {"protocol": "single clip, folds of the training list", "views": "single"}
            table = score_table(
                load_run(self.paths.root),
                self.experiment,
                "val",
                self.data.records,
                self.held_out,
                reasons={},
                facts=facts,
            )
            write_scores(self.paths.scores / HELD_OUT, table)


@torch.no_grad()
def training_vectors(
    model: Recognizer,
    data: TrainingData,
    views: int,
    *,
    device: torch.device,
    precision: str,
    stopped: Callable[[], bool],
) -> Vectors | None:
    """Return the classifier's input for all training videos: the centred clips first, then the augmented clips.

    Args:
        model: The network, on `device`.
        data: Training data with one class per video.
        views: Augmented clips per video; they are the clips of the first `views` epochs of a training run.
        device: Device of the model.
        precision: Autocast type.
        stopped: Function that returns whether to stop early. If it returns true, the result is None.

    Raises:
        DataError: A clip cannot be read and `data.on_error` is `raise`, or no clip can be read.
    """
    model.eval()
    places = {record.id: place for place, record in enumerate(data.records)}
    rows: list[NDArray[np.float64]] = []
    labels: list[NDArray[np.int64]] = []
    videos: list[int] = []
    for number in range(1 + views):
        loader = data.centred() if number == 0 else data.train(number - 1, 0)
        title = f"clips {number + 1}/{1 + views}"
        for batch in with_progress(loader, title, len(data.records)):
            if stopped():
                return None
            with autocast(device, precision):
                z_BD = model.forward_vectors(batch.clips.to(device))
            rows.append(z_BD.double().cpu().numpy())
            labels.append(batch.labels.cpu().numpy())
            videos += [places[video] for video in batch.ids]
    if not rows:
        raise DataError("no training clip could be read; run `two-stream check` on the data set")
    return Vectors(np.concatenate(rows), np.concatenate(labels), np.array(videos))
