"""The common form of what annotation files say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from two_stream.config.load import nearest
from two_stream.errors import DataError

Split = Literal["train", "val", "test", ""]
"""the official validation part is the `test` list here, as in published lists; `val` are rows of a table
that has test rows too; empty where the files make no split"""


@dataclass(frozen=True)
class AnnotatedVideo:
    """One video, or one part of a longer video."""

    id: str
    """as the files name it; a part of a video has the video's id here"""
    names: tuple[str, ...]
    """file or folder names to look for, without suffix, the best first; each may name its class folder"""
    labels: tuple[int, ...]
    """classes, ascending; one unless the data set is multi-label"""
    split: Split
    where: str
    """`file:line`, or file and JSON key"""
    seconds: tuple[float, float] | None = None
    """start and end of a part"""
    frames: tuple[int, int] | None = None
    """first frame of a part (1-based) and the one after its last"""
    group: str = ""
    """source video or person"""
    fps: float | None = None
    """frames per second, where the files say them"""


@dataclass
class Annotations:
    """What the files of a data set say."""

    classes: list[str]
    entries: list[AnnotatedVideo]
    multi_label: bool = False
    mirror_pairs: Sequence[tuple[str, str]] = ()
    """see `Record`"""
    group: str | None = None
    """regular expression over an id whose first group is the source video"""
    notes: list[str] = field(default_factory=list)
    """what a person should know, one line each"""

    def check(self) -> None:
        """Refuse what no list can hold: no videos, a class twice, a video with two classes or on both sides.

        An entry that only repeats another is dropped, with a note.

        Raises:
            DataError: Names both places.
        """
        if not self.entries:
            raise DataError("the annotation files list no video with a class")
        seen: dict[tuple[object, ...], AnnotatedVideo] = {}
        kept = []
        for entry in self.entries:
            several = (entry.seconds, entry.labels) if entry.seconds else ()  # one time may show two classes
            first = seen.setdefault((entry.id, several), entry)
            if first is entry:
                kept.append(entry)
            elif first.labels != entry.labels or first.split != entry.split:
                raise DataError(
                    f"{entry.where}: {entry.id!r} stands at {first.where} already, with another class or in "
                    "another part; keep one"
                )
        if len(kept) < len(self.entries):
            self.notes.append(f"{len(self.entries) - len(kept)} lines repeat another line and are left out")
        self.entries = kept


class AnnotatedClasses:
    """Class names in the order of their labels, as one file gives them."""

    def __init__(self, names: Sequence[str], where: object) -> None:
        """Take the names.

        Raises:
            DataError: None at all, or one twice.
        """
        self.names = list(names)
        if not self.names:
            raise DataError(f"{where}: names no class")
        self._labels = {name: label for label, name in enumerate(self.names)}
        if len(self._labels) < len(self.names):
            doubled = next(name for name in self.names if self.names.count(name) > 1)
            raise DataError(f"{where}: class {doubled!r} is listed twice")

    def label(self, name: Any, where: str) -> int:
        """Return the label of a class.

        Raises:
            DataError: Unknown; names the place and the nearest class.
        """
        if name not in self._labels:
            raise DataError(f"{where}: {name!r} is no class{nearest(str(name), self.names)}")
        return self._labels[name]


def left_right_pairs(classes: Sequence[str], also: Mapping[str, str] | None = None) -> list[tuple[str, str]]:
    """Return the pairs of classes that a mirror exchanges: those whose names differ by left and right only.

    Args:
        classes: The class names.
        also: Other words that a mirror exchanges, by word.
    """
    swaps = {"left": "right", "right": "left", **(also or {})}
    known = set(classes)
    pairs = []
    for name in classes:
        parts = name.replace("_", " ").split(" ")
        gap = "_" if "_" in name else " "
        image = gap.join(_like(swaps.get(word.lower(), word), word) for word in parts)
        if image != name and image in known and (image, name) not in pairs:
            pairs.append((name, image))
    return pairs


def _like(word: str, model: str) -> str:
    return word[:1].upper() + word[1:] if model[:1].isupper() else word
