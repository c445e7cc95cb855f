"""Help pages: plain names of values, no line wider than the terminal, and examples that the parser accepts."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest
import tyro

from tests.helpers.documents import commands_in, pages_of
from two_stream.cli import COMMANDS, GROUPS, main
from two_stream.commands import compress, evaluate, help, train, weights
from two_stream.commands.flags import wants_help
from two_stream.commands.help import flag_names
from two_stream.config.schema import Experiment

PAGES = [
    [],
    *([name] for name in COMMANDS),
    *(["weights", name] for name in weights.EXAMPLES),
    *(["compress", name] for name in compress.EXAMPLES),
    ["prepare", "folder"],
    ["prepare", "ssv2"],
    ["train", "--recipe", "late-temporal"],
    ["evaluate", "--from-json", "x"],
]
ALL = [*PAGES, ["train", "all"], ["features", "all"], ["compress", "prune", "all"]]


def page(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    topic = args[-1:] if args[-1:] == ["all"] else []
    with contextlib.suppress(SystemExit):
        assert main([*args[: len(args) - len(topic)], "--help", *topic]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("width", [80, 100, 120])
@pytest.mark.parametrize("args", ALL, ids=" ".join)
def test_a_page_fits_and_is_plain(args, width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    shown, _, examples = page(args, capsys).partition("\nexamples:\n")
    assert max(map(len, shown.splitlines())) <= width
    assert not re.search(r"[╭│─┃]|\{None\}|\(default: (None)?\)|\[PATH|\bSTR\b|\.\.\.", shown)
    assert shown.startswith("usage: two-stream")
    if "all" not in args:
        assert shown.count("\n") <= help.LONG
    if args:
        lines = examples.splitlines()
        assert len(lines) >= 2
        assert all(line.startswith(f"  two-stream {args[0]}") for line in lines)


EXAMPLES = [
    example
    for name in COMMANDS
    for examples in [import_module(f"two_stream.commands.{name}").EXAMPLES]
    for example in (sum(examples.values(), ()) if isinstance(examples, dict) else examples)
]


ROOT = Path(__file__).resolve().parents[3]
DOCUMENTED = {
    command.removeprefix("two-stream ")
    for page in pages_of(ROOT, "Start", "Guides", "Why", "Coming from")
    for command in commands_in(page)
    if command.startswith("two-stream ") and not re.search(r"[\[…{]|\bKIND\b", command)
}


@pytest.mark.parametrize(
    "example", [*EXAMPLES, *train.RECIPE_EXAMPLES, *evaluate.RESULT_EXAMPLES, *sorted(DOCUMENTED)]
)
def test_an_example_is_accepted(example, monkeypatch, tmp_path, capsys):
    """Every flag of the example parses: an unknown flag is an error before the missing run is."""
    command, *rest = shlex.split(example)
    module = import_module(f"two_stream.commands.{command}")
    monkeypatch.chdir(tmp_path)
    parsed = []
    for name in ("parse", "parse_over"):
        if hasattr(module, name):
            real = getattr(module, name)
            monkeypatch.setattr(module, name, stopping(real, parsed))
    for name in ("run_settings", "network_settings", "load_experiment", "_experiment", "_student"):
        if hasattr(module, name):
            monkeypatch.setattr(module, name, lambda *_: Experiment())
    with pytest.raises((ParsedError, SystemExit)):
        module.main(rest)
    assert parsed or wants_help(rest)


class ParsedError(Exception):
    pass


def stopping(real, parsed):
    def parse(*args, **given):
        parsed.append(real(*args, **given))
        raise ParsedError

    return parse


def test_a_long_page_lists_groups_that_have_their_own(capsys):
    short = page(["train"], capsys)
    assert "groups of settings" in short
    assert "--train.epochs" not in short
    for topic in ("train.optimizer", "optimizer", "train.optim"):
        with pytest.raises(SystemExit):
            main(["train", "--help", topic])
        shown = capsys.readouterr().out
        assert shown.startswith("train.optimizer: ")
        assert "--train.optimizer.kind {adamw,logistic,sgd}" in shown
        assert "--train.epochs" not in shown
    assert main(["train", "--help", "optimiser"]) == 2
    assert "no group of settings 'optimiser'; did you mean `train.optimizer`?" in capsys.readouterr().err
    assert "--data.augment.flip" in page(["train", "all"], capsys)


def test_help_shows_the_flags_that_the_parser_takes():
    """The pages are made from the types, so they must agree with tyro, which parses."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), pytest.raises(SystemExit):
        tyro.cli(Experiment, args=["--help"], default=Experiment(), config=(tyro.conf.AvoidSubcommands,))
    text = re.sub(r"\x1b\[[0-9;]*m", "", shown.getvalue())
    lines = " ".join(re.findall(r"^. (--.*)", text, re.MULTILINE))
    theirs = set(re.findall(r"--\w[\w.-]*", lines))
    assert theirs == set(flag_names(Experiment, Experiment()))


def test_every_command_is_in_one_of_five_groups(capsys):
    assert list(GROUPS) == ["Data", "Train", "Measure", "Compare", "Use"]
    assert sorted(" ".join(GROUPS.values()).split()) == sorted(COMMANDS)
    assert re.findall(r"^(\w+):$", page([], capsys), re.MULTILINE) == list(GROUPS)
