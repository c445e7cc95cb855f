"""Names that may be a stranger's, where people see them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from typing import Any

from two_stream.errors import printable


def shown_lines(text: str) -> str:
    """Return text whose lines a terminal, Markdown or HTML can show: see `printable`."""
    return "\n".join(map(printable, text.split("\n")))


def parse_json(text: str | bytes) -> Any:
    """Parse JSON that may be a stranger's; bytes are UTF-8.

    Raises:
        json.JSONDecodeError: It is none, is nested too deeply, or has a number too long to read.
    """
    try:
        return json.loads(text.decode("utf-8-sig") if isinstance(text, bytes) else text)
    except json.JSONDecodeError:
        raise
    except (RecursionError, UnicodeDecodeError, ValueError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise json.JSONDecodeError(reason, "", 0) from None


def is_utf8(name: object) -> bool:
    """Tell whether a path can be told to libraries that know UTF-8 only (safetensors, TensorBoard)."""
    return not any("\ud800" <= c <= "\udfff" for c in str(name))


def json_text(value: Any, **options: Any) -> str:
    r"""Return a value as JSON with the letters of its texts; what is not printed is escaped.

    So are bytes of file names that are not UTF-8: `\udce9`, from which a reader gets the same name.

    Args:
        value: Of JSON's kinds.
        options: For `json.dumps`.
    """
    text = json.dumps(value, ensure_ascii=False, **options)
    if text.replace("\n", "").isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)


def csv_text(header: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """Return a table as CSV for people and spreadsheets; None is an empty cell.

    A spreadsheet takes a cell that begins with `=`, `+`, `-` or `@` for a formula. Such a text gets a `'` before it,
    which a spreadsheet does not show; numbers stay.
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
