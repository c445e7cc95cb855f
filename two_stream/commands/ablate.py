"""`two-stream ablate STUDY.yaml`: run the cells of a study that are missing, and write its report."""

from __future__ import annotations

import shlex
import signal
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from two_stream.commands.flags import parse, split_positional
from two_stream.errors import SettingsError

if TYPE_CHECKING:
    from two_stream.config.study import Study
    from two_stream.studies.running.ablation import Ran

SUMMARY = "Run what is missing of a study, and say with statistics what it shows."
PROG = "two-stream ablate STUDY.yaml"
DESCRIPTION = (
    f"{SUMMARY} Every cell (a variant on a split with a seed) is an ordinary run; what is done already stays, an "
    "interrupted or killed study goes on where it was, and failed cells are listed and tried again next time."
)


@dataclass(frozen=True)
class Flags:
    """Where a study runs, and what of it."""

    jobs: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """cells at once, per GPU where there are several; none: one per GPU, on a CPU as the threads of the settings fit"""
    devices: tuple[str, ...] = ()
    """GPUs to spread the cells over (cuda:0 cuda:1 …); none: what the settings say"""
    ray: str | None = None
    """run the cells on a Ray cluster: HOST:PORT, auto, or local; every machine must see the folders"""
    seeds: tuple[int, ...] = ()
    """other seeds than the study's"""
    splits: tuple[int, ...] = ()
    """other splits than the study's"""
    out: Path | None = None
    """folder under which the study's folder lies; none: the study's own"""
    dry_run: bool = False
    """list the cells and what is done of them; run nothing"""
    report_only: bool = False
    """write the report of what is done so far; run nothing"""
    any_code: bool = False
    """take cells that were made by another version of the code instead of running them again"""
    cost: bool = True
    """measure parameters, multiply-adds, latency and memory where the study asks for it"""


def main(args: list[str]) -> int:
    """Run the command; 0 when every cell is done, 1 when some failed, 130 after Ctrl-C, 143 after SIGTERM."""
    name, rest = split_positional(
        args, "two-stream ablate", "the study file", "settings/studies/demo_heads.yaml"
    )
    flags = parse(Flags, rest, PROG, DESCRIPTION)
    assert name is not None  # without it only --help gets here, and that has exited
    study = _study(name, flags)
    command = shlex.join(["two-stream", "ablate", *(arg for arg in args if arg != "--report-only")])
    if flags.dry_run:
        return _list(study, name, flags)
    from two_stream.runtime.console import note
    from two_stream.runtime.interrupt import heard
    from two_stream.studies.running.ablation import StudyWorkers, read_progress, run_study

    if flags.report_only:
        ran = read_progress(study, source=name, any_code=flags.any_code)
    else:
        places = StudyWorkers(flags.jobs, flags.devices, flags.ray)
        before = {number: signal.signal(number, _interrupt) for number in heard() if number != signal.SIGINT}
        try:
            ran = run_study(study, places, source=name, any_code=flags.any_code)
        except KeyboardInterrupt as stop:
            note(f"stopped; what ran is saved, go on with: {command}")
            return 128 + (stop.args[0] if stop.args else signal.SIGINT)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    _report(ran, Path(name), command)
    return 1 if ran.failed else 0


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Let SIGTERM and SIGHUP end the study as Ctrl-C does: its workers save what they train."""
    del frame
    raise KeyboardInterrupt(number)


def _report(ran: Ran, source: Path, command: str) -> None:
    """Print what the study shows and write its report beside its runs."""
    from two_stream.runtime.console import say, warn
    from two_stream.studies.report.study_report import write_study_report
    from two_stream.studies.report.terminal import print_study
    from two_stream.studies.result import failures, summarize_study
    from two_stream.studies.running.plan import folder_of

    for line in failures(ran):
        warn(line)
    result = summarize_study(ran, source=source, command=command)
    files = write_study_report(result, folder_of(ran.study) / "report.html")
    print_study(result)
    say(f"report: {files[0]} (beside it {', '.join(path.name for path in files[1:])})")


def _study(name: str, flags: Flags) -> Study:
    """Return the study with the flags over it."""
    from two_stream.config.load import validate_settings
    from two_stream.config.study import Study
    from two_stream.studies.running.plan import load_study

    if flags.jobs is not None and flags.jobs < 1:
        raise SettingsError(f"--jobs is {flags.jobs}: expected 1 or more")
    if flags.ray is not None and flags.devices:
        raise SettingsError(
            "--ray and --devices contradict each other: a cluster deals out its GPUs by itself"
        )
    study = load_study(name)
    given: dict[str, Any] = {}
    if flags.seeds:
        given["seeds"] = list(flags.seeds)
    if flags.splits:
        given["splits"] = list(flags.splits)
    if flags.out is not None:
        given["out"] = flags.out
    if not flags.cost:
        given["measure_cost"] = False
    return validate_settings(Study, {**study.model_dump(), **given}, name) if given else study


def _list(study: Study, name: str, flags: Flags) -> int:
    from two_stream.runtime.console import console, say, table
    from two_stream.studies.running.ablation import prepare_data, read_progress

    prepare_data(study, name)
    ran = read_progress(study, source=name, any_code=flags.any_code)
    rows = []
    for cell, outcome in zip(ran.cells, ran.outcomes, strict=True):
        state = "missing" if outcome is None else outcome.state
        shown = "" if outcome is None or outcome.accuracy is None else f"{100 * outcome.accuracy:.1f} %"
        rows.append([cell.variant, cell.split, cell.seed, cell.key[:8], state, shown])
    console.print(table(study.name, ("variant", "split", "seed", "key", "state", "accuracy"), rows))
    say(f"{len(rows) - ran.failed} of {len(rows)} cells are done")
    return 0
