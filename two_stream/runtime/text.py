"""Formats text, which may contain untrusted names, for the terminal, JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
import re
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from two_stream.errors import printable

NO_BREAK = "\xa0"
"""a space at which `hanging` breaks no line"""


def shown_lines(text: str) -> str:
    """Return text with every line made safe for a terminal, Markdown and HTML; see `printable`."""
    return "\n".join(map(printable, text.split("\n")))


def plural(count: int, what: str, one: str = "", many: str = "") -> str:
    """Return a count with its noun, and a verb if given: `1 class has`, `3 classes have`."""
    noun = what if count == 1 else f"{what}es" if what.endswith("s") else f"{what}s"
    return f"{count} {noun} {one if count == 1 else many}".rstrip()


def byte_size(count: float) -> str:
    """Return a number of bytes as `12 B`, `3.4 KiB`, `5.6 MiB` and so on."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def duration(seconds: float) -> str:
    """Return a duration as `4.3 s`, `12 s`, `3 min 20 s` or `2 h 05 min`."""
    whole = round(seconds)
    if whole < 10:
        return f"{seconds:.1f} s"
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def per_cent(share: float) -> str:
    """Return a fraction as `62.5 %`."""
    return f"{100 * share:.1f} %"


def learning_rate(value: float) -> str:
    """Return a learning rate with three significant digits, such as `0.00150`."""
    return f"{value:#.3g}"


def hanging(rows: Sequence[tuple[str, str]], width: int, most: int = 26, least: int = 2) -> str:
    """Return a list of names and descriptions as text; descriptions are wrapped to `width` columns.

    All descriptions begin in the same column: on the line of the name, or below a name of more than `most` columns.
    `least` is the smallest width of the column of names.
    """
    left = 4 + max([least, *(len(name) for name, _ in rows if len(name) <= most)])
    found = []
    for name, text in rows:
        lines = textwrap.wrap(text, max(20, width - left), break_long_words=False, break_on_hyphens=False)
        if len(name) > left - 4 or not lines:
            spaced = name if len(name) <= width - 2 else re.sub(r",(?=\S)", ", ", name)
            found.append(
                textwrap.fill(
                    spaced, width, initial_indent="  ", subsequent_indent="      ", break_on_hyphens=False
                )
            )
        else:
            found.append(f"  {name:<{left - 4}}  {lines.pop(0)}")
        found += [" " * left + line for line in lines]
    return "".join(f"{line}\n" for line in found).replace(NO_BREAK, " ")


def signed_number(value: float, digits: int = 1) -> str:
    """Return a number with its sign (a true minus) and `digits` decimals; zero has no sign."""
    rounded = round(value, digits)
    return f"{rounded:+,.{digits}f}".replace("-", "−") if rounded else f"{0:.{digits}f}"


def parse_json(text: str | bytes) -> Any:
    """Parse untrusted JSON; bytes must be UTF-8.

    Raises:
        json.JSONDecodeError: It is not JSON, nested too deeply, or has too long a number.
    """
    try:
        return json.loads(text.decode("utf-8-sig") if isinstance(text, bytes) else text)
    except json.JSONDecodeError:
        raise
    except (RecursionError, UnicodeDecodeError, ValueError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise json.JSONDecodeError(reason, "", 0) from None


def is_utf8(name: object) -> bool:
    """Whether a path is valid UTF-8, which safetensors and TensorBoard require."""
    return not any("\ud800" <= c <= "\udfff" for c in str(name))


def json_text(value: Any, **options: Any) -> str:
    r"""Return a value as JSON; non-ASCII letters are kept, and characters that are not printable are escaped.

    Bytes of file names that are not UTF-8 are escaped, for example as `\udce9`; reading the JSON restores the same
    name.

    Args:
        value: Of JSON's types.
        options: For `json.dumps`.
    """
    text = json.dumps(value, ensure_ascii=False, **options)
    if text.replace("\n", "").isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)


def csv_text(header: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """Return a table as CSV for spreadsheets; None is an empty cell.

    A spreadsheet treats a text that begins with `=`, `+`, `-` or `@` as a formula, so such a text is prefixed with `'`,
    which the spreadsheet hides.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([_cell(value) for value in row] for row in (header, *rows))
    return text.getvalue()


def _cell(value: object) -> object:
    if not isinstance(value, str):
        return "" if value is None else value
    plain = printable(value)
    return f"'{plain}" if plain[:1] in tuple("=+-@") and not _is_number(plain) else plain


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
