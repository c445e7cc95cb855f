"""Templates of pages: escaping, and how numbers are written."""

from __future__ import annotations

from pathlib import Path

import jinja2

from two_stream.errors import printable
from two_stream.evaluation.scores.words import percent
from two_stream.runtime.text import shown_lines

_TEMPLATES = Path(__file__).parent / "templates"


def page_templates(*folders: Path) -> jinja2.Environment:
    """Return the templates of some folders, then those of the run report; a missing value is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([*folders, _TEMPLATES]),
        autoescape=jinja2.select_autoescape(["html"]),
        undefined=jinja2.StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=percent, cell=markdown_cell)
    return environment


def _shown(value: object) -> object:
    """Remove control characters from the text of a template, but not from markup."""
    return shown_lines(value) if type(value) is str else value


def markdown_cell(value: object) -> str:
    """Escape characters that would end a table cell or start markup."""
    text = printable(" ".join(str(value).split()))
    for mark in "\\`*_[]<>|":
        text = text.replace(mark, f"\\{mark}")
    return text
