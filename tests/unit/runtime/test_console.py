"""What a person sees at any width: numbers whole, and a wrong flag in one line under a real terminal."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from two_stream.commands import models
from two_stream.runtime.console import console, table

TABLES = {
    "accuracy": (
        ("stream", "top-1 [95 % CI]", "top-3", "top-5", "mean class", "ECE", "videos"),
        [
            ("rgb", "65.0 [57.5, 72.5]", "97.5", "100.0", "65.0", "28.3", "40"),
            ("a_run_with_a_long_name, fused (l2)", "100.0 [98.75, 100.0]", "–", "", "65.0", "–", "13320"),
        ],
    ),
    "pairs": (
        ("A", "B", "A − B [95 % CI]", "p", "p (Holm)", "verdict"),
        [("bert", "average", "+5.0 [-10.0, +22.5]", "<0.0001", "0.0321", "better: the interval leaves out 0")] * 2,
    ),
    "profile": (
        ("precision", "batch", "ms a clip", "clips/s", "videos/s", "G mult-adds/s", "peak MiB", "of peak %"),
        [("bf16", "128", "123456.78", "18234.5", "1823.4", "152360.1", "143360.2", "97.25")],
    ),
    "stages": (
        ("stage", "output", "M params", "G mult-adds", "ms"),
        [("backbone.layer4", "2048×8×7×7 + 256×32×7×7", "304.123", "152.364", "1234.5")],
    ),
    "plan": (
        ("variant", "split", "seed", "key", "state", "accuracy"),
        [("head bert, depth 10", "1", "1234567", "a3f9c02be771", "done", "65.25"), ("x", "12", "2", "b0", "", "")],
    ),
    "findings": (("severity", "kind", "what", "finding"), [("error", "count", "v_1.avi", "says 1234567, has 88")]),
    "failed": (("video", "reason"), [("videos/a very long name of a video 77.avi", "damaged after frame 123456")]),
}  # fmt: skip


@pytest.mark.parametrize("width", [24, 60, 80, 120, None])
@pytest.mark.parametrize("name", TABLES)
def test_no_number_of_a_table_is_cut(name, width, monkeypatch, capsys):
    columns, rows = TABLES[name]
    monkeypatch.setattr(console, "_width", width or 120)
    console.print(table("title", columns, rows))
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= (width or 120)
    for row in rows:
        for number in re.findall(r"(?<![\w.])[-+<]?\d[\d.]*\b", " ".join(row)):
            assert re.search(rf"(?<![\d.]){re.escape(number)}(?![\d.]*\d)", text), (number, text)
        for cell in row[1:]:  # columns of numbers are not even folded
            if width and width >= 60 and all(str(r[row.index(cell)])[:1] in "-–+<0123456789" for r in rows):
                assert cell in text


@pytest.mark.parametrize("width", [60, 80, 120])
def test_models_shows_whole_numbers(width, monkeypatch, capsys):
    monkeypatch.setattr(console, "_width", width)
    models.main(["*"])
    text = capsys.readouterr().out
    assert {"152.36", "304.74"} <= set(text.split()), text[:2000]
    assert max(map(len, text.splitlines())) <= width


def terminal(*args: str) -> str:
    """Run a command under a pseudo-terminal and return what a person reads there."""
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "two_stream", *args],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm-256color"},
    )
    os.close(theirs)
    said = b""
    try:
        while part := os.read(ours, 1 << 16):
            said += part
    except OSError:  # the other end is closed
        pass
    assert process.wait() == 2
    os.close(ours)
    return said.decode().strip()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["models", "--num-clases", "3"], "unknown flag --num-clases; did you mean `--num-classes`?"),
        (["models", "--num-classes", "x"], "two-stream models: --num-classes is x: expected a whole number"),
        (["fuse", "a", "--rool", "l2", "--owt=x"], "unknown flag --rool; did you mean `--rule`?; unknown flag --owt;"),
        (["models", "--zzzz"], "two-stream models: unknown flag --zzzz; nearest: --"),
        (["models", "a", "b"], "two-stream models: unexpected argument 'b'"),
    ],
)  # fmt: skip
def test_a_wrong_flag_is_one_sentence_under_a_terminal(args, said):
    lines = terminal(*args).splitlines()
    assert said in " ".join(lines)
    assert max(map(len, lines)) <= 80
    assert all(map(str.isprintable, lines))
    assert not re.search("[╭│─]", "".join(lines))
