"""Prints the results of commands: tables and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from two_stream.runtime.console import console, table
from two_stream.runtime.files import write_json
from two_stream.runtime.text import json_text


def print_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], **options: Sequence[str]
) -> None:
    """Print a table; an empty title is omitted. The options are those of `console.table`."""
    console.print(table(title, columns, rows, **options))


def print_json(value: Any) -> None:
    """Print a value as indented JSON."""
    console.print(json_text(value, indent=2), markup=False, soft_wrap=True)


def write_or_print_json(target: Path | str, value: Any) -> bool:
    """Write a value to a JSON file, or print it if the target is `-`; return whether it was written."""
    if str(target) == "-":
        print_json(value)
        return False
    write_json(Path(target), value)
    return True
