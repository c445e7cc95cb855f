"""Messages, tables and progress bars; plain text if the output is not a terminal."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TextIO

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from two_stream.runtime.text import shown_lines


def _width(stream: TextIO) -> int | None:
    """Return 120 for files and pipes; None for a terminal or if COLUMNS is set, so that rich determines the width."""
    return None if stream.isatty() or "COLUMNS" in os.environ else 120


console = Console(highlight=False, emoji=False, width=_width(sys.stdout))
"""Results, on standard output."""
err = Console(stderr=True, highlight=False, emoji=False, width=_width(sys.stderr))
"""Progress, warnings and errors, on standard error."""


class Advance(Protocol):
    """Advances a progress display by `n` and shows the given fields."""

    def __call__(self, n: int = 1, **fields: object) -> None:
        """Advance."""


def say(message: str) -> None:
    """Print a result on standard output; square brackets are printed as text."""
    console.print(shown_lines(message), markup=False, soft_wrap=True)


def note(message: str) -> None:
    """Print a progress message on standard error."""
    err.print(shown_lines(message), markup=False, soft_wrap=True)


def bar(share: float, length: int) -> str:
    """Return a text bar for a fraction of 1, at most `length` columns long."""
    return ("█" if console.encoding.startswith("utf") else "#") * max(1, round(length * share))


@contextmanager
def results_as_notes() -> Iterator[None]:
    """Print results on standard error during the block, for steps whose results only show a command's progress."""
    before, console.stderr = console.stderr, True
    try:
        yield
    finally:
        console.stderr = before


def warn(message: str) -> None:
    """Print a warning line on standard error."""
    err.print(f"warning: {shown_lines(message)}", style="yellow", markup=False, soft_wrap=True)


class _Table(Table):
    """A table that never wraps numbers: if it is too wide, each row is printed as a list of its cells."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        names = [str(column.header) for column in self.columns]
        rows = list(zip(*(column.cells for column in self.columns), strict=True))
        widths = [max(_width_of(text) for text in texts) for texts in zip(names, *rows, strict=True)]
        least = [
            max(column.min_width or 1, min(width, _NARROW))
            for column, width in zip(self.columns, widths, strict=True)
        ]
        room = options.max_width - 3 * len(widths) - 1
        if sum(least) > room:
            if self.title:
                yield Text.from_markup(str(self.title), style="italic")
            for row in rows:
                lines = [
                    f"{name}: {cell}".removeprefix(": ")
                    for name, cell in zip(names, row, strict=True)
                    if cell
                ]
                yield from (Text.from_markup(line, overflow="fold") for line in (*lines, ""))
            return
        while sum(widths) > room:
            widest = max(range(len(widths)), key=lambda place: (widths[place] > least[place], widths[place]))
            widths[widest] -= 1
        for column, width in zip(self.columns, widths, strict=True):
            column.width = width
        yield from super().__rich_console__(console, options)


def _width_of(text: object) -> int:
    return max(map(cell_len, Text.from_markup(str(text)).plain.split("\n")))


_NARROW = 8
"""minimum width of a text column"""
_NUMBER = re.compile(r"[-−+±<]?\b\d[\d.,:×/e]*%?")


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    """Build a table; columns after the first are right-aligned when all their cells look like numbers.

    Numbers are never split over two lines.
    """
    made = _Table(title=_plain(title) or None, title_justify="left", header_style="bold")
    for index, column in enumerate(columns):
        cells = [shown_lines(str(row[index])) for row in rows]
        numeric = index > 0 and all(cell[:1].isdigit() or cell[:1] in "-–−+<" for cell in cells if cell)
        unbroken = cells if numeric else [number for cell in cells for number in _NUMBER.findall(cell)]
        made.add_column(
            _plain(column),
            justify="right" if numeric else "left",
            overflow="fold",
            min_width=max(map(cell_len, unbroken), default=1),
        )
    for row in rows:
        made.add_row(*(_plain(cell) for cell in row))
    return made


def _plain(cell: object) -> str:
    return shown_lines(str(cell)).replace("[", r"\[")


@contextmanager
def progress(description: str, total: int | None, *, every: float = 15.0) -> Iterator[Advance]:
    """Show a progress bar on a terminal; if the output is not a terminal, print a line every `every` seconds."""
    if err.is_terminal:
        with _bar() as bar:
            task = bar.add_task(description, total=total, fields="")

            def advance(n: int = 1, **fields: object) -> None:
                bar.update(task, advance=n, fields=_join(fields))

            yield advance
        return
    yield _plain_progress(description, total, every)


def _bar() -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[fields]}"),
        console=err,
        transient=True,
    )


def _plain_progress(description: str, total: int | None, every: float) -> Advance:
    start = last = time.monotonic()
    done = 0

    def advance(n: int = 1, **fields: object) -> None:
        nonlocal done, last
        done += n
        now = time.monotonic()
        if now - last < every:
            return
        last = now
        left = f", {(now - start) / done * (total - done):.0f} s left" if total and done else ""
        note(f"{description}: {done}/{total or '?'}{left} {_join(fields)}".rstrip())

    return advance


def _join(fields: dict[str, Any]) -> str:
    return "  ".join(f"{key} {value}" for key, value in fields.items())
