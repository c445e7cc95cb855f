"""`two-stream board FOLDER`: writes a page that lists all runs, studies and fusions below a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from two_stream.commands.flags import parse
from two_stream.runtime.console import say, warn

SUMMARY = (
    "Write a page that lists all runs, studies and fusions below a folder, with accuracies and intervals, learning "
    "curves, and the settings of selected runs side by side. The runs can be filtered and sorted."
)
EXAMPLES = ("board demo/runs", "board demo/runs --out board.html --with-pictures")


@dataclass(frozen=True)
class _BoardFlags:
    folder: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="[FOLDER]")]] = Path("runs")
    """folder with runs, searched recursively"""
    out: Path | None = None
    """page to write (.html); if omitted, board.html in the folder"""
    with_pictures: bool = False
    """show frames of a test video of each run; without this flag, the page contains no picture of a video"""


def main(args: list[str]) -> int:
    """Run the command and return its exit code: 1 if files are damaged."""
    flags = parse(_BoardFlags, args, "two-stream board", SUMMARY, EXAMPLES)
    from two_stream.studies.report.board import write_board

    out = flags.out or flags.folder / "board.html"
    problems = write_board(flags.folder, out, pictures=flags.with_pictures)
    for line in problems:
        warn(line)
    say(f"open {out}")
    return 1 if problems else 0
