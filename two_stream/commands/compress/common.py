"""From a trained run and flags to the settings of the run that is made from it."""

from __future__ import annotations

import shlex
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import tyro
from pydantic import BaseModel, Field, create_model

from two_stream.commands.flags import parse, parse_over, take_value
from two_stream.config.compress import NoCompression
from two_stream.config.load import load_experiment, nearest
from two_stream.config.optimization import Logistic, Sgd
from two_stream.config.schema import Experiment
from two_stream.errors import SettingsError

if TYPE_CHECKING:
    from two_stream.types import Part

_PARTS = ("test", "val")
_GIVEN = ("kind", "source", "teachers", "by_layer")
"""of a `compress` section: what the command line says in another way"""
PART = (Literal["test", "val"], Field("test", description="what both runs are scored on"))
RESUME = (tyro.conf.FlagCreatePairsOff[bool], Field(False, description="go on with an interrupted run"))
OVERWRITE = (
    tyro.conf.FlagCreatePairsOff[bool],
    Field(False, description="start over in an existing run folder"),
)
_FINE = 0.1
"""Of the source's learning rate: what is trained on starts close to where it ends."""
_SHARE = 3
"""Of the source's epochs: one in so many."""


def source_experiment(run: Path) -> Experiment:
    """Return the settings of the run to compress.

    Raises:
        CheckpointError: It is no run folder.
    """
    from two_stream.evaluation.runs.lookup import run_paths

    return load_experiment(run_paths(run).experiment)


def trained_on(source: Experiment, run: Path, name: str) -> Experiment:
    """Return the settings of a run that trains a finished one's network on: gently, and for a third of its epochs.

    Args:
        source: The finished run's settings.
        run: Its folder, which the new run's stands beside.
        name: Of the new run.
    """
    rule = source.train.optimizer
    if isinstance(rule, Logistic):
        rule = Sgd()
    train = source.train.model_copy(
        update={
            "epochs": max(1, source.train.epochs // _SHARE),
            "optimizer": rule.model_copy(update={"lr": rule.lr * _FINE}),
            "init": run,
            "init_part": "all",
            "freeze_until": None,
            **dict.fromkeys(("cross_modality", "inflate", "new_classifier", "init_averaged"), False),
        }
    )
    data = source.data.model_copy(update={"features": None})
    return source.model_copy(update={"name": name, "runs": run.parent, "train": train, "data": data})


def train_and_report(
    experiment: Experiment, source: Path, part: Part, again: list[str], *, resume: bool, overwrite: bool
) -> int:
    """Train the run, score it and its source, and write and show the report; return the exit code.

    Args:
        experiment: Settings of the run.
        source: The run it is made from.
        part: What both are scored on.
        again: The command's words, to say how an interrupted run goes on.
        resume: Go on with an interrupted run.
        overwrite: Start over in an existing folder.
    """
    from two_stream.runtime import distributed
    from two_stream.runtime.console import note
    from two_stream.training.train import train

    result = train(experiment, resume=resume, overwrite=overwrite)
    if result.interrupted is not None:
        words = [word for word in again if word not in ("--resume", "--overwrite")]
        note(f"saved after epoch {result.epochs}; continue with: {shlex.join([*words, '--resume'])}")
        return 128 + result.interrupted
    if not distributed.is_main():
        return 0
    report(source, result.run.root, part)
    return 0


def report(source: Path, made: Path, part: Part) -> None:
    """Score a run and its source, and write and show the report."""
    from two_stream.compression.layers import layer_changes
    from two_stream.compression.report import show_compression, write_compression
    from two_stream.evaluation.runs.run import load_run

    before, model = load_run(source).model, load_run(made).model
    layers = layer_changes(before, model) if before.options == model.options else []
    device = "cpu" if model.cpu_only else None  # both are measured where both run
    show_compression(write_compression(source, made, part=part, device=device, layers=layers), made)


def take_part(args: list[str], prog: str) -> tuple[Part, list[str]]:
    """Remove `--part` from the arguments and return its value.

    Raises:
        SettingsError: It is neither test nor val.
    """
    part, args = take_value(args, "--part", prog)
    if part not in (None, *_PARTS):
        raise SettingsError(f"{prog}: --part is {part}: expected {' or '.join(_PARTS)}")
    return cast("Part", part or "test"), args


def derived(
    default: Experiment,
    section: BaseModel,
    args: list[str],
    prog: str,
    description: str,
    own: dict[str, tuple[Any, Any]],
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
        own: The command's other flags for `--help`: type and field by name.

    Raises:
        SettingsError: An unknown flag, or values that contradict each other.
    """
    if "-h" in args or "--help" in args:
        _show_own_flags(section, prog, description, own)
        default, args = default.model_copy(update={"compress": NoCompression()}), ["--help"]
        return parse_over(
            default, args, prog, "And every setting of the run that is made, as for `two-stream train`."
        )
    known = [name.replace("_", "-") for name in (*type(section).model_fields, *own, *Experiment.model_fields)]
    for arg in args:
        name = arg.partition("=")[0].removeprefix("--").replace("_", "-")
        if arg.startswith("--") and "." not in name and name.removeprefix("no-") not in known:
            raise SettingsError(
                f"{prog}: unknown flag --{name}{nearest(f'--{name}', [f'--{one}' for one in known])}"
            )
    whole = default.model_copy(update={"compress": section})
    return parse_over(whole, [_full(arg, section) for arg in args], prog, description)


def _show_own_flags(section: BaseModel, prog: str, description: str, own: dict[str, tuple[Any, Any]]) -> None:
    """Print the flags that are the method's own, under their bare names."""
    kind = type(section)
    shown: dict[str, Any] = dict(own)
    for name in _GIVEN:
        if name in kind.model_fields:
            annotation: Any = kind.model_fields[name].annotation
            shown[name] = (Annotated[annotation, tyro.conf.Suppress], getattr(section, name))
    flags = create_model("Flags", __base__=kind, **shown)
    with suppress(SystemExit):
        parse(flags, ["--help"], prog, description)


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
