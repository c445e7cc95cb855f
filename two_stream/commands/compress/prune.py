"""`two-stream compress prune RUN`: take weights or channels out of a trained run and train on what is left."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from two_stream.commands.compress.common import (
    OVERWRITE,
    PART,
    RESUME,
    derived,
    source_experiment,
    take_part,
    train_and_report,
    trained_on,
)
from two_stream.commands.flags import split_positional, take_flag, take_value
from two_stream.config.compress import Prune
from two_stream.config.schema import Experiment
from two_stream.errors import SettingsError

PROG = "two-stream compress prune"
DESCRIPTION = (
    "Take weights or channels out of a trained run, train on what is left, and report both before and after. For "
    "example: --what channels --target-macs 0.5"
)
_LEVELS = (
    Path | None,
    Field(
        None,
        description="shares by layer: a .json of `two-stream compress sensitivity`, or a CSV with Name, Type and "
        "Sparsity",
    ),
)
_OWN = {"levels": _LEVELS, "part": PART, "resume": RESUME, "overwrite": OVERWRITE}


def main(args: list[str]) -> int:
    """Run the method and return its exit code.

    Raises:
        TwoStreamError: A flag is wrong, the run cannot be pruned so, or what training and scoring raise.
    """
    again = ["two-stream", "compress", "prune", *args]
    resume, args = take_flag(args, "--resume")
    overwrite, args = take_flag(args, "--overwrite")
    levels, args = take_value(args, "--levels", PROG)
    part, args = take_part(args, PROG)
    name, rest = split_positional(args, PROG, "the run folder", "demo/runs/rgb --amount 0.6")
    run = Path(name or "RUN")
    source = Experiment() if name is None else source_experiment(run)
    default = trained_on(source, run, f"{source.name}_pruned")
    experiment = derived(default, Prune(source=run), rest, f"{PROG} RUN", DESCRIPTION, _OWN)
    experiment = _checked(experiment, run, None if levels is None else Path(levels))
    return train_and_report(experiment, run, part, again, resume=resume, overwrite=overwrite)


def _checked(experiment: Experiment, run: Path, levels: Path | None) -> Experiment:
    """Return the settings with the shares of a file; refuse what cannot be pruned before anything is computed."""
    from two_stream.compression.channels import check_narrowable
    from two_stream.compression.layers import chosen_layers, layers_of, read_levels
    from two_stream.evaluation.runs.run import load_run

    options = experiment.compress
    if not isinstance(options, Prune):
        raise SettingsError(f"{PROG}: --compress.kind is {options.kind}: expected prune")
    model = load_run(run).model
    if any(not alteration.reshapes for alteration in model.alterations):
        raise SettingsError(f"{run}: an int8 run cannot be pruned; give the run it was made from")
    if levels is not None:
        found = read_levels(levels, list(layers_of(model)), options.what)
        options = Prune.model_validate({**options.model_dump(), "by_layer": found})
    if options.what == "channels":
        check_narrowable(model, options)
    chosen_layers(model, options)
    return Experiment.model_validate({**experiment.model_dump(), "compress": options.model_dump()})
