"""What the benchmark scripts share: flags, timing in turns, rows of the table, the JSON beside the script.

A script measures ours against a plainly written baseline in one process. The sides take turns, so that a change of the
machine's load meets both, and the figure is the ratio of the medians (or of the best turns, on a busy machine).

    from common import Row, finish, flags, interleaved, median_of

    def main(argv: list[str] | None = None) -> int:
        given = flags(__doc__, argv)
        times = interleaved({"plain": plain, "ours": ours}, rounds=given.rounds)
        base, mine = clips / median_of(times["plain"]), clips / median_of(times["ours"])
        row = Row("clips read per second", "the plain loader", base, mine, mine / base, 2.2, unit="clips/s")
        return finish("loading", [row], given)
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from two_stream.runtime.files import write_json
from two_stream.runtime.provenance import environment

RESULTS = Path(__file__).resolve().parent / "results"
COLUMNS = ("what", "against", "baseline", "ours", "ratio", "target", "reached")


@dataclass
class Row:
    """One line of the table."""

    name: str
    """what is measured"""
    against: str
    """the baseline, in a few words"""
    baseline: float | None
    """its figure, in `unit`"""
    ours: float | None
    """our figure, in `unit`"""
    ratio: float | None
    """the figure compared with the target; None when it could not be measured"""
    target: float | None = None
    """ratio (or value) aimed at; None: shown for information"""
    note: str = ""
    """what a reader must know: agreement found, settings, the limit"""
    unit: str = ""
    """of baseline and ours, for example clips/s, ms or MiB"""
    at_most: bool = False
    """the target is an upper bound (memory, seconds); else a lower one"""
    percent: bool = False
    """ratio and target are shares, shown in percent"""
    problem: str = ""
    """why there is no figure, or why it does not count (results that disagree)"""

    @property
    def reached(self) -> bool | None:
        """Whether the target is met; None without a target or a figure."""
        if self.target is None or self.ratio is None or self.problem:
            return None if self.target is None or not self.problem else False
        return self.ratio <= self.target if self.at_most else self.ratio >= self.target

    def cells(self) -> list[str]:
        """Return the row as text, in the order of `COLUMNS`."""
        sign = "≤" if self.at_most else "≥"
        verdict = {None: "–", True: "yes", False: "no"}[self.reached]
        return [
            self.name,
            self.against,
            _figure(self.baseline, self.unit),
            _figure(self.ours, self.unit),
            self.problem or _ratio(self.ratio, self.percent),
            f"{sign} {_ratio(self.target, self.percent)}" if self.target is not None else "–",
            verdict,
        ]


def flags(doc: str | None, argv: Sequence[str] | None = None, **defaults: int) -> argparse.Namespace:
    """Parse what every benchmark understands: `--quick`, `--smoke`, `--rounds`, `--threads`, `--out`; set the threads.

    Args:
        doc: The script's docstring, shown as help.
        argv: Arguments; None takes those of the process.
        **defaults: Other defaults for `rounds` and `threads`.
    """
    parser = argument_parser(doc, **defaults)
    given = parser.parse_args(argv)
    prepare(given)
    return given


def argument_parser(doc: str | None, **defaults: int) -> argparse.ArgumentParser:
    """Return the parser behind `flags`, for a script with flags of its own."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="fewer and smaller measurements, for a first look"
    )
    parser.add_argument(
        "--smoke",
        action="store_true",
        help="the smallest form: shows that the script runs, its figures mean nothing",
    )
    parser.add_argument("--rounds", type=int, default=None, help="turns of each side (5, with --quick 3)")
    parser.add_argument("--threads", type=int, default=defaults.get("threads", 2), help="threads of torch")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the JSON")
    parser.set_defaults(default_rounds=defaults.get("rounds", 5))
    return parser


def prepare(given: argparse.Namespace) -> None:
    """Fill in the rounds and set torch's threads, when torch is there already; `--smoke` is `--quick` and smaller."""
    if given.smoke:
        given.quick, given.rounds = True, given.rounds or 1
    if given.rounds is None:
        given.rounds = min(3, given.default_rounds) if given.quick else given.default_rounds
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(given.threads)


def interleaved(
    sides: Mapping[str, Callable[[], object]], rounds: int = 5, warm: int = 1
) -> dict[str, list[float]]:
    """Run the sides in turns and return the seconds of each turn.

    Args:
        sides: Functions by name; a GPU side must wait for the device itself.
        rounds: Turns that count.
        warm: Turns before them that do not: they choose kernels and fill caches.
    """
    times: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    for turn in range(warm + rounds):
        gc.collect()
        for name in names if turn % 2 else names[::-1]:  # neither side is always the first
            start = time.perf_counter()
            sides[name]()
            seconds = time.perf_counter() - start
            if turn >= warm:
                times[name].append(seconds)
    return times


def median_of(times: Sequence[float]) -> float:
    """Return the median: what a user sees."""
    return float(median(times))


def best_of(times: Sequence[float]) -> float:
    """Return the quickest turn: what the machine can do when nobody disturbs it."""
    return float(min(times))


def ratio_of(times: Mapping[str, Sequence[float]], baseline: str, ours: str) -> float:
    """Return how many times as fast ours is: the median of the ratios of neighbouring turns."""
    return float(median(a / b for a, b in zip(times[baseline], times[ours], strict=True)))


def machine() -> dict[str, Any]:
    """Return versions and machine facts, the load and the date of a measurement."""
    facts: dict[str, Any] = dict(environment())
    facts["processors"] = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts["load"] = [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None
    facts["date"] = datetime.now(UTC).isoformat(timespec="seconds")
    torch = sys.modules.get("torch")
    if torch is not None:
        facts["threads"] = torch.get_num_threads()
        facts["cpu_capability"] = torch.backends.cpu.get_cpu_capability()
        if torch.cuda.is_available():
            facts["gpu"] = torch.cuda.get_device_name(0)
    return facts


def write(
    name: str, rows: Sequence[Row], *, quick: bool = False, folder: Path = RESULTS, **facts: Any
) -> Path:
    """Write `<folder>/<name>.json`: rows, facts of the script's own, machine and versions."""
    path = folder / f"{name}.json"
    listed = [{**asdict(row), "reached": row.reached} for row in rows]
    write_json(path, {"benchmark": name, "quick": quick, "rows": listed, **facts, "environment": machine()})
    return path


def read_rows(found: Mapping[str, Any]) -> list[Row]:
    """Return the rows of a benchmark's JSON, whatever else stands in it."""
    known = set(Row.__dataclass_fields__)
    return [Row(**{key: value for key, value in row.items() if key in known}) for row in found["rows"]]


def finish(name: str, rows: Sequence[Row], given: argparse.Namespace, **facts: Any) -> int:
    """Print the rows, write the JSON, and return the exit code: 1 when a row has a problem."""
    print(text_table(rows))
    print(write(name, rows, quick=given.quick, folder=given.out, **facts))
    return 1 if any(row.problem for row in rows) else 0


def text_table(rows: Sequence[Row]) -> str:
    """Return the rows as aligned text, notes below."""
    cells = [list(COLUMNS), *(row.cells() for row in rows)]
    widths = [max(len(line[place]) for line in cells) for place in range(len(COLUMNS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in cells]
    lines.insert(1, "  ".join("-" * width for width in widths))
    lines += [f"  {row.name}: {row.note}" for row in rows if row.note]
    return "\n".join(lines)


def markdown_table(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table with a column of notes."""
    head = [*COLUMNS, "note"]
    lines = [head, ["---"] * len(head), *([*row.cells(), row.note] for row in rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _figure(value: float | None, unit: str) -> str:
    if value is None:
        return "–"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f} {unit}".strip()


def _ratio(value: float | None, percent: bool) -> str:
    if value is None:
        return "–"
    return f"{100 * value:.0f} %" if percent else f"{value:.2f}"
