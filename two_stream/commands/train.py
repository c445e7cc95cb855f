"""`two-stream train FILE.yaml`: train one stream of one split."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from two_stream.commands.common import parse_over, split_positional, take_flag
from two_stream.config.load import load_experiment
from two_stream.config.schema import Experiment

if TYPE_CHECKING:
    from two_stream.training.trainer import TrainResult

SUMMARY = "Train one stream on one split."
PROG = "two-stream train FILE.yaml"
DESCRIPTION = (
    f"{SUMMARY} Every setting of the file can be changed by a flag; its values are shown below. "
    "--resume: continue an interrupted run, bit for bit. --overwrite: start over in an existing run folder."
)


def main(args: list[str]) -> int:
    """Run the command and return its exit code: 0 done, 130 after Ctrl-C, 143 after SIGTERM."""
    given = list(args)
    resume, args = take_flag(args, "--resume")
    overwrite, args = take_flag(args, "--overwrite")
    name, rest = split_positional(
        args, "two-stream train", "the experiment file", "settings/experiments/small.yaml"
    )
    default = Experiment() if name is None else load_experiment(name)
    experiment = parse_over(default, rest, PROG, DESCRIPTION)
    return _train(experiment, given, resume=resume, overwrite=overwrite)


def _train(experiment: Experiment, given: list[str], *, resume: bool, overwrite: bool) -> int:
    from two_stream.runtime.console import note
    from two_stream.training.loop import train

    result = train(experiment, resume=resume, overwrite=overwrite)
    if result.interrupted is not None:
        again = [arg for arg in given if arg not in ("--resume", "--overwrite")]
        note(
            f"saved after epoch {result.epochs}; continue with: two-stream train {shlex.join([*again, '--resume'])}"
        )
        return 128 + result.interrupted
    _summary(result)
    return 0


def _summary(result: TrainResult) -> None:
    from two_stream.runtime.console import say

    if result.already_finished:
        say(f"{result.run.root}: the run is finished already; nothing to resume")
    label = "test-selected (published protocol)" if result.selection == "test-selected" else "holdout"
    say(
        f"best epoch {result.best_epoch} of {result.epochs}: validation top-1 {100 * result.best_top1:.1f} %, "
        f"loss {result.best_loss:.4f} (single centred clip, {label})"
    )
    say(f"next: two-stream evaluate {shlex.quote(str(result.run.root))}")
