"""The tables that scripts write into pages, between `<!-- table: WORDS -->` and `<!-- end -->`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from two_stream.runtime.files import write_text

ROOT = Path(__file__).resolve().parents[2]
TABLE = re.compile(
    r"(?P<begin><!-- table: (?P<words>[^>]+?) -->\n)(?P<table>.*?)(?P<end><!-- end -->)", re.DOTALL
)


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, ["---"] * len(head), *rows))


def update(pages: Iterable[Path], table: Callable[[str], str], *, check: bool) -> int:
    """Write the tables of pages. With `check`, write nothing, and print and count the pages with outdated tables.

    Args:
        pages: Markdown files.
        table: Returns a table from the words of its marker.
        check: Whether to check instead of writing.
    """
    outdated = 0
    for page in pages:
        before = page.read_text(encoding="utf-8")
        after = TABLE.sub(lambda found: found["begin"] + table(found["words"]) + found["end"], before)
        if after == before:
            continue
        outdated += check
        if check:
            print(f"{page}: its tables are outdated; run the script without `--check`")
        else:
            write_text(page, after)
            print(page)
    return outdated
