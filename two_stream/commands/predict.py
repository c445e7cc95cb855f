"""`two-stream predict VIDEO … --rgb RUN --flow RUN`: what happens in a video."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from two_stream.commands.common import parse
from two_stream.errors import SettingsError, TwoStreamError

if TYPE_CHECKING:
    from two_stream.config.schema import EvaluateOptions
    from two_stream.evaluation.run import Run
    from two_stream.evaluation.video import Reading

SUMMARY = "Say what happens in videos, from RGB, flow or both; flow is computed on the fly."


@dataclass(frozen=True)
class PredictFlags:
    """What is asked of which videos."""

    videos: tyro.conf.Positional[tuple[Path, ...]]
    """video files"""
    rgb: Path | None = None
    """run folder of an RGB network"""
    flow: Path | None = None
    """run folder of a flow network; with --rgb the two are fused"""
    top: int = 5
    """how many classes are shown"""
    json: str | None = None
    """file for the results as JSON; `-` prints them instead of tables"""
    annotate: Path | None = None
    """MP4 file to write with the prediction drawn on it; a folder with several videos"""
    flow_algorithm: Literal["dis", "tvl1", "farneback"] = "dis"
    """dis is fast; tvl1 is the paper's, about a hundred times slower"""
    rule: Literal["l2", "logits", "probabilities", "rank"] = "l2"
    """how RGB and flow are fused"""
    weights: tuple[float, float] | None = None
    """weights of RGB and flow; none: equal ones"""
    views: Literal["single", "multi", "uniform", "sliding"] | None = None
    """none: as the run was evaluated"""
    num_clips: int | None = None
    """clips for uniform views"""
    step: int | None = None
    """frames between sliding clips"""
    crops: Literal["center", "three", "ten"] | None = None
    """none: as the run was evaluated"""
    batch_views: int | None = None
    """views per forward pass"""
    short_side: int | None = None
    """shorter side flow is computed at; none: as the run's frames were extracted, else 256"""
    backend: Literal["pyav", "opencv", "torchcodec"] = "pyav"
    """video decoder"""
    checkpoint: Literal["best", "last"] = "best"
    """which checkpoint of the runs"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps"""


def main(args: list[str]) -> int:
    """Run the command and return its exit code: 2 when a video could not be read."""
    flags = parse(PredictFlags, args, "two-stream predict", SUMMARY)
    folders = [path for path in (flags.rgb, flags.flow) if path is not None]
    if not flags.videos:
        raise SettingsError("no video given; for example: two-stream predict clip.mp4 --rgb runs/demo-rgb")
    if not folders:
        raise SettingsError("no run given: name an RGB run (--rgb RUN), a flow run (--flow RUN) or both")
    if flags.top < 1:
        raise SettingsError(f"--top is {flags.top}: expected 1 or more")
    from two_stream.video.base import existing_file

    if len(flags.videos) == 1:
        existing_file(flags.videos[0])  # before the models load
    runs = [
        _load(flags, path, modality) for path, modality in ((flags.rgb, "rgb"), (flags.flow, "flow")) if path
    ]
    return _predict_all(flags, runs)


def _load(flags: PredictFlags, path: Path, modality: str) -> Run:
    from two_stream.evaluation.run import load_run

    run = load_run(path, flags.checkpoint, flags.device)
    found = run.model.spec.modality
    if found != modality:
        raise SettingsError(f"--{modality} {path}: this is a run on {found}; give it with --{found}")
    return run


def _predict_all(flags: PredictFlags, runs: list[Run]) -> int:
    from two_stream.runtime.console import err, say

    results: list[dict[str, Any]] = []
    code = 0
    readings = [_reading(flags, run) for run in runs]
    for video in flags.videos:
        try:
            result = _predict_one(flags, runs, readings, video)
        except TwoStreamError as error:
            if len(flags.videos) == 1:
                raise
            err.print(f"two-stream: {error}", markup=False, soft_wrap=True)
            results.append({"video": str(video), "error": str(error)})
            code = error.exit_code
            continue
        results.append(result)
        if flags.json != "-":
            _show(result)
    if flags.json == "-":
        say(json.dumps(results, indent=2, ensure_ascii=False))
    elif flags.json is not None:
        from two_stream.runtime.files import write_json

        write_json(Path(flags.json), results)
        say(f"results: {flags.json}")
    return code


def _predict_one(
    flags: PredictFlags, runs: list[Run], readings: list[Reading], video: Path
) -> dict[str, Any]:
    from two_stream.evaluation.run import score_with_runs
    from two_stream.evaluation.video import fuse_results, top

    names = runs[0].class_names
    scored = score_with_runs(runs, video, [_options(flags, run) for run in runs], readings)
    weights = list(flags.weights) if flags.weights and len(runs) == 2 else None
    probabilities = fuse_results(scored, flags.rule, weights)
    result: dict[str, Any] = {
        "video": str(video),
        "frames": scored[0].frames,
        "damage": next((one.damage for one in scored if one.damage), None),
        "fusion": flags.rule if len(runs) > 1 else None,
        "top": _as_json(top(probabilities, names, flags.top)),
        "streams": {
            run.model.spec.modality: {
                "views": one.views,
                "top": _as_json(top(fuse_results([one]), names, flags.top)),
            }
            for run, one in zip(runs, scored)
        },
    }
    if flags.annotate is not None:
        from two_stream.evaluation.annotate import annotate

        several = len(flags.videos) > 1
        out = flags.annotate / f"{video.stem}.mp4" if several or flags.annotate.is_dir() else flags.annotate
        annotate(video, out, top(probabilities, names, 3), backend=flags.backend)
        result["annotated"] = str(out)
    return result


def _options(flags: PredictFlags, run: Run) -> EvaluateOptions:
    from two_stream.config.load import validate
    from two_stream.config.schema import EvaluateOptions

    given = {key: getattr(flags, key) for key in ("views", "num_clips", "step", "crops", "batch_views")}
    settings = run.experiment.evaluate.model_dump() | {key: v for key, v in given.items() if v is not None}
    return validate(EvaluateOptions, settings, "two-stream predict")


def _reading(flags: PredictFlags, run: Run) -> Reading:
    """Bring pixels to the network as its training frames came: same sizes; say so where flow differs."""
    from two_stream.evaluation.run import extraction_of
    from two_stream.evaluation.video import Reading
    from two_stream.runtime.console import note

    made = extraction_of(run) or {}
    trained = made.get("flow")
    if run.model.spec.modality == "flow" and trained not in (None, "none", flags.flow_algorithm):
        note(
            f"the flow network was trained on {trained} flow and reads {flags.flow_algorithm} here;"
            f" --flow-algorithm {trained} is closer"
        )
    size = made.get("size") if flags.short_side is None else None
    data = run.experiment.data
    return Reading(
        backend=flags.backend,
        flow=flags.flow_algorithm,
        short_side=made.get("short_side", 256) if flags.short_side is None else flags.short_side,
        size=(int(size[0]), int(size[1])) if size else None,
        sampling=data.sampling,
        protocol=data.augment.protocol,
    )


def _as_json(guesses: Sequence[tuple[str, float]]) -> list[dict[str, Any]]:
    return [{"class": name, "probability": share} for name, share in guesses]


def _show(result: dict[str, Any]) -> None:
    from two_stream.runtime.console import console, say, table, warn

    streams = result["streams"]
    columns = ["", "class", "probability"]
    rows: list[list[object]] = []
    for place, guess in enumerate(result["top"], start=1):
        bar = "█" * max(1, round(20 * guess["probability"]))
        rows.append([place, guess["class"], f"{100 * guess['probability']:5.1f} %  {bar}"])
    say(result["video"])
    console.print(table("", columns, rows))
    parts = [f"{name}: {one['top'][0]['class']} ({one['views']} views)" for name, one in streams.items()]
    fusion = f" · fused by {result['fusion']}" if result["fusion"] else ""
    say(f"{result['frames']} frames · {' · '.join(parts)}{fusion}")
    if result["damage"]:
        warn(f"{result['video']}: {result['damage']}; the frames before it were used")
    if "annotated" in result:
        say(f"annotated: {result['annotated']}")
