"""Finished runs: loading one, scoring a part of its data set with it, asking it about a video."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from two_stream.config.load import load_experiment
from two_stream.config.schema import EvaluateOptions, Experiment
from two_stream.data.clips.views import view_loader
from two_stream.data.mirror import Mirror, mirror_note, mirror_of
from two_stream.data.splits import load_part
from two_stream.errors import CheckpointError, DataError, ScoreError, SettingsError
from two_stream.evaluation.features.cached_views import StoredViews
from two_stream.evaluation.runs.any_run import AnyRun
from two_stream.evaluation.runs.frames_made import FramesMade, frames_made, made_now, other_flow, other_frames
from two_stream.evaluation.runs.score_table import score_table
from two_stream.evaluation.scores.files import read_scores, write_scores
from two_stream.evaluation.scoring.network import is_exact, prepare_for_inference, resolve_evaluation
from two_stream.evaluation.scoring.processes import Skipped, gathered
from two_stream.evaluation.scoring.score import VideoScores, aggregate_views, score_videos
from two_stream.evaluation.scoring.video import VideoInput, VideoResult, fuse_results, score_file, top
from two_stream.evaluation.scoring.views import same_boxes_note, slug
from two_stream.pretrained import read_model
from two_stream.recognizer import Recognizer
from two_stream.runtime import distributed
from two_stream.runtime.console import note, warn
from two_stream.runtime.device import pick_device
from two_stream.runtime.files import check_writable, complete_folder, sha256
from two_stream.types import Part, RunPaths, ScoreTable, VideoRecord
from two_stream.video.flow import AUTO, computed_flow

CHECKPOINTS = ("best", "last")
HELD_OUT = "val_folds.npz"
"""scores of the training list by the folds of a cross-validation (`train.selection: folds`), written by the training"""


@dataclass(frozen=True)
class Run(AnyRun[Recognizer]):
    """A finished run, its model ready for scoring."""

    @cached_property
    def model_sha256(self) -> str:
        """Checksum of the weights file."""
        return sha256(complete_folder(self.paths.root / self.checkpoint) / "model.safetensors")


def load_run(path: Path | str, checkpoint: str = "best", device: str = "cpu") -> Run:
    """Load a run folder.

    Args:
        path: The folder that training wrote.
        checkpoint: `best` or `last`.
        device: auto, cpu, cuda, cuda:N or mps.

    Raises:
        CheckpointError: No run folder, or its checkpoint is missing or damaged.
        SettingsError: Its settings are damaged, or there is no such device.
    """
    paths = run_paths(path)
    if checkpoint not in CHECKPOINTS:
        raise CheckpointError(f"unknown checkpoint {checkpoint!r}; expected best or last")
    experiment = load_experiment(paths.experiment)
    folder = complete_folder(paths.root / checkpoint)
    if not folder.is_dir():
        there = [name for name in CHECKPOINTS if complete_folder(paths.root / name).is_dir()]
        hint = f"; it has `{there[0]}`" if there else "; train it first (`two-stream train`)"
        raise CheckpointError(f"{folder}: the run has no checkpoint {checkpoint!r}{hint}")
    model, meta = read_model(folder, pick_device(device))
    if experiment.channels_last:
        model.channels_last()
    names = meta.get("class_names") or [str(index) for index in range(model.num_classes)]
    if len(names) != model.num_classes:
        raise CheckpointError(
            f"{folder}: {len(names)} class names for {model.num_classes} classes; train it again"
        )
    return Run(experiment, model, [str(name) for name in names], paths, checkpoint, meta)


def run_paths(path: Path | str) -> RunPaths:
    """Return the paths of a run folder.

    Raises:
        CheckpointError: There is no such folder, or it is no run.
    """
    folder = Path(path)
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "no such folder"
        raise CheckpointError(f"{folder}: {what}; expected a run folder, as `two-stream train` writes it")
    paths = RunPaths(folder)
    if not paths.experiment.is_file():
        raise CheckpointError(
            f"{folder}: not a run folder: it has no experiment.yaml (`two-stream train` writes one)"
        )
    return paths


def evaluate_run(
    run: AnyRun[Any] | Path | str,
    options: EvaluateOptions | None = None,
    part: Part = "test",
    *,
    checkpoint: str = "best",
    device: str = "auto",
    workers: int | None = None,
    out: Path | None = None,
    uncached: bool = False,
) -> tuple[ScoreTable, Path]:
    """Score a part of a run's data set and write `runs/<name>/scores/<part>_<protocol>.npz`.

    A run that was trained on stored features (`data.features`) is scored on them; of its training and validation
    videos the centred clip and crop are stored.

    Args:
        run: A loaded run, its folder, or a loaded export (`export.load`).
        options: How to score; default: the run's own.
        part: `test`, or `val` and `train`, the two sides of the holdout.
        checkpoint: `best` or `last`, when `run` is a folder.
        device: Where to compute, when `run` is a folder.
        workers: Loader processes; default: the run's own.
        out: Where to write instead.
        uncached: Read the videos also where the run names stored features.

    Returns:
        The table and the file it was written to. Of several processes (`torchrun`) each scores a share of the videos;
        the main one writes the file and returns the whole table, the others what they scored.

    Raises:
        TwoStreamError: The run, the data set or a video cannot be read; or the classes of model and data set differ.
    """
    with distributed.raise_on_all_ranks():
        loaded = run if isinstance(run, AnyRun) else load_run(run, checkpoint, device)
        if part == "val" and loaded.experiment.train.selection == "folds":
            return _held_out(loaded)
        if distributed.is_main():
            check_writable(out or loaded.paths.scores / "scores.npz")
        where = loaded.model.device
        experiment = _with_options(loaded, options, workers, where)
        records = _records(loaded, experiment, part)
        stored = None
        recognizer = isinstance(loaded.model, Recognizer)  # others begin with pixels
        if experiment.data.features is not None and not uncached and recognizer:
            asked = (options or loaded.experiment.evaluate).precision
            stored = StoredViews(loaded.model, experiment, loaded.record, part, asked)
            experiment = stored.experiment
    # processes of one machine may measure differently; all of them compute as the main one does
    precision = distributed.broadcast_object(experiment.evaluate.precision)
    evaluate = experiment.evaluate.model_copy(update={"precision": precision})
    experiment = experiment.model_copy(update={"evaluate": evaluate})
    scores, skipped = (
        _read_and_score(loaded, experiment, records)
        if stored is None
        else stored.score(records, _aggregate(experiment.evaluate, loaded.record.multi_label))
    )
    scores, skipped = gathered(scores, skipped, [record.id for record in records])
    facts = loaded.facts if stored is None else stored.facts
    table = score_table(loaded, experiment, part, records, scores, reasons=dict(skipped), facts=facts)
    path = out or loaded.paths.scores / f"{part}_{slug(evaluate)}{loaded.score_suffix}.npz"
    if distributed.is_main():
        write_scores(path, table)
    table.meta["file"] = str(path)
    return table, path


def _held_out(run: AnyRun[Any]) -> tuple[ScoreTable, Path]:
    """Return the scores that a cross-validation wrote: the network itself has seen every video of the list."""
    path = run.paths.scores / HELD_OUT
    if not path.is_file():
        raise ScoreError(
            f"{path}: no such file; the run has learned from every video of the training list, and the scores of its "
            "folds are written by the training alone: train it again with --overwrite"
        )
    return read_scores(path), path


def _read_and_score(
    run: AnyRun[Any], experiment: Experiment, records: Sequence[VideoRecord]
) -> tuple[VideoScores, Skipped]:
    """Score this process's share of the videos; return those that could not be read too."""
    evaluate = experiment.evaluate
    with distributed.raise_on_all_ranks():
        mirrors = evaluate.crops in ("ten", "full")
        wrong = mirror_note(run.record, experiment.data.augment.protocol, mirrors)
        if wrong and distributed.is_main():
            warn(wrong)
        slow = same_boxes_note(evaluate, run.model.spec)
        if slow and distributed.is_main():
            note(slow)
        loader = view_loader(
            experiment,
            run.model.spec,
            records,
            run.record,
            rank=distributed.rank(),
            world=distributed.world_size(),
        )
        changed = _other_frames(run)
        if changed and distributed.is_main():
            warn(changed)
        network = prepare_for_inference(run.model, evaluate)
    scores = score_videos(
        network,
        loader,
        device=run.model.device,
        precision=evaluate.precision,
        batch_views=evaluate.batch_views or 1,
        aggregate=_aggregate(evaluate, run.record.multi_label),
        keep_views=evaluate.keep_views,
        total=len(records),
    )
    return scores, loader.skipped


def _other_frames(run: AnyRun[Any]) -> str | None:
    """Say where the frames of the data set are no longer made like those the run was trained on."""
    modality = run.model.spec.modality
    written, now = run.meta.get("extraction"), made_now(run.experiment.data, run.record, modality)
    if not written or now is None:
        return None
    then = frames_made(written, run.source)
    return other_frames(run.source, then, frames_made(now, run.record.name), run.record, modality)


def _records(run: AnyRun[Any], experiment: Experiment, part: Part) -> list[VideoRecord]:
    """Return the videos of a part.

    Raises:
        DataError: The data set's classes are not the model's, or its lists cannot be read.
    """
    record = run.record
    if record.classes != run.class_names:
        raise DataError(
            f"{record.name}: its {len(record.classes)} classes are not the {len(run.class_names)} the model of "
            f"{run.source} was trained on; give the data set of the run"
        )
    return load_part(
        record,
        run.model.spec.modality,
        experiment.data.split,
        part,
        selection=experiment.train.selection,
        holdout=experiment.data.holdout,
        seed=experiment.seed,
    )


def predict(
    model_or_run: Recognizer | AnyRun[Any] | Path | str | Sequence[AnyRun[Any] | Path | str],
    video: Path | str,
    *,
    top_k: int = 5,
    options: EvaluateOptions | None = None,
    reading: VideoInput | None = None,
    rule: str = "l2",
    weights: Sequence[float] | None = None,
    class_names: Sequence[str] | None = None,
) -> list[tuple[str, float]]:
    """Say what happens in a video.

    Args:
        model_or_run: A model, a run (or its folder), or several runs whose scores are fused, for example RGB and flow.
        video: A video file; flow is computed on the fly.
        top_k: How many classes to return.
        options: Views; default: each run's own.
        reading: Decoder, flow algorithm and frame size; default: as each run's training frames were made (see
            `reading_of`, which takes another flow algorithm too), and for a bare model pictures as `two-stream extract`
            makes them by default, and DIS.
        rule: Fusion rule of several runs.
        weights: One per run, for several runs.
        class_names: Names for a bare model; default: numbers.

    Returns:
        (label, probability), likeliest first.

    Raises:
        VideoError: The video cannot be read.
        TwoStreamError: A run cannot be read, the runs know different classes, or the weights do not fit them.
    """
    if isinstance(model_or_run, Recognizer):
        names = [str(name) for name in class_names or range(model_or_run.num_classes)]
        asked = (reading or VideoInput()).flow
        line = other_flow("the model", None, computed_flow(None, asked), asked)
        if line is not None and model_or_run.spec.modality == "flow":
            warn(line)
        result = score_file(model_or_run, video, options or EvaluateOptions(), reading)
        return top(fuse_results([result], rule, weights), names, top_k)
    several = [model_or_run] if isinstance(model_or_run, (AnyRun, Path, str)) else list(model_or_run)
    runs = [entry if isinstance(entry, AnyRun) else load_run(entry, device="auto") for entry in several]
    views = [options] * len(runs) if options else None
    results = score_with_runs(runs, video, views, [reading] * len(runs) if reading else None)
    return top(fuse_results(results, rule, weights), runs[0].class_names, top_k)


def score_with_runs(
    runs: Sequence[AnyRun[Any]],
    video: Path | str,
    options: Sequence[EvaluateOptions] | None = None,
    readings: Sequence[VideoInput] | None = None,
) -> list[VideoResult]:
    """Score one video with each of several runs.

    Args:
        runs: Loaded runs that know the same classes.
        video: The file.
        options: Views for each run; default: the run's own.
        readings: Decoder, flow and sizes for each run; default: as its training frames were made.

    Raises:
        ScoreError: No run, or the runs know different classes.
        VideoError: The video cannot be read.
    """
    if not runs:
        raise ScoreError("no run given; expected an RGB run, a flow run or both")
    for run in runs[1:]:
        if run.class_names != runs[0].class_names:
            raise ScoreError(f"{run.source} and {runs[0].source} know different classes and cannot be fused")
    chosen = options or [run.experiment.evaluate for run in runs]
    read = (
        [
            replace(reading, flow=_flow_read(run, reading.flow))
            for run, reading in zip(runs, readings, strict=True)
        ]
        if readings
        else [reading_of(run) for run in runs]
    )
    return [_scored(run, video, views, how) for run, views, how in zip(runs, chosen, read, strict=True)]


def _scored(
    run: AnyRun[Any], video: Path | str, options: EvaluateOptions, reading: VideoInput
) -> VideoResult:
    result = score_file(run.model, video, options, reading)
    if not run.multi_label:
        return result
    logits = aggregate_views(result.view_logits, _aggregate(options, multi_label=True))
    return replace(result, logits=logits, multi_label=True)


def _aggregate(options: EvaluateOptions, multi_label: bool) -> str:
    """Return what is averaged over views: probabilities of classes that do not exclude each other are sigmoids."""
    return "sigmoids" if multi_label and options.aggregate == "probabilities" else options.aggregate


def _with_options(
    run: AnyRun[Any], options: EvaluateOptions | None, workers: int | None, device: torch.device
) -> Experiment:
    """Return the run's settings with what was asked for in their place, as this device carries it out."""
    experiment = run.experiment
    asked = options or experiment.evaluate
    chosen = resolve_evaluation(run.model, asked, device, exact=is_exact(experiment))
    update: dict[str, Any] = {"evaluate": chosen}
    if workers is not None:
        if workers < 0:
            raise SettingsError(f"workers is {workers}: expected 0 (read in the main process) or more")
        update["data"] = experiment.data.model_copy(update={"workers": workers})
    return experiment.model_copy(update=update)


def extraction_of(run: AnyRun[Any]) -> dict[str, Any] | None:
    """Return the extraction settings of the frames a run was trained on; None where they are not known.

    On the fly a video should reach the network as those frames did: the length of a displacement depends on the size
    of the pictures, and flow of another kind is another input. What training wrote down counts, else what the data set
    says now, if it has the classes of the network.
    """
    written: dict[str, Any] | None = run.meta.get("extraction")
    if written:
        return written
    data = run.experiment.data
    with suppress(DataError, SettingsError):
        if run.record.classes == run.class_names:
            return made_now(data, run.record, run.model.spec.modality)
        return None
    # without the record of a run on video files the algorithm is still known
    return {"flow": data.flow} if data.source == "videos" else None


def reading_of(
    run: AnyRun[Any], *, backend: str | None = None, flow: str | None = None, short_side: int | None = None
) -> VideoInput:
    """Return how a video reaches a run's network: at the size of its training frames; what is given wins.

    Args:
        run: The run; the size of its frames counts where it is known, else that of `VideoInput`.
        backend: Decoder.
        flow: Flow algorithm; by default the one of its training frames where that is quick, else DIS with a warning
            (see `computed_flow`).
        short_side: Shorter side in pixels that flow is computed at.
    """
    usual = VideoInput()
    data = run.experiment.data
    made = _frames_made(run)
    return VideoInput(
        backend=backend or (data.backend if data.source == "videos" else usual.backend),
        flow=_flow_read(run, flow or AUTO),
        short_side=made.short_side if short_side is None else short_side,
        size=made.size if short_side is None else None,
        sampling=data.sampling,
        protocol=data.augment.protocol,
        mirror=mirror_of_run(run),
        whole_frame=data.augment.whole_frame,
        bound=made.flow_bound,
    )


def _frames_made(run: AnyRun[Any]) -> FramesMade:
    return frames_made(extraction_of(run), run.source)


def _flow_read(run: AnyRun[Any], asked: str) -> str:
    """Return the kind of flow a run reads of a raw video; a kind it was not trained on is said once."""
    if run.model.spec.modality != "flow":
        return asked
    trained = _frames_made(run).flow
    computed = computed_flow(trained, asked)
    line = other_flow(run.source, trained, computed, asked)
    if line is not None and line not in run.warned:
        run.warned.add(line)
        warn(line)
    return computed


def mirror_of_run(run: AnyRun[Any]) -> Mirror:
    """Return what a mirrored crop of a run's videos stands for."""
    try:
        record = run.record
    except (DataError, SettingsError):  # without its record a run keeps what training wrote down of it
        labels = run.meta.get("mirror_labels")
        return Mirror(bool(run.meta.get("mirror", True)), tuple(labels) if labels else None)
    return mirror_of(record, run.experiment.data.augment.protocol)
