"""The page about streams speaks of every network that is there, and its table is what is counted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from two_stream import zoo


def test_the_table_has_every_kind_of_network(repository: Path) -> None:
    page = (repository / "docs" / "streaming.md").read_text(encoding="utf-8")
    table = page.partition("<!-- table: ")[2].partition("<!-- end -->")[0]
    shown = {line.split("`")[1] for line in table.splitlines() if line.startswith("| `")}
    kinds = {record.name: record.options.backbone.kind for record in zoo.records("*")}
    assert {kinds[name] for name in shown} == set(kinds.values())


@pytest.mark.slow
def test_the_table_is_what_is_counted(repository: Path) -> None:
    script = repository / "eval" / "documentation" / "streaming_table.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr or "run `python eval/documentation/streaming_table.py`"
