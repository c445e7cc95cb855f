"""A stranger's names where people see them: no control characters, no formulas, no markup."""

from __future__ import annotations

import csv
import io

import pytest

from two_stream.errors import ScoreError
from two_stream.evaluation.report.page import page_templates
from two_stream.runtime import console
from two_stream.runtime.text import csv_text, shown_lines

HOSTILE = "a\x1b]0;owned\x07\x9b31m\u202eb\r\x08<script>"


def test_messages_and_tables_hold_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    console.say(f"one {HOSTILE}\ntwo")
    console.note(HOSTILE)
    console.warn(HOSTILE)
    console.console.print(console.table(HOSTILE, ["name", HOSTILE], [[HOSTILE, "1"]]))
    said = capsys.readouterr()
    text = said.out + said.err
    assert "\\x1b]0;owned\\x07" in text
    assert all(c.isprintable() or c == "\n" for c in text)
    assert str(ScoreError(HOSTILE)).isprintable()
    assert shown_lines("plain ü 日本\nnext") == "plain ü 日本\nnext"


@pytest.mark.parametrize("name", ["report.html", "report.md"])
def test_pages_hold_none_either(name: str) -> None:
    template = page_templates().from_string("<p>{{ name }}</p>{{ name|cell }}")
    page = template.render(name=HOSTILE)
    assert all(c.isprintable() for c in page), name
    assert "\\u202e" in page


@pytest.mark.parametrize(
    ("cell", "wanted"),
    [
        ("=cmd|' /C calc'!A0", "'=cmd|' /C calc'!A0"),
        ("+1+1", "'+1+1"),
        ("-2+3", "'-2+3"),
        ("@SUM(1)", "'@SUM(1)"),
        ("\t=1", "\\t=1"),
        ("-4.9", "-4.9"),
        (-4.9, "-4.9"),
        (None, ""),
        ("jump", "jump"),
    ],
)
def test_cells_are_no_formulas(cell: object, wanted: str) -> None:
    assert list(csv.reader(io.StringIO(csv_text(["name"], [[cell, "x"]]))))[1] == [wanted, "x"]
