"""`two-stream stream SOURCE --rgb RUN --flow RUN`: predicts on a camera, an RTSP or HTTP stream, or a long file."""

from __future__ import annotations

import sys
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TextIO

import tyro

from two_stream.commands.flags import parse
from two_stream.commands.networks import check_modality
from two_stream.errors import ScoreError, SettingsError, VideoError
from two_stream.runtime.console import note, say, warn
from two_stream.runtime.distributed import StopRequest

if TYPE_CHECKING:
    from two_stream.config.schema import EvaluateOptions
    from two_stream.evaluation.runs.run import Run
    from two_stream.streaming.live.networks import NetworkTrack, StreamNetwork
    from two_stream.streaming.live.pipeline import Pipeline
    from two_stream.streaming.live.watcher import Prediction, Watcher
    from two_stream.types import InputSpec
    from two_stream.video.decoding.live import LiveSource

_SEGMENT_DISTANCE = 4
"""default distance, in source frames, between segments of several frames"""
SUMMARY = "Predict live, frame by frame: on a camera, an RTSP or HTTP stream, or a long file."
EXAMPLES = (
    "stream 0 --rgb demo/runs/rgb --window 8000",
    "stream rtsp://camera/1 --rgb demo/runs/rgb --flow demo/runs/flow",
)
PROG = "two-stream stream"


@dataclass(frozen=True)
class StreamFlags:
    """Flags of `two-stream stream`."""

    source: tyro.conf.Positional[str]
    """video file, number of a camera, or address (rtsp://…, http://…)"""
    rgb: Path | None = None
    """run folder of an RGB network, or a run on the Hugging Face hub (hf://NAME/MODEL)"""
    flow: Path | None = None
    """run folder of a flow network, or a run on the hub; with --rgb the two are fused"""
    top: int = 5
    """number of classes to show"""
    json: str | None = None
    """file to write, with one line of JSON per prediction; `-` prints the lines"""
    annotate: Path | None = None
    """MP4 file to write, with the predictions drawn on it"""
    window: int | None = None
    """port of a web page with the live image, for browsers on this machine (http://127.0.0.1:PORT/); 0: a free port"""
    mode: Literal["auto", "continual", "sliding"] = "auto"
    """continual: the network processes each frame once; sliding: the network processes sliding clips; auto: continual
    if the network can be converted, otherwise sliding"""
    step: int | None = None
    """sliding mode: number of network frames between the starts of clips; if omitted, half a clip"""
    squeeze: Literal["frame", "clip"] = "frame"
    """continual mode: squeeze-and-excitation averages over the current frame (frame) or the length of a clip (clip)"""
    every: int | None = None
    """number of source frames per network frame; if omitted, the stride of the network's clips. For a network with
    several frames per segment: number of source frames from segment to segment; if omitted, the length of a segment,
    but at least 4. For runs with `model.input.fps`, frames are counted at this rate"""
    queue: int = 4
    """number of frames that may wait while the networks are busy; for a live source, older frames are dropped and
    counted"""
    paced: bool = False
    """read a file at its own frame rate, dropping late frames, as if it were live"""
    patience: float = 60.0
    """seconds to wait for a lost live source; 0 stops immediately"""
    limit: float | None = None
    """stop after this many seconds"""
    flow_algorithm: Literal["auto", "dis", "farneback", "tvl1"] = "auto"
    """auto: the algorithm that the run was trained on if it is dis or farneback, otherwise dis with a warning; tvl1: as
    in the paper, about 100 times slower"""
    rule: Literal["l2", "logits", "probabilities", "rank"] = "l2"
    """how RGB and flow are fused"""
    weights: tuple[float, float] | None = None
    """weights of RGB and flow if both are given; if omitted, equal weights"""
    threshold: float | None = None
    """least probability of the best class; below it, the prediction is "none of these"; if omitted, the threshold of
    the runs (`two-stream evaluate RUN --part val --false-alarms RATE`), 0: none"""
    short_side: int | None = None
    """shorter side of the frames that flow is computed from; if omitted, as in the run's training frames, or 256"""
    checkpoint: Literal["best", "last"] = "best"
    """checkpoint of the run folders: the selected epoch, or the last one"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps"""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """autocast type; auto: bf16 if it is clearly faster on this machine, as in `two-stream evaluate`"""
    threads: Annotated[int, tyro.conf.arg(metavar="INT")] = 0
    """number of CPU threads of torch; 0: torch's default"""


def main(args: list[str]) -> int:
    """Run the command; return 0 at the end of the file or at --limit, 130 after Ctrl-C, 143 after SIGTERM."""
    flags = parse(StreamFlags, args, PROG, SUMMARY, EXAMPLES)
    _check(flags)
    from two_stream.video.decoding.live import open_source

    return _watch(
        flags, open_source(flags.source)
    )  # reports a source that cannot be opened, before models are loaded


def _check(flags: StreamFlags) -> None:
    """Check the flags before anything is loaded."""
    if flags.rgb is None and flags.flow is None:
        raise SettingsError("no run given: use an RGB run (--rgb RUN), a flow run (--flow RUN) or both")
    for name in ("top", "queue", "step", "every"):
        value = getattr(flags, name)
        if value is not None and value < 1:
            raise SettingsError(f"--{name} is {value}: expected 1 or more")
    if flags.patience < 0 or (flags.limit is not None and flags.limit <= 0):
        raise SettingsError("--patience must be 0 or more seconds, and --limit must be more than 0 seconds")
    if flags.threshold is not None and not 0 <= flags.threshold <= 1:
        raise SettingsError(f"--threshold is {flags.threshold}: expected a probability from 0 to 1")
    if flags.step is not None and flags.mode == "continual":
        raise SettingsError("--step applies only to sliding clips; omit --step, or use --mode sliding")
    if flags.json == "-" and flags.annotate == Path("-"):
        raise SettingsError("--annotate -: expected the name of an MP4 file")
    if flags.weights is not None:
        if flags.rgb is None or flags.flow is None:
            raise SettingsError(
                "--weights requires both --rgb and --flow; add the missing run, or omit --weights"
            )
        from two_stream.evaluation.scores.fusion import checked_weights

        checked_weights(flags.weights, 2)


def _watch(flags: StreamFlags, source: LiveSource) -> int:
    from two_stream.evaluation.runs.none_of_these import read_threshold
    from two_stream.runtime.device import set_threads
    from two_stream.streaming.live.pipeline import Pipeline
    from two_stream.streaming.live.watcher import Watcher

    set_threads(flags.threads)
    runs = _runs(flags)
    threshold = flags.threshold
    if threshold is None:
        loaded = [(run.paths.root, run.model_sha256) for run in runs]
        threshold = read_threshold(loaded, flags.rule, flags.weights)
    streams = [_stream(flags, run) for run in runs]
    pipeline = Pipeline(
        source,
        streams,
        queue=flags.queue,
        patience=flags.patience,
        paced=flags.paced,
        keep_passed=flags.annotate is not None,
        notify=note,
    )
    if source.live:
        for run, stream in zip(runs, streams, strict=True):
            stream.warm_up(run.model.spec.size, run.model.spec.channels)
    watcher = Watcher(pipeline, runs, flags.rule, flags.weights, threshold)
    if not source.live:
        note(f"{source.name}: {watcher.status.delay}")
    return _show(flags, pipeline, watcher)


def _runs(flags: StreamFlags) -> list[Run]:
    from two_stream.evaluation.runs.run import load_run

    runs = []
    for path, modality in ((flags.rgb, "rgb"), (flags.flow, "flow")):
        if path is None:
            continue
        run = load_run(path, flags.checkpoint, flags.device)
        check_modality(run, path, modality)
        runs.append(run)
    if len({tuple(run.class_names) for run in runs}) > 1:
        raise ScoreError(f"{flags.rgb} and {flags.flow} have different classes and cannot be fused")
    return runs


def _stream(flags: StreamFlags, run: Run) -> NetworkTrack:
    """Return a run's network with the input that it expects."""
    from two_stream.evaluation.runs.run import reading_of
    from two_stream.evaluation.scoring.network import is_exact, resolve_evaluation
    from two_stream.streaming.live.networks import NetworkTrack, Prepare

    spec, device = run.model.spec, run.model.device
    _check_input(flags, run)
    evaluate = run.experiment.evaluate.model_copy(update={"precision": flags.precision, "compile": False})
    options = resolve_evaluation(run.model, evaluate, device, exact=is_exact(run.experiment))
    reading = reading_of(run, flow=flags.flow_algorithm, short_side=flags.short_side)
    return NetworkTrack(
        run.experiment.model.modality,
        _network(flags, run, options),
        Prepare(spec, reading),
        every=1 if _picked(flags, spec) is not None else _distance(flags, spec),
        fps=reading.fps,
        pairs=spec.modality == "flow",
        device=device,
        precision=options.precision,
    )


def _check_input(flags: StreamFlags, run: Run) -> None:
    """Reject inputs that a stream cannot provide; explain which frames replace the segments of a whole video."""
    spec, root = run.model.spec, run.paths.root
    if spec.stack > 1:
        raise SettingsError(
            f"{root}: its input is {spec.stack} stacked flow fields, which a stream does not provide; use a run with "
            "`model.input.stack: 1`, or use `two-stream predict`"
        )
    picked = _picked(flags, spec)
    if picked is not None and flags.mode == "continual":
        raise SettingsError(
            f"{root}: its clips have {spec.clip_length // spec.segments} frames in each of {spec.segments} segments, "
            "which requires sliding clips; omit --mode"
        )
    if spec.segments:
        every = _distance(flags, spec)
        seen = (spec.clip_length - 1) * every + 1 if picked is None else picked[-1] + 1
        note(
            f"{root}: the network was trained on segments of whole videos; in this stream, segments are {every} source "
            f"frames apart and a clip spans {seen} frames (--every sets the distance)"
        )


def _distance(flags: StreamFlags, spec: InputSpec) -> int:
    """Return the distance, in source frames, between network frames or between segments of several frames."""
    frames = spec.clip_length // spec.segments if spec.segments else 1
    return flags.every or (spec.stride if frames == 1 else max(_SEGMENT_DISTANCE, frames * spec.stride))


def _picked(flags: StreamFlags, spec: InputSpec) -> tuple[int, ...] | None:
    """Return which frames of a window form a clip if segments have several frames; None for consecutive frames."""
    if spec.segments in (0, spec.clip_length):
        return None
    apart, frames = _distance(flags, spec), range(spec.clip_length // spec.segments)
    return tuple(start * apart + place * spec.stride for start in range(spec.segments) for place in frames)


def _network(flags: StreamFlags, run: Run, options: EvaluateOptions) -> StreamNetwork:
    """Return the continual version of a run's network, or the clip network for sliding clips.

    Raises:
        SettingsError: `--mode continual` was requested, but the network cannot be converted.
    """
    from two_stream.evaluation.scoring.network import prepare_for_inference
    from two_stream.recognizer import Recognizer
    from two_stream.streaming.live.networks import SlidingRecognizer

    model = prepare_for_inference(run.model, options)
    assert isinstance(model, Recognizer)  # it is not compiled
    picked = _picked(flags, model.spec)
    if flags.mode != "sliding" and picked is None:
        from two_stream.streaming import convert

        try:
            return convert(model, squeeze=flags.squeeze)
        except SettingsError as error:
            if flags.mode == "continual":
                raise
            note(f"{run.paths.root}: {error}; the network is run on sliding clips instead")
    return SlidingRecognizer(model, flags.step, picked)


def _show(flags: StreamFlags, pipeline: Pipeline, watcher: Watcher) -> int:
    """Run the pipeline to the end and write the outputs."""
    from two_stream.streaming.live.outputs import BrowserWindow, Recording
    from two_stream.streaming.live.screen import Screen

    begin = time.monotonic()
    with ExitStack() as stack:
        stop = stack.enter_context(StopRequest("leaving", pipeline.stop))
        lines = _open_lines(flags.json, stack)
        recording, window = None, None
        if flags.annotate is not None:
            recording = Recording(flags.annotate, pipeline.fps or pipeline.source.fps)
            stack.callback(recording.close)
        if flags.window is not None:
            window = BrowserWindow(flags.window, watcher.status, lambda: pipeline.attempt)
            stack.enter_context(window)
            note(f"live page: {window.address}")
        if flags.limit is not None:
            # a timer, because a lost source sends no frame after which to check the time
            timer = threading.Timer(flags.limit, pipeline.stop)
            timer.daemon = True
            timer.start()
            stack.callback(timer.cancel)
        screen = stack.enter_context(Screen(watcher.status))
        for seen, prediction in watcher.run(flags.top):
            if seen.begins and pipeline.source.live and not watcher.status.interruptions:
                # the frame rate is only known now
                note(f"{pipeline.source.name}: {watcher.status.delay}")
            if prediction is not None and lines is not None:
                _write_line(lines, watcher, prediction, flags.top)
            guesses = watcher.status.guesses[:3]
            if recording is not None and not seen.ended:
                for frame in (*seen.passed, seen.frame):
                    recording.add(frame.picture, frame.seconds, guesses)
            if window is not None:
                window.show(seen.frame.picture, watcher.status)
            screen.update()
        if window is not None:
            over = flags.limit is not None and time.monotonic() - begin >= flags.limit
            ended = "--limit is reached" if over else "" if pipeline.source.live else "end of the file"
            window.close("stopped in the terminal" if stop.received is not None else ended)
    _print_summary(flags, watcher, time.monotonic() - begin)
    return 0 if stop.received is None else 128 + stop.received


def _open_lines(path: str | None, stack: ExitStack) -> TextIO | None:
    if path is None:
        return None
    if path == "-":
        return sys.stdout
    try:
        return stack.enter_context(Path(path).open("w", encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"--json {path}: cannot be written ({error.strerror})") from None


def _write_line(lines: TextIO, watcher: Watcher, prediction: Prediction, count: int) -> None:
    from two_stream.runtime.text import json_text
    from two_stream.streaming.live.watcher import prediction_record

    names, dropped = watcher.class_names, watcher.status.dropped
    line = prediction_record(prediction, names, count, dropped, watcher.threshold)
    try:
        lines.write(json_text(line) + "\n")
        lines.flush()  # for programs that read the output while it is written
    except BrokenPipeError:
        raise  # the program that reads the output has exited, which is no error
    except OSError as error:
        with suppress(OSError):
            lines.close()  # closing later would raise again when it flushes the buffer
        raise VideoError(f"--json {lines.name}", f"cannot be written ({error.strerror})") from None


def _print_summary(flags: StreamFlags, watcher: Watcher, elapsed: float) -> None:
    from two_stream.streaming.live.watcher import describe_delay
    from two_stream.video.decoding.live import FileSource

    source, status = watcher.pipeline.source, watcher.status
    if isinstance(source, FileSource) and source.damage:
        warn(f"{source.name}: {source.damage}; only the frames that could be decoded were used")
    if not status.predictions.total and not source.live and flags.limit is None:
        delay = describe_delay(watcher.pipeline.streams, source)
        raise VideoError(
            source.name,
            f"the source ended before the first prediction ({delay}); use `two-stream predict` for short videos",
        )
    (note if flags.json == "-" else say)(status.summary(elapsed))
    if flags.annotate is not None and flags.annotate.is_file():
        note(f"annotated: {flags.annotate}")
