"""`two-stream ablate STUDY.yaml`: runs the missing cells of a study and writes its report."""

from __future__ import annotations

import shlex
import signal
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from two_stream.commands.flags import DataRoots, found_settings, parse, split_positional
from two_stream.commands.output import print_table
from two_stream.config.study import Study
from two_stream.errors import SettingsError
from two_stream.runtime.console import note, say, warn
from two_stream.runtime.text import per_cent, plural

if TYPE_CHECKING:
    from two_stream.studies.running.ablation import Ran

SUMMARY = "Run the missing cells of a study, and write a report with statistics."
EXAMPLES = (
    "ablate demo_heads --dry-run",
    "ablate demo_heads --jobs 2",
)
PROG = "two-stream ablate STUDY.yaml"
DESCRIPTION = (
    f"{SUMMARY} Every cell (a variant on a split with a seed) is an ordinary run. The same command continues an "
    "interrupted study: finished cells are kept, and failed cells are run again."
)


@dataclass(frozen=True)
class _Flags:
    jobs: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """number of cells (training runs) that run at the same time on each device; if omitted, 1 (on a CPU, the number of
    processors divided by the setting `threads`, if it is set)"""
    devices: tuple[str, ...] = ()
    """GPUs to use (cuda:0 cuda:1 …); if omitted, the device in the settings"""
    ray: str | None = None
    """address of a Ray cluster to run the cells on: HOST:PORT, auto, or local (a cluster started on this machine); all
    machines must share the folders"""
    seeds: tuple[int, ...] = ()
    """seeds to run; if omitted, the seeds of the study"""
    splits: tuple[int, ...] = ()
    """splits to run; if omitted, the splits of the study"""
    out: Path | None = None
    """folder in which to create the study's folder; if omitted, the folder named in the study file"""
    data_root: DataRoots = ()
    """for the folder of a study: folder of a data set's dataset.yaml, or of a run or stored features that the study
    uses, if they have been moved elsewhere; repeat the flag for several folders"""
    dry_run: bool = False
    """list the cells and their states; run nothing"""
    report_only: bool = False
    """write the report of the finished cells; run nothing"""
    any_code: bool = False
    """keep cells that were run with other versions of the code, instead of running them again"""
    cost: bool = True
    """measure parameters, multiply-adds, latency and memory if the study sets `measure_cost`"""


def main(args: list[str]) -> int:
    """Run the command; return 0 if all cells are done, 1 if some failed, 130 after Ctrl-C, 143 after SIGTERM."""
    example = "settings/studies/demo_heads.yaml"
    name, rest = split_positional(args, "two-stream ablate", "the study file", example)
    flags = parse(
        _Flags,
        rest,
        PROG,
        DESCRIPTION,
        EXAMPLES,
        [
            (
                "STUDY.yaml",
                "study file, a name that `two-stream settings` lists, or the folder of a study to continue it",
            )
        ],
    )
    name = str(_study_file(name))
    study = _study(name, flags)
    command = shlex.join(["two-stream", "ablate", *(arg for arg in args if arg != "--report-only")])
    if flags.dry_run:
        return _list(study, name, flags)
    from two_stream.runtime.distributed import stop_signals
    from two_stream.studies.running.ablation import StudyWorkers, read_progress, run_study

    if flags.report_only:
        ran = read_progress(study, source=name, any_code=flags.any_code)
    else:
        places = StudyWorkers(flags.jobs, flags.devices, flags.ray)
        before = {
            number: signal.signal(number, _interrupt) for number in stop_signals() if number != signal.SIGINT
        }
        try:
            ran = run_study(study, places, source=name, any_code=flags.any_code)
            if study.xray:
                from two_stream.studies.xray import score_cells

                score_cells(ran)
        except KeyboardInterrupt as stop:
            note(f"the study is stopped and saved; continue with: {command}")
            return 128 + (stop.args[0] if stop.args else signal.SIGINT)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    _report(ran, Path(name), command)
    return 1 if ran.failed else 0


def _study_file(name: str) -> Path:
    """Return the path of a study's settings from a path, a name, or the folder of a study."""
    if not Path(name).is_dir():
        return found_settings(name, "studies")
    file = Path(name) / "study.yaml"
    if not file.is_file():
        raise SettingsError(
            f"{name}: the folder contains no study.yaml; expected the folder of a study, or a study file"
        )
    return file


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Handle SIGTERM and SIGHUP like Ctrl-C: the workers save their checkpoints."""
    del frame
    raise KeyboardInterrupt(number)


def _report(ran: Ran, source: Path, command: str) -> None:
    """Print the results of the study and write its report to its folder."""
    from two_stream.studies.report.study_report import write_study_report
    from two_stream.studies.report.tables import print_study
    from two_stream.studies.result import failures, summarize_study
    from two_stream.studies.running.plan import folder_of

    for line in failures(ran):
        warn(line)
    result = summarize_study(ran, source=source, command=command)
    if ran.study.xray:
        from two_stream.studies.xray import add_xray

        result = add_xray(ran, result)
    files = write_study_report(result, folder_of(ran.study) / "report.html")
    print_study(result)
    say(f"open {files[0]} (also {', '.join(path.name for path in files[1:])})")


def _study(name: str, flags: _Flags) -> Study:
    """Return the study with the flags applied to it."""
    from two_stream.studies.running.plan import load_study

    if flags.jobs is not None and flags.jobs < 1:
        raise SettingsError(f"--jobs is {flags.jobs}: expected 1 or more")
    if flags.ray is not None and flags.devices:
        raise SettingsError(
            "--ray and --devices cannot be combined, because Ray assigns the GPUs; omit one of them"
        )
    given: dict[str, Any] = {}
    if flags.seeds:
        given["seeds"] = list(flags.seeds)
    if flags.splits:
        given["splits"] = list(flags.splits)
    if flags.out is not None:
        given["out"] = flags.out
    if not flags.cost:
        given["measure_cost"] = False
    return load_study(name, given, flags.data_root)


def _list(study: Study, name: str, flags: _Flags) -> int:
    from two_stream.studies.running.ablation import prepare_data, read_progress

    prepare_data(study, name)
    ran = read_progress(study, source=name, any_code=flags.any_code)
    rows = []
    for cell, outcome in zip(ran.cells, ran.outcomes, strict=True):
        state = "missing" if outcome is None else outcome.state
        shown = "" if outcome is None or outcome.accuracy is None else per_cent(outcome.accuracy)
        rows.append([cell.variant, cell.split, cell.seed, cell.key[:8], state, shown])
    print_table(study.name, ("variant", "split", "seed", "key", "state", "accuracy"), rows)
    say(f"{len(rows) - ran.failed} of {plural(len(rows), 'cell', 'is', 'are')} done")
    return 0
