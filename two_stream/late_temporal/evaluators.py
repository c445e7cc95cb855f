"""The published evaluators: their flags become our views, score tables and fusion, and their lines are printed.

Quirks of protocol `paper` are implemented where the work is done: frame choice in `data/clips/sampling.py`, flow
mirrored without a change of sign and the order of the ten crops in `data/clips/transforms.py`. One is implemented
here: the two-stream evaluator counts the flow files of a folder, and chooses RGB frames by the number that the flow
list gives.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from two_stream import zoo
from two_stream.config.augment import AugmentOptions
from two_stream.config.load import load_experiment
from two_stream.config.schema import DataOptions, EvaluateOptions, Experiment
from two_stream.data.catalog import Patterns, Record
from two_stream.data.clips.views import view_loader
from two_stream.data.splits import read_list
from two_stream.errors import CheckpointError, ScoreError, SettingsError
from two_stream.evaluation.runs.facts import scoring_facts
from two_stream.evaluation.scores.files import write_scores
from two_stream.evaluation.scores.fusion import fuse
from two_stream.evaluation.scoring.network import prepare_for_inference
from two_stream.evaluation.scoring.score import VideoScores, score_videos
from two_stream.evaluation.scoring.views import slug
from two_stream.late_temporal.flags import EvaluatorFlags, OneStreamFlags, TwoStreamFlags
from two_stream.late_temporal.layout import (
    ROOTS,
    counted,
    find_frames,
    find_list,
    find_record,
    pattern_of,
    with_frames,
)
from two_stream.late_temporal.lines import our_table, published_lines
from two_stream.late_temporal.training import run_name
from two_stream.pretrained import WEIGHTS, load_weights
from two_stream.recognizer import Recognizer, create_model
from two_stream.runtime.console import note, say, warn
from two_stream.runtime.device import pick_device
from two_stream.runtime.files import sha256
from two_stream.runtime.precision import resolve_precision
from two_stream.types import Modality, ScoreTable, VideoRecord

BEST = "model_best.pth.tar"
_WINDOW = {"multi": 14, "single": 3}
"""published default of `--window`, by evaluator"""
Views = Literal["multi", "single"]


@dataclass(frozen=True)
class EvaluatedStream:
    """One network to be scored, everything about it found."""

    model: str
    """name in the table of models"""
    arch: str
    """the same without its namespace, as the published code knows it"""
    file: Path
    """its checkpoint"""
    folder: str
    """what the published evaluators print as its place"""
    selection: str
    """how the checkpoint was picked"""


def evaluate_one(flags: OneStreamFlags, views: Views) -> ScoreTable:
    """Do what `spatial_demo3D.py` (`multi`) or `spatial_demo_bert.py` (`single`) does; print and write the scores.

    Raises:
        TwoStreamError: An unknown architecture (with its neighbours), a missing or unfitting checkpoint, a missing list
            or frames; one line.
    """
    _begin(flags)
    options = zoo.find(flags.arch).options
    record = find_record(flags.dataset, flags.settings)
    stream = _stream(flags.arch, flags.checkpoint, record, flags.split)
    videos, file = _videos(flags, record, options.modality, views)
    record = _record(flags, record, videos, {options.modality: flags.extension})
    videos = counted(videos, record, options.modality, uncounted_only=True, skip=flags.on_error == "skip")
    begin = time.perf_counter()
    made = _score(stream, flags, record, videos, views)
    made.meta |= {
        "list": str(file),
        "evaluator": "spatial_demo3D" if views == "multi" else "spatial_demo_bert",
    }
    seconds = (time.perf_counter() - begin) / len(videos)
    path = flags.out or Path("results") / f"{made.meta['name']}_{slug(_views(flags, views))}.npz"
    write_scores(path, made)
    published_lines(made, [stream.folder], seconds, (views, flags.chosen_crops))
    our_table([made], [path])
    return made


def evaluate_two(flags: TwoStreamFlags) -> ScoreTable:
    """Do what `combined_demo.py` does: both streams, fused by the sum of their L2-normalised logits.

    Raises:
        TwoStreamError: As `evaluate_one`; or an architecture is of the other modality.
    """
    _begin(flags)
    views: Views = "multi" if flags.multiple_clips_enabled else "single"
    for flag, arch, wanted in (("rgb", flags.arch_rgb, "rgb"), ("flow", flags.arch_flow, "flow")):
        found = zoo.find(arch).options.modality
        if found != wanted:
            raise SettingsError(f"--arch_{flag} is {arch}, a network for {found}; expected one for {wanted}")
    record = find_record(flags.dataset, flags.settings)
    streams = [
        _stream(flags.arch_rgb, flags.checkpoint_rgb, record, flags.split),
        _stream(flags.arch_flow, flags.checkpoint_flow, record, flags.split),
    ]
    videos, file = _videos(flags, record, "flow", "single")
    record = _record(flags, record, videos, {"rgb": flags.rgb_extension, "flow": flags.flow_extension})
    skip = flags.on_error == "skip"
    by_stream = [
        counted(videos, record, "rgb", uncounted_only=flags.rgb_duration == "flow", skip=skip),
        counted(videos, record, "flow", skip=skip),
    ]
    begin = time.perf_counter()
    scored = [
        _score(stream, flags, record, listed, views)
        for stream, listed in zip(streams, by_stream, strict=True)
    ]
    for made in scored:
        made.meta |= {"list": str(file), "evaluator": "combined_demo", "rgb_duration": flags.rgb_duration}
    seconds = (time.perf_counter() - begin) / len(videos)
    stem = (
        f"{record.name}_{streams[0].arch}_{streams[1].arch}_split{flags.split}_{slug(_views(flags, views))}"
    )
    out = flags.out or Path("results") / f"{stem}.npz"
    paths = [out.with_name(f"{out.stem}_{name}{out.suffix or '.npz'}") for name in ("rgb", "flow")] + [out]
    for made, path in zip(scored, paths, strict=False):
        write_scores(path, made)
        made.meta["file"] = str(path)
    fused = fuse(scored, "l2")
    fused.meta |= {"name": stem, "evaluator": "combined_demo"}
    write_scores(out, fused)
    published_lines(fused, [stream.folder for stream in streams], seconds, (views, flags.chosen_crops))
    our_table([*scored, fused], paths)
    return fused


def checkpoint_path(dataset: str, arch: str, split: int) -> Path | None:
    """Return the checkpoint that the published trainer wrote, seen from its own folder or from `scripts/eval`."""
    found = (root / "checkpoint" / run_name(dataset, arch, split) / BEST for root in ROOTS)
    return next((path for path in found if path.is_file()), None)


def _begin(flags: EvaluatorFlags) -> None:
    flags.check()
    for line in flags.remarks():
        note(line)


def _stream(arch: str, given: Path | None, record: Record, split: int) -> EvaluatedStream:
    """Find a network's checkpoint.

    Raises:
        SettingsError: Unknown architecture.
        CheckpointError: No checkpoint.
    """
    name = zoo.find(arch).name
    bare = name.partition("/")[2]
    place = f"./checkpoint/{run_name(record.name, bare, split)}"
    file = given or checkpoint_path(record.name, bare, split)
    if file is None:
        raise CheckpointError(
            f"{place}/{BEST}: no such checkpoint of {arch}; run where the published trainer wrote it, or name the file "
            "(see --help)"
        )
    if not file.exists():
        raise CheckpointError(f"{file}: no such checkpoint of {arch}")
    settings = next((p for p in (file, *file.parents[:2]) if (p / "experiment.yaml").is_file()), None)
    selection = "paper" if settings is None else load_experiment(settings / "experiment.yaml").train.selection
    return EvaluatedStream(name, bare, file, place if given is None else str(given), selection)


def _videos(
    flags: EvaluatorFlags, record: Record, modality: Modality, views: Views
) -> tuple[list[VideoRecord], Path]:
    """Read the list of the videos to score; the published code numbers the lists of windows apart."""
    part = "test" if record.name == "window" else "val"
    name = f"{part}_{modality}_split{flags.split}.txt"
    if flags.window_val:
        name = f"window{_WINDOW[views] if flags.window is None else flags.window}.txt"
    file = flags.list_file or find_list(record, name, flags.settings)
    videos = read_list(file, num_classes=record.num_classes, group_of=record.group_of, least_frames=0)
    return videos[: flags.limit], file


def _record(
    flags: EvaluatorFlags,
    record: Record,
    videos: Sequence[VideoRecord],
    extensions: dict[Modality, str | None],
) -> Record:
    """Return a record whose frames are where the flags or the published layout have them."""
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
    return EvaluateOptions.model_validate(
        {
            "views": views,
            "crops": flags.chosen_crops,
            "batch_views": flags.batch_views,
            "precision": precision,
            "fold": flags.protocol != "paper",
        }
    )


def _score(
    stream: EvaluatedStream,
    flags: EvaluatorFlags,
    record: Record,
    videos: Sequence[VideoRecord],
    views: Views,
) -> ScoreTable:
    """Build the network, load its checkpoint and score the videos."""
    device = pick_device(flags.device)
    model = create_model(stream.model, record.num_classes)
    begin = time.perf_counter()
    _load(model, stream, record)
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
    loader = view_loader(experiment, model.spec, videos, record)
    scores = score_videos(
        prepare_for_inference(model, experiment.evaluate),
        loader,
        device=device,
        precision=experiment.evaluate.precision,
        batch_views=flags.batch_views,
        total=len(videos),
    )
    facts = {"selection": stream.selection, **_origin(stream), **scoring_facts(experiment, model)}
    return _table(
        scores, record, videos, dict(loader.skipped), facts | {"name": experiment.name, "split": flags.split}
    )


def _load(model: Recognizer, stream: EvaluatedStream, record: Record) -> None:
    try:
        report = load_weights(model, stream.file)
    except CheckpointError as error:
        wanted = f"wanted: {stream.arch} with the {record.num_classes} classes of {record.name}"
        raise CheckpointError(f"{error}; {wanted}") from None
    note(str(report))


def _origin(stream: EvaluatedStream) -> dict[str, Any]:
    """Return which file the weights came from."""
    inside = [stream.file / WEIGHTS, stream.file / "best" / WEIGHTS, stream.file / "last" / WEIGHTS]
    file = stream.file if stream.file.is_file() else next((p for p in inside if p.is_file()), None)
    return {
        "arch": stream.arch,
        "weights": str(stream.file),
        "checkpoint": "best",
        "model_sha256": sha256(file) if file is not None else None,
    }


def _table(
    scores: VideoScores,
    record: Record,
    videos: Sequence[VideoRecord],
    reasons: dict[str, str],
    facts: dict[str, Any],
) -> ScoreTable:
    if not scores.ids:
        first = next(iter(reasons.items()), ("", "unreadable"))
        raise ScoreError(f"none of the {len(videos)} videos could be read: {first[0]} ({first[1]}), …")
    scored = set(scores.ids)
    skipped = [video.id for video in videos if video.id not in scored]
    if skipped:
        warn(
            f"{len(skipped)} of {len(videos)} videos could not be read: {skipped[0]} ({reasons[skipped[0]]}), …"
        )
    groups = {video.id: video.group for video in videos}
    known = any(group and group != name for name, group in groups.items())
    meta = {"dataset": record.name, "part": "test", "skipped": skipped, "skipped_reasons": reasons}
    return ScoreTable(
        scores.ids,
        scores.labels,
        list(record.classes),
        scores.logits,
        meta | facts | {"scored": len(scores.ids)},
        groups=[groups[name] for name in scores.ids] if known else None,
    )
