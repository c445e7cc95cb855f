"""`two-stream export RUN --to {onnx, pt2, aoti, web}`: writes a network that runs without this package."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from two_stream.commands.flags import DataRoots, parse
from two_stream.commands.output import print_json
from two_stream.errors import SettingsError, TwoStreamError
from two_stream.runtime.console import say
from two_stream.runtime.text import byte_size, plural

if TYPE_CHECKING:
    from two_stream.evaluation.runs.run import AnyRun
    from two_stream.export.card import ExportCard, Target
    from two_stream.recognizer import Recognizer

SUMMARY = (
    "Export a network with its preprocessing as ONNX, torch.export, AOTInductor or a web page, and verify it."
)
EXAMPLES = (
    "export demo/runs/rgb --to onnx",
    "export demo/runs/rgb --to onnx --int8 --out rgb_int8.onnx",
    "export demo/runs/rgb --to web --out page",
)
PROG = "two-stream export"


@dataclass(frozen=True)
class _ExportFlags:
    model: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="RUN|MODEL")]]
    """run folder, run on the Hugging Face hub (hf://NAME/MODEL), model folder (with model.safetensors), or name of a
    model (with random weights, to test a runtime)"""
    to: Literal["onnx", "pt2", "aoti", "web"] = "onnx"
    """onnx: for runtimes in any language; pt2: torch.export, for torch; aoti: compiled for the processor of this
    machine; web: a folder with a web page that runs the ONNX network in a browser, on videos and on a camera"""
    out: Path | None = None
    """file to write (for web, a folder); if omitted, model.onnx, model.pt2, model.aoti.pt2 or web in the run folder
    (with --stream, stream.onnx and so on)"""
    stream: bool = False
    """export the streaming network, which maps frames and states to logits and new states"""
    int8: bool = False
    """quantize weights and activations to 8 bits (ONNX only): the file is smaller, and inference is faster on CPUs with
    int8 support"""
    calibration_clips: int = 32
    """with --int8: number of training clips for calibrating the ranges of activations"""
    calibration: Literal["minmax", "entropy", "percentile"] = "minmax"
    """with --int8: minmax uses the full range of activations; entropy and percentile clip rare values"""
    keep_first: bool = False
    """with --int8: keep the first convolution in fp32"""
    quantize_last: bool = False
    """with --int8: also quantize the classifier"""
    runtime: str = "npm"
    """with --to web: where ONNX Runtime Web comes from. npm: downloaded with npm; cdn: loaded by the page from
    cdn.jsdelivr.net; or a folder with the unpacked package onnxruntime-web"""
    example: Path | None = None
    """with --to web: a video that the page offers as an example"""
    data_root: DataRoots = ()
    """folder of the data set's dataset.yaml, of stored features or of shards, if they are not found because data or
    runs have been moved; repeat the flag for several folders"""
    checkpoint: Literal["best", "last"] = "best"
    """checkpoint of a run folder: the selected epoch, or the last one"""
    num_classes: int = 400
    """number of classes of a model given by its name"""
    json: bool = False
    """print the metadata of the exported file as JSON"""


def main(args: list[str]) -> int:
    """Run the command and return its exit code."""
    flags = parse(_ExportFlags, args, PROG, SUMMARY, EXAMPLES)
    if flags.calibration_clips < 1:
        raise SettingsError(f"{PROG}: --calibration-clips is {flags.calibration_clips}: expected 1 or more")
    if flags.stream and flags.int8:
        raise SettingsError(f"{PROG}: --int8 and --stream cannot be combined; omit one of them")
    if flags.to != "web" and (flags.runtime != "npm" or flags.example is not None):
        raise SettingsError(f"{PROG}: --runtime and --example are only for --to web; omit them")
    from two_stream.export.formats import SUFFIXES, format_by_name

    to: Target = "onnx" if flags.to == "web" else flags.to
    # missing packages are reported before the network is loaded
    format_by_name(to).check()
    run = _run(flags)
    out = flags.out
    if out is None and not run.paths.experiment.is_file():
        kind = ".stream" if flags.stream else ".int8" if flags.int8 else ""
        out = Path(f"{run.experiment.name}{kind}{'.web' if flags.to == 'web' else SUFFIXES[to]}")
    if flags.to == "web":
        return _write_page(flags, run, out or run.paths.root / "web")
    path, card = _export(flags, run, to, out)
    _show(flags, path, card)
    return 0


def _write_page(flags: _ExportFlags, run: AnyRun[Recognizer], out: Path) -> int:
    from two_stream.export.web import NETWORK, export_web

    page = export_web(run, out, partial(_export, flags, run, "onnx"), flags.runtime, flags.example)
    _show(flags, out / NETWORK, page.card)
    if not flags.json:
        say(
            f"{out}: web page of {byte_size(page.size)}; nothing that it shows leaves the computer that shows it"
        )
        say(f"  view it with `python -m http.server --directory {out}` at http://localhost:8000")
    return 0


def _export(
    flags: _ExportFlags, run: AnyRun[Recognizer], to: Target, out: Path | None
) -> tuple[Path, ExportCard]:
    from two_stream.export import export_run

    if flags.stream:
        from two_stream.export import Timing, export_stream, plain_copy
        from two_stream.streaming import StepNetwork, convert

        stream = convert(plain_copy(run))
        timing = Timing(stream.delay, stream.receptive_field)
        return export_stream(run, StepNetwork(stream), timing, to, out, public=flags.to == "web")
    int8 = None
    if flags.int8:
        from two_stream.export.onnx_format import Int8Options

        int8 = Int8Options(
            clips=flags.calibration_clips,
            method=flags.calibration,
            keep_first=flags.keep_first,
            keep_last=not flags.quantize_last,
        )
    return export_run(run, to, out, int8=int8, public=flags.to == "web")


def _run(flags: _ExportFlags) -> AnyRun[Recognizer]:
    """Load the run, model folder or named model."""
    from two_stream.evaluation.runs.lookup import find_run
    from two_stream.evaluation.runs.run import load_run
    from two_stream.export.writing import named_model, stored_model

    path = find_run(flags.model)
    if (path / "experiment.yaml").is_file():
        return load_run(path, flags.checkpoint, data_root=flags.data_root)
    if path.exists():
        return stored_model(path)
    try:
        return named_model(flags.model, flags.num_classes)
    except TwoStreamError as error:
        raise SettingsError(
            f"{flags.model}: expected a run folder, a model folder or the name of a model ({error})"
        ) from None


def _show(flags: _ExportFlags, path: Path, card: ExportCard) -> None:
    if flags.json:
        print_json({"file": str(path), **card.model_dump(mode="json")})
        return
    assert card.verified is not None
    first, logits = card.inputs[0], card.outputs[0]
    size, classes = byte_size(path.stat().st_size), len(card.class_names)
    say(f"{path}: {size}, {card.to}, {card.precision}, {plural(classes, 'class')}")
    say(f"  in   {first.name}: {first.dtype} {_shape(first.shape)}, {first.meaning}")
    say(f"  out  {logits.name}: {logits.dtype} {_shape(logits.shape)}, {logits.meaning}")
    if card.stream is not None:
        stream = card.stream
        used = "all frames" if stream.receptive_field is None else plural(stream.receptive_field, "frame")
        say(
            f"  and {plural(len(stream.states), 'state')}; a step takes {plural(stream.frames_per_step, 'frame')}; the "
            f"first prediction comes after {plural(stream.delay, 'frame')} (ignore the logits of the "
            f"{plural(stream.warm_up, 'step')} before it) and uses {used}"
        )
    found = card.verified
    agreed = f"; same class on {100 * found.agreement:.0f} %" if found.limit is None else ""
    say(
        f"  verified on {found.clips}: largest difference {found.largest_difference:.2g} ({found.relative:.1e} of the "
        f"largest logit){agreed}"
    )


def _shape(shape: tuple[int | str, ...]) -> str:
    return f"({', '.join(map(str, shape))})"
