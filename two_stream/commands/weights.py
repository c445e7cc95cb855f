"""`two-stream weights`: list, fetch, verify and convert published checkpoints."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from two_stream.commands.flags import parse
from two_stream.errors import SettingsError, TwoStreamError
from two_stream.runtime.console import console, note, say, table
from two_stream.runtime.text import json_text

if TYPE_CHECKING:
    from two_stream.pretrained.files.fetch import Sources
    from two_stream.pretrained.files.manifest import Manifest, PublishedFile

SUMMARY = "list, fetch, verify and convert published checkpoints"
_PROG = "two-stream weights"


@dataclass(frozen=True)
class ListOptions:
    """What to list."""

    pattern: tyro.conf.Positional[str] = "*"
    """word or pattern that the name, the file, the model or the title has, such as 'i3d' or '*flow*'"""
    json: bool = False
    """print JSON with everything that is known"""
    folder: Path = Path("weights")
    """where fetched files lie"""
    manifest: Path | None = None
    """list of published files; by default weights/manifest.yaml"""


@dataclass(frozen=True)
class FetchOptions:
    """What to fetch and from where."""

    names: tyro.conf.Positional[tuple[str, ...]]
    """names or patterns, as `list` shows them"""
    to: Path = Path("weights")
    """folder to put them in"""
    mirror: str | None = None
    """address that has the files under their own names; asked in place of the publisher (else $TWO_STREAM_MIRROR)"""
    source: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """folder that has the files already; nothing is downloaded ($TWO_STREAM_WEIGHTS is tried first, too)"""
    force: bool = False
    """fetch anew what is there"""
    timeout: float = 30.0
    """seconds without a byte after which a connection is given up"""
    manifest: Path | None = None
    """list of published files; by default weights/manifest.yaml"""


@dataclass(frozen=True)
class VerifyOptions:
    """What to verify."""

    targets: tyro.conf.Positional[tuple[str, ...]] = ()
    """names or files; by default every published file that is here"""
    folder: Path = Path("weights")
    """where fetched files lie"""
    manifest: Path | None = None
    """list of published files; by default weights/manifest.yaml"""


@dataclass(frozen=True)
class ConvertOptions:
    """What to convert and into what."""

    source: tyro.conf.Positional[str]
    """published checkpoint or its name in `list`; with `--to published` a run or model folder of ours"""
    out: Path
    """run folder to write; with `--to published` a file"""
    to: Literal["ours", "published"] = "ours"
    """a run folder of ours, or a checkpoint for the code that published the network"""
    model: str | None = None
    """network it belongs to, a name of `two-stream models`; known for the files in `list`"""
    classes: str | None = None
    """file with a class name on each line, in the classifier's order, or the number of classes to expect"""
    dataset: str | None = None
    """data set it was trained on, for `two-stream evaluate` and the names of the classes; for example hmdb51"""
    averaged: bool = False
    """of a checkpoint that holds a moving average (EMA, SWA) beside the weights themselves, convert the average"""
    split: int = 1
    """split it was trained on"""
    folder: Path = Path("weights")
    """where fetched files lie"""
    manifest: Path | None = None
    """list of published files; by default weights/manifest.yaml"""


def main(args: list[str]) -> int:
    """Run a sub-command; 0 done, 2 when something is wrong with a file, a link or the flags.

    Raises:
        TwoStreamError: Unknown sub-command, name or flag, or a file that cannot be read.
    """
    if not args or args[0] in ("-h", "--help"):
        sys.stdout.write(_help())
        return 0
    name, rest = args[0], args[1:]
    if name not in _COMMANDS:
        from two_stream.config.load import nearest

        raise SettingsError(f"{_PROG}: unknown sub-command {name!r}{nearest(name, list(_COMMANDS))}")
    return _COMMANDS[name][0](rest)


def _list(args: list[str]) -> int:
    options = parse(ListOptions, args, prog=f"{_PROG} list", description=_COMMANDS["list"][1])
    entries = _manifest(options.manifest).matching(options.pattern)
    if options.json:
        say(json_text([_row(entry, options.folder) for entry in entries], indent=2))
        return 0
    columns = ("name", "model", "classes", "MiB", "hash", "licence", "here", "link")
    rows = [_cells(entry, options.folder) for entry in entries]
    console.print(table(f"{len(rows)} published files (--json tells all of each)", columns, rows))
    for entry in entries:
        if entry.package:
            say(f"{entry.name}: {_package(entry, entry.package, options.folder)}")
    return 0


def _package(entry: PublishedFile, package: str, folder: Path) -> str:
    """Return where the file of a package is, or how to get it."""
    from two_stream.pretrained.files.manifest import local_file
    from two_stream.pretrained.starter import how_to_install

    file = local_file(entry, folder)
    return str(file) if file.is_file() else how_to_install(package)


def _row(entry: PublishedFile, folder: Path) -> dict[str, Any]:
    from two_stream.pretrained.files.manifest import local_file

    file = local_file(entry, folder)
    return {
        **entry.model_dump(mode="json"),
        "published_hash": entry.published_hash,
        "here": _here(entry, folder),
        "path": str(file) if file.is_file() else None,
    }


def _cells(entry: PublishedFile, folder: Path) -> tuple[str, ...]:
    from two_stream.pretrained.files.manifest import local_file

    file = local_file(entry, folder)
    size = file.stat().st_size if file.is_file() else entry.size
    return (
        entry.name,
        (entry.model or "–").removeprefix("late_temporal/"),
        str(entry.classes.count),
        f"{size / 2**20:.0f}" if size else "–",
        entry.published_hash,
        entry.licence,
        _here(entry, folder),
        "direct" if entry.url or entry.mirrors else "pip" if entry.package else "page",
    )


def _here(entry: PublishedFile, folder: Path) -> str:
    from two_stream.pretrained.files.download import PART
    from two_stream.pretrained.files.manifest import local_file

    file = local_file(entry, folder)
    if file.is_file():
        return "yes"
    return "partly" if file.with_name(file.name + PART).is_file() else "no"


def _fetch(args: list[str]) -> int:
    options = parse(FetchOptions, args, prog=f"{_PROG} fetch", description=_COMMANDS["fetch"][1])
    if not options.names:
        raise SettingsError(f"{_PROG} fetch: which files? Give names, as `{_PROG} list` shows them")
    manifest = _manifest(options.manifest)
    entries = [entry for name in options.names for entry in _named(manifest, name)]
    from two_stream.pretrained.files.download import Patience
    from two_stream.pretrained.files.fetch import fetch

    sources = _sources(options)
    code = 0
    for entry in dict.fromkeys(entries):
        try:
            done = fetch(
                entry, options.to, sources, force=options.force, patience=Patience(timeout=options.timeout)
            )
        except TwoStreamError as error:
            note(f"two-stream: {error}")
            code = error.exit_code
        except KeyboardInterrupt:
            note(f"{entry.name}: what came is kept; the same command goes on from there")
            raise
        else:
            say(f"{entry.name}: {done.file} ({_HOW[done.how]}; {done.assurance})")
    return code


_HOW = {"present": "there already", "copied": "copied", "downloaded": "fetched"}


def _sources(options: FetchOptions) -> Sources:
    from two_stream.pretrained.files.fetch import Sources

    local = options.source or (
        Path(os.environ["TWO_STREAM_WEIGHTS"]) if os.environ.get("TWO_STREAM_WEIGHTS") else None
    )
    if options.source is not None and not options.source.is_dir():
        raise SettingsError(f"{_PROG} fetch: --from {options.source}: no such folder")
    return Sources(
        local=local,
        local_only=options.source is not None,
        mirror=options.mirror or os.environ.get("TWO_STREAM_MIRROR") or None,
    )


def _named(manifest: Manifest, name: str) -> list[PublishedFile]:
    if not set("*?[") & set(name):
        return [manifest.find(name)]
    found = manifest.matching(name)
    if not found:
        raise SettingsError(f"{_PROG}: no published weights match {name!r}; see `{_PROG} list`")
    return found


def _verify(args: list[str]) -> int:
    options = parse(VerifyOptions, args, prog=f"{_PROG} verify", description=_COMMANDS["verify"][1])
    from two_stream.pretrained.files.manifest import local_file

    manifest = _manifest(options.manifest)
    targets = options.targets or tuple(
        entry.name for entry in manifest.entries if local_file(entry, options.folder).is_file()
    )
    if not targets:
        raise SettingsError(
            f"{_PROG} verify: none of the published files is in {options.folder}; name a file"
        )
    code = 0
    for target in targets:
        try:
            say(_verified(manifest, target, options.folder))
        except TwoStreamError as error:
            note(f"two-stream: {error}")
            code = 2
    return code


def _located(manifest: Manifest, target: str, folder: Path) -> tuple[Path, PublishedFile | None]:
    """Return the file that a path or a name stands for, and what is published of it."""
    path = Path(target)
    if path.exists():
        return path, next((one for one in manifest.entries if path.name == one.file), None)
    from two_stream.pretrained.files.manifest import local_file

    entry = manifest.find(target)
    return local_file(entry, folder), entry


def _verified(manifest: Manifest, target: str, folder: Path) -> str:
    """Check one name or file and say what the check is worth."""
    from two_stream.pretrained.files.fetch import verify_file

    file, entry = _located(manifest, target, folder)
    return _described(file) if entry is None else f"{file}: OK: {verify_file(entry, file)}"


def _described(path: Path) -> str:
    """Say what is in a file that no list knows."""
    from two_stream.pretrained.files.fetch import unchanged
    from two_stream.pretrained.layouts import recognise, unwrapped
    from two_stream.pretrained.reading import read_state, weights_file

    file = weights_file(path)
    kept = "; its sha256 is as noted" if unchanged(file) else ""
    state, _ = unwrapped(read_state(file))
    layout = recognise(state)
    named = (
        f"names as in {layout.name}"
        if layout
        else f"of a network not known here (first: {next(iter(state))})"
    )
    numbers = sum(tensor.numel() for tensor in state.values())
    return f"{file}: not a listed file; read safely: {len(state)} tensors, {numbers / 1e6:.2f} M numbers, {named}{kept}"


def _convert(args: list[str]) -> int:
    options = parse(ConvertOptions, args, prog=f"{_PROG} convert", description=_COMMANDS["convert"][1])
    from two_stream.pretrained.converting import export_checkpoint, import_checkpoint

    if options.to == "published":
        if options.averaged:
            raise SettingsError(
                f"{_PROG} convert: --averaged says nothing with `--to published`; leave it out"
            )
        for flag in ("model", "classes", "dataset"):
            if getattr(options, flag) is not None:
                raise SettingsError(
                    f"{_PROG} convert: --{flag} says nothing with `--to published`; leave it out"
                )
        written = export_checkpoint(Path(options.source), options.out)
        say(f"{options.out}: {len(written)} tensors, {written[0]} to {written[-1]}")
        return 0
    file, model = _to_convert(options)
    names = None if options.classes is None else _class_names(options.classes)
    data = None
    if options.dataset is not None:
        from two_stream.config.schema import DataOptions
        from two_stream.data.catalog import load_record

        data = DataOptions(dataset=options.dataset, split=options.split)
        names = names or list(load_record(options.dataset, data.settings_root).classes)
    say(str(import_checkpoint(file, options.out, model, names, data, averaged=options.averaged)))
    then = "`two-stream evaluate`, `predict`" if data else "`two-stream predict`"
    say(f"{options.out}: a run folder of {model}; {then} and `--train.init` take it")
    return 0


def _to_convert(options: ConvertOptions) -> tuple[Path, str]:
    """Return the file and its network, which the manifest knows for published files."""
    path = Path(options.source)
    if path.exists() and options.model is not None:
        return path, options.model
    file, entry = _located(_manifest(options.manifest), options.source, options.folder)
    if entry is not None and not path.exists():
        from two_stream.pretrained.files.fetch import verify_file

        verify_file(entry, file)
    model = options.model or (entry.model if entry else None)
    if model is None:
        raise SettingsError(
            f"{_PROG} convert: which network is {file}? Say --model NAME, one of `two-stream models`"
        )
    return file, model


def _class_names(given: str) -> list[str]:
    if given.isdigit():
        return [f"class {index}" for index in range(int(given))]
    try:
        lines = Path(given).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise SettingsError(f"--classes {given}: neither a number nor a readable file ({reason})") from None
    names = [line.strip() for line in lines if line.strip()]
    doubled = next((name for name in names if names.count(name) > 1), None)
    if doubled:
        raise SettingsError(f"{given}: class {doubled!r} is there twice")
    return names


def _manifest(given: Path | None) -> Manifest:
    from two_stream.pretrained.files.manifest import find_manifest, read_published

    return read_published(find_manifest(given))


def _help() -> str:
    width = max(map(len, _COMMANDS))
    lines = [f"  {name:<{width}}  {summary}" for name, (_, summary) in _COMMANDS.items()]
    return (
        f"usage: {_PROG} SUB-COMMAND [ARGUMENTS]\n\n{SUMMARY[0].upper()}{SUMMARY[1:]}.\n\n"
        + "\n".join(lines)
        + f"\n\n`{_PROG} SUB-COMMAND --help` shows its flags.\n"
    )


_COMMANDS: dict[str, tuple[Callable[[list[str]], int], str]] = {
    "list": (_list, "the published files that networks here can start from"),
    "fetch": (_fetch, "get published files, checked before anything reads them"),
    "verify": (_verify, "compare files with what is published, or tell what is in a file"),
    "convert": (_convert, "published checkpoint -> run folder of ours, and back"),
}
