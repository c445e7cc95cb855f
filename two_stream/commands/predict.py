"""`two-stream predict VIDEO … --rgb RUN --flow RUN`: classifies videos."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from two_stream.commands.flags import parse
from two_stream.commands.networks import check_modality, evaluation_options, load_network
from two_stream.commands.output import print_table, write_or_print_json
from two_stream.errors import SettingsError, TwoStreamError
from two_stream.pretrained.kinds import refuse_checkpoint
from two_stream.runtime.console import bar, note, say, warn
from two_stream.runtime.files import check_writable, write_text
from two_stream.runtime.text import csv_text, json_text, plural

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from two_stream.config.schema import EvaluateOptions
    from two_stream.evaluation.runs.run import AnyRun
    from two_stream.evaluation.scoring.saliency import SaliencyOptions
    from two_stream.evaluation.scoring.video import VideoInput, VideoResult

SUMMARY = (
    "Classify videos and folders of frames with RGB or flow networks, or with both; missing flow is computed."
)
EXAMPLES = (
    "predict video.mp4 --rgb demo/runs/rgb --flow demo/runs/flow",
    "predict video.mp4 --rgb demo/runs/rgb --timeline time.png",
    "predict video.mp4 --rgb demo/runs/rgb --saliency where.mp4",
    "predict videos/ --rgb demo/runs/rgb --csv scores.csv",
    "predict 'long.mp4#12.5-20' --rgb demo/runs/rgb",
    "predict --stdin --rgb demo/runs/rgb < videos.txt",
)


@dataclass(frozen=True)
class _PredictFlags:
    videos: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="VIDEO …")]]
    """video files, folders of frames (img_00001.jpg, flow_x_00001.jpg, …), or folders that are searched for both; a
    part of a video: VIDEO#START-END, in seconds"""
    rgb: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()
    """run folder, run on the Hugging Face hub (hf://NAME/MODEL) or exported file of a network that reads RGB (rgb or
    rgbdiff); repeat the flag for several networks, which are fused"""
    flow: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()
    """run folder, run on the hub or exported file of a flow network; repeat the flag for several networks"""
    stdin: bool = False
    """read videos from the standard input, one per line, and write one line of JSON for each; the networks are loaded
    once"""
    top: int = 5
    """number of classes to print for one video and to write to JSON; for several videos, the best class is printed"""
    json: str | None = None
    """JSON file to write; - prints the JSON instead of tables"""
    csv: Path | None = None
    """CSV file to write, with the probabilities of all classes for each video"""
    annotate: Path | None = None
    """MP4 file to write: the video with its prediction; for several videos, a folder"""
    attention: Path | None = None
    """figure to write (.png, .pdf or .svg): the head's attention to each time step; for several videos, a folder"""
    saliency: Path | None = None
    """figure (.png, .pdf or .svg) or film (.mp4) to write: where in the frames, and when, the networks find the
    predicted class; for several videos, a folder for a figure and a film of each"""
    saliency_class: Annotated[tuple[str, ...], tyro.conf.arg(metavar="CLASS …")] = ()
    """another class for --saliency; two classes show what speaks for the first rather than the second"""
    saliency_method: Literal["grad-cam", "layer-cam"] = "grad-cam"
    """layer-cam: finer maps, also in early stages"""
    saliency_stage: str | None = None
    """stage of the backbone whose map is drawn, such as layer3; if omitted, the last one"""
    timeline: Path | None = None
    """figure to write, with a CSV file next to it: the prediction over time (by default with sliding views); for
    several videos, a folder"""
    flow_algorithm: Literal["auto", "dis", "farneback", "tvl1"] = "auto"
    """auto: the stored flow of a folder of frames; for other videos the run's algorithm if it is dis or farneback,
    otherwise dis; tvl1: as in the paper, 100 times slower"""
    rule: Literal["l2", "logits", "probabilities", "rank"] = "l2"
    """how several networks are fused: sum of L2-normalised logits (l2), logits, probabilities or ranks"""
    weights: tuple[float, ...] | None = None
    """one weight per network, starting with the networks of --rgb; if omitted, equal weights"""
    threshold: float | None = None
    """least probability of the best class; below it, the prediction is "none of these"; if omitted, the threshold of
    the runs (`two-stream evaluate RUN --part val --false-alarms RATE`), 0: none"""
    views: Literal["single", "multi", "uniform", "sliding", "twice"] | None = None
    """how clips are chosen from a video; if omitted, as in the run's settings"""
    num_clips: int | None = None
    """number of clips per video, for `--views uniform`"""
    step: int | None = None
    """number of frames between the starts of sliding views"""
    crops: Literal["center", "three", "ten", "full"] | None = None
    """crops of each clip; if omitted, as in the run's settings"""
    batch_views: int | None = None
    """number of views per forward pass; if omitted, as in the run's settings"""
    short_side: int | None = None
    """shorter side of the frames that flow is computed from; if omitted, as in the run's training frames, or 256"""
    backend: Literal["pyav", "opencv", "torchcodec"] | None = None
    """video decoder; if omitted, the run's decoder if the run was trained on video files, otherwise pyav"""
    checkpoint: Literal["best", "last"] = "best"
    """checkpoint of run folders: the selected epoch, or the last one"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps"""
    trust: tuple[Path, ...] = ()
    """AOTInductor packages that may be loaded; they contain machine code, so name only packages that you trust"""


@dataclass(frozen=True)
class _Stream:
    """A network, its views, and how it reads videos."""

    run: AnyRun[Any]
    views: EvaluateOptions
    reading: VideoInput


def main(args: list[str]) -> int:
    """Run the command and return its exit code: 1 if some of several videos could not be read."""
    flags = parse(_PredictFlags, args, "two-stream predict", SUMMARY, EXAMPLES)
    if flags.stdin:
        _check_stdin(flags)
    elif not flags.videos:
        raise SettingsError("no video given; for example: two-stream predict clip.mp4 --rgb demo/runs/rgb")
    for video in flags.videos:
        refuse_checkpoint(video, "video")
    given = [(path, "rgb") for path in flags.rgb] + [(path, "flow") for path in flags.flow]
    if not given:
        raise SettingsError("no run given: use an RGB run (--rgb RUN), a flow run (--flow RUN) or both")
    if flags.top < 1:
        raise SettingsError(f"--top is {flags.top}: expected 1 or more")
    if flags.threshold is not None and not 0 <= flags.threshold <= 1:
        raise SettingsError(f"--threshold is {flags.threshold}: expected a probability from 0 to 1")
    if flags.weights is not None:
        if len(given) == 1:
            raise SettingsError("--weights requires several runs; add another run, or omit --weights")
        from two_stream.evaluation.scores.fusion import checked_weights

        checked_weights(flags.weights, len(given))
    if flags.csv is not None:
        check_writable(flags.csv)
    if flags.saliency is None and (flags.saliency_class or flags.saliency_stage):
        raise SettingsError("--saliency-class and --saliency-stage require --saliency FILE")
    from two_stream.video.decoding.memory import open_any

    inputs = _inputs(flags.videos)
    paths = [path for _, path in inputs]
    for flag, target in (
        ("--attention", flags.attention),
        ("--saliency", flags.saliency),
        ("--timeline", flags.timeline),
    ):
        if target is not None:
            from two_stream.evaluation.pictures.clip import SUFFIXES, check_target  # imports matplotlib

            check_target(target, paths, flag, (*SUFFIXES, ".mp4") if flag == "--saliency" else SUFFIXES)
    if len(paths) == 1 and not paths[0].is_dir():  # report a wrong file before networks are loaded
        open_any(paths[0], flags.backend or "pyav").close()
    runs = [_load(flags, path, modality) for path, modality in given]
    if flags.threshold is None:
        from two_stream.evaluation.runs.none_of_these import read_threshold

        folders = [path if path.is_file() else run.paths.root for (path, _), run in zip(given, runs)]
        loaded = [(folder, run.model_sha256) for folder, run in zip(folders, runs)]
        flags = replace(flags, threshold=read_threshold(loaded, flags.rule, flags.weights))
    streams = [_Stream(run, _views(flags, run), _reading(flags, run, paths)) for run in runs]
    return _predict_lines(flags, streams) if flags.stdin else _predict_all(flags, inputs, streams)


def _check_stdin(flags: _PredictFlags) -> None:
    if flags.videos:
        raise SettingsError(f"--stdin reads the videos from the standard input; omit {flags.videos[0]}")
    given = [
        name
        for name in ("json", "csv", "annotate", "attention", "saliency", "timeline")
        if getattr(flags, name) is not None
    ]
    if given:
        raise SettingsError(f"--stdin writes lines of JSON; omit --{given[0]}")


def _predict_lines(flags: _PredictFlags, streams: Sequence[_Stream]) -> int:
    """Predict the video of each line of the standard input, and print a line of JSON for it.

    Return 1 if a video could not be read.
    """
    from two_stream.evaluation.runs.run import score_with_runs

    code = 0
    for line in sys.stdin:
        name = line.strip()
        if not name:
            continue
        try:
            found = score_with_runs(
                [one.run for one in streams],
                name,
                [one.views for one in streams],
                [one.reading for one in streams],
            )
            result, _ = _describe(flags, streams, (name, Path(name)), found, (None,) * 4)
        except TwoStreamError as error:
            code, result = 1, {"video": name, "error": str(error)}
        sys.stdout.write(f"{json_text(result)}\n")
        sys.stdout.flush()
    return code


def _load(flags: _PredictFlags, path: Path, modality: str) -> AnyRun[Any]:
    run = load_network(path, flags.checkpoint, flags.device, flags.trust)
    check_modality(run, path, modality)
    if flags.attention is not None:
        from two_stream.evaluation.pictures.attention import check_head

        if path.is_file():
            raise SettingsError(
                f"--attention with --{modality} {path}: an exported file returns only logits; use the folder of the "
                "exported run"
            )
        check_head(run.model, f"--attention with --{modality} {path}")
    if flags.saliency is not None:
        if path.is_file():
            raise SettingsError(
                f"--saliency with --{modality} {path}: an exported file has no gradients; use the folder of the "
                "exported run"
            )
        _saliency_options(flags).check(run.model, run.class_names, f"--saliency with --{modality} {path}")
    return run


def _saliency_options(flags: _PredictFlags, predicted: str | None = None) -> SaliencyOptions:
    """Return what saliency maps show: the classes of the flags, or the predicted one."""
    from two_stream.evaluation.scoring.saliency import SaliencyOptions

    classes = flags.saliency_class or (() if predicted is None else (predicted,))
    return SaliencyOptions(classes, flags.saliency_method, flags.saliency_stage or "")


def _inputs(paths: Sequence[Path]) -> list[tuple[str, Path]]:
    """Return the names and paths of all videos and frame folders; in a single folder, names are relative to it."""
    from two_stream.video.sources import find_inputs

    found: list[tuple[str, Path]] = []
    for path in paths:
        if not path.is_dir():
            found.append((str(path), path))
            continue
        inside, others = find_inputs(path)
        if others and len(inside) > 1:
            note(f"{path}: {plural(others, 'other file')} ignored")
        alone = len(paths) == 1 or inside[0][1] == path
        found += [(name if alone else (path / name).as_posix(), one) for name, one in inside]
    return found


def _predict_all(flags: _PredictFlags, inputs: Sequence[tuple[str, Path]], streams: Sequence[_Stream]) -> int:
    from two_stream.evaluation.runs.run import score_each

    results: list[dict[str, Any]] = []
    rows: list[Sequence[object]] = []
    paths = [path for _, path in inputs]
    scored = score_each(
        [one.run for one in streams], paths, [one.views for one in streams], [one.reading for one in streams]
    )
    copies = annotated_files(paths, flags.annotate)
    drawings = annotated_files(paths, flags.attention, ".png")
    timelines = annotated_files(paths, flags.timeline, ".png")
    maps = annotated_files(paths, flags.saliency)
    for (name, path), found, *files in zip(inputs, scored, copies, drawings, timelines, maps):
        try:
            if isinstance(found, TwoStreamError):
                raise found
            result, probabilities = _describe(flags, streams, (name, path), found, files)
        except TwoStreamError as error:
            if len(inputs) == 1:
                raise
            note(f"two-stream: {error}")
            results.append({"video": name, "error": str(error)})
            continue
        results.append(result)
        rows.append([name, *probabilities.tolist()])
        if result["damage"]:
            warn(f"{name}: {result['damage']}; only the frames that could be decoded were used")
    if flags.json != "-":
        _show(results[0]) if len(inputs) == 1 else _show_all(results)
    if flags.csv is not None:
        write_text(flags.csv, csv_text(["id", *streams[0].run.class_names], rows))
    if flags.json is not None and write_or_print_json(flags.json, results):
        say(f"results: {flags.json}")
    return 0 if len(rows) == len(inputs) else 1


def _show_all(results: Sequence[dict[str, Any]]) -> None:
    """Print one table of the videos that could be read."""
    from two_stream.evaluation.runs.none_of_these import NONE

    rows: list[list[object]] = []
    whole = [result for result in results if "error" not in result]
    for result in whole:
        best = result["top"][0]
        name = NONE if result.get("none_of_these") else best["class"]
        rows.append([result["video"], name, f"{100 * best['probability']:5.1f} %"])
    if rows:
        print_table("", ["video", "class", "probability"], rows)
    for result in whole:
        _show_files(result)
    broken = len(results) - len(whole)
    fusion = whole[0]["fusion"] if whole else None
    say(
        plural(len(whole), "video")
        + (f" · fused by {fusion}" if fusion else "")
        + (f" · {plural(broken, 'video')} could not be read, see above" if broken else "")
    )


def annotated_files(videos: Sequence[Path], where: Path | None, suffix: str = ".mp4") -> list[Path | None]:
    """Return the output file of each video; videos of the same name in different folders get numbers."""
    if where is None:
        return [None] * len(videos)
    if len(videos) == 1 and not where.is_dir():
        return [where]
    inputs = {video.resolve() for video in videos}
    taken: set[str] = set()
    found: list[Path | None] = []
    for video in videos:
        name, place = video.stem, 1
        # some file systems ignore case; and no output may replace a video that is still to be read
        while name.casefold() in taken or (where / f"{name}{suffix}").resolve() in inputs:
            place += 1
            name = f"{video.stem}_{place}"
        taken.add(name.casefold())
        found.append(where / f"{name}{suffix}")
    return found


def _describe(
    flags: _PredictFlags,
    streams: Sequence[_Stream],
    named: tuple[str, Path],
    scored: Sequence[VideoResult],
    files: Sequence[Path | None],
) -> tuple[dict[str, Any], NDArray[np.float64]]:
    """Return the result of a video and its probabilities, and write its pictures."""
    from two_stream.evaluation.runs.none_of_these import mark_none
    from two_stream.evaluation.scoring.video import fuse_results, top_classes

    runs = [stream.run for stream in streams]
    names, threshold = runs[0].class_names, flags.threshold or 0.0
    copy, drawing, timeline, saliency = files
    name, video = named
    probabilities = fuse_results(scored, flags.rule, flags.weights)
    result: dict[str, Any] = {
        "video": name,
        "frames": scored[0].frames,
        "damage": next((one.damage for one in scored if one.damage), None),
        "fusion": flags.rule if len(runs) > 1 else None,
        "top": _as_json(top_classes(probabilities, names, flags.top)),
        **(
            {"threshold": threshold, "none_of_these": bool(probabilities.max() < threshold)}
            if threshold
            else {}
        ),
        "streams": {
            stream: {"views": one.views, "top": _as_json(top_classes(fuse_results([one]), names, flags.top))}
            for stream, one in zip(_stream_names(runs), scored)
        },
    }
    if copy is not None:
        from two_stream.evaluation.pictures.annotate import annotate

        guesses = mark_none(top_classes(probabilities, names, 3), threshold)
        annotate(video, copy, guesses, backend=streams[0].reading.backend)
        result["annotated"] = str(copy)
    if drawing is not None:
        _draw_attention(streams, video, drawing, result)
        result["attention"] = str(drawing)
    if saliency is not None:
        # a folder gets a figure and a film of each video
        written = [saliency] if saliency == flags.saliency else [saliency.with_suffix(".png"), saliency]
        for target in written:
            _draw_saliency(flags, streams, video, target, result)
        result["saliency"] = " and ".join(map(str, written))
    if timeline is not None:
        _draw_timeline(flags, streams, scored, video, timeline)
        result["timeline"] = str(timeline)
    return result, probabilities


def _stream_names(runs: Sequence[AnyRun[Any]]) -> list[str]:
    """Return the modality of each run; runs of the same modality also get their name and, if needed, a number."""
    modalities = [run.experiment.model.modality for run in runs]
    found: list[str] = []
    for modality, run in zip(modalities, runs):
        name = modality if modalities.count(modality) == 1 else f"{modality} · {run.experiment.name}"
        number = 1 + sum(other == name or other.startswith(f"{name} ") for other in found)
        found.append(name if number == 1 else f"{name} {number}")
    return found


def _draw_attention(streams: Sequence[_Stream], video: Path, out: Path, result: dict[str, Any]) -> None:
    from two_stream.evaluation.pictures.attention import draw_attention, read_attention

    found = [
        read_attention(stream.run.model, video, stream.views, stream.reading, stream.run.class_names)
        for stream in streams
    ]
    best = result["top"][0]
    names = {"rgb": "RGB", "rgbdiff": "RGB difference"}
    seen = [
        f"{names.get(name, name)} ({plural(one['views'], 'view')})" for name, one in result["streams"].items()
    ]
    fused = f", fused by {result['fusion']}" if result["fusion"] else ""
    whose = " and ".join(dict.fromkeys(one.whose for one in found))
    draw_attention(
        out,
        f"{video.name}: {best['class']}, {100 * best['probability']:.1f} %",
        f"by {' and '.join(seen)}{fused}. Below: the attention of {whose} in the middle clip",
        found,
    )


def _draw_saliency(
    flags: _PredictFlags, streams: Sequence[_Stream], video: Path, out: Path, result: dict[str, Any]
) -> None:
    from two_stream.evaluation.pictures import saliency

    best = result["top"][0]
    wanted = _saliency_options(flags, best["class"])
    title = f"{video.name}: {best['class']}, {100 * best['probability']:.1f} %"
    reads = [(one.run.model, video, one.views, one.reading, one.run.class_names, wanted) for one in streams]
    if out.suffix.lower() == saliency.FILM:
        names = [
            {"rgb": "RGB", "rgbdiff": "RGB difference"}.get(name, name)
            for name in _stream_names([stream.run for stream in streams])
        ]
        films = [saliency.read_film(*one, title=name) for one, name in zip(reads, names)]
        saliency.write_film(
            video, out, f"{title}  ·  {wanted.describe('')}", films, streams[0].reading.backend
        )
        return
    found = [saliency.read_saliency(*one) for one in reads]
    saliency.draw_saliency(out, title, f"{wanted.describe('')}, in the middle clip", found)


def _draw_timeline(
    flags: _PredictFlags,
    streams: Sequence[_Stream],
    scored: Sequence[VideoResult],
    video: Path,
    picture: Path,
) -> None:
    """Write the figure and a CSV file with the same name."""
    from two_stream.evaluation.pictures.timeline import draw_timeline, score_windows, write_csv

    runs, options = [stream.run for stream in streams], [stream.views for stream in streams]
    names = runs[0].class_names
    samplings = [stream.reading.sampling for stream in streams]
    found = score_windows(runs, scored, options, samplings, rule=flags.rule, weights=flags.weights)
    write_csv(picture.with_suffix(".csv"), found, names, flags.top, flags.threshold or 0.0)
    shown = " and ".join("RGB" if name == "rgb" else name for name in _stream_names(runs))
    fused = f", fused by {flags.rule}" if len(runs) > 1 else ""
    clips = {
        f"{views.views} clips of {plural(run.model.spec.clip_length, 'frame')}"
        for run, views in zip(runs, options)
    }
    title = f"{video.name}: {shown}{fused}; {plural(len(found), 'window')}, {' and '.join(sorted(clips))}"
    draw_timeline(picture, title, found, names, flags.threshold or 0.0)


def _views(flags: _PredictFlags, run: AnyRun[Any]) -> EvaluateOptions:
    keys = ("views", "num_clips", "step", "crops", "batch_views")
    given = {key: getattr(flags, key) for key in keys if getattr(flags, key) is not None}
    if flags.timeline is not None:
        given.setdefault("views", "sliding")
    return evaluation_options(run, given, "two-stream predict")


def _reading(flags: _PredictFlags, run: AnyRun[Any], videos: Sequence[Path]) -> VideoInput:
    """Return how videos are read: like the run's training frames, unless flags change that."""
    from two_stream.evaluation.runs.run import reading_of

    return reading_of(
        run, backend=flags.backend, flow=flags.flow_algorithm, short_side=flags.short_side, videos=videos
    )


def _as_json(guesses: Sequence[tuple[str, float]]) -> list[dict[str, Any]]:
    return [{"class": name, "probability": share} for name, share in guesses]


def _show(result: dict[str, Any]) -> None:
    streams = result["streams"]
    rows: list[list[object]] = []
    for place, guess in enumerate(result["top"], start=1):
        share = guess["probability"]
        rows.append([place, guess["class"], f"{100 * share:5.1f} %  {bar(share, 20)}"])
    say(result["video"])
    if result.get("none_of_these"):
        say(f"none of these: the best probability is below {100 * result['threshold']:.1f} %")
    print_table("", ["", "class", "probability"], rows)
    parts = [
        f"{name}: {one['top'][0]['class']} ({plural(one['views'], 'view')})" for name, one in streams.items()
    ]
    fusion = f" · fused by {result['fusion']}" if result["fusion"] else ""
    say(f"{plural(result['frames'], 'frame')} · {' · '.join(parts)}{fusion}")
    _show_files(result)


def _show_files(result: dict[str, Any]) -> None:
    for key in ("annotated", "attention", "saliency"):
        if key in result:
            say(f"{key}: {result[key]}")
    if "timeline" in result:
        say(f"timeline: {result['timeline']} and {Path(result['timeline']).with_suffix('.csv').name}")
