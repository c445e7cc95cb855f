"""`two-stream models`: lists the named models, or shows one stage by stage."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from two_stream.commands.flags import parse
from two_stream.commands.output import print_json, print_table
from two_stream.errors import TwoStreamError
from two_stream.runtime.console import say
from two_stream.runtime.text import plural
from two_stream.types import size_text

if TYPE_CHECKING:
    from two_stream.profiling.costs import StageCost
    from two_stream.recognizer import Recognizer
    from two_stream.zoo import ModelRecord

SUMMARY = "List the named models with their cost, or show one model stage by stage."
EXAMPLES = ("models", "models '*bert*' --num-classes 51")
LIBRARY = "pretrained"
"""Shown for models whose library provides weights; `model.backbone.pretrained` loads them."""


@dataclass(frozen=True)
class _Flags:
    pattern: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="[MODEL]")]] = "*"
    """name of a model, or a pattern such as '*bert*'; if omitted, all models"""
    num_classes: int = 400
    """number of classes of the classifier; it affects the number of parameters"""
    json: bool = False
    """print JSON instead of a table"""


def main(args: list[str]) -> int:
    """Run the command and return its exit code."""
    options = parse(_Flags, args, "two-stream models", SUMMARY, EXAMPLES)
    from two_stream import zoo

    exact = not any(sign in options.pattern for sign in "*?[")
    records = [zoo.find(options.pattern)] if exact else zoo.records(options.pattern)
    if exact:
        _show(records[0], options)
        return 0
    files = _files()
    rows = [_row(record, options.num_classes, files) for record in records]
    if options.json:
        print_json(rows)
    else:
        columns = ("name", "M params", "G MACs", "input", "weights", "source")
        title = f"{plural(len(rows), 'model')} ({plural(options.num_classes, 'class')})"
        print_table(title, columns, [_cells(row) for row in rows], spare=("weights", "source"))
    return 0


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    count = len(row["weights"])
    weights = row["weights"][0] if row["weights"] == [LIBRARY] else f"{count} listed" if count else "–"
    return (
        row["name"],
        f"{row['parameters'] / 1e6:.2f}",
        f"{row['multiply_adds'] / 1e9:.2f}",
        f"{row['modality']} {row['input']}",
        weights,
        row["source"],
    )


def _row(record: ModelRecord, num_classes: int, files: dict[str, list[str]]) -> dict[str, Any]:
    from two_stream.zoo.record import model_costs

    cost = model_costs()[record.name]
    parameters, multiply_adds = cost.at(num_classes)
    return {
        "name": record.alias or record.name,
        "full_name": record.name,
        "parameters": parameters,
        "multiply_adds": multiply_adds,
        "input": f"{cost.frames}×{size_text(cost.crop)}",
        "modality": record.options.modality,
        "weights": _weights(record, files),
        "summary": record.summary,
        "source": record.source,
    }


def _files() -> dict[str, list[str]]:
    """Return the names of the published files for each full model name; empty without a manifest."""
    from two_stream import zoo
    from two_stream.pretrained.files.manifest import find_manifest, read_manifest

    try:
        entries = read_manifest(find_manifest()).entries
    except TwoStreamError:
        return {}
    found: dict[str, list[str]] = {}
    for entry in entries:
        if entry.model is not None:
            found.setdefault(zoo.find(entry.model).name, []).append(entry.name)
    return found


def _weights(record: ModelRecord, files: dict[str, list[str]]) -> list[str]:
    """Return the names of the weights that training can start from: published files, or `LIBRARY`."""
    if hasattr(record.options.backbone, "pretrained"):
        return [LIBRARY]
    return files.get(record.name, [])


def _show(record: ModelRecord, options: _Flags) -> None:
    from two_stream.profiling.costs import CONVENTION, meta_model, parameter_count, stage_costs

    model = meta_model(record.options, options.num_classes)
    costs = stage_costs(model)
    whole = sum(cost.multiply_adds for cost in costs)
    if options.json:
        print_json(
            {
                **_row(record, options.num_classes, _files()),
                "paper": record.paper,
                "multiply_adds_convention": CONVENTION,
                "input_spec": asdict(model.spec),
                "options": record.options.model_dump(mode="json"),
                "stages": [asdict(cost) for cost in costs],
            }
        )
        return
    say(f"{record.alias or record.name}: {record.summary}")
    say(f"  also       {record.name}" if record.alias else f"  source     {record.source}")
    say(f"  paper      {record.paper}")
    say(f"  weights    {', '.join(_weights(record, _files())) or 'none'}")
    say(f"  input      {_describe(model)}")
    say(
        f"  cost       {parameter_count(model) / 1e6:.2f} M parameters with {plural(options.num_classes, 'class')}, "
        f"{whole / 1e9:.2f} G multiply-adds per clip"
    )
    say(f"  counting   {CONVENTION}")
    print_stages("", costs)


def print_stages(title: str, costs: list[StageCost]) -> None:
    """Print a table of stages, with a column of times if they were measured."""
    timed = any(cost.milliseconds is not None for cost in costs)
    columns = ["stage", "output", "M params", "G mult-adds", *(["ms"] if timed else [])]
    rows = [
        [
            cost.name,
            " + ".join("×".join(str(size) for size in shape) for shape in (cost.output, *cost.beside)) or "–",
            f"{cost.parameters / 1e6:.3f}",
            f"{cost.multiply_adds / 1e9:.3f}",
            *([f"{cost.milliseconds:.1f}"] if cost.milliseconds is not None else []),
        ]
        for cost in costs
    ]
    print_table(title, columns, rows)


def _describe(model: Recognizer) -> str:
    spec = model.spec
    low, high = spec.value_range
    stride = f"with stride {spec.stride}"
    if spec.segments:
        stride = f"from {plural(spec.segments, 'segment')} of the video"
        stride += f", stride {spec.stride}" if spec.clip_length > spec.segments else ""
    stack = f" of {plural(spec.stack, 'field')}" if spec.stack > 1 else ""
    return (
        f"{spec.modality}, {plural(spec.clip_length, 'frame')}{stack} {stride}, {size_text(spec.crop)} cut from "
        f"{spec.resize[0]}×{spec.resize[1]}, values {low:g}..{high:g}, mean {spec.mean}, std {spec.std}"
    )
