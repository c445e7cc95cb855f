"""Training of an experiment: builds the model and the data, opens the run's folder and starts the trainer."""

from __future__ import annotations

import shlex
from collections.abc import Generator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import nn

from two_stream.config.schema import Experiment, Logistic, TrainOptions
from two_stream.data.catalog import Record, dataset_record
from two_stream.data.sources.shards import shard_facts
from two_stream.errors import (
    CheckpointError,
    DataError,
    FullDiskError,
    TrainingError,
    TwoStreamError,
    loader_killed,
)
from two_stream.evaluation.features.cache import FeatureCache, SharedFeatures, backbone_sha256
from two_stream.evaluation.runs.lookup import check_data, record_data
from two_stream.evaluation.scores.words import expected_words
from two_stream.evaluation.scoring.network import missing_compiler
from two_stream.heads.base import Standard
from two_stream.pretrained import load_library, load_weights, reshape_like, write_model
from two_stream.recognizer import Recognizer, resolve_options
from two_stream.runtime import distributed
from two_stream.runtime.console import note, warn
from two_stream.runtime.device import autocast, pick_device, seed_everything, set_deterministic, set_threads
from two_stream.runtime.distributed import StopRequest
from two_stream.runtime.files import complete_folder, room_for
from two_stream.training.batchnorm import synchronise_batchnorm
from two_stream.training.data import TrainingData, training_data, with_progress
from two_stream.training.losses import build_loss
from two_stream.training.optim import parameter_groups
from two_stream.training.regression import channel_scales
from two_stream.training.run_folder import (
    began_here,
    begin_run,
    check_run,
    has_checkpoint,
    lock_run,
    record_environment,
)
from two_stream.training.step import build_extension
from two_stream.training.trainer import Trainer, TrainResult, completed
from two_stream.types import RunPaths
from two_stream.video.decoding.reader import backend_version

if TYPE_CHECKING:
    from two_stream.training.linear_probe import Probe

_OTHER_BACKBONE = (
    "set `train.init` to the weights that wrote the features (with `train.init_part: backbone` for a new head), or "
    "write the features again with `two-stream features`"
)


def train(experiment: Experiment, *, resume: bool = False, overwrite: bool = False) -> TrainResult:
    """Train one stream and write the run to `runs/<name>/`.

    Args:
        experiment: Resolved settings.
        resume: Whether to continue from the newest checkpoint; without a checkpoint, the run starts from the beginning.
            The result equals that of an uninterrupted run.
        overwrite: Whether to remove the files of an earlier run with the same name first.

    Raises:
        SettingsError: The run's folder is in use, or the settings differ from those of the run to resume.
        DataError: The data set cannot be read.
        CheckpointError: A checkpoint or the initial weights cannot be read or do not fit the network.
        TrainingError: The loss or the gradient is not finite, or another process of the job exited.
    """
    return completed(train_steps(experiment, resume=resume, overwrite=overwrite))


def train_steps(
    experiment: Experiment,
    *,
    resume: bool = False,
    overwrite: bool = False,
    shared: SharedFeatures | None = None,
    stop: StopRequest | None = None,
) -> Generator[None, None, TrainResult]:
    """Train like `train`, as a generator that yields before each optimizer step and returns the result.

    Several runs of a process can thus take turns. The result of a run does not depend on the others, as long as all
    of them have the same `device`, `threads` and `deterministic`.

    Args:
        experiment: See `train`.
        resume: See `train`.
        overwrite: See `train`.
        shared: Stored features that the runs share; see `SharedFeatures` for the settings that must be equal.
        stop: An active request to stop that the runs share. By default, the run sets its own signal handlers.
    """
    distributed.init(cpu_only=experiment.device == "cpu")
    try:
        result = yield from _train(experiment, resume, overwrite, shared, stop)
    except FullDiskError as error:
        raise FullDiskError(
            error.path, f"{error.kept}; free some space, then continue with --resume"
        ) from None
    except RuntimeError as error:
        if killed := loader_killed(error):
            raise TrainingError(killed) from None
        if not distributed.is_peer_failure(error):
            raise
        raise distributed.shared_error(
            TrainingError(
                "Another process of this job exited, so this process stops; see the error message of the other process."
            )
        ) from None
    distributed.shutdown()
    return result


def _note_expected_precision(experiment: Experiment, record: Record) -> None:
    """Print how precisely the data set can measure an accuracy."""
    with suppress(TwoStreamError):  # no test list
        note(expected_words(record, experiment.model.reads, experiment.data.split))


def _train(
    experiment: Experiment,
    resume: bool,
    overwrite: bool,
    shared: SharedFeatures | None,
    stop: StopRequest | None,
) -> Generator[None, None, TrainResult]:
    with distributed.raise_on_all_ranks():
        experiment = experiment.model_copy(update={"model": resolve_options(experiment.model)})
    start = distributed.on_main(lambda: _start(experiment, resume=resume, overwrite=overwrite))
    paths, resume, overwrite = start.paths, start.resume, start.overwrite
    continues = resume and start.has_checkpoint
    with distributed.raise_on_all_ranks():
        set_threads(experiment.threads)
        device = pick_device(experiment.device)
        set_deterministic(experiment.deterministic, device)
        record = dataset_record(experiment.data)
        # a resumed run gets the backbone of its checkpoint
        model = _built(experiment, record.num_classes, None if continues else shared)
        extension = build_extension(experiment)
        pin = device.type == "cuda"
        data = extension.data(training_data(experiment, record, model.spec, pin=pin, shared=shared))
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
        distributed.on_main(lambda: _open(paths, experiment, record, facts, overwrite=overwrite))
        note(
            f"run folder: {paths.root}; to plot the metrics, run: tensorboard --logdir "
            f"{shlex.quote(str(experiment.runs))}"
        )
        if not continues:
            distributed.on_main(lambda: _note_expected_precision(experiment, record))
            _measure_tokens(model, data, device, experiment.train.precision)
        trainer: Trainer | Probe
        if isinstance(experiment.train.optimizer, Logistic):
            from two_stream.training.linear_probe import Probe

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
            note(f"--resume: no checkpoint in {paths.root}; starting from the beginning")
        with room_for(paths.root, "the last checkpoint is kept"):
            result = (yield from trainer.fit_steps(stop)) if isinstance(trainer, Trainer) else trainer.fit()
        if result.finished:
            distributed.on_main(lambda: extension.finished(paths))
        return result


@dataclass(frozen=True)
class _Start:
    """The decision of the main process on how to start a run."""

    paths: RunPaths
    resume: bool
    overwrite: bool
    has_checkpoint: bool


def _start(experiment: Experiment, *, resume: bool, overwrite: bool) -> _Start:
    """Check that the run can start. If `torchrun` restarted the job, the run resumes even without --resume."""
    if distributed.restarts() and began_here(RunPaths(experiment.runs / experiment.name)):
        note(f"restart {distributed.restarts()} by torchrun: continuing from the last checkpoint")
        resume, overwrite = True, False
    paths = check_run(experiment, resume=resume, overwrite=overwrite)
    if resume and paths.data.is_file():
        check_data(paths, experiment)
    return _Start(paths, resume, overwrite, has_checkpoint(paths))


def _open(
    paths: RunPaths, experiment: Experiment, record: Record, facts: dict[str, str], *, overwrite: bool
) -> None:
    begin_run(paths, experiment, overwrite=overwrite)
    record_data(paths, experiment, record)
    record_environment(paths, facts)


def _compare_lists(data: TrainingData) -> None:
    """Raise an error if the processes read different split lists."""
    if len(set(distributed.all_objects(data.fingerprint))) > 1:
        raise distributed.shared_error(
            DataError(
                "the processes of the job read different split lists; use the same `data.settings_root` on "
                "all machines"
            )
        )


def _reshape_like_run(model: Recognizer, paths: RunPaths) -> None:
    """Resize the layers to those of a run's checkpoint `last/`, or `best/` if `last/` cannot be read.

    Raises:
        CheckpointError: Neither checkpoint can be read.
    """
    try:
        reshape_like(model, complete_folder(paths.last))
    except CheckpointError:
        reshape_like(model, complete_folder(paths.best))


def start_model(experiment: Experiment, classes: int | None = None) -> Recognizer:
    """Return the untrained network, with initial weights from the settings, or else random ones from the seed.

    The default of `classes` is the number of classes of the data set.

    Raises:
        DataError: The data set cannot be read; the network requires its number of classes.
        CheckpointError: The initial weights cannot be read or do not fit the network.
    """
    model = _built(experiment, classes or dataset_record(experiment.data).num_classes)
    _load_start(model, experiment.train)
    return model


def _built(experiment: Experiment, classes: int, shared: SharedFeatures | None = None) -> Recognizer:
    seed_everything(experiment.seed)
    backbone = None if shared is None else shared.backbone(experiment.model)
    model = Recognizer(experiment.model, classes, backbone)
    return model.channels_last() if experiment.channels_last else model


def _load_start(model: Recognizer, options: TrainOptions) -> None:
    """Load the initial weights from `train.init`, or otherwise the pretrained weights of the backbone's library."""
    if options.init is None:
        message = load_library(model)
        if message is not None:
            note(message)
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
    """Freeze stages, and replace the backbone with stored features or set BatchNorm, checkpointing and compilation."""
    if features is not None:
        assert options.freeze_until is not None  # checked by `Experiment`
        model.freeze_until(options.freeze_until)
        model.use_cached_features(features.layout, features)
        _check_tokens(model)
        return
    if options.sync_batchnorm and distributed.world_size() > 1:
        synchronise_batchnorm(model, device)
    if options.freeze_until is not None:
        model.freeze_until(options.freeze_until)
    _check_tokens(model)
    model.set_gradient_checkpointing(options.gradient_checkpointing)
    if options.compile:
        _compile_stages(model, device)


def _compile_stages(model: Recognizer, device: torch.device) -> None:
    """Compile each stage of the backbone separately, so that graphs stay small and weights keep their names."""
    problem = missing_compiler(device)
    if problem:
        warn(f"`train.compile`: {problem}; training continues without compilation")
        return
    for _, stage in model.backbone.stages():
        stage.compile()
    note("`train.compile`: the backbone is compiled during the first steps; this takes a few minutes")


def _check(experiment: Experiment, model: Recognizer, data: TrainingData) -> None:
    """Find errors before the run's folder is created, such as an unsuitable loss, learning rate or shard."""
    options = experiment.train
    if data.labels is not None:
        build_loss(options, data.labels)
    if isinstance(options.optimizer, Logistic):
        from two_stream.training.linear_probe import check_probe

        check_probe(model, data)
    else:
        parameter_groups(model, model.stages(), options.optimizer, options.layer_decay, options.stage_rates)
    if experiment.data.source == "shards" and experiment.data.shards and data.features is None:
        shard_facts(experiment.data.shards, experiment.model.reads)


@torch.no_grad()
def _measure_tokens(model: Recognizer, data: TrainingData, device: torch.device, precision: str) -> None:
    """Measure the mean and standard deviation of each token channel for the network's `Standard` modules.

    The values are computed in float64 over all time steps of the centred training clips of all processes. Networks
    whose modules already have a mean and a standard deviation are left unchanged.

    Raises:
        DataError: A clip cannot be read and `data.on_error` is `raise`, or no clip can be read.
    """
    standards = [cast(Standard, standard) for standard in model.standards]
    if not standards or all(standard.measured for standard in standards):
        return
    model.to(device).eval()
    sums = [np.zeros(2 * len(standard.mean) + 1) for standard in standards]
    with distributed.raise_on_all_ranks():
        for batch in with_progress(data.centred(), "measuring tokens", data.num_train):
            with autocast(device, precision):
                tokens = model.forward_tokens(batch.clips.to(device))
            for total, x_BTD in zip(sums, tokens, strict=True):
                x = x_BTD.flatten(0, 1).double().cpu().numpy()
                total += np.concatenate(([len(x)], x.sum(0), np.square(x).sum(0)))
    flat = np.array(distributed.gather_numbers(np.concatenate(sums).tolist())).sum(0)
    for standard, part in zip(standards, np.split(flat, np.cumsum([len(s) for s in sums])[:-1]), strict=True):
        count, width = part[0], len(standard.mean)
        if not count:
            raise distributed.shared_error(
                DataError("no training clip could be read; run `two-stream check` on the data set")
            )
        mean = part[1 : width + 1] / count
        variance = np.maximum(part[width + 1 :] / count - mean**2, 0.0)
        standard.mean.copy_(torch.from_numpy(mean))
        standard.deviation.copy_(torch.from_numpy(channel_scales(np.sqrt(variance), mean)))


def _check_tokens(model: Recognizer) -> None:
    tokens = model.backbone.num_tokens(model.spec.clip_length)
    if max(tokens) == 1 and model.options.head.kind != "average":
        warn(
            f"head {model.options.head.kind} aggregates over time, but receives only one time step; increase "
            "`model.input.clip_length` or reduce `model.backbone.temporal_stride`"
        )


def _facts(experiment: Experiment, device: torch.device) -> dict[str, str]:
    facts = {"device": str(device), "threads": str(torch.get_num_threads())}
    if distributed.world_size() > 1:
        facts["processes"] = str(distributed.world_size())
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
    from_shards = experiment.data.source == "shards" and experiment.data.features is None
    if from_shards and experiment.data.shards:
        made = shard_facts(experiment.data.shards, experiment.model.reads)
        facts["shards"] = ", ".join(f"{key} {value}" for key, value in made.items())
    if experiment.data.features is not None:
        facts["features"] = FeatureCache(experiment.data.features).content
    if experiment.data.source == "videos":
        facts["decoder"] = backend_version(experiment.data.backend)
    return facts


def _write_model(folder: Path, model: nn.Module, meta: dict[str, Any]) -> None:
    write_model(folder, cast(Recognizer, model), meta, checksums=False)  # `replaced_folder` writes them
