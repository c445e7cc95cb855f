"""From an experiment to a trained run: model, data, folder, and the trainer over them."""

from __future__ import annotations

import shlex
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from two_stream.config.optimization import Logistic
from two_stream.config.schema import Experiment, TrainOptions
from two_stream.data.catalog import load_record
from two_stream.data.sources.shards import shard_facts
from two_stream.errors import (
    CheckpointError,
    DataError,
    FullDiskError,
    TrainingError,
    TwoStreamError,
    loader_killed,
)
from two_stream.evaluation.features.cache import FeatureCache
from two_stream.evaluation.features.extract_features import backbone_sha256
from two_stream.evaluation.scores.words import expected_words
from two_stream.pretrained import load_library, load_weights, reshape_like, write_model
from two_stream.recognizer import Recognizer, create_model, resolve_options
from two_stream.runtime import distributed
from two_stream.runtime.console import note, warn
from two_stream.runtime.device import pick_device, set_deterministic, set_threads
from two_stream.runtime.files import room_for
from two_stream.runtime.folders import complete_folder
from two_stream.runtime.seeding import seed_everything
from two_stream.training.checkpoint import has_checkpoint
from two_stream.training.compiling import compile_stages
from two_stream.training.data import TrainingData, training_data
from two_stream.training.extension import extension_of
from two_stream.training.linear_probe.passes import measure_tokens
from two_stream.training.linear_probe.solver import Probe, check_probe
from two_stream.training.losses import build_loss
from two_stream.training.optim import parameter_groups
from two_stream.training.parallel.batchnorm import synchronised
from two_stream.training.result import TrainResult
from two_stream.training.run_folder import began_here, begin_run, check_run, lock_run, record_environment
from two_stream.training.trainer import Trainer
from two_stream.types import RunPaths
from two_stream.video.decoding.reader import backend_version

_OTHER_BACKBONE = (
    "give the weights it was made from as `train.init` (with `train.init_part: backbone` the head starts anew), or "
    "write the features anew with `two-stream features`"
)


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
        TrainingError: Loss or gradient is not finite; or another process of the job has gone.
    """
    distributed.init(cpu_only=experiment.device == "cpu")
    try:
        result = _train(experiment, resume=resume, overwrite=overwrite)
    except FullDiskError as error:
        raise FullDiskError(error.path, f"{error.kept}; free some, then go on with --resume") from None
    except RuntimeError as error:
        if killed := loader_killed(error):
            raise TrainingError(killed) from None
        if not distributed.is_peer_failure(error):
            raise
        raise distributed.shared_error(
            TrainingError("another process of the run has gone, so this one ends too; see what it said")
        ) from None
    distributed.shutdown()
    return result


def _tell_expected(experiment: Experiment) -> None:
    """Say how sure an accuracy on the data set can be."""
    data = experiment.data
    with suppress(TwoStreamError):  # no test list
        record = load_record(data.dataset, data.settings_root)
        note(expected_words(record, experiment.model.modality, data.split))


def _train(experiment: Experiment, *, resume: bool, overwrite: bool) -> TrainResult:
    with distributed.raise_on_all_ranks():
        experiment = experiment.model_copy(update={"model": resolve_options(experiment.model)})
    start = distributed.on_main(lambda: _start(experiment, resume=resume, overwrite=overwrite))
    paths, resume, overwrite = start.paths, start.resume, start.overwrite
    continues = resume and start.has_checkpoint
    with distributed.raise_on_all_ranks():
        set_threads(experiment.threads)
        device = pick_device(experiment.device)
        set_deterministic(experiment.deterministic, device)
        classes = load_record(experiment.data.dataset, experiment.data.settings_root).num_classes
        model = _built(experiment, classes)
        extension = extension_of(experiment)
        data = extension.data(training_data(experiment, model.spec, pin=device.type == "cuda"))
        if continues:
            _reshape_like_run(model, paths)
        else:
            _load_start(model, experiment.train)
            if data.features is not None:
                data.features.check_backbone(backbone_sha256(model), _OTHER_BACKBONE)
        extension.start(model, resumed=continues)
        _prepare(model, experiment.train, device, data.features)
        _check(experiment, model, data)
    _compare_lists(data)
    with ExitStack() as stack:
        distributed.on_main(lambda: stack.enter_context(lock_run(paths)))
        facts = _facts(experiment, device) | extension.facts()
        distributed.on_main(lambda: _open(paths, experiment, facts, overwrite=overwrite))
        note(f"run folder: {paths.root}; curves: tensorboard --logdir {shlex.quote(str(experiment.runs))}")
        if not continues:
            distributed.on_main(lambda: _tell_expected(experiment))
            measure_tokens(model, data, device, experiment.train.precision)
        trainer: Trainer | Probe
        if isinstance(experiment.train.optimizer, Logistic):
            trainer = Probe(experiment, model, data, paths, device=device, write_model=_write_model)
        else:
            trainer = Trainer(
                experiment, model, data, paths, device=device, write_model=_write_model, extension=extension
            )
        if continues:
            trainer.restore()
            at = trainer.progress
            note(f"resuming {paths.root} at epoch {at.epoch + 1}, step {at.step + 1}")
        elif resume:
            note(f"{paths.root}: no checkpoint yet; starting from the beginning")
        with room_for(paths.root, "the last checkpoint is kept"):
            result = trainer.fit()
        if result.finished:
            distributed.on_main(lambda: extension.finished(paths))
        return result


@dataclass(frozen=True)
class _Start:
    """How a run begins, found out by the main process."""

    paths: RunPaths
    resume: bool
    overwrite: bool
    has_checkpoint: bool


def _start(experiment: Experiment, *, resume: bool, overwrite: bool) -> _Start:
    """Find out whether the run may begin; one that `torchrun` has started anew goes on by itself."""
    if distributed.restarts() and began_here(RunPaths(experiment.runs / experiment.name)):
        note(f"started anew ({distributed.restarts()}): going on from the last checkpoint")
        resume, overwrite = True, False
    paths = check_run(experiment, resume=resume, overwrite=overwrite)
    return _Start(paths, resume, overwrite, has_checkpoint(paths))


def _open(paths: RunPaths, experiment: Experiment, facts: dict[str, str], *, overwrite: bool) -> None:
    begin_run(paths, experiment, overwrite=overwrite)
    record_environment(paths, facts)


def _compare_lists(data: TrainingData) -> None:
    """Refuse to train on different lists at once, as two machines may have them."""
    if len(set(distributed.all_objects(data.fingerprint))) > 1:
        raise distributed.shared_error(
            DataError(
                "the processes read different split lists; give every machine the same `data.settings_root`"
            )
        )


def _reshape_like_run(model: Recognizer, paths: RunPaths) -> None:
    """Give the layers the sizes of a run's checkpoint, which is loaded over them: of `best/` where `last/` is damaged.

    Raises:
        CheckpointError: Neither can be read.
    """
    try:
        reshape_like(model, complete_folder(paths.last))
    except CheckpointError:
        reshape_like(model, complete_folder(paths.best))


def start_model(experiment: Experiment) -> Recognizer:
    """Return the network as its training begins: fresh values of the seed, then the weights to start from.

    Raises:
        DataError: The data set, whose classes it needs, is not there.
        CheckpointError: The weights cannot be read or do not fit.
    """
    classes = load_record(experiment.data.dataset, experiment.data.settings_root).num_classes
    model = _built(experiment, classes)
    _load_start(model, experiment.train)
    return model


def _built(experiment: Experiment, classes: int) -> Recognizer:
    seed_everything(experiment.seed)
    model = create_model(experiment.model, classes)
    return model.channels_last() if experiment.channels_last else model


def _load_start(model: Recognizer, options: TrainOptions) -> None:
    """Load the weights to start from; `init` is a whole model, so beside it those of a library are not read."""
    if options.init is None:
        said = load_library(model)
        if said is not None:
            note(said)
        return
    report = load_weights(
        model,
        options.init,
        part=options.init_part,
        new_classifier=options.new_classifier,
        cross_modality=options.cross_modality,
        inflate=options.inflate,
        averaged=options.init_averaged,
    )
    note(str(report))


def _prepare(
    model: Recognizer, options: TrainOptions, device: torch.device, features: FeatureCache | None
) -> None:
    """Freeze, and set what changes how the backbone is computed, or that it is not."""
    if features is not None:
        assert options.freeze_until is not None  # `Experiment` sees to it
        model.freeze_until(options.freeze_until)
        model.use_cached_features(features.layout, features)
        _check_tokens(model)
        return
    if options.sync_batchnorm and distributed.world_size() > 1:
        synchronised(model, device)
    if options.freeze_until is not None:
        model.freeze_until(options.freeze_until)
    _check_tokens(model)
    model.set_gradient_checkpointing(options.gradient_checkpointing)
    if options.compile:
        compile_stages(model.backbone.stages(), device)


def _check(experiment: Experiment, model: Recognizer, data: TrainingData) -> None:
    """Find out before the run has a folder what would stop it: a loss, rates or shards that do not fit."""
    options = experiment.train
    if data.labels is not None:
        build_loss(options, data.labels)
    if isinstance(options.optimizer, Logistic):
        check_probe(model, data)
    else:
        parameter_groups(model, model.stages(), options.optimizer, options.layer_decay, options.stage_rates)
    if experiment.data.source == "shards" and experiment.data.shards and data.features is None:
        shard_facts(experiment.data.shards, experiment.model.modality)


def _check_tokens(model: Recognizer) -> None:
    tokens = model.backbone.num_tokens(model.spec.clip_length)
    if max(tokens) == 1 and model.options.head.kind != "average":
        warn(
            f"head {model.options.head.kind} sees one token in time, so it has nothing to sum up: give longer clips "
            "(`model.input.clip_length`) or a smaller `model.backbone.temporal_stride`"
        )


def _facts(experiment: Experiment, device: torch.device) -> dict[str, str]:
    facts = {"device": str(device), "threads": str(torch.get_num_threads())}
    if distributed.world_size() > 1:
        facts["processes"] = str(distributed.world_size())
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
    from_shards = experiment.data.source == "shards" and experiment.data.features is None
    if from_shards and experiment.data.shards:
        made = shard_facts(experiment.data.shards, experiment.model.modality)
        facts["shards"] = ", ".join(f"{key} {value}" for key, value in made.items())
    if experiment.data.features is not None:
        facts["features"] = FeatureCache(experiment.data.features).content
    if experiment.data.source == "videos":
        facts["decoder"] = backend_version(experiment.data.backend)
    return facts


def _write_model(folder: Path, model: nn.Module, meta: dict[str, Any]) -> None:
    write_model(folder, cast(Recognizer, model), meta)
