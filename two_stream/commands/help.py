"""Help pages of the commands: usage, flags with placeholders for their values, groups of settings, and examples."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

import tyro
from pydantic import BaseModel

from two_stream.config.load import nearest, union_members
from two_stream.errors import SettingsError
from two_stream.runtime.text import NO_BREAK, hanging

LONG = 100
"""Largest number of lines of a page that shows all groups of settings."""
Rows = Sequence[tuple[str, str]]
_PATHS = (
    ("RUN", r"run folders?\b"),
    ("FOLDER", r"folders?\b"),
    ("FILE", r"(files?|page|figure|report|table)\b"),
)


@dataclasses.dataclass(frozen=True)
class Flag:
    """A flag or positional argument on a help page."""

    group: str
    """section of the settings, such as `train.loss`; empty for flags outside sections"""
    names: tuple[str, ...]
    values: str
    """placeholder for the value of the flag, such as `INT`"""
    text: str
    positional: bool = False

    @property
    def row(self) -> tuple[str, str]:
        """The flag with its placeholder, and its description."""
        return f"{', '.join(self.names)} {self.values}".strip(), self.text


@dataclasses.dataclass(frozen=True)
class Page:
    """The parts of a help page that a command defines."""

    prog: str
    description: str
    examples: Sequence[str] = ()
    own: Rows = ()
    """arguments and flags that the command reads itself, with their descriptions"""


def show_help(page: Page, kind: type[Any], default: Any, args: Sequence[str]) -> NoReturn:
    """Print a help page and exit with 0.

    The word after `--help` selects a group of settings, or `all`. Without it, a page of more than `LONG` lines only
    lists its groups.

    Args:
        page: Usage, description and examples.
        kind: The class whose fields are the flags.
        default: Settings whose values are shown as defaults; None for those of the class.
        args: The command line.

    Raises:
        SettingsError: There is no such group of settings.
    """
    place = next(place for place, arg in enumerate(args) if arg in ("-h", "--help"))
    topic = next((arg for arg in args[place + 1 : place + 2] if not arg.startswith("-")), "")
    flags, groups = _flags_of(kind, default)
    if groups and topic not in ("", "all"):
        sys.stdout.write(_section(*_group(topic, groups, page.prog), flags).lstrip("\n"))
        raise SystemExit(0)
    usage = " ".join([page.prog, *(flag.values for flag in flags if flag.positional), "[OPTIONS]"])
    about = f"{page.description[:1].upper()}{page.description[1:].rstrip('.')}."
    text = f"usage: {usage}\n\n{textwrap.fill(about, _width())}\n"
    arguments = [row for row in page.own if not row[0].startswith("-")]
    text += _rows("arguments:", [*arguments, *(flag.row for flag in flags if flag.positional)])
    options = [row for row in page.own if row[0].startswith("-")]
    options += [flag.row for flag in flags if not (flag.positional or flag.group)]
    more = "; --help GROUP: a group of settings; --help all: every group" if groups else ""
    text += _rows("options:", [*options, ("-h, --help", f"show this help{more}")])
    whole = text + "".join(_section(*group, flags) for group in groups)
    if groups and topic != "all" and whole.count("\n") > LONG:
        whole = text + _rows("groups of settings, each shown by --help GROUP:", groups)
    sys.stdout.write(whole + _examples(page.examples))
    raise SystemExit(0)


def overview(prog: str, summary: str, rows: Rows, examples: Sequence[str], what: str = "SUB-COMMAND") -> str:
    """Return the help page of a command with sub-commands; `rows` contains their names and descriptions."""
    text = f"usage: {prog} {what} [OPTIONS]\n\n{textwrap.fill(summary, _width())}\n"
    text += _rows(f"{what.lower()}s (`{prog} {what} --help` shows the flags):", rows)
    return text + _examples(examples)


def flag_names(kind: type[Any], default: Any) -> list[str]:
    """Return the names of all flags."""
    return [name for flag in _flags_of(kind, default)[0] for name in flag.names]


def _group(topic: str, groups: Rows, prog: str) -> tuple[str, str]:
    """Return the group of settings whose name is `topic`, ends with `.topic` or starts with `topic`."""
    names = [name for name, _ in groups]
    for fits in (topic.__eq__, lambda name: name.endswith(f".{topic}"), lambda name: name.startswith(topic)):
        if found := next((group for group in groups if fits(group[0])), None):
            return found
    raise SettingsError(f"{prog}: no group of settings {topic!r}{nearest(topic, names)}; see --help")


def _examples(examples: Sequence[str]) -> str:
    """Return the examples; the commands are not broken, so that they can be copied."""
    return "\nexamples:\n" + "".join(f"  two-stream {line}\n" for line in examples) if examples else ""


def _flags_of(kind: type[Any], default: Any, group: str = "") -> tuple[list[Flag], list[tuple[str, str]]]:
    """Return the flags of a dataclass or of settings, and the sections of the settings with their descriptions."""
    flags: list[Flag] = []
    inner: list[Flag] = []
    groups: list[tuple[str, str]] = []
    texts = _texts(kind)  # type: ignore[arg-type]  # classes are hashable
    for name, hint, initial in _fields(kind):
        value = getattr(default, name, initial)
        if tyro.conf.Suppress in get_args(hint):
            continue
        if not isinstance(value, BaseModel):
            flags.append(_flag(name, hint, value, group, texts.get(name, ""), both=default is not None))
            continue
        section = f"{group}.{name}".strip(".")
        if kinds := union_members(kind.model_fields[name]):
            about = " ".join((inspect.getdoc(type(value)) or "").split()).rstrip(".")
            used = getattr(value, "kind", "")
            shown = f"kind, on which the other flags depend; {used}: {about} (default: {used})"
            inner.append(Flag(section, (f"--{section}.kind",), f"{{{','.join(sorted(kinds))}}}", shown))
        below = _flags_of(type(value), value, section)
        inner += below[0]
        groups += [(section, texts[name]), *below[1]]
    return [*flags, *inner], groups


def _fields(kind: type[Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield the name, type and default of each field; `MISSING` without a default."""
    if issubclass(kind, BaseModel):
        for name, field in kind.model_fields.items():
            default = (
                dataclasses.MISSING if field.is_required() else field.get_default(call_default_factory=True)
            )
            if name != "kind":
                yield name, Annotated[(field.annotation, *field.metadata, None)], default
        return
    hints = get_type_hints(kind, include_extras=True)
    for one in sorted(
        dataclasses.fields(kind), key=lambda one: one.kw_only is True
    ):  # flags that commands share are last
        yield one.name, hints[one.name], one.default


def _flag(name: str, hint: Any, value: Any, group: str, text: str, *, both: bool) -> Flag:
    """Return the flag of a field; with `both`, a switch that is off by default also has its `--no-` form."""
    extras = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
    given = next((one for one in extras if hasattr(one, "metavar")), None)
    public = (given and given.name) or name.replace("_", "-")
    start = f"--{group}.".replace("_", "-") if group else "--"
    values = (given and given.metavar) or _values(hint, name, text)
    positional = tyro.conf.Positional in extras
    shown = _default(value)
    names = [*((given and given.aliases) or ()), f"{start}{public}"]
    if _bare(hint) is bool and tyro.conf.FlagConversionOff not in extras:
        pair = (value or both) and tyro.conf.FlagCreatePairsOff not in extras
        values, shown = "", ("on" if value else "off") if pair else ""
        if pair:
            names.append(f"{start}no-{public}")
    if value is dataclasses.MISSING:
        shown = "" if positional else "(required)"
    elif shown:
        shown = f"(default: {shown})".replace(" ", NO_BREAK) if len(shown) < 20 else f"(default: {shown})"
    return Flag(group, () if positional else tuple(names), values, f"{text} {shown}".strip(), positional)


def _bare(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def _default(value: Any) -> str:
    if value is None or value is dataclasses.MISSING:
        return ""
    if isinstance(value, tuple | list):
        return " ".join(map(_default, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _values(hint: Any, name: str, text: str) -> str:
    """Return the placeholder for a flag's values, such as `INT`, `FLOAT FLOAT` or `FILE …`."""
    hint = _bare(hint)
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return "|".join(dict.fromkeys(_values(one, name, text) for one in inner if one is not NoneType))
    if origin is Literal:
        return f"{{{','.join(map(str, inner))}}}"
    if origin in (tuple, list):
        each = [_values(one, name, text) for one in inner if one is not ...]
        return f"{each[0]} …" if origin is list or ... in inner else " ".join(each)
    if hint in (int, float, bool):
        return {int: "INT", float: "FLOAT", bool: "{True,False}"}[hint]
    first = re.split(r"[;.:] ", text)[0]
    found = [(match.start(), word) for word, what in _PATHS if (match := re.search(what, first))]
    if found and (hint is Path or first.startswith("file")):
        return min(found)[1]
    return "PATH" if hint is Path else name.rpartition("_")[2].upper()


@functools.cache
def _texts(kind: type[Any]) -> dict[str, str]:
    """Return the docstring of each field as one line, from the source code of a class and its bases."""
    found = {}
    for one in reversed(kind.__mro__):
        with suppress(OSError, TypeError):  # classes that are built in or made at run time
            body = ast.parse(textwrap.dedent(inspect.getsource(one))).body[0]
            for field, text in itertools.pairwise(body.body if isinstance(body, ast.ClassDef) else ()):
                match field, text:
                    case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(
                        value=ast.Constant(value=str(shown))
                    ):
                        found[name] = " ".join(shown.split())
    if issubclass(kind, BaseModel):
        found |= {name: one.description for name, one in kind.model_fields.items() if one.description}
    return found


def _section(name: str, text: str, flags: Sequence[Flag]) -> str:
    return _rows(f"{name}: {text}", [flag.row for flag in flags if flag.group == name])


def _rows(title: str, rows: Rows) -> str:
    return f"\n{textwrap.fill(title, _width())}\n{hanging(rows, _width())}" if rows else ""


def _width() -> int:
    return shutil.get_terminal_size().columns
