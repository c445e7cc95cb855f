"""Data set records: one YAML file contains everything the package knows about a data set.

`<settings_root>/<name>/dataset.yaml` contains the classes, the number of splits, the folders of frames and videos, the
patterns of file names, and how to find the source of a video. The split lists are in the folder of this file. A new
data set needs no code. The records of published data sets come with the package.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, PrivateAttr, field_validator, model_validator

from two_stream.config.base import Options, PositiveInt
from two_stream.config.load import nearest, read_yaml, validate_settings
from two_stream.errors import DataError, SettingsError
from two_stream.types import Modality, Part

if TYPE_CHECKING:
    from two_stream.config.schema import DataOptions
    from two_stream.video.frames import FramePatterns

PACKAGED = Path(__file__).parent / "records"
RECORD_FILE = "dataset.yaml"
MODALITIES: tuple[Modality, ...] = ("rgb", "flow")
CLASSES_MARK = "{classes}"
"""placeholder in a group pattern for any class name; longer names are tried first"""
_LIST_PART: dict[str, str] = {"train": "train", "val": "train", "test": "val"}
"""published lists call the official test list `val`; the validation part is split off from the training list"""

SPLIT_WORDS: dict[str, Part] = {
    "train": "train",
    "training": "train",
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing", "eval"), "test"),
}
"""names of the parts of a split, in folders and tables"""


class Roots(Options):
    """For each modality, the folder that contains one frame folder per video, relative to the folder of the record."""

    rgb: Path | None = None
    flow: Path | None = None


class First(Options):
    """Number in the file name of a video's first frame. In lists and in the code, frames are counted from 1."""

    rgb: Annotated[int, Field(ge=0, lt=10**7)] = 1
    flow: Annotated[int, Field(ge=0, lt=10**7)] = 1


class Patterns(Options):
    """Patterns for the file names of frames, which are numbered from `first`."""

    rgb: str = "img_{:05d}.jpg"
    flow_x: str = "flow_x_{:05d}.jpg"
    flow_y: str = "flow_y_{:05d}.jpg"

    @field_validator("rgb", "flow_x", "flow_y")
    @classmethod
    def _numbered(cls, value: str) -> str:
        # only one plain number: `str.format` would also accept huge widths and attribute access
        if len(value) > 200 or not re.fullmatch(r"[^{}]*\{(:0?[1-9]?\d?d?)?\}[^{}]*", value):
            raise ValueError(
                f"{value[:60]!r}: expected a pattern with one placeholder for the frame "
                "number, such as {:05d}"
            )
        return value


def compile_group(group: str, classes: Sequence[str]) -> re.Pattern[str]:
    """Return a group pattern as a regular expression, with the class names in place of `CLASSES_MARK`."""
    names = sorted(classes, key=len, reverse=True)
    return re.compile(group.replace(CLASSES_MARK, "|".join(map(re.escape, names))))


def find_source(pattern: re.Pattern[str] | None, video_id: str) -> str:
    """Return the name of a video's source; a video that the pattern does not match is its own source."""
    found = pattern.search(video_id) if pattern else None
    return (found[1] or video_id) if found else video_id


class Record(Options):
    """One data set. Paths are relative to the folder of `dataset.yaml`."""

    name: Annotated[str, Field(min_length=1, pattern=r"^[\w.+-]+$")]
    """name of the data set, usually the same as the name of its folder in the settings folder"""
    classes: Annotated[list[str], Field(min_length=1)]
    """class names in the order of their labels"""
    num_splits: PositiveInt = 1
    """number of official splits"""
    frames: Roots = Roots()
    """for each modality, the folder that contains the frame folders"""
    videos: Path | None = None
    """folder that contains the video files"""
    short_side: PositiveInt | None = 256
    """shorter side in pixels of extracted frames, and of frames from which flow is computed on the fly; null: no
    resizing"""
    patterns: Patterns = Patterns()
    """patterns for the names of the frame files"""
    first: First = First()
    """number in the name of the first frame file"""
    lists: str = "{part}_{modality}_split{split}.txt"
    """pattern for the names of the split lists; `{part}` becomes `train`, `val` (the official test list), or `holdout`
    (the data set's own validation list)"""
    group: str | None = None
    """regular expression for video ids; its first group is the name of the source video, and `{classes}` matches any
    class name"""
    groups: Path | None = None
    """text file with one line `id group` per video, which replaces `group`"""
    multi_label: bool = False
    """true: a video may have several classes, written as `3,17` in the lists; training uses sigmoids, and evaluation
    reports mAP"""
    mirror: bool = True
    """false: videos are not mirrored, because their mirror images would not be valid videos of the data set; ignored
    with `augment.protocol: paper`"""
    mirror_pairs: tuple[tuple[str, str], ...] = ()
    """pairs of classes that are exchanged when a video is mirrored, such as a swipe to the left and a swipe to the
    right"""
    segments: Path | None = None
    """CSV file with the columns `id,video,start,end,first`, for ids that are parts of longer videos; see
    `data/sources/segments.py`"""
    timeline: Path | None = None
    """JSON file with the bouts of long recordings, for `evaluate --timeline`; see `data/bouts.py`"""

    _folder: Path = PrivateAttr(default=Path())

    @field_validator("classes", "mirror_pairs", mode="before")
    @classmethod
    def _texts(cls, value: object) -> object:
        for name in _leaves(value):
            if not isinstance(name, str):
                raise ValueError(
                    f"YAML interprets an entry as {name!r}, which is not text; put the entry in "
                    "quotes, such as 'yes', 'null' or '1'"
                )
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Record:
        if len(set(self.classes)) < len(self.classes):
            doubled = min(name for name, count in Counter(self.classes).items() if count > 1)
            raise ValueError(f"class {doubled!r} is listed twice; remove one entry")
        missing = [f"{{{key}}}" for key in ("part", "modality", "split") if f"{{{key}}}" not in self.lists]
        if missing:
            raise ValueError(f"`lists` is {self.lists!r}: the name must contain {', '.join(missing)}")
        if self.group is not None and self.groups is not None:
            raise ValueError("`group` and `groups` both define the source videos; keep one")
        if self.group is not None:
            try:
                found = re.compile(self.group.replace(CLASSES_MARK, "x")).groups
            except re.error as error:
                raise ValueError(
                    f"`group` is {self.group!r}: expected a regular expression ({error})"
                ) from None
            if not found:
                raise ValueError(
                    f"`group` is {self.group!r}: expected a regular expression with a group in parentheses"
                )
        self._check_mirror()
        return self

    def _check_mirror(self) -> None:
        named = [name for pair in self.mirror_pairs for name in pair]
        if named and not self.mirror:
            raise ValueError("`mirror: false` and `mirror_pairs` cannot be combined; remove one of them")
        for name in named:
            if name not in self.classes:
                raise ValueError(
                    f"`mirror_pairs` contains {name!r}, which is not a class{nearest(name, self.classes)}"
                )
            if named.count(name) > 1:
                raise ValueError(f"`mirror_pairs` contains {name!r} twice; expected each class at most once")

    @cached_property
    def mirror_labels(self) -> tuple[int, ...]:
        """For each label, the label that its videos have after mirroring."""
        shown = list(range(self.num_classes))
        for one, other in self.mirror_pairs:
            i, j = self.classes.index(one), self.classes.index(other)
            shown[i], shown[j] = j, i
        return tuple(shown)

    @property
    def folder(self) -> Path:
        """Folder of the record and its split lists."""
        return self._folder

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def frame_patterns(self) -> FramePatterns:
        """Patterns for the names of frame files, in the form that `video/frames.py` expects."""
        from two_stream.video.frames import FramePatterns

        return FramePatterns(
            **self.patterns.model_dump(), first_rgb=self.first.rgb, first_flow=self.first.flow
        )

    def resolve(self, path: Path) -> Path:
        """Return a path of the record, resolved relative to the folder of the record."""
        return Path(os.path.normpath(self._folder / path.expanduser()))

    def frames_root(self, modality: Modality) -> Path:
        """Return the folder that contains a modality's frame folders.

        Raises:
            DataError: The record has none, or the folder does not exist.
        """
        root = getattr(self.frames, modality)
        if root is None:
            raise DataError(
                f"{self._folder / RECORD_FILE}: `frames.{modality}` is missing: set it to the "
                f"folder of the {modality} frames, or set `data.source: videos` to read the videos"
            )
        remedy = "run `two-stream extract` or correct the path"
        if self.videos is not None:
            remedy = (
                "run `two-stream extract`, correct the path, or set `data.source: videos` to read the videos"
            )
        return self._existing(root, f"frames.{modality}", remedy)

    def videos_root(self) -> Path:
        """Return the folder of the video files.

        Raises:
            DataError: The record has none, or the folder does not exist.
        """
        if self.videos is None:
            raise DataError(
                f"{self._folder / RECORD_FILE}: `videos` is missing: set it to the folder of the "
                "video files, or set `data.source: frames` to read frame folders"
            )
        return self._existing(self.videos, "videos", "correct the path")

    def list_path(self, part: Part, modality: Modality, split: int) -> Path:
        """Return the path of a list: the training list for parts `train` and `val`, the official test list for `test`.

        Raises:
            DataError: The record has no such split.
        """
        return self._list(_LIST_PART[part], modality, split)

    def holdout_path(self, modality: Modality, split: int) -> Path:
        """Return the path of the data set's own validation list, which may not exist; see `list_path`."""
        return self._list("holdout", modality, split)

    def _list(self, part: str, modality: Modality, split: int) -> Path:
        if not 1 <= split <= self.num_splits:
            raise DataError(
                f"{self.name} has no split {split}; set `data.split` to a number from 1 to {self.num_splits}"
            )
        return self._folder / self.lists.format(part=part, modality=modality, split=split)

    def modalities(self) -> list[Modality]:
        """Return the modalities with a training list for split 1."""
        return [modality for modality in MODALITIES if self.list_path("train", modality, 1).is_file()]

    def group_of(self, video_id: str) -> str:
        """Return the name of a video's source; a video that does not match the group pattern is its own source.

        Raises:
            DataError: The file of groups is missing or lacks the video.
        """
        if self.groups is not None:
            if video_id not in self._group_table:
                raise DataError(
                    f"{self.resolve(self.groups)}: the group of video {video_id!r} is missing; add a line `id group`"
                )
            return self._group_table[video_id]
        return find_source(self._group_pattern, video_id)

    def fits_group(self, video_id: str) -> bool:
        """Return whether the group pattern finds the name of a source in an id."""
        found = self._group_pattern.search(video_id) if self._group_pattern else None
        return bool(found and found[1])

    @cached_property
    def _group_pattern(self) -> re.Pattern[str] | None:
        return None if self.group is None else compile_group(self.group, self.classes)

    @cached_property
    def _group_table(self) -> dict[str, str]:
        assert self.groups is not None
        return read_groups(self.resolve(self.groups))

    def _existing(self, path: Path, key: str, advice: str) -> Path:
        folder = self.resolve(path)
        if not folder.is_dir():
            raise DataError(
                f"{self._folder / RECORD_FILE}: `{key}`: the folder {folder} does not exist; {advice}"
            )
        return folder


def _leaves(value: object) -> Iterator[object]:
    for entry in value if isinstance(value, (list, tuple)) else ():
        yield from _leaves(entry) if isinstance(entry, (list, tuple)) else (entry,)


def load_record(dataset: str | Path, settings_root: Path = Path("settings")) -> Record:
    """Read a data set's record.

    Args:
        dataset: Name of a folder under `settings_root`, or path of a `dataset.yaml` (or of its folder). A name that has
            no folder yet is looked up among the records of the package.
        settings_root: Folder of the named data sets.

    Raises:
        DataError: No such data set; the nearest name is given.
        SettingsError: The record is wrong; names file, key and value.
    """
    given = Path(dataset)
    if given.suffix in (".yaml", ".yml"):
        path = given
    elif (given / RECORD_FILE).is_file():
        path = given / RECORD_FILE
    else:
        path = settings_root / given / RECORD_FILE
        if not path.is_file():  # not prepared yet: its lists will be written to that folder
            mapping = packaged_record(str(given))
            if mapping is None:
                hint = nearest(given.name, known_datasets(settings_root))
                raise DataError(
                    f"{path}: no such data set{hint}; pass the name of a data set, or the path of a "
                    "`dataset.yaml`"
                )
            return make_record(mapping, path.parent)
    return make_record(read_yaml(path), path.parent, path)


def dataset_record(data: DataOptions) -> Record:
    """Read the record of the data set in an experiment's settings; see `load_record`.

    Raises:
        SettingsError: No such file; names the key and the current folder.
    """
    given = Path(data.dataset)
    if given.suffix in (".yaml", ".yml") and not given.exists():
        here = "" if given.is_absolute() else f" in the current folder {Path.cwd()}"
        raise SettingsError(
            f"`data.dataset` is {given}: no such file{here}; "
            "run from the folder that the path is relative to, or pass another path with --data.dataset (for a "
            "finished run or the folder of a study, with --data-root)"
        )
    return load_record(data.dataset, data.settings_root)


def make_record(mapping: Mapping[str, Any], folder: Path, source: Path | None = None) -> Record:
    """Create a record from the content of a `dataset.yaml`; its folder does not have to exist yet.

    Args:
        mapping: Content of a `dataset.yaml`.
        folder: Folder of the record and its split lists; relative paths of the content start here.
        source: File to name in errors; `dataset.yaml` in the folder by default.

    Raises:
        SettingsError: The content is wrong; names key and value.
    """
    record = validate_settings(Record, dict(mapping), source or folder / RECORD_FILE)
    record._folder = folder
    return record


def known_datasets(settings_root: Path) -> list[str]:
    """Return the sorted names of the data sets in the settings folder and in the package."""
    prepared = {path.parent.name for path in settings_root.glob(f"*/{RECORD_FILE}")}
    return sorted(prepared | {path.stem for path in PACKAGED.glob("*.yaml")})


def read_groups(path: Path) -> dict[str, str]:
    """Read a text file with one line `id group` per video. An id may contain spaces; a group may not.

    Raises:
        DataError: The file is missing, a line has no group, or an id has two groups.
    """
    table: dict[str, str] = {}
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        video_id, _, group = line.strip().rpartition(" ")
        if not video_id.strip():
            raise DataError(f"{path}:{number}: {line.strip()!r}: expected `id group`")
        video_id = video_id.replace("\\", "/")  # written on Windows
        if table.setdefault(video_id.strip(), group) != group:
            raise DataError(f"{path}:{number}: {video_id.strip()!r} has two groups; remove one line")
    return table


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file.

    Raises:
        DataError: The file is missing or is not a text file.
    """
    try:
        if path.exists() and not path.is_file():  # a device or a pipe may never end
            raise DataError(f"{path}: not a regular file; expected a text file")
        return path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as a text file ({error})") from None


def packaged_record(name: str) -> dict[str, Any] | None:
    """Return the content of a record that comes with the package; None if the name is unknown."""
    path = PACKAGED / f"{name}.yaml"
    return read_yaml(path) if Path(name).name == name and path.is_file() else None


@dataclass(frozen=True)
class Mirror:
    """Whether videos of a data set may be mirrored, and which labels mirrored videos have."""

    allowed: bool = True
    """false: videos are never mirrored"""
    labels: tuple[int, ...] | None = None
    """for each label, the label that its videos have after mirroring; None: mirroring does not change labels"""

    def of(self, labels: Sequence[int]) -> tuple[int, ...]:
        """Return, in ascending order, the labels that a video with these labels has after mirroring."""
        return tuple(sorted(labels if self.labels is None else (self.labels[label] for label in labels)))


def mirror_of(record: Record, protocol: str = "standard") -> Mirror:
    """Return how a data set may be mirrored; with protocol `paper`, mirroring is allowed and never changes labels."""
    if protocol == "paper":
        return Mirror()
    return Mirror(record.mirror, record.mirror_labels if record.mirror_pairs else None)


def mirror_note(record: Record, protocol: str, mirrors: bool) -> str | None:
    """Return a warning if clips are mirrored (`mirrors`) and protocol `paper` ignores the record's mirror settings."""
    if protocol != "paper" or not mirrors or (record.mirror and not record.mirror_pairs):
        return None
    what = (
        "mirrored clips keep their class although the data set has `mirror_pairs`"
        if record.mirror
        else "clips are mirrored although the data set has `mirror: false`"
    )
    return (
        f"{record.name}: {what}, as in the published code; to follow the data set, set "
        "`data.augment.protocol: standard`"
    )
