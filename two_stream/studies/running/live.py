"""The live table of a study: cells done, running and failed, time left; plain lines where there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import mean

from rich.live import Live
from rich.table import Table

from two_stream.runtime.console import err, note
from two_stream.studies.running.cells import StudyJob, StudyOutcome
from two_stream.studies.running.pool import Running


class LiveTable:
    """What is known of a study's jobs while they run."""

    def __init__(self, what: str, rows: Sequence[str], jobs: Sequence[StudyJob], slots: int) -> None:
        """Prepare an empty board.

        Args:
            what: Title.
            rows: The row of each job, mostly its variant.
            jobs: All of them, those that are done already too.
            slots: How many run at once.
        """
        self.what = what
        self.rows = list(rows)
        self.jobs = list(jobs)
        self.slots = slots
        self.ended: dict[int, StudyOutcome] = {}
        self.running = Running()
        self._fresh: list[float] = []
        self._begin = time.monotonic()

    def end(self, index: int, outcome: StudyOutcome, *, fresh: bool = True) -> None:
        """Note how a job ended; `fresh`: just now, so that its time tells how long others take."""
        self.ended[index] = outcome
        if fresh and outcome.done:
            self._fresh.append(outcome.seconds)

    def left(self) -> float | None:
        """Return the seconds until all is done, None before the first job is over."""
        if not self._fresh:
            return None
        usual = mean(self._fresh)
        open_jobs = [index for index in range(len(self.jobs)) if index not in self.ended]
        work = sum(usual * (1.0 - self._progress(index)) for index in open_jobs)
        return work / max(1, min(self.slots, len(open_jobs) or 1))

    def _progress(self, index: int) -> float:
        """Return the share of a running job's epochs that is over."""
        job = self.jobs[index]
        if index not in self.running.jobs or not job.epochs:
            return 0.0
        return min(1.0, _epochs(Path(job.run) / "metrics.jsonl") / job.epochs)

    def line(self, index: int) -> str:
        """Return the line that tells of a job's end."""
        outcome, job = self.ended[index], self.jobs[index]
        count = f"[{len(self.ended)}/{len(self.jobs)}]"
        if not outcome.done:
            return f"{count} {job.title}: failed: {outcome.reason}"
        accuracy = "" if outcome.accuracy is None else f"{100 * outcome.accuracy:.1f} %, "
        left = self.left()
        rest = f"; about {_span(left)} left" if left and len(self.ended) < len(self.jobs) else ""
        return f"{count} {job.title}: {accuracy}{outcome.seconds:.0f} s{rest}"

    def table(self) -> Table:
        """Return the board as a table, a line per row."""
        made = Table(title=self._title(), title_justify="left", header_style="bold")
        for column in ("", "done", "running", "failed", "mean so far"):
            made.add_column(column, justify="left" if not column or column == "running" else "right")
        for row in dict.fromkeys(self.rows):
            mine = [index for index, name in enumerate(self.rows) if name == row]
            made.add_row(row.replace("[", r"\["), *self._cells(mine))
        return made

    def _title(self) -> str:
        left = self.left()
        rest = f", about {_span(left)} left" if left else ""
        passed = _span(time.monotonic() - self._begin)
        return f"{self.what}: {len(self.ended)} of {len(self.jobs)} done, {passed} passed{rest}".replace(
            "[", r"\["
        )

    def _cells(self, mine: Sequence[int]) -> list[str]:
        ended = [self.ended[index] for index in mine if index in self.ended]
        done = [outcome for outcome in ended if outcome.done]
        found = [outcome.accuracy for outcome in done if outcome.accuracy is not None]
        running = [index for index in mine if index in self.running.jobs]
        failed = len(ended) - len(done)
        return [
            f"{len(done)}/{len(mine)}",
            "  ".join(f"{100 * self._progress(index):.0f} %" for index in running),
            str(failed) if failed else "",
            f"{100 * mean(found):.1f} %" if found else "",
        ]


def _epochs(metrics: Path) -> int:
    try:
        return metrics.read_bytes().count(b"\n")
    except OSError:
        return 0


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


@contextmanager
def show_live(board: LiveTable) -> Iterator[None]:
    """Show a board while jobs run: a live table on a terminal, nothing by itself elsewhere."""
    if not err.is_terminal:
        yield
        return
    with Live(get_renderable=board.table, console=err, refresh_per_second=2, transient=True):
        yield


def tell(board: LiveTable, index: int) -> None:
    """Tell of a job's end: a line; on a terminal only of a failure, the table shows the rest."""
    if not err.is_terminal or not board.ended[index].done:
        note(board.line(index))
