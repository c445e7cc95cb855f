"""Loads finished runs, scores a part of their data set or a video, and records how the scores were computed."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from two_stream.backbones import Backbone
from two_stream.config.base import Rate
from two_stream.config.load import load_experiment, validate_settings
from two_stream.config.schema import EvaluateOptions, Experiment
from two_stream.data.catalog import Mirror, Record, dataset_record, mirror_note, mirror_of
from two_stream.data.clips.dataset import current_extraction
from two_stream.data.clips.sampling import sampling_of
from two_stream.data.clips.views import view_loader
from two_stream.data.sources.shards import shard_facts
from two_stream.data.splits import experiment_part
from two_stream.errors import (
    CheckpointError,
    DataError,
    ScoreError,
    SettingsError,
    TwoStreamError,
    VideoError,
)
from two_stream.evaluation.features.cache import StoredViews
from two_stream.evaluation.runs.lookup import Roots, check_data, checkpoint_folder, locate_data, run_paths
from two_stream.evaluation.scores.files import read_scores, write_scores
from two_stream.evaluation.scoring.network import (
    ClipNetwork,
    is_exact,
    prepare_for_inference,
    resolve_evaluation,
)
from two_stream.evaluation.scoring.score import (
    Skipped,
    VideoScores,
    aggregate_views,
    gather_scores,
    score_videos,
)
from two_stream.evaluation.scoring.video import (
    VideoInput,
    VideoResult,
    fuse_results,
    score_file,
    score_sources,
    top_classes,
)
from two_stream.evaluation.scoring.views import describe_views, protocol_slug, same_boxes_note
from two_stream.pretrained import WEIGHTS, read_model
from two_stream.recognizer import Recognizer
from two_stream.runtime import distributed
from two_stream.runtime.console import note, progress, warn
from two_stream.runtime.device import pick_device, precision_reason
from two_stream.runtime.files import check_writable, sha256
from two_stream.runtime.provenance import code_version, environment
from two_stream.runtime.text import plural
from two_stream.types import Part, RunPaths, ScoreTable, VideoRecord
from two_stream.video.decoding.memory import Source, stored_flow
from two_stream.video.decoding.reader import backend_version
from two_stream.video.flow import ALGORITHMS, AUTO, FLOW_BOUND, choose_flow_algorithm
from two_stream.video.frames import read_extraction_manifest

N_co = TypeVar("N_co", bound=Recognizer | ClipNetwork, covariant=True)
CHECKPOINTS = ("best", "last")
HELD_OUT = "val_folds.npz"
"""file with the cross-validation scores of the training list (`train.selection: folds`), written by the training"""
_Side = Annotated[int, Field(ge=8, le=16384)]


@dataclass(frozen=True)
class AnyRun(Generic[N_co]):
    """A trained network with its settings, from a run folder or an exported file."""

    experiment: Experiment
    model: N_co
    class_names: list[str]
    paths: RunPaths
    """paths of the run folder; for an exported file, those of the folder that contains the file"""
    checkpoint: str
    meta: dict[str, Any]
    """metadata that the training stored with the weights, such as the epoch"""

    @cached_property
    def record(self) -> Record:
        """The record of the data set.

        Raises:
            DataError: The data set is not on this machine.
        """
        return dataset_record(self.experiment.data)

    def videos(self, part: Part) -> list[VideoRecord]:
        """Return the videos of a part of the data set.

        Raises:
            DataError: The data set or a list is missing.
        """
        return experiment_part(self.experiment, self.record, part, self.model.spec.modality)

    @cached_property
    def warned(self) -> set[str]:
        """Warnings that have been printed and are not repeated."""
        return set()

    @property
    def multi_label(self) -> bool:
        """Whether the network was trained on a multi-label data set."""
        return bool(self.meta.get("multi_label"))

    @property
    def model_sha256(self) -> str:
        """Checksum of the weights."""
        raise NotImplementedError

    @property
    def source(self) -> str:
        """Folder or file of the run, for messages."""
        return str(self.paths.root)

    @property
    def score_suffix(self) -> str:
        """Suffix for the names of score files; it differs between checkpoints."""
        return "" if self.checkpoint == "best" else f"_{self.checkpoint}"

    @property
    def facts(self) -> dict[str, Any]:
        """Metadata for score files that is added to, or replaces, the usual metadata."""
        return {}


@dataclass(frozen=True)
class Run(AnyRun[Recognizer]):
    """A run folder with its model."""

    @cached_property
    def model_sha256(self) -> str:
        """Checksum of the weights file."""
        return sha256(checkpoint_folder(self.paths.root, self.checkpoint) / WEIGHTS)


def load_run(
    path: Path | str,
    checkpoint: str = "best",
    device: str = "cpu",
    data_root: Roots = None,
    *,
    backbone: Backbone | None = None,
) -> Run:
    """Load a run folder.

    Args:
        path: The run folder, or `hf://NAME/MODEL` for a run on the Hugging Face hub.
        checkpoint: `best` or `last`.
        device: auto, cpu, cuda, cuda:N or mps.
        data_root: Folder of the data set's `dataset.yaml` (of stored features, of shards), or several such folders, if
            they have been moved; see `locate_data`.
        backbone: Backbone of the same architecture, whose weights are replaced, to save the time to build a new one.

    Raises:
        CheckpointError: The folder is not a run folder, or the checkpoint is missing or damaged.
        SettingsError: The settings cannot be read, or the device does not exist.
    """
    paths = run_paths(path)
    if checkpoint not in CHECKPOINTS:
        raise CheckpointError(f"unknown checkpoint {checkpoint!r}; expected best or last")
    experiment = locate_data(paths, load_experiment(paths.experiment), data_root)
    folder = checkpoint_folder(paths.root, checkpoint)
    if not folder.is_dir():
        existing = [name for name in CHECKPOINTS if checkpoint_folder(paths.root, name).is_dir()]
        hint = f"; use `{existing[0]}`" if existing else "; train it first (`two-stream train`)"
        raise CheckpointError(f"{folder}: the run has no checkpoint {checkpoint!r}{hint}")
    model, meta = read_model(folder, pick_device(device), backbone)
    if experiment.channels_last:
        model.channels_last()
    names = meta.get("class_names") or [str(index) for index in range(model.num_classes)]
    if len(names) != model.num_classes:
        raise CheckpointError(
            f"{folder}: found {len(names)} class names for {model.num_classes} classes; expected one name for "
            "each class; train the run again"
        )
    return Run(experiment, model, [str(name) for name in names], paths, checkpoint, meta)


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

    If the run was trained on stored features (`data.features`), these features are scored. For
    training and validation videos, only the stored features of the centred clip and crop are scored.

    Args:
        run: A loaded run, its folder, or a loaded export (`export.load`).
        options: Evaluation options. The default is those of the run.
        part: `test`, `val` (the holdout) or `train` (the training list without the holdout).
        checkpoint: `best` or `last`, if `run` is a folder.
        device: Device to compute on, if `run` is a folder.
        workers: Number of loader processes. The default is that of the run.
        out: Score file to write instead of the default one.
        uncached: Whether to read the videos even if the run has stored features.

    Returns:
        The table and the path of its file. With several processes (`torchrun`), each process scores a share of the
        videos. The main process writes the file and returns the complete table; other processes return their share.

    Raises:
        TwoStreamError: The run, the data set or a video cannot be read, or the model and the data set have different
            classes.
    """
    with distributed.raise_on_all_ranks():
        loaded = run if isinstance(run, AnyRun) else load_run(run, checkpoint, device)
        if part == "val" and loaded.experiment.train.selection == "folds":
            return _held_out(loaded)
        if distributed.is_main():
            check_writable(out or loaded.paths.scores / "scores.npz")
        # an exported network computes from pixels
        cached = not uncached and isinstance(loaded.model, Recognizer)
        check_data(loaded.paths, loaded.experiment, features=cached)
        experiment = with_options(loaded, options, workers)
        check_classes(loaded)
        records = loaded.videos(part)
        stored = None
        if experiment.data.features is not None and cached:
            asked = (options or loaded.experiment.evaluate).precision
            stored = StoredViews(loaded.model, experiment, loaded.record, part, asked)
            experiment = stored.experiment
    # the measured precision may differ between processes, so all use that of the main process
    precision = distributed.broadcast_object(experiment.evaluate.precision)
    evaluate = experiment.evaluate.model_copy(update={"precision": precision})
    experiment = experiment.model_copy(update={"evaluate": evaluate})
    table = score_part(loaded, experiment, part, records, stored)
    path = out or loaded.paths.scores / f"{part}_{protocol_slug(evaluate)}{loaded.score_suffix}.npz"
    if distributed.is_main():
        write_scores(path, table)
    table.meta["file"] = str(path)
    return table, path


def check_classes(run: AnyRun[Any]) -> None:
    """Check that the data set of a run has the network's classes.

    Raises:
        DataError: The classes differ.
    """
    if run.record.classes != run.class_names:
        raise DataError(
            f"{run.record.name}: the data set's {run.record.num_classes} classes differ from the "
            f"{len(run.class_names)} classes of the model in {run.source}; use the data set that the model was "
            "trained on"
        )


def score_part(
    run: AnyRun[Any],
    experiment: Experiment,
    part: Part,
    records: Sequence[VideoRecord],
    stored: StoredViews | None = None,
) -> ScoreTable:
    """Score the videos of a part. With several processes, each process scores a share of the videos.

    The `evaluate` options of `experiment` must be resolved. `records` are the videos of the part. If `stored` is given,
    stored features are scored instead of the videos.

    Returns:
        On the main process, the scores of all videos; on other processes, the scores of their share.

    Raises:
        TwoStreamError: A video cannot be read, or no video can be read.
    """
    if stored is None:
        scores, skipped = read_and_score(run, experiment, records)
    else:
        aggregate = aggregation_of(experiment.evaluate, run.record.multi_label)
        scores, skipped = stored.score(records, aggregate)
    scores, skipped = gather_scores(scores, skipped, [record.id for record in records])
    facts = run.facts if stored is None else stored.facts
    return score_table(run, experiment, part, records, scores, reasons=dict(skipped), facts=facts)


def _held_out(run: AnyRun[Any]) -> tuple[ScoreTable, Path]:
    """Return the stored cross-validation scores, because the network itself was trained on all videos of the list."""
    path = run.paths.scores / HELD_OUT
    if not path.is_file():
        raise ScoreError(
            f"{path}: no such file; `train.selection: folds` trains on every video of the training list, and only "
            "the training writes the cross-validation scores; train the run again with --overwrite"
        )
    return read_scores(path), path


def read_and_score(
    run: AnyRun[Any], experiment: Experiment, records: Sequence[VideoRecord]
) -> tuple[VideoScores, Skipped]:
    """Score this process's share of the videos, and return the scores and the videos that could not be read."""
    evaluate = experiment.evaluate
    with distributed.raise_on_all_ranks():
        protocol, mirrors = experiment.data.augment.protocol, evaluate.crops in ("ten", "full")
        loader = view_loader(
            experiment.data,
            evaluate,
            run.model.spec,
            records,
            run.record,
            rank=distributed.rank(),
            world=distributed.world_size(),
        )
        changed = frames_warning(run)
        if distributed.is_main():
            for line in filter(None, (mirror_note(run.record, protocol, mirrors), changed)):
                warn(line)
            if slow := same_boxes_note(evaluate, run.model.spec):
                note(slow)
        network = prepare_for_inference(run.model, evaluate)
    scores = score_videos(
        network,
        loader,
        device=run.model.device,
        precision=evaluate.precision,
        batch_views=evaluate.batch_views or 1,
        aggregate=aggregation_of(evaluate, run.record.multi_label),
        keep_views=evaluate.keep_views,
        total=len(records),
    )
    return scores, loader.skipped


def predict(
    model_or_run: Recognizer | AnyRun[Any] | Path | str | Sequence[AnyRun[Any] | Path | str],
    video: Source,
    *,
    top_k: int = 5,
    options: EvaluateOptions | None = None,
    reading: VideoInput | None = None,
    rule: str = "l2",
    weights: Sequence[float] | None = None,
    class_names: Sequence[str] | None = None,
) -> list[tuple[str, float]]:
    """Predict the class of a video.

    Args:
        model_or_run: A model, a run or its folder, or several runs to fuse, for example RGB and flow.
        video: A video file, a folder of images, an array or a part of a video, see `Source`. Flow is computed from the
            video if a network requires it.
        top_k: Number of classes to return.
        options: Evaluation options with the views. The default is those of each run.
        reading: Decoder, flow algorithm and frame size. By default, the video is read like the training frames of each
            run (see `reading_of`). For a model without a run, the defaults of `two-stream extract` and DIS flow are
            used.
        rule: Fusion rule for several runs.
        weights: Fusion weights, one for each run.
        class_names: Class names for a model without a run. The default is class numbers.

    Returns:
        Pairs `(label, probability)`, the most likely class first.

    Raises:
        VideoError: The video cannot be read.
        TwoStreamError: A run cannot be read, the runs have different classes, or the number of weights is wrong.
    """
    if isinstance(model_or_run, Recognizer):
        names = [str(name) for name in class_names or range(model_or_run.num_classes)]
        asked = (reading or VideoInput()).flow
        line = flow_warning("the model", None, choose_flow_algorithm(None, asked), asked)
        if line is not None and model_or_run.spec.modality == "flow":
            warn(line)
        result = score_file(model_or_run, video, options or EvaluateOptions(), reading)
        return top_classes(fuse_results([result], rule, weights), names, top_k)
    several = [model_or_run] if isinstance(model_or_run, (AnyRun, Path, str)) else list(model_or_run)
    runs = [entry if isinstance(entry, AnyRun) else load_run(entry, device="auto") for entry in several]
    views = [options] * len(runs) if options else None
    results = score_with_runs(runs, video, views, [reading] * len(runs) if reading else None)
    return top_classes(fuse_results(results, rule, weights), runs[0].class_names, top_k)


def score_with_runs(
    runs: Sequence[AnyRun[Any]],
    video: Source,
    options: Sequence[EvaluateOptions] | None = None,
    readings: Sequence[VideoInput] | None = None,
) -> list[VideoResult]:
    """Score one video with each of several runs; see `score_each`.

    Raises:
        ScoreError: There is no run, or the runs have different classes.
        VideoError: The video cannot be read.
    """
    (found,) = score_each(runs, [video], options, readings)
    if isinstance(found, TwoStreamError):
        raise found
    return found


def score_each(
    runs: Sequence[AnyRun[Any]],
    videos: Sequence[Source],
    options: Sequence[EvaluateOptions] | None = None,
    readings: Sequence[VideoInput] | None = None,
) -> list[list[VideoResult] | VideoError | DataError]:
    """Score videos with each of several runs; return the results of each video, or its error.

    Several videos are decoded by loader processes (`data.workers` of the run), and their views share batches.
    `options` and `readings` have one entry for each run. By default, the views are those of each run, and the videos
    are read like the run's training frames.

    Raises:
        ScoreError: There is no run, or the runs have different classes.
    """
    if not runs:
        raise ScoreError("no run given; expected an RGB run, a flow run, or both")
    for run in runs[1:]:
        if run.class_names != runs[0].class_names:
            raise ScoreError(
                f"{run.source} and {runs[0].source} cannot be fused, because they have different "
                "classes; expected runs on the same classes"
            )
    chosen = options or [run.experiment.evaluate for run in runs]
    if readings is None:
        readings = [reading_of(run, videos=videos) for run in runs]
    else:
        flows = [
            _flow_read(run, reading.flow, videos, stored=reading.stored_flow)
            for run, reading in zip(runs, readings, strict=True)
        ]
        readings = [replace(reading, flow=flow) for reading, flow in zip(readings, flows)]
    results: list[list[VideoResult]] = [[] for _ in videos]
    failed: dict[int, VideoError | DataError] = {}
    for run, views, reading in zip(runs, chosen, readings, strict=True):
        left = [(str(place), video) for place, video in enumerate(videos) if place not in failed]
        workers = run.experiment.data.workers if len(left) > 1 else 0
        found = score_sources(run.model, left, views, reading, workers=workers)
        with ExitStack() as stack:
            advance = stack.enter_context(progress("scoring", len(left))) if len(left) > 1 else None
            for name, result in found:
                if isinstance(result, TwoStreamError):
                    failed[int(name)] = result
                else:
                    results[int(name)].append(_for_multi_label(run, result, views))
                if advance is not None:
                    advance()
    return [failed.get(place, result) for place, result in enumerate(results)]


def _for_multi_label(run: AnyRun[Any], result: VideoResult, options: EvaluateOptions) -> VideoResult:
    if not run.multi_label:
        return result
    logits = aggregate_views(result.view_logits, aggregation_of(options, multi_label=True))
    return replace(result, logits=logits, multi_label=True)


def aggregation_of(options: EvaluateOptions, multi_label: bool) -> str:
    """Return how views are aggregated; for multi-label data sets, `probabilities` becomes `sigmoids`."""
    return "sigmoids" if multi_label and options.aggregate == "probabilities" else options.aggregate


def with_options(run: AnyRun[Any], options: EvaluateOptions | None, workers: int | None) -> Experiment:
    """Return the settings of a run with the given evaluation options, resolved for the run's device."""
    experiment = run.experiment
    chosen = options or experiment.evaluate
    chosen = resolve_evaluation(run.model, chosen, run.model.device, exact=is_exact(experiment))
    update: dict[str, Any] = {"evaluate": chosen}
    if workers is not None:
        if workers < 0:
            raise SettingsError(f"`workers` is {workers}; expected 0 (read in the main process) or more")
        update["data"] = experiment.data.model_copy(update={"workers": workers})
    return experiment.model_copy(update=update)


def extraction_of(run: AnyRun[Any]) -> dict[str, Any] | None:
    """Return the extraction settings of the frames that a run was trained on; None if unknown.

    A video should be read with the settings of the training frames, because flow depends on the size of the images and
    on the algorithm. The settings are those that the training recorded. If the training recorded none, the settings of
    the data set are returned, provided that the data set has the network's classes.
    """
    written: dict[str, Any] | None = run.meta.get("extraction")
    if written:
        return written
    data = run.experiment.data
    with suppress(DataError, SettingsError):
        if run.record.classes == run.class_names:
            return current_extraction(data, run.record, run.model.spec.modality)
        return None
    # the settings of a run on video files contain the algorithm
    return {"flow": data.flow} if data.source == "videos" else None


def reading_of(
    run: AnyRun[Any],
    *,
    backend: str | None = None,
    flow: str | None = None,
    short_side: int | None = None,
    videos: Sequence[Source] = (),
) -> VideoInput:
    """Return the settings for reading a video like the training frames of a run, with optional changes.

    Args:
        run: The run. If the size of its frames is unknown, the defaults of `VideoInput` are used.
        backend: Decoder.
        flow: Flow algorithm. The default is that of the training frames if it is fast, otherwise DIS, with a warning
            (see `choose_flow_algorithm`).
        short_side: Shorter side in pixels of the images from which flow is computed.
        videos: The videos to read, for warnings. A folder with stored flow is read as it is, unless `flow` is given.
    """
    usual = VideoInput()
    data = run.experiment.data
    extraction, stored = extraction_of(run), flow in (None, AUTO)
    made = read_frame_settings(extraction, run.source)
    return VideoInput(
        backend=backend or (data.backend if data.source == "videos" else usual.backend),
        flow=_flow_read(run, flow or AUTO, videos, stored=stored),
        short_side=made.short_side if short_side is None else short_side,
        size=made.size if short_side is None else None,
        sampling=data.sampling,
        protocol=data.augment.protocol,
        mirror=mirror_of_run(run),
        whole_frame=data.augment.whole_frame,
        bound=made.flow_bound,
        fps=run.model.spec.fps or made.fps,
        stored_flow=stored,
        resizes_folders=extraction is not None or short_side is not None,
    )


def _flow_read(run: AnyRun[Any], asked: str, videos: Sequence[Source] = (), *, stored: bool = False) -> str:
    """Return the kind of flow to compute for a run; `stored` allows stored flow.

    Warns once if the run was trained on a different kind than it reads from some of the videos.
    """
    if run.model.spec.modality != "flow":
        return asked
    trained = read_frame_settings(extraction_of(run), run.source).flow
    computed = choose_flow_algorithm(trained, asked)
    folders = [stored_flow(video) if stored else None for video in videos] or [None]
    kinds = {"" if folder is None else _stored_kind(folder) for folder in folders} - {"", trained}
    lines = [
        f"{run.source}: was trained on {trained} flow, but a folder contains {kind} flow; to compute flow from the "
        "images of the folder instead, set --flow-algorithm"
        for kind in sorted(kinds)
        if trained is not None
    ]
    lines += [flow_warning(run.source, trained, computed, asked) or ""] if None in folders else []
    for line in filter(None, lines):
        if line not in run.warned:
            run.warned.add(line)
            warn(line)
    return computed


def _stored_kind(folder: Path) -> str:
    """Return the algorithm of the flow in a folder, or an empty string if `two-stream extract` did not write it."""
    manifest = read_extraction_manifest(folder)
    return read_frame_settings(manifest["settings"], str(folder)).flow or "" if manifest else ""


def mirror_of_run(run: AnyRun[Any]) -> Mirror:
    """Return how mirrored crops change the labels of a run's videos."""
    try:
        record = run.record
    except (DataError, SettingsError):  # without the data set, use the metadata of the training
        labels = run.meta.get("mirror_labels")
        return Mirror(bool(run.meta.get("mirror", True)), tuple(labels) if labels else None)
    return mirror_of(record, run.experiment.data.augment.protocol)


def score_table(
    run: AnyRun[Any],
    experiment: Experiment,
    part: Part,
    records: Sequence[VideoRecord],
    scores: VideoScores,
    *,
    reasons: dict[str, str],
    facts: dict[str, Any],
) -> ScoreTable:
    """Return the scores of a run as a table, with metadata on how they were computed.

    `reasons` contains the reason for each video that could not be read, by id. `facts` is metadata that is added to, or
    replaces, the usual metadata.

    Raises:
        ScoreError: No video could be read.
    """
    scored = set(scores.ids)
    if not distributed.is_main():  # the other videos are scored by other processes
        records = [record for record in records if record.id in scored or record.id in reasons]
    skipped = [record.id for record in records if record.id not in scored]
    if skipped:
        first = f"{skipped[0]} ({reasons.get(skipped[0], 'unreadable')})"
        warn(f"{len(skipped)} of {len(records)} videos could not be read and are not scored: {first}, …")
    if not scored and distributed.is_main():
        raise ScoreError(
            f"{run.source}: none of {plural(len(records), 'video')} could be read; run `two-stream check` on "
            "the data set"
        )
    groups = {record.id: record.group for record in records}
    return ScoreTable(
        ids=scores.ids,
        labels=scores.labels,
        class_names=run.class_names,
        logits=scores.logits,
        meta={
            **run_facts(run, experiment, part),
            "selection": experiment.train.selection,
            **{key: run.meta[key] for key in ("training_videos", "training_list") if key in run.meta},
            "skipped": skipped,
            "skipped_reasons": {name: reasons[name] for name in skipped if name in reasons},
            **scoring_facts(experiment, run.model, mirror_of(run.record, experiment.data.augment.protocol)),
            **facts,
            "views_per_video": float(scores.counts.mean()) if len(scores.counts) else None,
        },
        view_logits=scores.view_logits,
        view_counts=scores.counts if scores.view_logits is not None else None,
        groups=[groups[name] for name in scores.ids] if any(groups.values()) else None,
        targets=_targets(run.record, records, scores.ids) if run.record.multi_label else None,
    )


def _targets(record: Record, records: Sequence[VideoRecord], ids: Sequence[str]) -> NDArray[np.bool_]:
    """Return a bool array `(N, K)` with the classes of each scored video."""
    labels = {video.id: video.all_labels for video in records}
    targets_NK = np.zeros((len(ids), record.num_classes), np.bool_)
    for row, name in enumerate(ids):
        targets_NK[row, list(labels[name])] = True
    return targets_NK


def run_facts(run: AnyRun[Any], experiment: Experiment, part: Part) -> dict[str, Any]:
    """Return which network and which part of its data set were scored."""
    return {
        "run": str(run.paths.root),
        "name": experiment.name,
        "checkpoint": run.checkpoint,
        "epoch": run.meta.get("epoch"),
        "model_sha256": run.model_sha256,
        "dataset": run.record.name,
        "split": experiment.data.split,
        "part": part,
    }


def scoring_facts(
    experiment: Experiment, model: Recognizer | ClipNetwork, mirror: Mirror | None = None
) -> dict[str, Any]:
    """Return metadata on how videos were scored: views, frames, machine, versions."""
    data, evaluate, spec = experiment.data, experiment.evaluate, model.spec
    return {
        "modality": experiment.model.modality,
        "protocol": describe_views(
            evaluate, sampling_of(spec, data.sampling), mirror, whole_frame=data.augment.whole_frame
        )
        + ("" if spec.fps is None else f", {spec.fps:g} frames per second")
        + ("" if data.frame_order == "natural" else f", frames {data.frame_order}"),
        "frame_order": data.frame_order,
        "views": evaluate.views,
        "num_clips": evaluate.num_clips if evaluate.views == "uniform" else None,
        "step": evaluate.step,
        "crops": evaluate.crops,
        "aggregate": evaluate.aggregate,
        "precision": evaluate.precision,
        "precision_reason": _reason(experiment, model),
        "folded": evaluate.fold,
        "compiled": evaluate.compile,
        "batch_views": evaluate.batch_views,
        "processes": distributed.world_size(),
        "scale": "logits" if evaluate.aggregate == "logits" else "log-probabilities",
        "sampling": "standard" if data.sampling == "segments" else data.sampling,
        "source": data.source,
        "shards": shard_facts(data.shards, spec.modality)
        if data.source == "shards" and data.shards
        else None,
        "decoder": backend_version(data.backend) if data.source == "videos" else None,
        "flow_algorithm": data.flow if data.source == "videos" and spec.modality == "flow" else None,
        "clip_length": spec.clip_length,
        "stride": spec.stride,
        **({"fps": spec.fps} if spec.fps is not None else {}),
        **({"segments": spec.segments} if spec.segments else {}),
        **({"stack": spec.stack} if spec.stack > 1 else {}),
        "resize": list(spec.resize),
        "crop": spec.crop if isinstance(spec.crop, int) else list(spec.crop),
        "seed": experiment.seed,
        "device": str(model.device),
        "threads": torch.get_num_threads(),
        "code_version": code_version(),
        "environment": environment(),
    }


def _reason(experiment: Experiment, model: Recognizer | ClipNetwork) -> str | None:
    """Return a description of the measurement that the precision is based on; None if there is none."""
    fixed = isinstance(model, ClipNetwork) or model.cpu_only or is_exact(experiment)
    return None if fixed or model.device.type != "cpu" else precision_reason(experiment.evaluate.precision)


class FrameSettings(BaseModel):
    """Extraction settings that determine the pixel values of frames and flow."""

    model_config = ConfigDict(frozen=True)  # there are more extraction settings

    flow: str | None = None
    """kind of flow; None if unknown"""
    flow_bound: Annotated[float, Field(gt=0, le=1000)] = FLOW_BOUND
    short_side: _Side | None = 256
    size: tuple[_Side, _Side] | None = None
    fps: Rate | None = None


def read_frame_settings(settings: object, source: str) -> FrameSettings:
    """Read recorded extraction settings.

    Raises:
        SettingsError: A value is invalid.
    """
    known: Any = settings or {}
    if isinstance(known, dict) and known.get("flow") == "none":
        known = known | {"flow": None}
    return validate_settings(FrameSettings, known, f"{source}: extraction settings of its frames")


def flow_warning(name: str, trained: str | None, computed: str, asked: str = AUTO) -> str | None:
    """Return a warning if a flow network was trained on another kind of flow than it reads; otherwise None."""
    if trained is None and asked == AUTO:
        return (
            f"{name}: the kind of flow that the network was trained on is unknown, so {computed} flow is used; to "
            f"change this, set --flow-algorithm {' or '.join(kind for kind in ALGORITHMS if kind != computed)}"
        )
    if trained in (None, computed):
        return None
    advice = (
        f"--flow-algorithm {trained} is closer (Python: `run.predict(video, flow={trained!r})`)"
        if trained in ALGORITHMS
        else f"`two-stream extract --flow {trained}` and `two-stream evaluate` are closer"
    )
    return f"{name}: was trained on {trained} flow, but reads {computed} flow here; {advice}"


def frames_warning(run: AnyRun[Any]) -> str | None:
    """Return a warning if the data set's frames were extracted differently from a run's training frames, else None."""
    modality, written = run.model.spec.modality, run.meta.get("extraction")
    settings = current_extraction(run.experiment.data, run.record, modality) if written else None
    if settings is None:
        return None
    then, now = read_frame_settings(written, run.source), read_frame_settings(settings, run.record.name)
    unseen = {"fps"} if run.model.spec.fps is not None else set()
    unseen |= set() if modality == "flow" else {"flow", "flow_bound"}
    keys = [key for key in FrameSettings.model_fields if key not in unseen]
    first = next((key for key in keys if getattr(then, key) != getattr(now, key)), None)
    if first is None:
        return None
    old, new = (f"{first} {getattr(made, first)}" for made in (then, now))
    frames = f"was trained on frames with {old}, but those of {run.record.name} have {new}"
    return f"{run.source}: {frames}; extract them with the same settings"
