"""The benchmark table: rows, verdicts, files, and scripts that are missing or fail."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys

import pytest


@pytest.fixture
def bench(repository, monkeypatch):
    """The shared module and the runner, loaded as scripts load them."""
    folder = repository / "eval" / "benchmarks"
    found = {}
    for name in ("common", "run"):
        spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
        found[name] = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, found[name])
        spec.loader.exec_module(found[name])
    return argparse.Namespace(**found)


def test_verdicts(bench):
    row = bench.common.Row
    assert row("a", "b", 1.0, 2.0, 2.0, 1.9).reached is True
    assert row("a", "b", 1.0, 2.0, 1.89, 1.9).reached is False
    assert row("a", "b", 1.0, 2.0, 1.89, 1.9, at_most=True).reached is True
    assert row("a", "b", 1.0, 2.0, 2.0).reached is None
    assert row("a", "b", None, None, None, 1.9).reached is None
    assert row("a", "b", 1.0, 2.0, 2.0, 1.9, problem="pixels differ").reached is False
    cells = row("a", "b", 1234.0, 0.5, 0.513, 0.5, unit="GFLOP/s", percent=True).cells()
    assert cells == ["a", "b", "1,234 GFLOP/s", "0.50 GFLOP/s", "51 %", "≥ 50 %", "yes"]


def test_sides_take_turns_and_the_warm_ones_do_not_count(bench):
    order = []
    sides = {"one": lambda: order.append("one"), "two": lambda: order.append("two")}
    times = bench.common.interleaved(sides, rounds=2, warm=1)
    assert order == ["two", "one", "one", "two", "two", "one"]
    assert {name: len(seconds) for name, seconds in times.items()} == {"one": 2, "two": 2}
    assert bench.common.ratio_of({"a": [4.0, 9.0, 2.0], "b": [2.0, 3.0, 2.0]}, "a", "b") == 2.0


def test_what_is_written_is_read_back(bench, tmp_path):
    rows = [bench.common.Row("what", "base", 1.0, 2.5, 2.5, 2.2, unit="clips/s", note="same pixels")]
    given = argparse.Namespace(quick=True, out=tmp_path)
    assert bench.common.finish("thing", rows, given, extra=[1, 2]) == 0
    found = json.loads((tmp_path / "thing.json").read_text())
    assert bench.common.read_rows(found) == rows
    assert (found["rows"][0]["reached"], found["extra"], found["quick"]) == (True, [1, 2], True)
    assert {"torch", "cpu", "processors", "date"} <= set(found["environment"])
    rows[0].problem = "differs"
    assert bench.common.finish("thing", rows, given) == 1


SCRIPT = """
import argparse, sys
from pathlib import Path
parser = argparse.ArgumentParser()
parser.add_argument("--out", type=Path)
parser.add_argument("--quick", action="store_true")
given = parser.parse_args()
from common import Row, finish
{body}
"""
GOOD = 'sys.exit(finish("good", [Row("x", "y", 1.0, 3.0, 3.0, 2.0)], given))'


def test_the_runner_says_what_is_missing_or_fails(bench, tmp_path, monkeypatch, capsys, repository):
    here = tmp_path / "eval" / "benchmarks"
    here.mkdir(parents=True)
    (here / "common.py").write_text((repository / "eval" / "benchmarks" / "common.py").read_text())
    (here / "good.py").write_text(SCRIPT.format(body=GOOD))
    (here / "bad.py").write_text(SCRIPT.format(body='raise ValueError("pixels differ")'))
    (here / "idle.py").write_text(SCRIPT.format(body='print("no CUDA device here")'))
    monkeypatch.setattr(bench.run, "HERE", here)
    monkeypatch.setattr(bench.run, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(bench.run, "README", tmp_path / "README.md")
    script = bench.run.Script
    monkeypatch.setattr(
        bench.run,
        "SCRIPTS",
        (script("good", ("x",)), script("idle", ()), script("bad", ("p", "q")), script("none", ("r",))),
    )
    (tmp_path / "README.md").write_text(f"before\n{bench.run.BEGIN}\nold\n{bench.run.END}\nafter\n")
    assert bench.run.main(["--only", "good", "idle", "--readme"]) == 0
    text = (tmp_path / "README.md").read_text()
    assert text.startswith(f"before\n{bench.run.BEGIN}\n\n| what | against |")
    assert "| x | y | 1.00 | 3.00 | 3.00 | ≥ 2.00 | yes |  |" in text
    assert "old" not in text
    assert text.endswith(f"{bench.run.END}\nafter\n")
    assert bench.run.main(["--quick"]) == 1
    rows = json.loads((tmp_path / "results" / "quick" / "summary.json").read_text())["rows"]
    assert [(row["name"], row["problem"]) for row in rows] == [
        ("x", ""),
        ("p", "failed: ValueError: pixels differ"),
        ("q", "failed: ValueError: pixels differ"),
        ("r", "no such script"),
    ]
    said = capsys.readouterr()
    assert "1 of 1 targets reached, 3 rows without a figure that counts" in said.out
    assert said.err.splitlines() == [
        "FAILED p (bad.py): failed: ValueError: pixels differ",
        "FAILED q (bad.py): failed: ValueError: pixels differ",
        "FAILED r (none.py): no such script",
    ]
    assert bench.run.main(["--quick", "--only", "idle"]) == 0
    assert "1 of 1 targets reached" in capsys.readouterr().out, "what was measured last stays in the table"
