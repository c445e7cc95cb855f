"""CPU time of a clip: PyTorch as `evaluate` runs it, compiled, and the exported files side by side.

    python eval/benchmarks/exports.py [--quick] [--aoti] [--net NAME …]

Each network (random weights, 400 classes) is prepared as an evaluation prepares it, in fp32 and bf16, and exported by
`two_stream.export` to ONNX (fp32, and int8 with ranges found on noise), torch.export and, with --aoti, AOTInductor. All
sides get the same uint8 clip and take turns in one process on the same threads. The ratio is against PyTorch in fp32.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from common import Row, argument_parser, finish, interleaved, median_of, prepare, ratio_of

from two_stream.config.schema import EvaluateOptions
from two_stream.errors import TwoStreamError
from two_stream.evaluation.scoring.network import prepare_for_inference
from two_stream.export import export_run, load
from two_stream.export.card import Target
from two_stream.export.formats import SUFFIXES
from two_stream.export.onnx_format import Int8Options
from two_stream.export.verifying import noise_clips
from two_stream.export.writing import BareModel, named_model
from two_stream.runtime.device import autocast

CPU = torch.device("cpu")
NETS = (
    "co3d/x3d_s",
    "efficient3d/mobilenetv2_1.0x",
    "3dresnets/resnet18",
    "late_temporal/rgb_resneXt3D64f101_bert10_FRMB",
)
QUICK = NETS[1:2]
BASELINE = "PyTorch fp32"

Forward = Callable[[], torch.Tensor]


@dataclass(frozen=True)
class Exported:
    """A way to write the network."""

    name: str
    to: Target
    int8: bool = False


EXPORTED = (
    Exported("ONNX Runtime fp32", "onnx"),
    Exported("ONNX Runtime int8", "onnx", int8=True),
    Exported("torch.export fp32", "pt2"),
)
COMPILED = Exported("AOTInductor fp32", "aoti")


def torch_sides(run: BareModel, clip: torch.Tensor, compiling: bool) -> dict[str, Forward]:
    """Return PyTorch's ways: as `evaluate` runs it, in both precisions, and compiled where asked for."""
    sides: dict[str, Forward] = {}
    for precision, compiled in (("fp32", False), ("bf16", False), ("bf16", True))[: 3 if compiling else 2]:
        model = run.model.channels_last()
        prepared = prepare_for_inference(model, EvaluateOptions(precision=precision, compile=compiled))

        def forward(prepared: torch.nn.Module = prepared, precision: str = precision) -> torch.Tensor:
            with torch.inference_mode(), autocast(CPU, precision):
                return prepared(clip).float()

        sides[f"PyTorch {precision}{', torch.compile' if compiled else ''}"] = forward
    return sides


def exported_sides(
    run: BareModel, clip: torch.Tensor, forms: tuple[Exported, ...], folder: Path
) -> tuple[dict[str, Forward], dict[str, str]]:
    """Export, and return how each file computes; and why some do not."""
    sides: dict[str, Forward] = {}
    problems: dict[str, str] = {}
    for number, form in enumerate(forms):
        file = folder / f"{number}{SUFFIXES[form.to]}"
        try:
            export_run(run, form.to, file, int8=Int8Options(clips=4) if form.int8 else None)
        except TwoStreamError as error:
            problems[form.name] = str(error)
            continue
        network = load(file).model

        def forward(network: torch.nn.Module = network) -> torch.Tensor:
            return network(clip)

        sides[form.name] = forward
    return sides, problems


def measure(name: str, forms: tuple[Exported, ...], rounds: int, compiling: bool) -> list[Row]:
    """Return the rows of one network."""
    torch.manual_seed(0)
    run = named_model(name, 400)
    clip = noise_clips(run.model.spec, 1)
    with tempfile.TemporaryDirectory() as folder:
        found, problems = exported_sides(run, clip, forms, Path(folder))
        sides = {**torch_sides(run, clip, compiling), **found}
        exact = sides[BASELINE]()
        scale = float(exact.abs().max())
        notes = {side: float((run_it() - exact).abs().max()) / scale for side, run_it in sides.items()}
        times = interleaved(sides, rounds)
    short = name.split("/")[-1]
    base = 1000 * median_of(times[BASELINE])
    rows = [
        Row(
            f"{short}, {side}",
            BASELINE,
            base,
            1000 * median_of(times[side]),
            ratio_of(times, BASELINE, side),
            unit="ms",
            note=f"logits within {notes[side]:.0e} of the largest",
        )
        for side in sides
        if side != BASELINE
    ]
    return rows + [
        Row(f"{short}, {side}", BASELINE, base, None, None, unit="ms", problem=problem)
        for side, problem in problems.items()
    ]


def main(argv: list[str] | None = None) -> int:
    """Measure, print and write."""
    parser = argument_parser(__doc__, rounds=7)
    parser.add_argument("--aoti", action="store_true", help="AOTInductor too (minutes of compiling each)")
    parser.add_argument("--net", nargs="+", default=[], metavar="NAME", help="networks of the zoo")
    given = parser.parse_args(argv)
    prepare(given)
    forms = (*EXPORTED, COMPILED) if given.aoti else EXPORTED
    nets = given.net or (QUICK if given.quick else NETS)
    forms = forms[:1] if given.smoke else forms
    rows = [row for name in nets for row in measure(name, forms, given.rounds, compiling=not given.smoke)]
    return finish("exports", rows, given)


if __name__ == "__main__":
    sys.exit(main())
