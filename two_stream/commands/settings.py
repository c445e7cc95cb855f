"""`two-stream settings [NAME]`: lists, shows and copies the settings files of experiments and studies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from two_stream.commands.flags import parse
from two_stream.commands.output import print_table
from two_stream.config.load import nearest, settings_files, shipped
from two_stream.errors import SettingsError
from two_stream.runtime.console import console, note, say
from two_stream.runtime.files import write_text

SUMMARY = "List the settings files of experiments and studies, show one of them, or copy it."
EXAMPLES = ("settings own_videos_rgb", "settings own_videos_rgb --copy mine.yaml")


@dataclass(frozen=True)
class _SettingsFlags:
    name: tyro.conf.Positional[Annotated[str | None, tyro.conf.arg(metavar="[NAME]")]] = None
    """name of a settings file; if omitted, all are listed"""
    copy: Path | None = None
    """file to write a copy to, which you can then change"""


def main(args: list[str]) -> int:
    """Run the command and return its exit code."""
    flags = parse(_SettingsFlags, args, "two-stream settings", SUMMARY, EXAMPLES)
    found = settings_files()
    if flags.name is None:
        own = Path("settings").resolve()
        rows = [
            (name, "study" if "studies" in path.parts else "experiment", _first_line(path))
            for name, path in found.items()
        ]
        print_table("", ("name", "kind", "what it does"), rows)
        changed = sum(path.resolve().is_relative_to(own) for path in found.values())
        say(
            f"from {shipped('settings')}"
            + (f"; {changed} from {own}" if changed and own != shipped("settings") else "")
        )
        return 0
    path = found.get(flags.name.removesuffix(".yaml"))
    if path is None:
        raise SettingsError(f"{flags.name}: no settings of this name{nearest(flags.name, list(found))}")
    text = path.read_text(encoding="utf-8")
    if flags.copy is None:
        note(f"settings: {path}")
        console.print(text.rstrip("\n"), markup=False, highlight=False, soft_wrap=True)
        return 0
    if flags.copy.exists():
        raise SettingsError(f"--copy {flags.copy}: the file exists already; choose another name")
    write_text(flags.copy, text)
    say(f"copied {path} to {flags.copy}")
    return 0


def _first_line(path: Path) -> str:
    """Return the first comment of a settings file."""
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return first.lstrip("# ").rstrip(".") if first.startswith("#") else ""
