"""`two-stream profile`: measured cost of a named model or of a run."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from two_stream.commands.common import parse
from two_stream.errors import SettingsError
from two_stream.runtime.console import console, note, say

if TYPE_CHECKING:
    from two_stream.recognizer import Recognizer

SUMMARY = "parameters, multiply-adds, speed and memory of a model"


@dataclass(frozen=True)
class Options:
    """What to measure, and where."""

    model: tyro.conf.Positional[str]
    """name of a model (see `two-stream models`) or a run folder"""
    batch_size: int = 1
    """clips per forward pass"""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """autocast type of the forward pass"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps"""
    num_classes: int = 400
    """classes of a named model"""
    seconds: float = 5.0
    """how long to measure"""
    channels_last: bool = False
    """lay weights and clips out channel by channel (channels_last_3d)"""
    json: bool = False
    """print JSON"""


def main(args: list[str]) -> int:
    """Measure and print."""
    options = parse(Options, args, prog="two-stream profile", description=SUMMARY)
    if options.batch_size < 1 or options.seconds <= 0:
        raise SettingsError("two-stream profile: --batch-size must be 1 or more, and --seconds more than 0")
    from two_stream.commands.models import stage_table
    from two_stream.profiling import CONVENTION, StageCost, measure, parameter_count, stage_costs
    from two_stream.runtime.device import pick_device

    device = pick_device(options.device)
    model = _model(options)
    if options.channels_last:
        model.channels_last()
    note(f"measuring {options.model} on {device} for about {options.seconds * 1.5:.0f} s")
    costs = stage_costs(model)
    speed = measure(
        model,
        batch_size=options.batch_size,
        device=device,
        precision=options.precision,
        seconds=options.seconds,
    )
    for cost in costs:
        cost.milliseconds = speed.stages.get(cost.name)
    whole = sum(cost.multiply_adds for cost in costs)
    if options.json:
        found = {
            "model": options.model,
            "parameters": parameter_count(model),
            "multiply_adds": whole,
            "multiply_adds_convention": CONVENTION,
            "channels_last": options.channels_last,
            "speed": speed.as_dict(),
            "stages": [asdict(cost) for cost in costs],
        }
        say(json.dumps(found, indent=2, ensure_ascii=False))
        return 0
    costs.append(StageCost("other", (), 0, 0, speed.stages["other"]))
    say(
        f"{options.model}: {parameter_count(model) / 1e6:.2f} M parameters, {whole / 1e9:.2f} G multiply-adds a clip"
    )
    say(f"  {CONVENTION}")
    say(
        f"  {speed.device}, {speed.precision}, batch {speed.batch_size}: {speed.milliseconds:.1f} ms (median of "
        f"{speed.passes}), {speed.clips_per_second:.2f} clips/s, "
        f"{whole * speed.clips_per_second / 1e9:.0f} G multiply-adds/s, peak memory {speed.peak_memory / 2**30:.2f} GiB"
    )
    console.print(stage_table("", costs))
    return 0


def _model(options: Options) -> Recognizer:
    """A run folder if there is one of that name, else a named model with fresh weights."""
    path = Path(options.model)
    if path.is_dir():
        from two_stream.pretrained import read_model

        return read_model(path)[0]
    from two_stream.recognizer import create_model

    return create_model(options.model, options.num_classes)
