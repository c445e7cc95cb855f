"""The published evaluators, implemented with the views, score tables and fusions of this package.

Other modules implement most details of protocol `paper`. The frame sampling is in `data/clips/sampling.py`. The order
of the ten crops, and the mirroring of flow without a change of sign, are in `data/clips/transforms.py`. One detail is
implemented here: the two-stream evaluator selects RGB frames according to the number of frames in the flow list.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from two_stream import zoo
from two_stream.config.load import load_experiment
from two_stream.config.schema import AugmentOptions, DataOptions, EvaluateOptions, Experiment
from two_stream.data.catalog import Patterns, Record
from two_stream.data.splits import read_list
from two_stream.errors import CheckpointError, SettingsError
from two_stream.evaluation.runs.run import AnyRun, score_part
from two_stream.evaluation.scores.files import write_scores
from two_stream.evaluation.scores.fusion import fuse
from two_stream.evaluation.scores.metrics import confusion_matrix
from two_stream.evaluation.scores.words import lines, print_accuracies
from two_stream.evaluation.scoring.views import protocol_slug
from two_stream.late_temporal.flags import EvaluatorFlags, OneStreamFlags, TwoStreamFlags
from two_stream.late_temporal.layout import (
    ROOTS,
    count_listed_frames,
    find_frames,
    find_list,
    find_record,
    pattern_of,
    with_frames,
)
from two_stream.late_temporal.training import run_name
from two_stream.pretrained import WEIGHTS, load_weights
from two_stream.recognizer import Recognizer, create_model
from two_stream.runtime.console import note, say
from two_stream.runtime.device import pick_device, resolve_precision
from two_stream.runtime.files import sha256
from two_stream.types import Modality, RunPaths, ScoreTable, VideoRecord

BEST = "model_best.pth.tar"
_WINDOW = {"multi": 14, "single": 3}
"""published default of `--window` of each evaluator"""
Views = Literal["multi", "single"]


@dataclass(frozen=True)
class EvaluatedStream:
    """A network to score."""

    model: str
    """name in the table of models"""
    arch: str
    """the name without its namespace, as in the published code"""
    file: Path
    """checkpoint"""
    folder: str
    """folder of the checkpoint, or the path that the user gave; the published evaluators print it"""
    selection: str
    """how the checkpoint was selected"""


@dataclass(frozen=True)
class PublishedRun(AnyRun[Recognizer]):
    """A network with a published checkpoint (`paths.root`), and the data set with frames in the published layout."""

    published_record: Record

    @property
    def record(self) -> Record:
        """The data set, with the frame folders that the flags name."""
        return self.published_record

    @cached_property
    def model_sha256(self) -> str | None:  # type: ignore[override]
        """Checksum of the checkpoint; None for a folder without weights."""
        file = self.paths.root
        inside = [file, file / WEIGHTS, file / "best" / WEIGHTS, file / "last" / WEIGHTS]
        return next((sha256(path) for path in inside if path.is_file()), None)


def evaluate_one(flags: OneStreamFlags, views: Views) -> ScoreTable:
    """Score one stream like `spatial_demo3D.py` (`multi`) or `spatial_demo_bert.py` (`single`); print and write scores.

    Raises:
        TwoStreamError: The architecture is unknown, or checkpoint, list or frames are missing or do not fit.
    """
    flags.check()
    for line in flags.remarks():
        note(line)
    options = zoo.find(flags.arch).options
    record = find_record(flags.dataset, flags.settings)
    stream = _stream(flags.arch, flags.checkpoint, record, flags.split)
    videos, file = _videos(flags, record, options.reads, views)
    record = _record(flags, record, videos, {options.reads: flags.extension})
    skip = flags.on_error == "skip"
    videos = count_listed_frames(videos, record, options.reads, uncounted_only=True, skip=skip)
    begin = time.perf_counter()
    evaluator = "spatial_demo3D" if views == "multi" else "spatial_demo_bert"
    made = _score(stream, flags, record, videos, views, {"list": str(file), "evaluator": evaluator})
    seconds = (time.perf_counter() - begin) / len(videos)
    path = flags.out or Path("results") / f"{made.meta['name']}_{protocol_slug(_views(flags, views))}.npz"
    write_scores(path, made)
    print_published(made, [stream.folder], seconds, (views, flags.chosen_crops))
    print_accuracies("accuracy in %", lines([made]), [path])
    return made


def evaluate_two(flags: TwoStreamFlags) -> ScoreTable:
    """Score both streams like `combined_demo.py` and fuse them by the sum of their L2-normalised logits.

    Raises:
        TwoStreamError: As for `evaluate_one`; or an architecture is for the other modality.
    """
    flags.check()
    for line in flags.remarks():
        note(line)
    views: Views = "multi" if flags.multiple_clips_enabled else "single"
    for wanted, arch in (("rgb", flags.arch_rgb), ("flow", flags.arch_flow)):
        found = zoo.find(arch).options.reads
        if found != wanted:
            raise SettingsError(
                f"--arch_{wanted} is {arch}, a network for {found}; expected a network for {wanted}"
            )
    record = find_record(flags.dataset, flags.settings)
    streams = [
        _stream(flags.arch_rgb, flags.checkpoint_rgb, record, flags.split),
        _stream(flags.arch_flow, flags.checkpoint_flow, record, flags.split),
    ]
    videos, file = _videos(flags, record, "flow", "single")
    record = _record(flags, record, videos, {"rgb": flags.rgb_extension, "flow": flags.flow_extension})
    skip = flags.on_error == "skip"
    by_stream = [
        count_listed_frames(videos, record, "rgb", uncounted_only=flags.rgb_duration == "flow", skip=skip),
        count_listed_frames(videos, record, "flow", skip=skip),
    ]
    begin = time.perf_counter()
    facts = {"list": str(file), "evaluator": "combined_demo", "rgb_duration": flags.rgb_duration}
    scored = [
        _score(stream, flags, record, listed, views, facts)
        for stream, listed in zip(streams, by_stream, strict=True)
    ]
    seconds = (time.perf_counter() - begin) / len(videos)
    names = "_".join(stream.arch for stream in streams)
    stem = f"{record.name}_{names}_split{flags.split}_{protocol_slug(_views(flags, views))}"
    out = flags.out or Path("results") / f"{stem}.npz"
    paths = [out.with_name(f"{out.stem}_{name}{out.suffix or '.npz'}") for name in ("rgb", "flow")] + [out]
    for made, path in zip(scored, paths, strict=False):
        write_scores(path, made)
        made.meta["file"] = str(path)
    fused = fuse(scored, "l2")
    fused.meta |= {"name": stem, "evaluator": "combined_demo"}
    write_scores(out, fused)
    print_published(fused, [stream.folder for stream in streams], seconds, (views, flags.chosen_crops))
    print_accuracies("accuracy in %", lines([*scored, fused]), paths)
    return fused


def checkpoint_path(dataset: str, arch: str, split: int) -> Path | None:
    """Return the checkpoint of the published trainer; None if it is missing.

    The current folder must be the trainer's folder or its sub-folder `scripts/eval`.
    """
    found = (root / "checkpoint" / run_name(dataset, arch, split) / BEST for root in ROOTS)
    return next((path for path in found if path.is_file()), None)


def _stream(arch: str, given: Path | None, record: Record, split: int) -> EvaluatedStream:
    """Find the checkpoint of a network."""
    name = zoo.find(arch).name
    bare = name.partition("/")[2]
    place = f"./checkpoint/{run_name(record.name, bare, split)}"
    file = given or checkpoint_path(record.name, bare, split)
    if file is None:
        raise CheckpointError(
            f"{place}/{BEST}: no such checkpoint of {arch}; run the command in the folder of the published trainer, or "
            "name the checkpoint with a flag (see --help)"
        )
    if not file.exists():
        raise CheckpointError(f"{file}: no such checkpoint of {arch}")
    settings = next((p for p in (file, *file.parents[:2]) if (p / "experiment.yaml").is_file()), None)
    selection = "paper" if settings is None else load_experiment(settings / "experiment.yaml").train.selection
    return EvaluatedStream(name, bare, file, place if given is None else str(given), selection)


def _videos(
    flags: EvaluatorFlags, record: Record, modality: Modality, views: Views
) -> tuple[list[VideoRecord], Path]:
    """Read the list of videos to score; return the videos and the path of the list."""
    part = "test" if record.name == "window" else "val"
    name = f"{part}_{modality}_split{flags.split}.txt"
    if flags.window_val:
        name = f"window{_WINDOW[views] if flags.window is None else flags.window}.txt"
    file = flags.list_file or find_list(record, name, flags.settings)
    videos = read_list(file, num_classes=record.num_classes, group_of=record.group_of, least_frames=0)
    if all(video.group == video.id for video in videos[: flags.limit]):  # the sources are unknown
        videos = [replace(video, group="") for video in videos]
    return videos[: flags.limit], file


def _record(
    flags: EvaluatorFlags,
    record: Record,
    videos: Sequence[VideoRecord],
    extensions: dict[Modality, str | None],
) -> Record:
    """Return a record with the frame folders that the flags name, or else with those of the published layout."""
    roots = {modality: find_frames(record, modality, flags.data) for modality in extensions}
    found = with_frames(record, roots, [video.id for video in videos])
    names = found.patterns.model_dump()
    for modality, extension in extensions.items():
        if extension is not None and modality == "rgb":
            names["rgb"] = pattern_of(extension)
        elif extension is not None:
            names |= {f"flow_{axis}": pattern_of(extension, axis) for axis in "xy"}
    return found.model_copy(update={"patterns": Patterns(**names)})


def _views(flags: EvaluatorFlags, views: Views) -> EvaluateOptions:
    precision = resolve_precision(flags.precision, pick_device(flags.device), exact=flags.protocol == "paper")
    chosen = {"precision": precision, "batch_views": flags.batch_views, "fold": flags.protocol != "paper"}
    return EvaluateOptions.model_validate({"views": views, "crops": flags.chosen_crops, **chosen})


def _score(
    stream: EvaluatedStream,
    flags: EvaluatorFlags,
    record: Record,
    videos: Sequence[VideoRecord],
    views: Views,
    facts: dict[str, Any],
) -> ScoreTable:
    """Build the network, load its checkpoint and score the videos."""
    device = pick_device(flags.device)
    model = create_model(stream.model, record.num_classes)
    begin = time.perf_counter()
    try:
        note(str(load_weights(model, stream.file)))
    except CheckpointError as error:
        wanted = f"expected {stream.arch} with the {record.num_classes} classes of {record.name}"
        raise CheckpointError(f"{error}; {wanted}") from None
    model.channels_last()
    model.to(device).eval()
    say(f"Action recognition model is loaded in {time.perf_counter() - begin:.4f} seconds.")
    experiment = Experiment(
        name=run_name(record.name, stream.arch, flags.split),
        device=flags.device,
        model=model.options,
        data=DataOptions(
            dataset=record.name,
            split=flags.split,
            sampling=flags.protocol,
            workers=flags.workers,
            on_error=flags.on_error,
            augment=AugmentOptions(protocol=flags.protocol),
        ),
        evaluate=_views(flags, views),
    )
    say(f"we got {len(videos)} test videos")
    paths = RunPaths(stream.file)
    run = PublishedRun(experiment, model, list(record.classes), paths, "best", {}, record)
    made = score_part(run, experiment, "test", videos)
    made.meta |= {"selection": stream.selection, "arch": stream.arch, "weights": str(stream.file)}
    made.meta |= {**facts, "scored": len(made.ids)}
    for key in ("run", "epoch", "views_per_video"):  # there is no run folder
        del made.meta[key]
    return made


def print_published(made: ScoreTable, places: Sequence[str], seconds: float, how: tuple[str, str]) -> None:
    """Print the lines that the published evaluators print.

    `places` are the locations of the checkpoints, `seconds` is the mean time per video, `how` contains the views
    (`multi` or `single`) and the crops.
    """
    order = np.argsort(-made.logits, axis=1, kind="stable")
    count = len(made.ids)
    for row, (label, found) in enumerate(zip(made.labels.tolist(), order[:, 0].tolist(), strict=True), 1):
        say(f"Sample {row}/{count}: GT: {label}, Prediction: {found}")
    seen = np.union1d(made.labels, order[:, 0])
    say(str(confusion_matrix(made.logits, made.labels)[np.ix_(seen, seen)]))
    hits = order[:, :3] == made.labels[:, None]
    say(f"Accuracy with mean calculation is {hits[:, 0].mean():.4f}")
    say(f"top3 accuracy {hits.any(1).mean():.4f}")
    for place in places:
        say(place)
    say(f"Mean Estimated Time {seconds:.4f}")
    say("multiple clips" if how[0] == "multi" else "one clips")
    say("10 crops" if how[1] == "ten" else "single crop")
