"""`two-stream export RUN --to {onnx, pt2, aoti}`: a network as a file that computes without this package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from two_stream.commands.flags import parse
from two_stream.errors import SettingsError, TwoStreamError

if TYPE_CHECKING:
    from two_stream.evaluation.runs.any_run import AnyRun
    from two_stream.export.card import ExportCard
    from two_stream.recognizer import Recognizer

SUMMARY = "Write a network with its preprocessing as ONNX, torch.export or AOTInductor, and compare it with the model."
PROG = "two-stream export"


@dataclass(frozen=True)
class ExportFlags:
    """What is written, and how."""

    model: tyro.conf.Positional[str]
    """a run folder; or a model folder (`model.safetensors`), or a model's name (random weights, to try a runtime)"""
    to: Literal["onnx", "pt2", "aoti"] = "onnx"
    """onnx: for any runtime and language; pt2: torch.export, for torch; aoti: compiled for this kind of processor"""
    out: Path | None = None
    """file to write; none: model.onnx, model.pt2 or model.aoti.pt2 in the run folder (stream.… with --stream)"""
    stream: bool = False
    """the step network of the stream: frames and states in, logits and states out"""
    int8: bool = False
    """8-bit weights and activations (ONNX): smaller, and faster where the processor has instructions for it"""
    calibration_clips: int = 32
    """clips of the run's training part that the ranges of activations are found on"""
    calibration: Literal["minmax", "entropy", "percentile"] = "minmax"
    """minmax: the whole range; entropy and percentile cut off what is rare"""
    keep_first: bool = False
    """leave the first convolution in fp32"""
    quantize_last: bool = False
    """the classifier in 8 bits too, which stays in fp32 otherwise"""
    checkpoint: Literal["best", "last"] = "best"
    """which checkpoint of the run"""
    num_classes: int = 400
    """classes of a model given by its name"""
    json: bool = False
    """print the card of the file as JSON"""


def main(args: list[str]) -> int:
    """Run the command and return its exit code."""
    flags = parse(ExportFlags, args, PROG, SUMMARY)
    if flags.calibration_clips < 1:
        raise SettingsError(f"{PROG}: --calibration-clips is {flags.calibration_clips}: expected 1 or more")
    if flags.stream and flags.int8:
        raise SettingsError(f"{PROG}: --int8 is for clip networks; leave it or --stream out")
    from two_stream.export.formats import format_by_name

    format_by_name(flags.to).check()  # what is not installed is said before the network loads
    run = _run(flags)
    out = flags.out
    if out is None and not run.paths.experiment.is_file():
        from two_stream.export.formats import SUFFIXES

        kind = ".stream" if flags.stream else ".int8" if flags.int8 else ""
        out = Path(f"{run.experiment.name}{kind}{SUFFIXES[flags.to]}")
    path, card = _export(flags, run, out)
    _show(flags, path, card)
    return 0


def _export(flags: ExportFlags, run: AnyRun[Recognizer], out: Path | None) -> tuple[Path, ExportCard]:
    from two_stream.export import export_run

    if flags.stream:
        from two_stream.export import Timing, export_stream, plain_copy
        from two_stream.streaming import StepNetwork, convert

        stream = convert(plain_copy(run))
        return export_stream(
            run, StepNetwork(stream), Timing(stream.delay, stream.receptive_field), flags.to, out
        )
    int8 = None
    if flags.int8:
        from two_stream.export.onnx_format import Int8Options

        int8 = Int8Options(
            clips=flags.calibration_clips,
            method=flags.calibration,
            keep_first=flags.keep_first,
            keep_last=not flags.quantize_last,
        )
    return export_run(run, flags.to, out, int8=int8)


def _run(flags: ExportFlags) -> AnyRun[Recognizer]:
    """Load what is exported."""
    from two_stream.evaluation.runs.run import load_run
    from two_stream.export.writing import named_model, stored_model

    path = Path(flags.model)
    if (path / "experiment.yaml").is_file():
        return load_run(path, flags.checkpoint)
    if path.exists():
        return stored_model(path)
    try:
        return named_model(flags.model, flags.num_classes)
    except TwoStreamError as error:
        raise SettingsError(f"{flags.model}: no run folder, model folder or model's name ({error})") from None


def _show(flags: ExportFlags, path: Path, card: ExportCard) -> None:
    from two_stream.runtime.console import say
    from two_stream.runtime.text import json_text

    if flags.json:
        say(json_text({"file": str(path), **card.model_dump(mode="json")}, indent=2))
        return
    assert card.verified is not None
    first, logits = card.inputs[0], card.outputs[0]
    say(
        f"{path}: {path.stat().st_size / 1e6:.1f} MB, {card.to}, {card.precision}, {len(card.class_names)} classes"
    )
    say(f"  in   {first.name}: {first.dtype} {_shape(first.shape)}, {first.meaning}")
    say(f"  out  {logits.name}: {logits.dtype} {_shape(logits.shape)}, {logits.meaning}")
    if card.stream is not None:
        stream = card.stream
        say(
            f"  and {len(stream.states)} states; a step takes {stream.frames_per_step} frames, the first prediction "
            f"comes after {stream.delay} frames (the logits of {stream.warm_up} steps before it mean nothing) and sees "
            f"{'all' if stream.receptive_field is None else stream.receptive_field}"
        )
    found = card.verified
    agreed = f"; the model's class on {100 * found.agreement:.0f} % of them" if found.limit is None else ""
    say(
        f"  verified on {found.clips}: differs by at most {found.largest_difference:.2g}, {found.relative:.1e} of the "
        f"largest logit{agreed}"
    )


def _shape(shape: tuple[int | str, ...]) -> str:
    return f"({', '.join(map(str, shape))})"
