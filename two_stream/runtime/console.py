"""Messages, tables and progress bars; plain text if the output is not a terminal."""

from __future__ import annotations

import os
import re
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Protocol, TextIO

from rich.cells import cell_len, set_cell_size
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
from rich.table import Column, Table
from rich.text import Text

from two_stream.runtime.text import NO_BREAK, shown_lines


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
    """Print a result on standard output; on a terminal, lines are broken between words."""
    _print(console, message)


def note(message: str) -> None:
    """Print a progress message on standard error."""
    _print(err, message)


def warn(message: str) -> None:
    """Print a warning on standard error."""
    _print(err, f"warning: {message}", "yellow")


def _print(where: Console, message: str, style: str | None = None) -> None:
    lines = shown_lines(message).split("\n")
    if where.is_terminal:
        lines = [wrapped(line, where.width) for line in lines]
    where.print("\n".join(lines), markup=False, soft_wrap=True, style=style)


_TO_COPY = re.compile(r"(\$ |(?<=: ))(two-stream|torchrun|tensorboard|pip|--[a-z]).*$")
"""a command or flags at the end of a message"""
_FIELDS = 3
"""a line with more double spaces is a list of names and values, which are not separated."""


def wrapped(line: str, width: int) -> str:
    """Break a line between words into lines of at most `width` columns.

    Longer words, and a command at the end of the line, are not broken, so that they can be copied. The further lines
    have the indent of the first line, or of the text after the first word if two spaces follow this word.
    """
    if cell_len(line) <= width:
        return line
    copied = _TO_COPY.search(line)
    text = line[: copied.start()] if copied else line
    if not text.strip():
        return line
    if len(re.findall(r"\S {2,}(?=\S)", text)) > _FIELDS:
        text = re.sub(r"(?<=\S) (?=\S)", NO_BREAK, text)
    indent = re.match(r"(\s+(\S+\s{2,})?)?", line)
    lines = textwrap.wrap(
        text.replace(" %", f"{NO_BREAK}%"),
        max(20, width - cell_len(text) + len(text)),  # wide characters take two columns
        subsequent_indent=" " * len(indent[0]) if indent else "",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "\n".join([*lines, copied[0]] if copied else lines).replace(NO_BREAK, " ")


def bar(share: float, length: int) -> str:
    """Return a text bar for a fraction from 0 to 1, at most `length` columns long."""
    return ("█" if console.encoding.startswith("utf") else "#") * max(1, round(length * share))


@contextmanager
def results_as_notes() -> Iterator[None]:
    """Print results on standard error during the block, for steps whose results only show a command's progress."""
    before, console.stderr = console.stderr, True
    try:
        yield
    finally:
        console.stderr = before


class _Table(Table):
    """A table that never cuts or wraps numbers, and never breaks a word.

    If it is too wide, cells are wrapped at words, then the columns `spare` are left out (the last first), then long
    words are shortened in the middle. If that is not enough, each row is printed as a list of its cells.
    """

    spare: Sequence[str] = ()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        room, spare, title = options.max_width - 1, list(self.spare), str(self.title or "")
        while sum(3 + _least(column, unwrapped=_SHORT) for column in self.columns) > room and spare:
            self.columns = [column for column in self.columns if str(column.header) != spare[-1]]
            title += f"{', ' if len(spare) < len(self.spare) else ' (not shown at this width: '}{spare.pop()}"
        title = f"{title})".lstrip() if len(spare) < len(self.spare) else title
        if title:
            title = Text.from_markup(title).plain
            title = wrapped(title, options.max_width) if console.is_terminal else title
            yield Text(title, style="italic", no_wrap=True, overflow="ignore")
        self.title, longest = None, max(map(_least, self.columns))
        while sum(3 + _least(column, longest) for column in self.columns) > room:
            longest -= 1
            if longest < _NARROW:
                yield from self._lists()
                return
        widths = [_width_of(column) for column in self.columns]
        least = [_least(column, longest) for column in self.columns]
        while sum(widths) + 3 * len(widths) > room:
            widest = max(range(len(widths)), key=lambda place: (widths[place] > least[place], widths[place]))
            widths[widest] -= 1
        for column, width in zip(self.columns, widths, strict=True):
            column.width = width
            column._cells = [_shorter(str(cell), width) for cell in column.cells]
        yield from super().__rich_console__(console, options)

    def _lists(self) -> RenderResult:
        names = [str(column.header) for column in self.columns]
        for row in zip(*(column.cells for column in self.columns), strict=True):
            lines = [
                f"{name}: {cell}".removeprefix(": ") for name, cell in zip(names, row, strict=True) if cell
            ]
            yield from (Text.from_markup(line, overflow="fold") for line in (*lines, ""))


def _texts_of(column: Column) -> list[str]:
    return [Text.from_markup(str(text)).plain for text in (column.header, *column.cells)]


def _width_of(column: Column) -> int:
    return max(cell_len(line) for text in _texts_of(column) for line in text.split("\n"))


def _least(column: Column, longest: int = 1000, unwrapped: int = 0) -> int:
    """Return the smallest width of a column.

    Words are shortened to `longest` columns. Cells of up to `unwrapped` columns stay on one line.
    """
    words = max((cell_len(word) for text in _texts_of(column) for word in text.split()), default=1)
    return max(column.min_width or 1, min(longest, words), min(unwrapped, _width_of(column)))


def _shorter(cell: str, width: int) -> str:
    """Return a cell whose words of more than `width` columns are shortened in the middle."""

    def shorten(found: re.Match[str]) -> str:
        word = found[0]
        if cell_len(word) <= width:
            return word
        left, right = set_cell_size(word, width // 2), word
        while cell_len(left) + 1 + cell_len(right) > width:
            right = right[1:]
        return f"{left}…{right}"

    return _plain(re.sub(r"\S+", shorten, Text.from_markup(cell).plain))


_SHORT = 20
"""number of columns of a cell that is not wrapped if columns can be left out instead"""
_NARROW = 16
"""number of columns to which words are shortened at most"""
_NUMBER = re.compile(r"[-−+±<]?\b\d[\d.,:×/e]*%?")


def table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    spare: Sequence[str] = (),
    constant: Sequence[str] = (),
) -> Table:
    """Build a table; columns after the first are right-aligned when all their cells look like numbers.

    Numbers are never split over two lines. Columns without any content are left out, except the first.

    Args:
        title: Printed above the table.
        columns: Headings.
        rows: Cells.
        spare: Columns to leave out if the table is too wide, the last first; the title names them.
        constant: Columns that are left out if all rows have the same cell; the title then contains it.
    """
    cells = [[shown_lines(str(cell)) for cell in row] for row in rows]
    kept, same = [], []
    for index, column in enumerate(columns):
        values = {row[index] for row in cells}
        if column in constant and len(cells) > 1 and len(values) == 1:
            value = values.pop()
            same.append(value if column.rstrip("s") in value else f"{column} {value}")
        elif index == 0 or not values <= {"", "–"}:
            kept.append(index)
    title += f"{'; ' if title else ''}for all: {', '.join(same)}" if same else ""
    made = _Table(title=_plain(title), header_style="bold")
    made.spare = [name for name in spare if name in [columns[index] for index in kept]]
    for index in kept:
        texts = [row[index] for row in cells]
        numeric = index > 0 and all(text[:1].isdigit() or text[:1] in "-−–+<" for text in texts if text)
        unbroken = texts if numeric else [number for text in texts for number in _NUMBER.findall(text)]
        made.add_column(
            _plain(columns[index]),
            justify="right" if numeric else "left",
            min_width=max(map(cell_len, unbroken), default=1),
        )
    for row in cells:
        made.add_row(*(_plain(row[index]) for index in kept))
    return made


def _plain(cell: object) -> str:
    return shown_lines(str(cell)).replace("[", r"\[")


@contextmanager
def progress(description: str, total: int | None, *, every: float = 15.0) -> Iterator[Advance]:
    """Show a progress bar on a terminal or in a notebook with ipywidgets; otherwise, print a line every few seconds.

    Args:
        description: What is being done.
        total: Number of steps; None if unknown.
        every: Seconds between lines.
    """
    if err.is_terminal or (err.is_jupyter and find_spec("ipywidgets") is not None):
        with _bar() as bar:
            task = bar.add_task(description, total=total, fields="")

            def advance(n: int = 1, **fields: object) -> None:
                bar.update(task, advance=n, fields=_join(fields))

            yield advance
        return
    yield _plain_progress(description, total, every)


def _bar() -> Progress:
    fixed = [Column(no_wrap=True) for _ in range(3)]  # only the bar becomes narrower
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(table_column=fixed[0]),
        *([TimeElapsedColumn(table_column=fixed[1])] if err.width >= 100 else []),
        TextColumn("left"),
        TimeRemainingColumn(table_column=fixed[2]),
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
