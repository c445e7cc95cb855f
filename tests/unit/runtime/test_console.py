"""What a person sees at any width: numbers whole, and a wrong flag in one line under a real terminal."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest

from tests.helpers.runs import Runs
from tests.helpers.studies import made_compression, made_result
from two_stream.cli import main
from two_stream.commands import models
from two_stream.commands.compress.comparison import show_compression
from two_stream.commands.output import print_json
from two_stream.runtime.console import _bar, console, err, note, progress, say, table, warn
from two_stream.studies.report.tables import print_study

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


def on_terminal(monkeypatch, width):
    for one in (console, err):
        monkeypatch.setattr(one, "_width", width)
        monkeypatch.setattr(one, "_force_terminal", True)
        monkeypatch.setattr(one, "_color_system", None)


def test_messages_end_lines_at_words_on_a_terminal_only(monkeypatch, capsys):
    text = "the stored features require 12.0 GiB, but only 3.0 GiB are free; choose another --out, or about 95 % fewer"
    say(text)
    assert capsys.readouterr().out == f"{text}\n"  # a pipe
    on_terminal(monkeypatch, 40)
    say(text)
    note(text)
    warn(text)
    shown = capsys.readouterr()
    for part in (shown.out, shown.err):
        lines = part.splitlines()
        assert len(lines) > 2
        assert max(map(len, lines)) <= 40
        assert {word for line in lines for word in line.split()} <= {*text.split(), "warning:"}
        assert not any(line.startswith("%") for line in lines)


def test_what_is_copied_stays_in_one_piece(monkeypatch, capsys):
    on_terminal(monkeypatch, 40)
    command = "two-stream evaluate '/a/very long/path/to a/run' --views uniform --num-clips 5"
    say(f"the run is saved after epoch 3 of 20; next: {command}")
    say(f"  $ {command}")
    say(f"written to /a/folder/with/a/name/longer/than/the/line/{'x' * 30}.npz and more")
    say("  input      rgb, 64 frames with stride 1 cut from 128×170")
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == ["the run is saved after epoch 3 of 20;", "next:", command, f"  $ {command}"]
    assert f"/a/folder/with/a/name/longer/than/the/line/{'x' * 30}.npz" in lines
    assert lines[-2:] == ["  input      rgb, 64 frames with stride", "             1 cut from 128×170"]


def test_a_name_is_not_parted_from_its_number(monkeypatch, capsys):
    on_terminal(monkeypatch, 40)
    say("epoch 1/1  train loss 2.1566  train top-1 17.2 %  val loss 2.2426  val top-1 18.8 %  best")
    lines = ["epoch 1/1  train loss 2.1566", "train top-1 17.2 %  val loss 2.2426", "val top-1 18.8 %  best"]
    assert capsys.readouterr().out.splitlines() == lines


def test_the_progress_of_an_epoch_cuts_no_number(monkeypatch, capsys):
    on_terminal(monkeypatch, 80)
    shown = _bar()
    shown.add_task(
        "epoch 10/12", total=400, completed=123, fields="loss 2.0375  lr 0.000750  speed 123.6 clips/s"
    )
    err.print(shown.get_renderable())
    shown = capsys.readouterr().err
    assert "123/400" in shown
    assert "123.6 clips/s" in shown
    assert not re.search(r"\d…|…\d", shown)


@pytest.mark.parametrize("widgets", [True, False])
def test_a_notebook_with_ipywidgets_shows_a_bar(widgets, monkeypatch):
    shown = []

    class Output:
        def clear_output(self, wait: bool) -> None: ...
        def close(self) -> None: ...
        def __enter__(self) -> None: ...
        def __exit__(self, *_: object) -> None: ...

    notebook = ModuleType("ipywidgets")
    notebook.Output, notebook.__spec__ = Output, ModuleSpec("ipywidgets", None)
    display = ModuleType("IPython.display")
    display.display = shown.append
    monkeypatch.setitem(sys.modules, "ipywidgets", notebook if widgets else None)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    if not widgets:
        monkeypatch.setattr("two_stream.runtime.console.find_spec", lambda _: None)
    monkeypatch.setattr(err, "is_jupyter", True)
    with progress("scoring", 2, every=0.0) as advance:
        advance()
        advance()
    assert any(isinstance(one, Output) for one in shown) == widgets
    lines = [one.text for one in shown if hasattr(one, "text")]
    assert ("scoring: 2/2, 0 s left\n" in lines) != widgets


def test_json_is_not_wrapped(monkeypatch, capsys):
    on_terminal(monkeypatch, 40)
    print_json({"text": "word " * 30})
    assert json.loads(capsys.readouterr().out) == {"text": "word " * 30}


def test_columns_that_say_nothing_are_left_out(monkeypatch, capsys):
    rows = [["a", "1.5", "", "rgb", "2026"], ["b", "2.5", "–", "rgb", "2026"]]
    columns = ("name", "value", "nothing", "modality", "date")
    console.print(table("scores", columns, rows, constant=("modality",)))
    shown = capsys.readouterr().out
    assert shown.startswith("scores; for all: modality rgb\n")
    assert "nothing" not in shown
    assert "│ a    │   1.5 │ 2026 │" in shown
    console.print(table("", columns, rows[:1], constant=("modality",)))
    assert "rgb" in capsys.readouterr().out  # one row is not constant


@pytest.mark.parametrize("width", [30, 45, 60, 80])
def test_a_narrow_table_shows_fewer_columns_then_shorter_words(width, monkeypatch, capsys):
    name = "a_network_with_a_long_name"
    on_terminal(monkeypatch, width)
    row = [name, "12.5", "two words", "2026-11-30"]
    console.print(table("", ("name", "score", "model", "date"), [row], spare=("model", "date")))
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= width
    assert "12.5" in shown
    assert (name in shown) == (width > 40)
    if width == 30:
        assert re.search(r"│ a_netw\w*…\w*g_name │", shown)
    assert ("2026-11-30" in shown) == (width > 60)
    noted = "not shown at this width: date" in " ".join(shown.split())
    assert noted == (width < 80)


WORDS = re.compile(r"[^\s┃│━─┏┓┡┩┗┛└┘┳╇┴]+")


@pytest.mark.parametrize(
    "command",
    ["leaderboard ROOT", "compare RGB FLOW LONG", "fuse RGB FLOW", "models *bert*",
     "models rgb_r2plus1d_32f_34", "weights list --manifest MANIFEST", "check WORLD", "evaluate WORLDRUN --device cpu",
     "predict VIDEO --rgb WORLDRUN --device cpu"],
)  # fmt: skip
def test_every_table_fits_a_terminal(command, exported_world, repository, tmp_path, monkeypatch, capsys):
    """No line is wider than the terminal, and no word of a table is broken; those of a wide one are the measure."""
    runs = Runs(tmp_path)
    names = {
        "RGB": runs.make("rgb"),
        "FLOW": runs.make("flow"),
        "LONG": runs.make("rgb", name="a run of a long name"),
    }
    names |= {
        "ROOT": tmp_path,
        "OUT": tmp_path / "r.html",
        "MANIFEST": repository / "weights" / "manifest.yaml",
    }
    names |= {
        "WORLD": exported_world / "settings" / "toy" / "dataset.yaml",
        "WORLDRUN": exported_world / "rgb",
    }
    names |= {"VIDEO": exported_world / "videos" / "left" / "v_g3.mp4"}
    args = [str(names.get(word, word)) for word in command.split(" ")]
    monkeypatch.chdir(tmp_path)
    assert_fits(lambda: main(args), monkeypatch, capsys)


@pytest.mark.parametrize(
    "show",
    [
        lambda: print_study(made_result(fusion=True)),
        lambda: show_compression(made_compression(), Path("runs/rgb_pruned")),
    ],
    ids=["ablate", "compress"],
)
def test_tables_of_long_commands_fit_a_terminal(show, monkeypatch, capsys):
    assert_fits(show, monkeypatch, capsys)


def assert_fits(show, monkeypatch, capsys):
    """Check that no line is wider than the terminal and no word of a table is broken."""
    on_terminal(monkeypatch, 250)
    assert not show()
    whole = set(WORDS.findall(capsys.readouterr().out))
    for width in (80, 100, 120):
        on_terminal(monkeypatch, width)
        assert not show()
        lines = capsys.readouterr().out.splitlines()
        paths = [line for line in lines if len(line) > width]
        assert all("/" in line or "pip install" in line for line in paths), paths  # in one piece, to copy
        cells = [line for line in lines if line[:1] in "│┃"]
        assert {word for line in cells for word in WORDS.findall(line) if "…" not in word} <= whole
