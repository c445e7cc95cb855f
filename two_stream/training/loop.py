"""From an experiment to a trained run: model, data, folder, and the trainer over them."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from two_stream.config.schema import Experiment, TrainOptions
from two_stream.data.catalog import load_record
from two_stream.errors import SettingsError
from two_stream.pretrained import load_weights, write_model
from two_stream.recognizer import Recognizer, create_model
from two_stream.runtime import distributed
from two_stream.runtime.console import note, warn
from two_stream.runtime.device import pick_device, set_deterministic, set_threads
from two_stream.runtime.seeding import seed_everything
from two_stream.training.checkpoint import has_checkpoint
from two_stream.training.run_folder import begin_run, check_run, locked, record_environment
from two_stream.training.sources import training_data
from two_stream.training.trainer import Trainer, TrainResult
from two_stream.video.reader import backend_version


def train(experiment: Experiment, *, resume: bool = False, overwrite: bool = False) -> TrainResult:
    """Train one stream and keep everything under `runs/<name>/`.

    Args:
        experiment: Resolved settings.
        resume: Continue from the newest checkpoint; without one, start over. Either way the outcome equals that
            of an uninterrupted run.
        overwrite: Remove the files of an earlier run of that name first.

    Raises:
        SettingsError: The folder is in use, or the settings differ from those of the run to resume.
        DataError: The data set cannot be read.
        CheckpointError: A checkpoint or the initial weights cannot be read or do not fit.
        TrainingError: Loss or gradient is not finite.
    """
    if distributed.world_size() > 1:
        raise SettingsError(
            f"WORLD_SIZE is {distributed.world_size()}: training in several processes is not built yet; start one"
        )
    paths = check_run(experiment, resume=resume, overwrite=overwrite)
    set_threads(experiment.threads)
    device = pick_device(experiment.device)
    set_deterministic(experiment.deterministic, device)
    classes = load_record(experiment.data.dataset, experiment.data.settings_root).num_classes
    seed_everything(experiment.seed)
    model = create_model(experiment.model, classes)
    if experiment.channels_last:
        model.channels_last()
    data = training_data(experiment, model.spec)
    continues = resume and has_checkpoint(paths)
    _prepare(model, experiment.train, load_init=not continues)
    with locked(paths):
        begin_run(paths, experiment, overwrite=overwrite)
        record_environment(paths, _facts(experiment, device))
        note(f"run folder: {paths.root}; curves: tensorboard --logdir {shlex.quote(str(experiment.runs))}")
        trainer = Trainer(experiment, model, data, paths, device=device, write_model=_write_model)
        if continues:
            trainer.restore()
            at = trainer.progress
            note(f"resuming {paths.root} at epoch {at.epoch + 1}, step {at.step + 1}")
        elif resume:
            note(f"{paths.root}: no checkpoint yet; starting from the beginning")
        return trainer.fit()


def _prepare(model: Recognizer, options: TrainOptions, *, load_init: bool) -> None:
    """Load the weights to start from, freeze, and set gradient checkpointing."""
    if options.init is not None and load_init:
        report = load_weights(
            model,
            options.init,
            new_classifier=options.new_classifier,
            cross_modality=options.cross_modality,
            inflate=options.inflate,
        )
        note(str(report))
    if options.freeze_until is not None:
        model.freeze_until(options.freeze_until)
    _check_tokens(model)
    model.set_gradient_checkpointing(options.gradient_checkpointing)


def _check_tokens(model: Recognizer) -> None:
    tokens = model.backbone.num_tokens(model.spec.clip_length)
    if max(tokens) == 1 and model.options.head.kind != "average":
        warn(
            f"head {model.options.head.kind} sees one token in time, so it has nothing to sum up: give longer clips "
            "(`model.input.clip_length`) or a smaller `model.backbone.temporal_stride`"
        )


def _facts(experiment: Experiment, device: torch.device) -> dict[str, str]:
    facts = {"device": str(device), "threads": str(torch.get_num_threads())}
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
    if experiment.data.source == "videos":
        facts["decoder"] = backend_version(experiment.data.backend)
    return facts


def _write_model(folder: Path, model: nn.Module, meta: dict[str, Any]) -> None:
    write_model(folder, cast(Recognizer, model), meta)
