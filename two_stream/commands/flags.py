"""Parses flags with tyro, into a dataclass or as changes to loaded settings. Every error message is one line."""

from __future__ import annotations

import contextlib
import difflib
import io
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args, get_type_hints

import tyro
from pydantic import BaseModel, ValidationError

from two_stream.commands.help import Page, Rows, flag_names, overview, show_help
from two_stream.config.load import explain, find_settings, nearest, union_members
from two_stream.errors import SettingsError
from two_stream.runtime.console import note

if TYPE_CHECKING:
    from two_stream.evaluation.scores.formats import Described

DataRoots = Annotated[tuple[Path, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="FOLDER")]
"""type of `--data-root`, a flag that may be repeated"""
T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
"""Colour codes, which tyro prints on a terminal."""
_RULE = re.compile(r"^[│|\s]*[─-]{5,}")
_PYDANTIC = re.compile(
    r"Error parsing (?P<where>\S+): \d+ validation errors? for \S+ (?:(?!Value error)(?P<key>[\w.]+) )?(?P<what>.+?) "
    r"\[type=\w+, input_value=(?P<value>.+?), input_type="
)

_OPTIONAL = re.compile(
    r"(?:Error parsing )?(?P<flag>\S+): no type matching (?:\{None\}\|)?(?P<kind>.+?) could be instantiated from "
    r"\[(?P<value>[^]]+)\]"
)
"""tyro's message for a wrong value of an optional flag"""
_NUMBER = re.compile(
    r"Error parsing (?P<flag>\S+): (?:(?P<int>invalid literal for int).*|could not convert string to float): "
    r"'(?P<value>.*)'"
)
"""Python's messages for a wrong number"""


@dataclass(frozen=True, kw_only=True)
class ScoreFlags:
    """Flags for what score files of other programs leave out."""

    labels: str | None = None
    """file with the labels (CSV with `id` and `label`, split list, annotation JSON), or a data set (name or path), for
    score files of other programs without labels"""
    classes: Path | None = None
    """file with one class name per line, in the order of the scores or of the labels' numbers"""
    groups: Path | None = None
    """file with lines `id source`; videos of the same source are not independent"""
    kind: Literal["auto", "logits", "probabilities", "log-probabilities"] = "auto"
    """what the scores of other programs are; auto: recognized by their range and their sum"""

    def described(self) -> Described:
        """Return the flags for `read_scores`."""
        from two_stream.evaluation.scores.formats import Described

        return Described(self.labels, self.classes, self.groups, self.kind)


@dataclass(frozen=True, kw_only=True)
class JoinFlags(ScoreFlags):
    """Flags of commands that join score files."""

    common: bool = False
    """use only the videos that all files contain"""


def parse(
    options: type[T],
    args: list[str],
    prog: str,
    description: str,
    examples: Sequence[str] = (),
    own: Rows = (),
) -> T:
    """Parse flags into a dataclass. `--help` prints the help page and exits 0.

    Args:
        options: The dataclass.
        args: The command line.
        prog: The command, for messages.
        description: What the command does, for `--help`.
        examples: Command lines at the end of the help page.
        own: Arguments and flags that the command has read itself, with their descriptions, for `--help`.

    Raises:
        SettingsError: A flag is unknown (the message suggests the most similar one), or a value is missing or wrong.
    """
    if wants_help(args):
        show_help(Page(prog, description, examples, own), options, None, args)
    return _cli(options, None, args, prog)


def parse_over(
    default: M, args: list[str], prog: str, description: str, examples: Sequence[str] = (), own: Rows = ()
) -> M:
    """Parse flags that change the loaded settings `default`; the other arguments are those of `parse`.

    `--help` shows the loaded values. The flag `--a.b.kind x` changes the kind of the section `a.b`.

    Raises:
        SettingsError: As for `parse`; or values contradict each other.
    """
    default, args = _apply_kinds(default, args)
    if wants_help(args):
        show_help(Page(prog, description, examples, own), type(default), default, args)
    parsed = _cli(type(default), default, args, prog)
    try:  # tyro builds nested objects one by one: validate them together
        return type(default).model_validate(parsed.model_dump())
    except ValidationError as error:
        raise SettingsError(f"{prog}: {explain(type(default), error)}") from None


def found_settings(given: str, kind: str) -> Path:
    """Return a settings file by path or name, see `find_settings`; if it was found by name, say which file is read."""
    path = find_settings(given, kind)
    if path != Path(given):
        note(f"settings: {path}")
    return path


def split_positional(args: list[str], prog: str, what: str, example: str) -> tuple[str, list[str]]:
    """Return the first argument and the rest; with `--help`, the first argument may be missing and is then empty.

    Raises:
        SettingsError: The argument is missing.
    """
    if args and not args[0].startswith("-"):
        return args[0], args[1:]
    if wants_help(args):
        return "", args
    raise SettingsError(
        f"{prog}: {what} is missing; add it as the first argument, for example: {prog} {example}"
    )


def wants_help(args: list[str]) -> bool:
    """Return whether the arguments ask for help."""
    return "-h" in args or "--help" in args


def run_subcommand(
    prog: str,
    summary: str,
    commands: Mapping[str, tuple[Callable[[list[str]], int], str]],
    args: list[str],
    examples: Mapping[str, Sequence[str]],
) -> int:
    """Run the sub-command that the first argument names, and return its exit code.

    Args:
        prog: The command, for messages.
        summary: What it does, for `--help`.
        commands: Function and description of each sub-command.
        args: The sub-command and its arguments.
        examples: Command lines for each sub-command.

    Raises:
        SettingsError: The sub-command is unknown; the message suggests the most similar one.
    """
    if not args or args[0] in ("-h", "--help"):
        rows = [(name, text) for name, (_, text) in commands.items()]
        sys.stdout.write(overview(prog, summary, rows, [lines[0] for lines in examples.values()]))
        return 0
    if args[0] not in commands:
        raise SettingsError(f"{prog}: unknown sub-command {args[0]!r}{nearest(args[0], list(commands))}")
    return commands[args[0]][0](args[1:])


def take_flag(args: list[str], flag: str) -> tuple[bool, list[str]]:
    """Remove a switch from the arguments; return whether it was present, and the remaining arguments."""
    return flag in args, [arg for arg in args if arg != flag]


def take_value(args: list[str], flag: str, prog: str) -> tuple[str | None, list[str]]:
    """Remove a flag and its value (`--flag value` or `--flag=value`); return the value and the rest.

    Raises:
        SettingsError: The value is missing.
    """
    for place, arg in enumerate(args):
        name, equals, value = arg.partition("=")
        if name == flag and equals:
            return value, args[:place] + args[place + 1 :]
        if name == flag:
            if len(args) == place + 1 or args[place + 1].startswith("-"):
                raise SettingsError(f"{prog}: {flag}: a value is missing; add it after the flag")
            return args[place + 1], args[:place] + args[place + 2 :]
    return None, args


def _cli(kind: type[T], default: Any, args: list[str], prog: str) -> T:
    complaint = io.StringIO()
    # without loaded settings, None is the default of optional flags and not accepted as a value
    config = (tyro.conf.AvoidSubcommands, *([tyro.conf.DisallowNone] if default is None else []))
    given = {} if default is None else {"default": default}
    columns = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "4000"  # tyro wraps messages at the terminal's width
    try:
        with contextlib.redirect_stderr(complaint):
            parsed: T = tyro.cli(kind, args=args, prog=prog, add_help=False, config=config, **given)
            _refuse_repeated_lists(parsed, args, prog)
            return parsed
    except SystemExit:
        message = _one_line(_COLOUR.sub("", complaint.getvalue()), lambda: flag_names(kind, default))
        raise SettingsError(f"{prog}: {message}") from None
    finally:
        if columns is None:
            os.environ.pop("COLUMNS", None)
        else:
            os.environ["COLUMNS"] = columns


def _refuse_repeated_lists(parsed: object, args: Sequence[str], prog: str) -> None:
    """Refuse a flag with a list of values that is given twice, because only its last values would count."""
    names = [arg.partition("=")[0] for arg in args if arg.startswith("--")]
    for name in dict.fromkeys(name for name in names if names.count(name) > 1):
        value: object = parsed
        *parts, last = name.lstrip("-").replace("-", "_").split(".")
        for part in parts:
            value = getattr(value, part, None)
        hint = get_type_hints(type(value), include_extras=True).get(last)
        appends = tyro.conf.UseAppendAction in get_args(hint)
        if isinstance(getattr(value, last, None), tuple | list) and not appends:
            raise SettingsError(f"{prog}: {name} is given twice; pass all its values after one {name}")


def _unknown(words: list[str], flags: list[str]) -> str:
    """Return a message that names unknown flags and similar ones (by spelling or by their last part)."""
    messages = []
    for word in [word for word in words if word.startswith("-")] or words[:1]:
        if not word.startswith("-"):
            return f"unexpected argument {word!r}; see --help"
        name = word.partition("=")[0]
        same = [flag for flag in flags if flag.endswith(f".{name.lstrip('-')}")]
        close = (same or difflib.get_close_matches(name, flags, n=1, cutoff=0.5))[:3]
        near = difflib.get_close_matches(name, flags, n=3, cutoff=0.0)
        what = f"did you mean {' or '.join(f'`{flag}`' for flag in close)}?" if close else ""
        messages.append(f"unknown flag {name}; {what or 'nearest: ' + ', '.join(near)}")
    return f"{'; '.join(messages)}; see --help"


def _one_line(box: str, flags: Callable[[], list[str]]) -> str:
    sections: list[list[str]] = [[]]
    for line in box.splitlines():
        if line.startswith(("╭", "╰")):
            continue
        if _RULE.match(line):
            sections.append([])
        else:
            sections[-1].append(line.strip("│| \t"))
    if "╭" not in box and len(sections) > 1:  # without UTF-8 there is no box, and the title is a section
        sections = sections[1:]
    text = " ".join(part for part in sections[0] if part)
    unknown = re.match(r"Unrecognized options?: (.+)", text)
    if unknown:
        return _unknown(unknown[1].split(", "), flags())
    wrong = _PYDANTIC.search(text)
    if wrong:
        key = ".".join(part for part in (wrong["where"].lstrip("-"), wrong["key"]) if part)
        what = wrong["what"].removeprefix("Value error, ")
        if what != wrong["what"]:  # the messages of our own validators are complete
            return f"`{key}`: {what}"
        return f"`{key}` is {wrong['value']}: {what[0].lower()}{what[1:]}"
    text = _NUMBER.sub(
        lambda found: (
            f"{found['flag']} is {found['value']}: expected a {'whole ' * bool(found['int'])}number"
        ),
        text,
    )
    optional = _OPTIONAL.match(text)
    if optional:
        return f"{optional['flag']} is {optional['value']}: expected {optional['kind']}"
    return re.sub(r"^Error parsing (\S+): ", r"\1: ", text) or "the flags cannot be parsed; see --help"


def _apply_kinds(default: M, args: list[str]) -> tuple[M, list[str]]:
    """Apply flags such as `--model.head.kind lstm` before parsing, because the kind determines a section's flags."""
    rest: list[str] = []
    waiting = list(args)
    while waiting:
        arg = waiting.pop(0)
        name, equals, value = arg.partition("=")
        if not (name.startswith("--") and name.endswith(".kind")):
            rest.append(arg)
            continue
        if not equals:
            if not waiting:
                raise SettingsError(f"{name}: a value is missing; add it after the flag")
            value = waiting.pop(0)
        default = _with_kind(default, name[2:].replace("-", "_").split(".")[:-1], value)
    return default, rest


def _with_kind(options: M, path: list[str], kind: str) -> M:
    name = path[0]
    field = type(options).model_fields.get(name)
    if field is None:
        raise SettingsError(f"unknown key `{name}`{nearest(name, list(type(options).model_fields))}")
    current = getattr(options, name)
    if len(path) > 1:
        if not isinstance(current, BaseModel):
            raise SettingsError(f"`{name}` is a single value and has no key `{path[1]}`")
        return options.model_copy(update={name: _with_kind(current, path[1:], kind)})
    members = union_members(field)
    if kind not in members:
        raise SettingsError(f"unknown {name} kind {kind!r}{nearest(kind, list(members))}")
    return options if current.kind == kind else options.model_copy(update={name: members[kind]()})
