"""Generates the reference pages of commands and settings from the code: `commands.md` and `settings.md`."""

from __future__ import annotations

import contextlib
import io
import os
from importlib import import_module
from pathlib import Path

from two_stream.cli import COMMANDS, GROUPS, main
from two_stream.config.schema import Experiment


def write_reference(folder: Path) -> None:
    """Write both pages to a folder."""
    os.environ["COLUMNS"] = "88"
    parts = ["# Commands\n\nThe help page of every command, as `two-stream COMMAND --help` prints it.\n"]
    for group, names in GROUPS.items():
        parts.append(f"## {group}\n")
        for name in names.split():
            parts.append(f"### two-stream {name}\n\n{COMMANDS[name][:1].upper()}{COMMANDS[name][1:]}.\n")
            parts.append(f"```text\n{help_of(name)}```\n")
            examples = import_module(f"two_stream.commands.{name}").EXAMPLES
            for inner in examples if isinstance(examples, dict) else ():  # sub-commands
                parts.append(f"#### two-stream {name} {inner}\n\n```text\n{help_of(name, inner)}```\n")
    (folder / "commands.md").write_text("\n".join(parts), encoding="utf-8")
    (folder / "settings.md").write_text(settings_page(), encoding="utf-8")


def help_of(*command: str) -> str:
    """Return the help page of a command."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        main([*command, "--help"])
    return text.getvalue()


def settings_page() -> str:
    """Return all settings of an experiment, with the flags of `train`, their values and defaults."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        main(["train", "--help", "all"])
    groups = text.getvalue().partition("options:")[2]
    count = len(Experiment.model_fields)
    return (
        "# Settings\n\nAn experiment file sets any of these in YAML, for example `train: {epochs: 30}`; each is also a flag of "
        f"`two-stream train`, for example `--train.epochs 30`. There are {count} groups and single settings.\n\n"
        f"```text\noptions:{groups}```\n"
    )
