"""`two-stream models`: what the zoo offers, or one model stage by stage."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import tyro

from two_stream.commands.common import parse
from two_stream.runtime.console import console, say, table

if TYPE_CHECKING:
    from two_stream.profiling import StageCost
    from two_stream.recognizer import Recognizer
    from two_stream.types import InputSpec
    from two_stream.zoo import ModelRecord

SUMMARY = "list the named models, or show one"


@dataclass(frozen=True)
class Options:
    """What to show."""

    pattern: tyro.conf.Positional[str] = "*"
    """name of a model, or a pattern such as '*bert*'"""
    num_classes: int = 400
    """classes assumed when counting parameters"""
    json: bool = False
    """print JSON"""


def main(args: list[str]) -> int:
    """Print the models whose name matches, or the record of one."""
    options = parse(Options, args, prog="two-stream models", description=SUMMARY)
    from two_stream import zoo

    exact = not any(sign in options.pattern for sign in "*?[")
    records = [zoo.find(options.pattern)] if exact else zoo.records(options.pattern)
    if exact:
        _show(records[0], options)
        return 0
    rows = [_row(record, options.num_classes) for record in records]
    if options.json:
        say(json.dumps(rows, indent=2, ensure_ascii=False))
    else:
        columns = ("name", "M params", "input", "modality", "source")
        cells = [
            (row["name"], f"{row['parameters'] / 1e6:.2f}", row["input"], row["modality"], row["source"])
            for row in rows
        ]
        made = table(f"{len(rows)} models ({options.num_classes} classes)", columns, cells)
        for column in made.columns[:-1]:
            column.no_wrap = True
        console.print(made)
    return 0


def _row(record: ModelRecord, num_classes: int) -> dict[str, Any]:
    from two_stream.profiling import meta_model, parameter_count

    model = meta_model(record.options, num_classes)
    return {
        "name": record.alias or record.name,
        "full_name": record.name,
        "parameters": parameter_count(model),
        "input": _input(model.spec),
        "modality": record.options.modality,
        "summary": record.summary,
        "source": record.source,
    }


def _input(spec: InputSpec) -> str:
    return f"{spec.clip_length}×{spec.crop}²"


def _show(record: ModelRecord, options: Options) -> None:
    from two_stream.profiling import CONVENTION, meta_model, parameter_count, stage_costs

    model = meta_model(record.options, options.num_classes)
    costs = stage_costs(model)
    whole = sum(cost.multiply_adds for cost in costs)
    if options.json:
        found = {
            **_row(record, options.num_classes),
            "paper": record.paper,
            "multiply_adds": whole,
            "multiply_adds_convention": CONVENTION,
            "input_spec": asdict(model.spec),
            "options": record.options.model_dump(mode="json"),
            "stages": [asdict(cost) for cost in costs],
        }
        say(json.dumps(found, indent=2, ensure_ascii=False))
        return
    say(f"{record.alias or record.name}: {record.summary}")
    say(f"  also       {record.name}" if record.alias else f"  source     {record.source}")
    say(f"  paper      {record.paper}")
    say(f"  input      {_describe(model)}")
    say(
        f"  cost       {parameter_count(model) / 1e6:.2f} M parameters with {options.num_classes} classes, "
        f"{whole / 1e9:.2f} G multiply-adds a clip"
    )
    say(f"  counting   {CONVENTION}")
    console.print(stage_table("", costs))


def stage_table(title: str, costs: list[StageCost]) -> Any:
    """Return a table of stages; a column of times where they were measured."""
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
    return table(title, columns, rows)


def _describe(model: Recognizer) -> str:
    spec = model.spec
    low, high = spec.value_range
    return (
        f"{spec.modality}, {spec.clip_length} frames with stride {spec.stride}, {spec.crop}² cut from "
        f"{spec.resize[0]}×{spec.resize[1]}, values {low:g}..{high:g}, mean {spec.mean}, std {spec.std}"
    )
