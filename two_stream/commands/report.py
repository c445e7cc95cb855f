"""`two-stream report RUN|SCORES …`: one self-contained page of what runs and scores show."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from two_stream.commands.flags import parse

SUMMARY = "Write report.html (self-contained), report.json and report.md from runs or score files."


@dataclass(frozen=True)
class ReportFlags:
    """What is reported, and where."""

    sources: tyro.conf.Positional[tuple[Path, ...]]
    """run folders (their newest test scores) or score files; two or more streams are also fused"""
    out: Path | None = None
    """page to write; none: `report.html` in the run folder, or here with several streams"""
    title: str | None = None
    """headline; none: made from the data set and the streams"""
    rule: Literal["l2", "logits", "probabilities", "rank", "learned"] = "l2"
    """fusion rule; learned: weights fitted on the holdout scores of the runs"""
    mistakes: int = 8
    """how many of the most confident mistakes are shown"""


def main(args: list[str]) -> int:
    """Run the command and return its exit code."""
    flags = parse(ReportFlags, args, "two-stream report", SUMMARY)
    from two_stream.evaluation.report.run_report import write_report
    from two_stream.runtime.console import say

    written = write_report(
        flags.sources, flags.out, title=flags.title, rule=flags.rule, mistakes=flags.mistakes
    )
    for path in written:
        say(str(path))
    return 0
