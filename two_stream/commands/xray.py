"""`two-stream xray RUN|EXPORT …`: scores runs under controlled changes of their clips, and says what they use."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from two_stream.commands.flags import DataRoots, parse
from two_stream.commands.networks import evaluation_options, load_network
from two_stream.commands.output import print_json
from two_stream.errors import SettingsError
from two_stream.runtime.console import note, say

if TYPE_CHECKING:
    from two_stream.evaluation.runs.run import AnyRun
    from two_stream.studies.statistics.results import StudyResult

SUMMARY = (
    "Score runs again with shuffled, reversed, repeated and otherwise changed frames, and test which changes matter: "
    "order, motion, background, a single frame, colour, speed."
)
EXAMPLES = (
    "xray demo/runs/rgb",
    "xray demo/runs/rgb demo/runs/flow --crops center --out xray.html",
)


@dataclass(frozen=True)
class _XrayFlags:
    runs: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN|EXPORT …")]] = ()
    """run folders, runs on the Hugging Face hub (hf://NAME/MODEL) or exported files; runs that differ only in seed or
    split form one network; an RGB and a flow network are also fused, with one of them on changed clips"""
    part: Literal["test", "val"] = "test"
    """part of the data set"""
    views: Literal["single", "multi", "uniform", "sliding", "twice"] | None = None
    """how clips are chosen from a video; if omitted, as in the run's settings"""
    num_clips: int | None = None
    """number of clips per video, for `--views uniform`"""
    crops: Literal["center", "three", "ten", "full"] | None = None
    """crops of each clip; if omitted, as in the run's settings"""
    batch_views: int | None = None
    """number of views per forward pass; if omitted, as in the run's settings"""
    precision: Literal["auto", "fp32", "bf16", "fp16"] | None = None
    """precision of the forward passes; if omitted, as in the run's settings"""
    rule: Literal["l2", "logits", "probabilities", "rank"] = "l2"
    """how an RGB and a flow network are fused"""
    checkpoint: Literal["best", "last"] = "best"
    """checkpoint of run folders: the selected epoch, or the last one"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps"""
    workers: int | None = None
    """number of loader processes; if omitted, as in the run's settings"""
    data_root: DataRoots = ()
    """folder of the data set's dataset.yaml if data or runs have been moved; repeat the flag for several folders"""
    trust: tuple[Path, ...] = ()
    """AOTInductor packages that may be loaded; they contain machine code, so name only packages that you trust"""
    level: float = 0.95
    """confidence level of the intervals; tests use the significance level 1 - LEVEL"""
    out: Path | None = None
    """page to write (.html); files with the same name and the endings .md, .csv, .json and .tex are also written. If
    omitted, `xray.html` in the folder of the first run"""
    json: bool = False
    """print JSON instead of tables"""


def main(args: list[str]) -> int:
    """Run the command and return its exit code."""
    flags = parse(_XrayFlags, args, "two-stream xray", SUMMARY, EXAMPLES)
    if not flags.runs:
        raise SettingsError("no run given; for example: two-stream xray demo/runs/rgb")
    if not 0.5 <= flags.level < 1:
        raise SettingsError(f"--level is {flags.level}: expected a number from 0.5 to below 1, such as 0.95")
    doubled = next((run for place, run in enumerate(flags.runs) if run in flags.runs[:place]), None)
    if doubled is not None:
        raise SettingsError(f"{doubled}: the same run is given twice; remove one of the two")
    from two_stream.evaluation.runs.lookup import find_run
    from two_stream.runtime.files import check_writable
    from two_stream.studies.report.study_report import study_files, write_study_report
    from two_stream.types import RunPaths

    first = find_run(flags.runs[0])
    out = flags.out or (RunPaths(first).own if first.is_dir() else first.parent) / "xray.html"
    for file in study_files(out):
        check_writable(file)
    runs = [
        load_network(path, flags.checkpoint, flags.device, flags.trust, flags.data_root)
        for path in flags.runs
    ]
    result = _result(flags, runs, shlex.join(["two-stream", "xray", *args]))
    if flags.json:
        print_json(asdict(result))
    else:
        from two_stream.studies.report.tables import print_study

        print_study(result)
    for place, path in enumerate(write_study_report(result, out)):
        (note if flags.json else say)(f"{path}" if place else f"open {path}")
    return 0


def _result(flags: _XrayFlags, runs: Sequence[AnyRun[Any]], command: str) -> StudyResult:
    from two_stream.evaluation.runs.xray import score_changes
    from two_stream.evaluation.scoring.changes import NATURAL
    from two_stream.studies.statistics.scored import group_variants, run_rows, runs_of_variants, with_run
    from two_stream.studies.statistics.summary import Question, study_result
    from two_stream.studies.statistics.xray import fused_networks, with_xray, xray_of

    keys = ("views", "num_clips", "crops", "batch_views", "precision")
    given = {key: getattr(flags, key) for key in keys if getattr(flags, key) is not None}
    options = [evaluation_options(run, given, "two-stream xray") for run in runs]
    found = score_changes(runs, options, flags.part, workers=flags.workers)
    scored = [with_run(changes[NATURAL]) for changes in found]
    changes_of = {id(item): changes for item, changes in zip(scored, found, strict=True)}
    groups = group_variants(scored)
    networks = {
        name: {
            change: {item.cell: changes_of[id(item)][change] for item in members}
            for change in changes_of[id(members[0])]
        }
        for name, members in groups.items()
    }
    streams = {name: members[0].table.meta["modality"] for name, members in groups.items()}
    fused = fused_networks(networks, streams, flags.rule)
    question = Question(
        name="xray",
        question=f"What {'does' if len(groups) == 1 else 'do'} {' and '.join(groups)} use?",
        level=flags.level,
        command=command,
    )
    result = study_result(question, runs_of_variants(groups), (), runs=run_rows(groups))
    return with_xray(result, xray_of({**networks, **fused}, flags.level))
