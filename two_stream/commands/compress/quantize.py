"""`two-stream compress quantize RUN`: a trained run in int8, calibrated on clips or trained for it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from two_stream.commands.compress.common import (
    OVERWRITE,
    PART,
    RESUME,
    derived,
    report,
    source_experiment,
    take_part,
    train_and_report,
    trained_on,
)
from two_stream.commands.flags import split_positional, take_flag
from two_stream.config.compress import Quantize
from two_stream.config.schema import Experiment
from two_stream.errors import SettingsError

if TYPE_CHECKING:
    from two_stream.types import Part

PROG = "two-stream compress quantize"
DESCRIPTION = (
    "Turn a trained run into one that computes in int8 on the CPU, and report both before and after. --method static "
    "(the default) measures ranges on clips of the training part; --method qat trains on with rounded values first. "
    "For example: --clips 128 --keep stem classifier"
)
_OWN = {"part": PART, "resume": RESUME, "overwrite": OVERWRITE}


def main(args: list[str]) -> int:
    """Run the method and return its exit code.

    Raises:
        TwoStreamError: A flag is wrong, the run cannot be quantised, or what training and scoring raise.
    """
    again = ["two-stream", "compress", "quantize", *args]
    resume, args = take_flag(args, "--resume")
    overwrite, args = take_flag(args, "--overwrite")
    part, args = take_part(args, PROG)
    name, rest = split_positional(args, PROG, "the run folder", "demo/runs/rgb --method static")
    run = Path(name or "RUN")
    source = Experiment() if name is None else source_experiment(run)
    default = trained_on(source, run, f"{source.name}_int8")
    experiment = derived(default, Quantize(source=run), rest, f"{PROG} RUN", DESCRIPTION, _OWN)
    options = experiment.compress
    if not isinstance(options, Quantize):
        raise SettingsError(f"{PROG}: --compress.kind is {options.kind}: expected quantize")
    if options.method == "qat":
        return train_and_report(experiment, run, part, again, resume=resume, overwrite=overwrite)
    if resume:
        raise SettingsError(f"{PROG}: --resume goes with --method qat; static quantisation takes seconds")
    return _static(experiment, run, part, overwrite=overwrite)


def _static(experiment: Experiment, run: Path, part: Part, *, overwrite: bool) -> int:
    from two_stream.compression.quantization import quantise_run
    from two_stream.runtime.device import set_threads

    set_threads(experiment.threads)
    report(run, quantise_run(experiment, overwrite=overwrite).root, part)
    return 0
