"""`two-stream leaderboard RUNS/`: every score file below a folder, ranked."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from two_stream.commands.flags import parse

if TYPE_CHECKING:
    from two_stream.studies.leaderboard import Leaderboard

SUMMARY = "Rank all score files below a folder, board by board; = marks what tests cannot tell from the best."


@dataclass(frozen=True)
class LeaderboardFlags:
    """What is ranked."""

    runs: tyro.conf.Positional[Path] = Path("runs")
    """folder with runs, searched with all folders below it"""
    part: Literal["test", "val"] = "test"
    """part whose scores are ranked"""
    level: float = 0.95
    """coverage of the intervals; 1 - level is the level of the tests"""
    json: bool = False
    """print everything as JSON instead of tables"""
    out: Path | None = None
    """file to write: .csv or .md"""


def main(args: list[str]) -> int:
    """Run the command and return its exit code: 1 when files are damaged."""
    flags = parse(LeaderboardFlags, args, "two-stream leaderboard", SUMMARY)
    from two_stream.errors import SettingsError
    from two_stream.runtime.console import console, say, table, warn
    from two_stream.studies import leaderboard

    if flags.out is not None and flags.out.suffix.lower() not in (".csv", ".md"):
        raise SettingsError(f"--out is {flags.out}: expected a name in .csv or .md")
    if not 0.5 <= flags.level < 1:
        raise SettingsError(f"--level is {flags.level}: expected a share from 0.5 to below 1, such as 0.95")
    found = leaderboard.leaderboard(flags.runs, flags.part, flags.level)
    if flags.json:
        console.print_json(data=asdict(found))
    else:
        for board in found.boards:
            say(board.title)
            console.print(table(f"{board.metric} in %", leaderboard.COLUMNS, leaderboard.rows(board)))
        if any(standing.level_with_best for board in found.boards for standing in board.standings):
            say(
                "= the paired test, corrected over all pairs, shows no difference from the best with three trainings"
            )
    for line in found.damaged:
        warn(line)
    if flags.out is not None:
        _write(flags.out, found)
        if not flags.json:
            say(str(flags.out))
    return 1 if found.damaged else 0


def _write(path: Path, found: Leaderboard) -> None:
    """Write all boards as one CSV table, or as Markdown tables."""
    from two_stream.runtime.files import write_text
    from two_stream.runtime.text import csv_text
    from two_stream.studies import leaderboard

    if path.suffix.lower() == ".csv":
        rows = ([board.title, *row] for board in found.boards for row in leaderboard.rows(board))
        write_text(path, csv_text(("board", *leaderboard.COLUMNS), rows))
        return
    lines = []
    for board in found.boards:
        lines += [f"## {board.title}", "", f"{board.metric} in %", ""]
        lines += [_cells(leaderboard.COLUMNS), _cells(["---"] * len(leaderboard.COLUMNS))]
        lines += [*map(_cells, leaderboard.rows(board)), ""]
    write_text(path, "\n".join(lines))


def _cells(cells: list[str] | tuple[str, ...]) -> str:
    from two_stream.evaluation.report.page import markdown_cell

    return "| " + " | ".join(markdown_cell(cell) for cell in cells) + " |"
