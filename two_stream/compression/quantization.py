"""Quantization after training, with calibration on training clips, and quantization-aware training."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from two_stream.config.compress import Quantize
from two_stream.config.schema import Experiment
from two_stream.data.clips.dataset import open_clips
from two_stream.data.clips.loader import clip_loader
from two_stream.data.splits import experiment_part
from two_stream.errors import CheckpointError, SettingsError
from two_stream.evaluation.runs.run import Run, load_run
from two_stream.pretrained import read_model, write_model
from two_stream.recognizer import Recognizer
from two_stream.runtime import distributed
from two_stream.runtime.console import note, progress
from two_stream.runtime.device import rng
from two_stream.runtime.files import complete_folder, replaced_folder, sha256
from two_stream.runtime.text import plural
from two_stream.surgery import alter
from two_stream.surgery.int8 import Int8, check_torch_ao
from two_stream.training.run_folder import begin_run, check_run, record_environment
from two_stream.training.step import EXTENSIONS, Extension
from two_stream.types import RunPaths, VideoRecord

TRAINED = "trained"
"""Folder for the float network of the best epoch of quantization-aware training; `best` is its int8 version."""


def _int8_of(options: Quantize, *, fake: bool) -> Int8:
    """Return the alteration that the options define; `fake` is true during training."""
    return Int8(
        keep=options.keep,
        observer="moving_average" if fake else options.observer,
        per_channel=options.per_channel,
        engine=options.engine,
        fake=fake,
        decay=options.range_decay,
    )


def quantise(model: Recognizer, options: Quantize, clips: Iterable[torch.Tensor]) -> None:
    """Convert a trained network on the CPU to int8, in place.

    The ranges of the activations are measured on `clips`, which are uint8 batches `(B, C, T, H, W)`.

    Raises:
        SettingsError: torch.ao.quantization is missing, the backbone cannot be traced, or `keep` matches no layer.
    """
    check_quantisable(model)
    int8 = _int8_of(options, fake=False)
    model.eval()
    int8.observe(model)
    from two_stream.surgery.int8_graph import start_ranges

    start_ranges(model)
    with torch.inference_mode():
        for clips_BCTHW in clips:
            model(clips_BCTHW)
    int8.convert(model)
    model.alterations.append(int8)


def check_quantisable(model: Recognizer) -> None:
    """Check that a network can be quantized.

    Raises:
        SettingsError: torch.ao.quantization is missing, or the network is already quantized or is from a library.
    """
    check_torch_ao()
    if any(isinstance(alteration, Int8) for alteration in model.alterations):
        raise SettingsError("the network is already quantized; use the run that it was quantized from")
    kind = model.options.backbone.kind
    if kind == "timm" or model.backbone.attends:
        raise SettingsError(
            f"backbone {kind} is from a library whose code depends on tensor values, so torch cannot trace it as "
            "a graph of layers; use a backbone of two-stream (see `two-stream models`)"
        )


def quantise_run(experiment: Experiment, *, overwrite: bool = False) -> RunPaths:
    """Write an int8 version of a trained run (post-training static quantization).

    The source run is `compress.source`. If `overwrite` is true, an earlier run with the same name is removed.

    Raises:
        SettingsError: The run's folder is in use, or the network cannot be quantized.
        CheckpointError: The source run cannot be read.
        DataError: The clips cannot be read.
    """
    options = experiment.compress
    assert isinstance(options, Quantize)
    assert options.source is not None
    paths = check_run(experiment, resume=False, overwrite=overwrite)
    run = load_run(options.source)
    records = calibration_videos(run, experiment, options.clips)
    clips = open_clips(experiment.data, run.model.spec, records, run.record)
    loader = clip_loader(clips, experiment.train.batch_size)
    digest = run.model_sha256
    note(f"measuring the ranges of activations on {plural(len(records), 'clip')} of the training part")
    with progress("calibrate", len(records)) as advance:
        quantise(run.model, options, _counted(loader, advance))
    begin_run(paths, experiment, overwrite=overwrite)
    facts = {"quantised": f"{options.source} {digest}", "device": "cpu", "clips": str(len(records))}
    record_environment(paths, facts)
    with replaced_folder(paths.best) as folder:
        write_model(folder, run.model, run.meta)
    return paths


def calibration_videos(run: Run, experiment: Experiment, count: int) -> list[VideoRecord]:
    """Return `count` videos of the training part, drawn with the seed, or all videos if there are fewer."""
    videos = experiment_part(experiment, run.record, "train", run.model.spec.modality)
    order = rng("calibration", experiment.seed).permutation(len(videos))
    return [videos[place] for place in order[:count]]


def _counted(loader: Iterable[Any], advance: Any) -> Iterable[torch.Tensor]:
    for batch in loader:
        yield batch.clips
        advance(len(batch.ids))


@EXTENSIONS.register(Quantize)
class QuantizationAware(Extension):
    """Rounds weights and activations to int8 values during training, and converts the best network at the end."""

    def __init__(self, experiment: Experiment) -> None:
        assert isinstance(experiment.compress, Quantize)
        self.experiment = experiment
        self.options = experiment.compress
        _check(experiment, self.options)
        self.steps = 1
        self.done = 0

    def start(self, model: Recognizer, *, resumed: bool) -> None:
        """Insert the rounding. BatchNorm is fused with the convolutions, but is still trained."""
        del resumed
        check_quantisable(model)
        alter(model, _int8_of(self.options, fake=True))

    def set_epoch_length(self, steps_per_epoch: int) -> None:
        """Store the length of the training in steps."""
        self.steps = steps_per_epoch * self.experiment.train.epochs

    def restored(self, models: Sequence[nn.Module]) -> None:
        """Freeze the ranges and statistics that were frozen when the checkpoint was saved."""
        if self.done:
            self.stepped(models, self.done - 1)

    def stepped(self, models: Sequence[nn.Module], step: int) -> None:
        """Freeze the ranges and the BatchNorm statistics, each after a fraction of the training (see the settings)."""
        from two_stream.surgery.int8_graph import stop_ranges

        self.done = step + 1
        for model in models:
            assert isinstance(model, Recognizer)
            if self.done >= self.options.ranges_until * self.steps:
                stop_ranges(model)
            if self.done >= self.options.statistics_until * self.steps:
                norms = [part for part in model.modules() if isinstance(part, _BatchNorm) and part.training]
                model.hold(norms)

    def state(self) -> dict[str, torch.Tensor]:
        """Return the number of completed steps."""
        return {"done": torch.tensor(self.done)}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Restore the number of steps that `state` returned."""
        self.done = int(state["done"])

    def finished(self, paths: RunPaths) -> None:
        """Convert `best/` to int8 and keep the float network in `trained/`."""
        best, trained = complete_folder(paths.best), paths.root / TRAINED
        model, meta = read_model(best)
        if model.cpu_only:
            return
        with replaced_folder(trained) as folder:
            shutil.copytree(best, folder, dirs_exist_ok=True)
        int8 = _int8_of(self.options, fake=False)
        int8.convert(model)
        model.alterations[-1] = int8
        with replaced_folder(paths.best) as folder:
            write_model(folder, model, meta)
        note(f"{paths.best}: converted to int8; the float network is kept in {trained}")

    def facts(self) -> dict[str, str]:
        """Return the folder and the checksum of the initial weights."""
        source = self.options.source
        return {} if source is None else {"quantised": f"{source} {_digest(source)}"}


def _digest(source: Path) -> str:
    file = complete_folder(source / "best") / "model.safetensors"
    if not file.is_file():
        raise CheckpointError(f"{source}: the run to quantize has no best/{file.name}; train this run first")
    return sha256(file)


def _check(experiment: Experiment, options: Quantize) -> None:
    """Raise an error for settings that quantization-aware training does not support."""
    train = experiment.train
    if options.method == "static":
        raise SettingsError(
            "`compress.method: static` requires no training; use `two-stream compress quantize RUN`, or set "
            "`compress.method: qat` for quantization-aware training"
        )
    for name, value in (
        ("ema", train.ema),
        ("gradient_checkpointing", train.gradient_checkpointing),
        ("compile", train.compile),
        ("sync_batchnorm", train.sync_batchnorm),
        ("freeze_until", train.freeze_until),
    ):
        if value:
            raise SettingsError(
                f"`train.{name}` cannot be combined with quantization-aware training; remove this setting"
            )
    if train.precision != "fp32":
        raise SettingsError(
            f"`train.precision` is {train.precision}, but quantization-aware training requires "
            "fp32; set `train.precision: fp32`"
        )
    if distributed.world_size() > 1:
        raise SettingsError(
            "quantization-aware training supports one process only; start the run without torchrun"
        )
