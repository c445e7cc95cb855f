"""Files whose names are not UTF-8: everything works and writes them as `\\udce9`, or says so in one line."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from two_stream.cli import main as cli
from two_stream.runtime.files import checked_line, is_line_intact, write_json, write_text
from two_stream.runtime.text import json_text

ODD = os.fsdecode(b"caf\xe9")
TOLD = "caf\\udce9"


@pytest.fixture
def odd(tmp_path) -> Path:
    """A folder of that name."""
    folder = tmp_path / ODD
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    return folder


def test_json_and_text_escape_what_is_not_printed(tmp_path):
    names = ["é跳ぶ", ODD, "\x1b[31m\u202e", "\U000e0001"]
    assert json_text(names) == '["é跳ぶ", "caf\\udce9", "\\u001b[31m\\u202e", "\\udb40\\udc01"]'
    write_json(tmp_path / "a.json", names)
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == names
    write_text(tmp_path / "a.txt", ODD)
    assert (tmp_path / "a.txt").read_text("utf-8") == TOLD
    assert is_line_intact(checked_line({"name": ODD})) is True


def test_predict_writes_every_file(world, odd, capsys):
    video = shutil.copy(world / "videos" / "left" / "v_g1.mp4", odd / f"{ODD}.mp4")
    files = {"json": "a.json", "timeline": "a.png", "annotate": "a.mp4"}
    flags = [part for flag, name in files.items() for part in (f"--{flag}", str(odd / name))]
    run = ["--rgb", str(world / "rgb"), "--device", "cpu", "--crops", "center"]
    assert cli(["predict", str(video), *run, *flags]) == 0
    assert f"{TOLD}.mp4" in capsys.readouterr().out
    assert {path.name for path in odd.iterdir()} == {f"{ODD}.mp4", "a.csv", *files.values()}
    (answer,) = json.loads((odd / "a.json").read_text("utf-8"))
    assert answer["video"] == str(video)
    assert cli(["stream", str(video), *run[:4], "--mode", "sliding", "--json", str(odd / "b.jsonl")]) == 0


def test_extract_check_and_prepare(world, odd, tmp_path, capsys):
    for name in ("a", "b"):
        (odd / name).mkdir()
        shutil.copy(world / "videos" / "left" / "v_g1.mp4", odd / name / f"{ODD}.mp4")
    out = tmp_path / "out"
    common = ["--json", str(odd / "a.json"), "--processes", "0"]
    assert cli(["extract", str(odd), "--out", str(out), "--flow", "none", *common]) == 0
    assert (out / "a" / ODD / "img_00001.jpg").is_file()
    (out / "a" / ODD / "img_00001.jpg").write_bytes(b"")
    assert cli(["check", str(out), "--decode", *common]) == 1
    (found,) = json.loads((odd / "a.json").read_text("utf-8"))["findings"]
    assert found["subject"] == str(out / "a" / ODD / "img_00001.jpg")
    assert f"{TOLD}/img_00001.jpg" in capsys.readouterr().out
    prepare = [
        "prepare",
        "folder",
        str(odd),
        "--name",
        "odd",
        "--out",
        str(tmp_path / "s"),
        "--processes",
        "0",
    ]
    assert cli(prepare) == 2
    assert f"the name 'a/{TOLD}'" in capsys.readouterr().err


def test_runs_and_scores(world, odd, capsys):
    shutil.copytree(world / "rgb", odd / "rgb")
    assert cli(["evaluate", str(odd / "rgb"), "--device", "cpu"]) == 2
    assert "safetensors requires a path in UTF-8; rename" in capsys.readouterr().err
    assert cli(["train", str(world / "rgb" / "experiment.yaml"), "--runs", str(odd)]) == 2
    assert "not valid UTF-8, which TensorBoard and safetensors require" in capsys.readouterr().err
    scores = str(odd / f"{ODD}.npz")
    assert cli(["evaluate", str(world / "rgb"), "--device", "cpu", "--views", "single", "--out", scores]) == 0
    assert cli(["report", scores, "--out", str(odd / "r.html")]) == 0
    assert cli(["compare", scores, scores]) in (0, 2)
    assert "Traceback" not in capsys.readouterr().err
