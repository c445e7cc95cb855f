"""`two-stream predict VIDEO … --rgb RUN --flow RUN`: what happens in a video."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from two_stream.commands.flags import parse
from two_stream.commands.networks import check_modality, load_network
from two_stream.errors import SettingsError, TwoStreamError

if TYPE_CHECKING:
    from two_stream.config.schema import EvaluateOptions
    from two_stream.evaluation.runs.run import AnyRun
    from two_stream.evaluation.scoring.video import VideoInput, VideoResult

SUMMARY = "Say what happens in videos, from RGB, flow or both; flow is computed on the fly."


@dataclass(frozen=True)
class PredictFlags:
    """What is asked of which videos."""

    videos: tyro.conf.Positional[tuple[Path, ...]]
    """video files"""
    rgb: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()
    """run folder of an RGB network, or a file exported from one; may be given several times, all are fused"""
    flow: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()
    """run folder or exported file of a flow network; may be given several times"""
    top: int = 5
    """how many classes are shown"""
    json: str | None = None
    """file for the results as JSON; `-` prints them instead of tables"""
    annotate: Path | None = None
    """MP4 file to write with the prediction drawn on it; a folder with several videos"""
    attention: Path | None = None
    """PNG, PDF or SVG file to draw which moments BERT looks at; a folder with several videos (one PNG each)"""
    timeline: Path | None = None
    """PNG, PDF or SVG file to draw what happens when, window by window, and a CSV file beside it; a folder with several
    videos (one PNG and CSV each). Windows slide by half a clip, or by --step, unless --views says otherwise"""
    flow_algorithm: Literal["auto", "dis", "farneback", "tvl1"] = "auto"
    """auto: the kind the run was trained on if dis or farneback, else dis with a warning; tvl1 is the paper's and about
    a hundred times slower"""
    rule: Literal["l2", "logits", "probabilities", "rank"] = "l2"
    """how several runs are fused"""
    weights: tuple[float, ...] | None = None
    """one weight per run, those of --rgb first; none: equal ones"""
    views: Literal["single", "multi", "uniform", "sliding", "twice"] | None = None
    """none: as the run was evaluated"""
    num_clips: int | None = None
    """clips for uniform views"""
    step: int | None = None
    """frames between sliding clips"""
    crops: Literal["center", "three", "ten", "full"] | None = None
    """none: as the run was evaluated"""
    batch_views: int | None = None
    """views per forward pass"""
    short_side: int | None = None
    """shorter side flow is computed at; none: as the run's frames were extracted, else 256"""
    backend: Literal["pyav", "opencv", "torchcodec"] | None = None
    """video decoder; none: the one of a run trained on video files, else pyav"""
    checkpoint: Literal["best", "last"] = "best"
    """which checkpoint of the runs"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps"""
    trust: tuple[Path, ...] = ()
    """AOTInductor packages whose machine code may run; other kinds of exported files need no trust"""


def main(args: list[str]) -> int:
    """Run the command and return its exit code: 2 when a video could not be read."""
    flags = parse(PredictFlags, args, "two-stream predict", SUMMARY)
    folders = [*flags.rgb, *flags.flow]
    if not flags.videos:
        raise SettingsError("no video given; for example: two-stream predict clip.mp4 --rgb demo/runs/rgb")
    from two_stream.pretrained.kinds import refuse_checkpoint

    for video in flags.videos:
        refuse_checkpoint(video, "video")
    if not folders:
        raise SettingsError("no run given: name an RGB run (--rgb RUN), a flow run (--flow RUN) or both")
    if flags.top < 1:
        raise SettingsError(f"--top is {flags.top}: expected 1 or more")
    _check_weights(flags, len(folders))
    if flags.attention is not None:
        from two_stream.evaluation.pictures.attention import check_target

        check_target(flags.attention, flags.videos)
    if flags.timeline is not None:
        from two_stream.evaluation.pictures.attention import check_target

        check_target(flags.timeline, flags.videos, "--timeline")
    from two_stream.video.decoding.reader import open_video

    if len(flags.videos) == 1:
        open_video(
            flags.videos[0], flags.backend or "pyav"
        ).close()  # what is no video is said before models load
    given = [(path, "rgb") for path in flags.rgb] + [(path, "flow") for path in flags.flow]
    runs = [_load(flags, path, modality) for path, modality in given]
    return _predict_all(flags, runs)


def _load(flags: PredictFlags, path: Path, modality: str) -> AnyRun[Any]:
    run = load_network(path, flags.checkpoint, flags.device, flags.trust)
    check_modality(run, path, modality)
    if flags.attention is not None:
        from two_stream.evaluation.pictures.attention import check_head

        if path.is_file():
            raise SettingsError(
                f"--attention with --{modality} {path}: an exported file gives logits alone; give its run"
            )
        check_head(run.model, f"--attention with --{modality} {path}")
    return run


def _check_weights(flags: PredictFlags, runs: int) -> None:
    """Refuse weights before the models load."""
    if flags.weights is None:
        return
    if runs == 1:
        raise SettingsError("--weights weighs runs against each other: give several, or leave it out")
    from two_stream.evaluation.scores.fusion import checked_weights

    checked_weights(flags.weights, runs)


def _predict_all(flags: PredictFlags, runs: list[AnyRun[Any]]) -> int:
    from two_stream.runtime.console import err, say
    from two_stream.runtime.text import json_text

    results: list[dict[str, Any]] = []
    code = 0
    options = [_options(flags, run) for run in runs]
    readings = [_reading(flags, run) for run in runs]
    copies = annotated_files(flags.videos, flags.annotate)
    drawings = annotated_files(flags.videos, flags.attention, ".png")
    lines = annotated_files(flags.videos, flags.timeline, ".png")
    for video, *files in zip(flags.videos, copies, drawings, lines):
        try:
            result = _predict_one(flags, runs, (options, readings), video, files)
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
        say(json_text(results, indent=2))
    elif flags.json is not None:
        from two_stream.runtime.files import write_json

        write_json(Path(flags.json), results)
        say(f"results: {flags.json}")
    return code


def annotated_files(videos: Sequence[Path], where: Path | None, suffix: str = ".mp4") -> list[Path | None]:
    """Return the file made for each video; videos of one name in different folders get numbers."""
    if where is None:
        return [None] * len(videos)
    if len(videos) == 1 and not where.is_dir():
        return [where]
    inputs = {video.resolve() for video in videos}
    taken: set[str] = set()
    found: list[Path | None] = []
    for video in videos:
        name, place = video.stem, 1
        # some file systems do not tell A from a; and no copy may replace a video that is still to be read
        while name.casefold() in taken or (where / f"{name}{suffix}").resolve() in inputs:
            place += 1
            name = f"{video.stem}_{place}"
        taken.add(name.casefold())
        found.append(where / f"{name}{suffix}")
    return found


def _predict_one(
    flags: PredictFlags,
    runs: list[AnyRun[Any]],
    how: tuple[list[EvaluateOptions], list[VideoInput]],
    video: Path,
    files: Sequence[Path | None],
) -> dict[str, Any]:
    from two_stream.evaluation.runs.run import score_with_runs
    from two_stream.evaluation.scoring.video import fuse_results, top_classes

    names = runs[0].class_names
    options, readings = how
    copy, drawing, line = files
    scored = score_with_runs(runs, video, options, readings)
    probabilities = fuse_results(scored, flags.rule, flags.weights)
    result: dict[str, Any] = {
        "video": str(video),
        "frames": scored[0].frames,
        "damage": next((one.damage for one in scored if one.damage), None),
        "fusion": flags.rule if len(runs) > 1 else None,
        "top": _as_json(top_classes(probabilities, names, flags.top)),
        "streams": {
            name: {"views": one.views, "top": _as_json(top_classes(fuse_results([one]), names, flags.top))}
            for name, one in zip(_stream_names(runs), scored)
        },
    }
    if copy is not None:
        from two_stream.evaluation.pictures.annotate import annotate

        annotate(video, copy, top_classes(probabilities, names, 3), backend=readings[0].backend)
        result["annotated"] = str(copy)
    if drawing is not None:
        _draw_attention(runs, how, video, drawing, result)
        result["attention"] = str(drawing)
    if line is not None:
        _draw_timeline(flags, runs, scored, how, (video, line))
        result["timeline"] = str(line)
    return result


def _stream_names(runs: Sequence[AnyRun[Any]]) -> list[str]:
    """Return the modality of each run; where two runs share one, with the run's name and a number if need be."""
    modalities = [run.model.spec.modality for run in runs]
    found: list[str] = []
    for modality, run in zip(modalities, runs):
        name = modality if modalities.count(modality) == 1 else f"{modality} · {run.experiment.name}"
        number = 1 + sum(other == name or other.startswith(f"{name} ") for other in found)
        found.append(name if number == 1 else f"{name} {number}")
    return found


def _draw_attention(
    runs: list[AnyRun[Any]],
    how: tuple[list[EvaluateOptions], list[VideoInput]],
    video: Path,
    out: Path,
    result: dict[str, Any],
) -> None:
    from two_stream.evaluation.pictures.attention import draw_attention, read_attention

    streams = [
        read_attention(run.model, video, views, reading, run.class_names)
        for run, views, reading in zip(runs, *how)
    ]
    best = result["top"][0]
    names = {"rgb": "RGB"}
    seen = [
        f"{names.get(name, name)} ({one['views']} {'view' if one['views'] == 1 else 'views'})"
        for name, one in result["streams"].items()
    ]
    fused = f", fused by {result['fusion']}" if result["fusion"] else ""
    draw_attention(
        out,
        f"{video.name}: {best['class']}, {100 * best['probability']:.1f} %",
        f"by {' and '.join(seen)}{fused}. Below: the steps BERT's last layer looks at in the middle clip",
        streams,
    )


def _draw_timeline(
    flags: PredictFlags,
    runs: list[AnyRun[Any]],
    scored: Sequence[VideoResult],
    how: tuple[list[EvaluateOptions], list[VideoInput]],
    files: tuple[Path, Path],
) -> None:
    """Write the picture `files[1]` about the video `files[0]`, and the CSV file beside it."""
    from two_stream.evaluation.pictures.timeline import draw_timeline, score_windows, write_csv

    video, picture = files
    options, readings = how
    names = runs[0].class_names
    samplings = [reading.sampling for reading in readings]
    found = score_windows(runs, scored, options, samplings, rule=flags.rule, weights=flags.weights)
    write_csv(picture.with_suffix(".csv"), found, names, flags.top)
    streams = " and ".join("RGB" if name == "rgb" else name for name in _stream_names(runs))
    fused = f", fused by {flags.rule}" if len(runs) > 1 else ""
    clips = {
        f"{views.views} clips of {run.model.spec.clip_length} frames" for run, views in zip(runs, options)
    }
    title = f"{video.name}: {streams}{fused}; {len(found)} windows, {' and '.join(sorted(clips))}"
    draw_timeline(picture, title, found, names)


def _options(flags: PredictFlags, run: AnyRun[Any]) -> EvaluateOptions:
    from two_stream.config.load import validate_settings
    from two_stream.config.schema import EvaluateOptions

    keys = ("views", "num_clips", "step", "crops", "batch_views")
    given = {key: getattr(flags, key) for key in keys if getattr(flags, key) is not None}
    if flags.timeline is not None:
        given.setdefault("views", "sliding")
    settings = run.experiment.evaluate.model_dump() | given
    for key, views in (("num_clips", "uniform"), ("step", "sliding")):
        if key in given and settings["views"] != views:
            flag = "--" + key.replace("_", "-")
            raise SettingsError(
                f"{flag} is for {views} views, and {run.source} is scored with {settings['views']} views;"
                f" add --views {views} or leave {flag} out"
            )
    return validate_settings(EvaluateOptions, settings, "two-stream predict")


def _reading(flags: PredictFlags, run: AnyRun[Any]) -> VideoInput:
    """Bring pixels to the network as its training frames came, but for what flags say."""
    from two_stream.evaluation.runs.run import reading_of

    return reading_of(run, backend=flags.backend, flow=flags.flow_algorithm, short_side=flags.short_side)


def _as_json(guesses: Sequence[tuple[str, float]]) -> list[dict[str, Any]]:
    return [{"class": name, "probability": share} for name, share in guesses]


def _show(result: dict[str, Any]) -> None:
    from two_stream.runtime.console import bar, console, say, table, warn

    streams = result["streams"]
    columns = ["", "class", "probability"]
    rows: list[list[object]] = []
    for place, guess in enumerate(result["top"], start=1):
        share = guess["probability"]
        rows.append([place, guess["class"], f"{100 * share:5.1f} %  {bar(share, 20)}"])
    say(result["video"])
    console.print(table("", columns, rows))
    parts = [f"{name}: {one['top'][0]['class']} ({one['views']} views)" for name, one in streams.items()]
    fusion = f" · fused by {result['fusion']}" if result["fusion"] else ""
    say(f"{result['frames']} frames · {' · '.join(parts)}{fusion}")
    if result["damage"]:
        warn(f"{result['video']}: {result['damage']}; the frames that decode were used")
    if "annotated" in result:
        say(f"annotated: {result['annotated']}")
    if "attention" in result:
        say(f"attention: {result['attention']}")
    if "timeline" in result:
        say(f"time line: {result['timeline']} and {Path(result['timeline']).with_suffix('.csv').name}")
