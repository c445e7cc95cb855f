"""`two-stream leaderboard RUNS/`: ranks all score files below a folder."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from two_stream.commands.flags import ScoreFlags, parse
from two_stream.commands.output import print_json, print_table
from two_stream.errors import SettingsError
from two_stream.runtime.console import say, warn
from two_stream.runtime.files import keep_inputs, write_text
from two_stream.runtime.text import csv_text

if TYPE_CHECKING:
    from two_stream.studies.leaderboard import Leaderboard

SUMMARY = (
    "Rank all score files below a folder, with one table per data set, split and protocol. The sign ≈ marks variants "
    "that are not significantly different from the best variant with three or more training runs."
)
EXAMPLES = ("leaderboard demo/runs", "leaderboard demo/runs --out leaderboard.md")


@dataclass(frozen=True)
class _LeaderboardFlags(ScoreFlags):
    runs: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="[FOLDER]")]] = Path("runs")
    """folder with runs, searched recursively"""
    part: Literal["test", "val"] = "test"
    """part of the data set whose scores are ranked"""
    level: float = 0.95
    """confidence level of the intervals; tests use the significance level 1 - LEVEL"""
    json: bool = False
    """print JSON instead of tables"""
    out: Path | None = None
    """table to write: .csv or .md"""


def main(args: list[str]) -> int:
    """Run the command and return its exit code: 1 if score files are damaged."""
    flags = parse(_LeaderboardFlags, args, "two-stream leaderboard", SUMMARY, EXAMPLES)
    from two_stream.studies import leaderboard

    if flags.out is not None and flags.out.suffix.lower() not in (".csv", ".md"):
        raise SettingsError(f"--out is {flags.out}: expected a file name that ends in .csv or .md")
    if not 0.5 <= flags.level < 1:
        raise SettingsError(f"--level is {flags.level}: expected a number from 0.5 to below 1, such as 0.95")
    if flags.out is not None and flags.out.exists():
        from two_stream.evaluation.scores.formats import is_score_file

        keep_inputs([flags.out], [flags.out] if is_score_file(flags.out) else [])
    found = leaderboard.leaderboard(flags.runs, flags.part, flags.level, flags.described())
    if flags.json:
        print_json(asdict(found))
    else:
        for board in found.boards:
            say(board.title)
            print_table(
                f"{board.metric} in %",
                leaderboard.COLUMNS,
                leaderboard.rows(board),
                spare=("modality", "runs", "model", "date"),
                constant=("modality", "model", "runs", "date"),
            )
        if any(standing.level_with_best for board in found.boards for standing in board.standings):
            say(
                "≈N: not significantly different from the variant in place N, the best one with three or more training "
                "runs (paired test, corrected over all pairs)"
            )
    for line in found.damaged:
        warn(line)
    if flags.out is not None:
        _write(flags.out, found)
        if not flags.json:
            say(str(flags.out))
    return 1 if found.damaged else 0


def _write(path: Path, found: Leaderboard) -> None:
    """Write all tables as one CSV table, or as Markdown tables."""
    from two_stream.evaluation.report.page import markdown_cell
    from two_stream.studies import leaderboard

    if path.suffix.lower() == ".csv":
        rows = ([board.title, *row] for board in found.boards for row in leaderboard.rows(board))
        write_text(path, csv_text(("board", *leaderboard.COLUMNS), rows))
        return
    lines = []
    for board in found.boards:
        lines += [f"## {board.title}", "", f"{board.metric} in %", ""]
        for cells in (leaderboard.COLUMNS, ["---"] * len(leaderboard.COLUMNS), *leaderboard.rows(board)):
            lines.append(f"| {' | '.join(map(markdown_cell, cells))} |")
        lines.append("")
    write_text(path, "\n".join(lines))
