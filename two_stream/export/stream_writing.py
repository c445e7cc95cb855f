"""Writing a streaming network: one step of it, with everything it keeps as inputs and outputs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, cast

import torch
from torch import nn

from two_stream.errors import ExportError
from two_stream.evaluation.runs.run import AnyRun
from two_stream.export.card import ExportCard, StateFacts, StreamFacts, Target, Verified
from two_stream.export.clips import noise_clips
from two_stream.export.formats import SUFFIXES
from two_stream.export.graph import EXAMPLE_BATCH, Exportable, Session, free_shape
from two_stream.export.verifying import compare_steps
from two_stream.export.writing import card_of, check_name, checked_format, type_name, written
from two_stream.recognizer import Recognizer

STEPS = 6
"""that are compared after those which warm up"""
_STREAMS = (1, 3)
"""side by side; the example has `EXAMPLE_BATCH`"""


class StepModule(Protocol):
    """A step network: `forward(frames, *states) -> (logits, *states)`."""

    frames_per_step: int
    warm_up: int

    def initial_states(self, batch: int, height: int, width: int) -> list[torch.Tensor]:
        """Return what the first step gets."""

    def state_names(self) -> list[str]:
        """Return a name for each state."""


@dataclass(frozen=True)
class Timing:
    """What a step network does not know of itself; see `StreamFacts`."""

    delay: int
    receptive_field: int | None


def export_stream(
    run: AnyRun[Recognizer], step: nn.Module, timing: Timing, to: Target = "onnx", out: Path | None = None
) -> tuple[Path, ExportCard]:
    """Write the step network of a run's stream, its states as inputs and outputs; see `export_run`.

    It is compared with the module over steps in a row, each with its own states.

    Args:
        run: The run that the step network was made of.
        step: A `StepModule` in evaluation mode, on the CPU in fp32 (`plain_copy`).
        timing: Its delay and receptive field.
        to: The format.
        out: The file; default: `RUN/stream` with the format's ending.

    Raises:
        ExportError: As for `export_run`; or a state does not begin with one value everywhere.
        SettingsError: As for `export_run`.
    """
    form = checked_format(to)
    path = out or run.paths.root / f"stream{SUFFIXES[to]}"
    check_name(path, to)
    spec, module = run.model.spec, cast(StepModule, step)
    names = module.state_names()
    begun = {batch: module.initial_states(batch, *spec.size) for batch in (*_STREAMS, EXAMPLE_BATCH)}
    axes = tuple(batch_axis(one, two) for one, two in zip(begun[1], begun[EXAMPLE_BATCH], strict=True))
    steps = module.warm_up + STEPS
    clip = noise_clips(replace(spec, clip_length=module.frames_per_step * steps), max(_STREAMS))
    frames = torch.split(clip, module.frames_per_step, dim=2)
    exportable = Exportable(
        step,
        (frames[0][:EXAMPLE_BATCH].contiguous(), *begun[EXAMPLE_BATCH]),
        ("frames", *names),
        ("logits", *(f"next_{name}" for name in names)),
        axes,
    )
    states = zip(names, begun[EXAMPLE_BATCH], axes, strict=True)
    facts = StreamFacts(
        frames_per_step=module.frames_per_step,
        warm_up=module.warm_up,
        delay=timing.delay,
        receptive_field=timing.receptive_field,
        states=tuple(_state(name, value, axis) for name, value, axis in states),
    )
    card = card_of(run, to, exportable).model_copy(update={"kind": "stream", "stream": facts})

    def check(session: Session, made_of: Exportable) -> Verified:
        what = (
            f"{STEPS} steps after {module.warm_up} of warming up, of noise, for 1 and 3 streams side by side"
        )
        found = []
        for batch in _STREAMS:
            mine = [part[:batch].contiguous() for part in frames]
            compared = compare_steps(session, made_of, mine, tuple(begun[batch]), module.warm_up)
            found.append(compared.verified(what))
        return max(found, key=lambda one: one.relative)

    return path, written(form, exportable, card, (path, check))


def batch_axis(one: torch.Tensor, several: torch.Tensor) -> int | None:
    """Return the dimension that grows with the number of streams; None for a state that they share."""
    grown = [place for place, (a, b) in enumerate(zip(one.shape, several.shape, strict=True)) if a != b]
    return grown[0] if grown else None


def _state(name: str, value: torch.Tensor, axis: int | None) -> StateFacts:
    first = value.flatten()[0]
    if not bool((value == first).all()):
        raise ExportError(f"state {name!r} of the stream does not begin with one value everywhere")
    return StateFacts(name=name, shape=free_shape(value, axis), dtype=type_name(value), initial=float(first))
