"""From a trained run and flags to the settings of the run that is made from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel

from two_stream.commands.common import parse_over
from two_stream.config.load import load_experiment
from two_stream.config.schema import Experiment
from two_stream.errors import CheckpointError


def source_experiment(run: Path) -> Experiment:
    """Return the settings of the run to compress.

    Raises:
        CheckpointError: It is no run folder.
    """
    settings = run / "experiment.yaml"
    if not settings.is_file():
        raise CheckpointError(
            f"{run}: not a run folder: it has no experiment.yaml (`two-stream train` writes one)"
        )
    return load_experiment(settings)


def derived(
    default: Experiment, section: BaseModel, args: list[str], prog: str, description: str
) -> Experiment:
    """Parse flags over the settings of the run to be made.

    Every setting is a flag, as for `two-stream train`; those of the `compress` section also go by their bare name
    (`--amount 0.5` is `--compress.amount 0.5`).

    Args:
        default: Settings of the run to be made, its `compress` section left out.
        section: Its `compress` section.
        args: The flags.
        prog: Command for messages.
        description: For `--help`.

    Raises:
        SettingsError: An unknown flag, or values that contradict each other.
    """
    whole = default.model_copy(update={"compress": section})
    return parse_over(whole, [_full(arg, section) for arg in args], prog, description)


def _full(arg: str, section: BaseModel) -> str:
    name, equals, value = arg.partition("=")
    bare = name[2:].replace("-", "_")
    if not name.startswith("--") or bare in Experiment.model_fields:
        return arg
    negated = bare.removeprefix("no_")
    fields: dict[str, Any] = type(section).model_fields
    if bare in fields:
        return f"--compress.{name[2:]}{equals}{value}"
    if negated in fields:
        return f"--compress.no-{negated.replace('_', '-')}{equals}{value}"
    return arg
