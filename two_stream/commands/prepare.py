"""`two-stream prepare`: a data set's record and split lists from videos or official split files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from two_stream.commands.flags import parse
from two_stream.config.load import nearest
from two_stream.errors import SettingsError

if TYPE_CHECKING:
    from two_stream.data.prepare.folders import Prepared

SUMMARY = "videos or official split files -> a data set's record and split lists"
OFFICIAL = ("ucf101", "hmdb51")
NAMED = 10
"""videos left out that are named; of a large data set thousands may be missing"""


@dataclass(frozen=True)
class FolderFlags:
    """Flags of `two-stream prepare folder`."""

    videos: tyro.conf.Positional[Path]
    """folder with one sub-folder of videos per class"""
    name: str
    """name of the data set"""
    out: Path = Path("settings")
    """settings folder; record and lists go to OUT/NAME/"""
    groups: Path | None = None
    """file of lines `id group`: videos of one group come from one source and stay on one side of every split"""
    group_regex: str | None = None
    """instead: regular expression over the id (path without suffix) whose first group is the source"""
    frames: Path | None = None
    """where the frame folders are or will be; default data/NAME"""
    rgb_pattern: str | None = None
    """names of RGB frame files, as in img_{:05d}.jpg; found by looking by default"""
    flow_pattern: str | None = None
    """names of flow files, as in flow_{axis}_{:05d}.jpg"""
    splits: int = 3
    """splits to make"""
    test_fraction: float = 0.3
    """part of each class in a test list"""
    seed: int = 0
    """seed of the splits"""
    backend: Literal["pyav", "opencv", "torchcodec"] = "pyav"
    """decoder that counts frames"""
    processes: int | None = None
    """videos decoded at a time; all processors by default"""


@dataclass(frozen=True)
class OfficialFlags:
    """Flags of `two-stream prepare ucf101` and `hmdb51`."""

    annotations: Path
    """folder of the official split files (ucfTrainTestlist, testTrainMulti_7030_splits)"""
    videos: Path | None = None
    """folder of the videos, which are decoded to count frames …"""
    frames: Path | None = None
    """… or folder of the frame folders, whose files are counted"""
    rgb_pattern: str | None = None
    """names of RGB frame files, as in img_{:05d}.jpg; found by looking by default"""
    flow_pattern: str | None = None
    """names of flow files, as in flow_{axis}_{:05d}.jpg"""
    out: Path = Path("settings")
    """settings folder; lists, and a record where there is none, go to OUT/ucf101/ or OUT/hmdb51/"""
    backend: Literal["pyav", "opencv", "torchcodec"] = "pyav"
    """decoder that counts frames"""
    processes: int | None = None
    """videos decoded at a time; all processors by default"""


@dataclass(frozen=True)
class AdapterFlags:
    """Flags of `two-stream prepare` for the other data sets."""

    annotations: Path
    """official file, or folder of the official files (see `docs/datasets.md`)"""
    videos: Path | None = None
    """folder of the videos, in class folders or not; decoded to count frames …"""
    frames: Path | None = None
    """… or folder of the frame folders, whose files are counted"""
    rgb_pattern: str | None = None
    """names of RGB frame files, as in img_{:05d}.jpg; found by looking by default"""
    flow_pattern: str | None = None
    """names of flow files, as in flow_{axis}_{:05d}.jpg"""
    out: Path = Path("settings")
    """settings folder; record, lists, groups and segments go to OUT/NAME/"""
    name: str | None = None
    """name of the data set; default: the kind, of `json` and `table` the file's name"""
    fps: float | None = None
    """frames per second of the frame folders, to find segments given in seconds, where nothing else says"""
    backend: Literal["pyav", "opencv", "torchcodec"] = "pyav"
    """decoder that counts frames"""
    processes: int | None = None
    """videos decoded at a time; all processors by default"""


def main(args: list[str]) -> int:
    """Prepare; 0 when every video is in the lists, 1 when one had to be left out.

    Raises:
        TwoStreamError: Wrong flags, missing or wrong files.
    """
    if not args or args[0] in ("-h", "--help"):
        _usage()
        return 0 if args else 2
    kind, rest = args[0], args[1:]
    kinds = _kinds()
    if kind not in kinds:
        raise SettingsError(f"two-stream prepare: unknown kind {kind!r}{nearest(kind, kinds)}")
    if kind == "folder":
        return _tell(_folder(rest))
    return _tell(_official(kind, rest) if kind in OFFICIAL else _adapted(kind, rest))


def _kinds() -> list[str]:
    from two_stream.data.prepare.adapters import ADAPTERS

    return ["folder", *OFFICIAL, *ADAPTERS]


def _usage() -> None:
    from two_stream.data.prepare.adapters import ADAPTERS
    from two_stream.runtime.console import say

    say(f"usage: two-stream prepare {{{','.join(_kinds())}}} …\n\n{SUMMARY}\n")
    say("  folder VIDEOS --name NAME   class sub-folders -> stratified splits grouped by source video")
    say("  ucf101 --annotations DIR    official lists of UCF101 (trainlist01.txt …)")
    say("  hmdb51 --annotations DIR    official lists of HMDB51 (<class>_test_split1.txt …)")
    for kind, adapter in ADAPTERS.items():
        say(f"  {kind:11s} --annotations {adapter.files}")
    say("\n`two-stream prepare KIND --help` shows the flags of each.")


def _folder(args: list[str]) -> Prepared:
    flags = parse(FolderFlags, args, prog="two-stream prepare folder", description=SUMMARY)

    from two_stream.data.prepare.counting import FrameNames
    from two_stream.data.prepare.folders import FolderOptions, prepare_folder

    options = FolderOptions(
        groups=flags.groups,
        group_regex=flags.group_regex,
        frames=flags.frames,
        names=FrameNames(flags.rgb_pattern, flags.flow_pattern),
        splits=flags.splits,
        test_fraction=flags.test_fraction,
        seed=flags.seed,
        backend=flags.backend,
        processes=flags.processes,
    )
    return prepare_folder(flags.videos, flags.name, flags.out, options)


def _official(name: str, args: list[str]) -> Prepared:
    flags = parse(OfficialFlags, args, prog=f"two-stream prepare {name}", description=SUMMARY)

    from two_stream.data.prepare.counting import FrameNames
    from two_stream.data.prepare.official import prepare_official

    return prepare_official(
        name,
        flags.annotations,
        flags.out,
        videos=flags.videos,
        frames=flags.frames,
        names=FrameNames(flags.rgb_pattern, flags.flow_pattern),
        backend=flags.backend,
        processes=flags.processes,
    )


def _adapted(kind: str, args: list[str]) -> Prepared:
    flags = parse(AdapterFlags, args, prog=f"two-stream prepare {kind}", description=SUMMARY)

    from two_stream.data.prepare.adapters.build import BuildOptions, prepare_annotations
    from two_stream.data.prepare.counting import FrameNames

    options = BuildOptions(
        annotations=flags.annotations,
        name=flags.name or (flags.annotations.stem if kind in ("json", "table") else kind),
        out=flags.out,
        videos=flags.videos,
        frames=flags.frames,
        fps=flags.fps,
        names=FrameNames(flags.rgb_pattern, flags.flow_pattern),
        backend=flags.backend,
        processes=flags.processes,
    )
    return prepare_annotations(kind, options)


def _tell(made: Prepared) -> int:
    from two_stream.runtime.console import say, warn

    for warning in made.warnings:
        warn(warning)
    for video_id, reason in made.failures[:NAMED]:
        say(f"left out: {video_id}: {reason}")
    if len(made.failures) > NAMED:
        say(f"left out: … and {len(made.failures) - NAMED} more")
    say(
        f"{made.path.parent}: {made.videos} videos of {made.sources} sources, {made.record.num_classes} classes, "
        f"{made.record.num_splits} {'split' if made.record.num_splits == 1 else 'splits'} in {len(made.lists)} lists"
        + (f"; {len(made.failures)} videos left out" if made.failures else "")
    )
    return 1 if made.failures else 0
