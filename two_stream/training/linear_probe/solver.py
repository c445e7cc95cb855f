"""The linear probe as a run: replaces `Trainer.fit` where `train.optimizer.kind` is `logistic`.

A frozen network gives one vector per training clip; the classifier becomes their logistic regression. Nothing is random
but the folds, and there are no steps, so a run is finished or has not begun: a checkpoint holds no half-way state.
"""

from __future__ import annotations

import time
from contextlib import closing
from typing import Any

import numpy as np
import torch

from two_stream.config.optimization import Logistic
from two_stream.config.schema import Experiment
from two_stream.errors import SettingsError
from two_stream.evaluation.runs.run import HELD_OUT, load_run, score_table
from two_stream.evaluation.scores.files import write_scores
from two_stream.evaluation.scoring.network import prepare_for_inference
from two_stream.evaluation.scoring.score import VideoScores
from two_stream.recognizer import Recognizer
from two_stream.runtime import distributed
from two_stream.runtime.console import note, progress
from two_stream.runtime.interrupt import StopRequest
from two_stream.runtime.provenance import code_version
from two_stream.training.checkpoint import WriteModel, load_newest, save_checkpoint
from two_stream.training.data import TrainingData
from two_stream.training.linear_probe.passes import Vectors, training_vectors
from two_stream.training.linear_probe.regression import Chosen, choose, fit_regression, held_out_logits
from two_stream.training.progress import Progress
from two_stream.training.result import SELECTION_LABELS, TrainResult, checkpoint_meta, training_result
from two_stream.training.tracking import Tracker, write_metrics
from two_stream.training.validate import Tally, Validation, validate
from two_stream.types import RunPaths


def check_probe(model: Recognizer, data: TrainingData) -> None:
    """Find out, before the run has a folder, whether the classifier alone learns and can be solved for.

    Raises:
        SettingsError: It cannot; says what to set.
    """
    if distributed.world_size() > 1:
        raise SettingsError(
            "`train.optimizer.kind: logistic` is solved by one process; start the run without torchrun"
        )
    if data.labels is not None and data.labels.multi_label:
        raise SettingsError(
            f"`train.optimizer.kind: logistic` tells apart classes of which a video has one, and {data.dataset} is "
            "multi-label; use sgd or adamw with `train.freeze_until: head`"
        )
    if model.options.dense:
        raise SettingsError(
            "`train.optimizer.kind: logistic` sees one vector per clip, and `model.dense` classifies places; leave one "
            "of them out"
        )
    learns = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    below = [name for name in learns if not name.startswith("classifier.")]
    if below:
        raise SettingsError(
            f"`train.optimizer.kind: logistic` solves for the classifier alone, and {below[0]} and {len(below) - 1} "
            "more would learn below it; set `train.freeze_until: head`"
        )


class Probe:
    """Solves for the classifier of a network and keeps the run's folder, as `Trainer` does for other trainings."""

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
        """Prepare a run from its start; the arguments are those of `Trainer`."""
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
        """with `train.selection: folds` the training videos, each scored by the folds that did not see it"""

    def restore(self) -> None:
        """Read how far the run is: it is finished, or has no checkpoint.

        Raises:
            CheckpointError: It is damaged.
            SettingsError: The videos of the run changed.
        """
        _, state, _ = load_newest(self.paths)
        if state["fingerprint"] != self.data.fingerprint:
            raise SettingsError(
                f"{self.paths.root}: the split lists or stored features changed since the run was made; restore them "
                "or start over with --overwrite"
            )
        self.progress = Progress.from_state(state["progress"])

    def fit(self) -> TrainResult:
        """Solve, validate and write; after a signal nothing is written.

        Raises:
            DataError: A clip cannot be read and `data.on_error` is `raise`, or none can be read.
            TrainingError: The training part has one class.
        """
        selection = self.experiment.train.selection
        if self.progress.finished:
            return training_result(self.paths, self.progress, selection, True, None)
        with StopRequest("stopping") as stop:
            self._fit(lambda: stop.asked is not None)
            return training_result(
                self.paths, self.progress, selection, False, None if self.progress.finished else stop.signal
            )

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
        self._tell(chosen, vectors)
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
        """Return how good it is on the holdout, or on what each fold held out of the training list."""
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
        return tally.result(left=False, multi_label=False)

    def _vectors(self, stopped: Any) -> Vectors | None:
        views = self.options.views
        cache = self.data.features
        if views is None:
            views = 0 if cache is None else cache.facts.train_views
        # nothing below the classifier learns, so the network may be joined as for evaluation: twice as fast
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

    def _tell(self, chosen: Chosen, vectors: Vectors) -> None:
        count, width = vectors.rows.shape
        how = "given, or nothing to compare it by"
        if chosen.table:
            row = next(row for row in chosen.table if row["c"] == chosen.c)
            how = (
                f"held-out loss {row['loss']:.4f}, top-1 {100 * row['top1']:.1f} % in {self.options.repeats} × "
                f"{chosen.folds} folds of whole sources"
            )
            if chosen.c in (chosen.table[0]["c"], chosen.table[-1]["c"]):
                how += "; it is at the end of `train.optimizer.cs`, which a wider choice may better"
        note(f"{count} vectors of {width} numbers; C {chosen.c:g}: {how}")

    def _line(self, vectors: Vectors, chosen: Chosen, validation: Validation) -> dict[str, Any]:
        """Return the line of metrics.jsonl; training loss and top-1 are those of all rows, unweighted."""
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
            "progress": self.progress.state_dict(),
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
