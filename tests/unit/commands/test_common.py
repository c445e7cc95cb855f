"""Flags over loaded settings."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

import pytest

from two_stream.commands.flags import parse, parse_over, split_positional, take_flag
from two_stream.config.heads import LstmHead
from two_stream.config.schema import Experiment
from two_stream.errors import SettingsError


def over(*args: str) -> Experiment:
    return parse_over(Experiment(name="mine", seed=7), list(args), "two-stream train", "Train.")


def test_flags_change_only_what_they_name() -> None:
    changed = over("--train.optimizer.lr", "0.5", "--data.augment.flip=0")
    assert changed.train.optimizer.lr == 0.5
    assert changed.data.augment.flip == 0.0
    assert changed.model_copy(update={"train": Experiment().train, "data": Experiment().data}) == Experiment(
        name="mine", seed=7
    )


def test_kind_changes_the_part_and_its_flags() -> None:
    changed = over("--model.head.kind", "lstm", "--model.head.hidden", "7")
    assert changed.model.head == LstmHead(hidden=7)
    assert over("--train.optimizer.kind=adamw").train.optimizer.kind == "adamw"


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--model.hed.layers", "3"], "unknown flag --model.hed.layers; did you mean `--model.head.layers`?"),
        (["--model.head.layers", "x"], "--model.head.layers is x: expected a whole number"),
        (["--model.dropout", "x"], "--model.dropout is x: expected a number"),
        (
            ["--model.head.layers", "0"],
            "`model.head.layers` is 0: input should be greater than or equal to 1",
        ),
        (["--model.reduction", "fram"], "invalid choice 'fram' for argument '--model.reduction'"),
        (["--train.batch-size"], "Missing value for argument '--train.batch-size'"),
        (["--train.cross-modality"], "`train`: `cross_modality` requires `init`"),
        (["--model.head.kind", "lsmt"], "unknown head kind 'lsmt'; did you mean `lstm`?"),
        (["--model.haed.kind", "lstm"], "unknown key `haed`; did you mean `head`?"),
        (["--model.head.kind"], "--model.head.kind: a value is missing"),
        (["--name.foo.kind", "z"], "`name` is a single value and has no key `foo`"),
    ],
)
def test_each_mistake_is_one_line(args: list[str], expected: str) -> None:
    before = os.environ.get("COLUMNS")
    with pytest.raises(SettingsError) as caught:
        over(*args)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert os.environ.get("COLUMNS") == before


def test_help_shows_the_loaded_values(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        over("--help")
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "(default: mine)" in shown
    assert "(default: 7)" in shown
    with pytest.raises(SystemExit):
        over("--help", "model.backbone")
    kinds = re.search(r"--model\.backbone\.kind \{([\w, ]+)\}", " ".join(capsys.readouterr().out.split()))
    assert kinds is not None
    assert {"mobilenetv2_3d", "resnet3d", "resnext3d"} <= set(kinds[1].split(", "))


def test_dataclass_flags() -> None:
    @dataclass(frozen=True)
    class Flags:
        count: int = 3
        """how many"""

    assert parse(Flags, ["--count", "4"], "two-stream x", "X.").count == 4
    with pytest.raises(SettingsError, match="two-stream x: unknown flag --cuont; did you mean `--count`"):
        parse(Flags, ["--cuont", "4"], "two-stream x", "X.")


def test_positional_and_switch() -> None:
    assert split_positional(["a", "--b"], "p", "a file", "f") == ("a", ["--b"])
    assert split_positional(["--help"], "p", "a file", "f") == ("", ["--help"])
    with pytest.raises(
        SettingsError, match="p: a file is missing; add it as the first argument, for example: p f"
    ):
        split_positional(["--b"], "p", "a file", "f")
    assert take_flag(["x", "--resume", "y"], "--resume") == (True, ["x", "y"])
