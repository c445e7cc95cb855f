"""`two-stream report RUN|SCORES …`: writes an HTML report of runs or score files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from two_stream.commands.flags import DataRoots, JoinFlags, parse
from two_stream.runtime.console import say

SUMMARY = "Write a report of runs or score files: a self-contained HTML page, JSON and Markdown."
EXAMPLES = ("report demo/runs/rgb", "report demo/runs/rgb demo/runs/flow --out report.html")


@dataclass(frozen=True)
class _ReportFlags(JoinFlags):
    sources: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN|SCORES …")]]
    """score files, or run folders, whose newest test scores are used; several streams are also fused"""
    out: Path | None = None
    """page to write; if omitted, report.html in the run folder, or in the current folder for several streams"""
    title: str | None = None
    """title of the page; if omitted, the names of the data set and the streams"""
    rule: Literal["l2", "logits", "probabilities", "rank", "learned"] = "l2"
    """fusion rule (see `two-stream fuse --help`); learned: weights fitted on the holdout scores of the runs"""
    holdout: tuple[Path, ...] = ()
    """score files of the holdout part, in the order of the streams; not needed for run folders"""
    data_root: DataRoots = ()
    """folder of the data set's dataset.yaml, of stored features or of shards, if they are not found because data or
    runs have been moved; repeat the flag for several folders"""
    mistakes: int = 8
    """number of most confident mistakes to show"""
    saliency: bool = False
    """show where and when each mistake speaks for the predicted and for the true class; reads the videos of the
    mistakes"""


def main(args: list[str]) -> int:
    """Run the command and return its exit code."""
    flags = parse(_ReportFlags, args, "two-stream report", SUMMARY, EXAMPLES)
    from two_stream.evaluation.report.run_report import Reading, write_report

    reading = Reading(flags.holdout, flags.described(), flags.common, flags.data_root, flags.saliency)
    written = write_report(
        flags.sources, flags.out, title=flags.title, rule=flags.rule, mistakes=flags.mistakes, reading=reading
    )
    say(f"open {written[0]}")
    for path in written[1:]:
        say(str(path))
    return 0
