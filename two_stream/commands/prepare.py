"""`two-stream prepare`: writes the record and split lists of a data set, from videos or official split files."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from two_stream.commands.flags import parse
from two_stream.commands.help import overview
from two_stream.config.load import nearest
from two_stream.data.options import AnnotationOptions, FolderOptions, ListOptions, TimelineOptions
from two_stream.errors import SettingsError

if TYPE_CHECKING:
    from two_stream.data.prepare.folders import Prepared

SUMMARY = (
    "Write a data set's record and split lists from videos in class folders or from official split files."
)
EXAMPLES = (
    "prepare folder videos --name mine",
    "prepare folder videos --name mine --splits 3 --test-fraction 0.2",
)
NAMED = 10
"""largest number of left-out videos to name; there may be thousands in a large data set"""


@dataclass(frozen=True, kw_only=True)
class FolderFlags(FolderOptions):
    """Flags of `two-stream prepare folder`."""

    videos: tyro.conf.Positional[Path]
    """folder with one sub-folder of videos per class"""
    name: str
    """name of the data set"""
    out: Path = Path("settings")
    """settings folder; the record and the split lists are written to OUT/NAME/"""


def main(args: list[str]) -> int:
    """Run the command; return 0 if every video is in the lists, 1 if one had to be left out.

    Raises:
        TwoStreamError: A flag is wrong, or a file is missing or wrong.
    """
    if not args or args[0] in ("-h", "--help"):
        _usage()
        return 0 if args else 2
    kind, rest = args[0], args[1:]
    kinds = _kinds()
    if kind not in kinds:
        raise SettingsError(f"two-stream prepare: unknown kind {kind!r}{nearest(kind, kinds)}")
    return _report(_prepare(kind, rest))


def _prepare(kind: str, args: list[str]) -> Prepared:
    prog = f"two-stream prepare {kind}"
    if kind == "folder":
        flags = parse(FolderFlags, args, prog=prog, description=SUMMARY, examples=EXAMPLES)

        from two_stream.data.prepare.folders import prepare_folder

        return prepare_folder(flags.videos, flags.name, flags.out, flags)
    files = {"list": "--train train.txt --val val.txt", "timeline": "--annotations labels.csv"}
    given = files.get(kind, "--annotations official")
    examples = [f"prepare {kind} {given} --{source} {source}" for source in ("videos", "frames")]
    forms: dict[str, type[Any]] = {"list": ListOptions, "timeline": TimelineOptions}
    options = parse(
        forms.get(kind, AnnotationOptions), args, prog=prog, description=SUMMARY, examples=examples
    )

    from two_stream.data.prepare.adapters.build import prepare_annotations

    return prepare_annotations(kind, options)


def _kinds() -> list[str]:
    from two_stream.data.prepare.adapters import ADAPTERS

    return ["folder", "list", *ADAPTERS]


def _usage() -> None:
    from two_stream.data.prepare.adapters import ADAPTERS

    rows = [
        (
            "folder",
            "a folder with one sub-folder of videos per class: stratified splits grouped by source video",
        ),
        (
            "list",
            "--train, --val, --test: lists of mmaction2, PySlowFast, VideoMAE, TSM: path [num_frames] label",
        ),
    ]
    rows += [(kind, f"--annotations: {adapter.files}") for kind, adapter in ADAPTERS.items()]
    examples = [
        EXAMPLES[0],
        "prepare hmdb51 --annotations testTrainMulti_7030_splits --videos videos",
    ]
    sys.stdout.write(overview("two-stream prepare", SUMMARY, rows, examples, "KIND"))


def _report(made: Prepared) -> int:
    from two_stream.runtime.console import say, warn
    from two_stream.runtime.text import plural

    for warning in made.warnings:
        warn(warning)
    for video_id, reason in made.failures[:NAMED]:
        say(f"left out: {video_id}: {reason}")
    if len(made.failures) > NAMED:
        say(f"left out: … and {len(made.failures) - NAMED} more")
    say(
        f"{made.path.parent}: {plural(made.videos, made.unit)} of {plural(made.sources, 'source')}, "
        f"{plural(made.record.num_classes, 'class')}, {plural(made.record.num_splits, 'split')} in "
        f"{plural(len(made.lists), 'list')}"
        + (f"; {plural(len(made.failures), made.unit)} left out" if made.failures else "")
    )
    return 1 if made.failures else 0
