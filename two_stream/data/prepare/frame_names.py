"""How the files in frame folders are named, found by looking at some of them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from two_stream.errors import DataError, SettingsError
from two_stream.video.frames import FramePatterns, list_file_names, names_by_number

_IMAGES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"})
_STEMS = ("img_", "image_", "", "frame", "frame_")
"""ours; Efficient-3DCNNs and 3D-ResNets; Jester and Something-Something; others one meets"""
_NUMBERED = re.compile(r"([^{}]*?)(\d+)([^{}\d]*)", re.ASCII)
_LOOKED_AT = 20
"""folders that are looked at, of those with any file"""
Parts = tuple[str, str]
"""what stands before and after the number"""


@dataclass(frozen=True)
class FrameNames:
    """Names of frames that a person gives."""

    rgb: str | None = None
    """as in `img_{:05d}.jpg`"""
    flow: str | None = None
    """as in `flow_{axis}_{:05d}.jpg`"""

    def patterns(self) -> dict[str, str]:
        """Return them as the `patterns` of a record.

        Raises:
            SettingsError: One has no place for the number, or none for the axis.
        """
        found = {} if self.rgb is None else {"rgb": self.rgb}
        if self.flow is not None:
            if "{axis}" not in self.flow:
                raise SettingsError(
                    f"--flow-pattern {self.flow!r}: expected x and y as {{axis}}, as in 'flow_{{axis}}_{{:05d}}.jpg'"
                )
            found |= {f"flow_{axis}": self.flow.replace("{axis}", axis) for axis in "xy"}
        FramePatterns(**found)  # type: ignore[arg-type]
        return found


def find_patterns(folders: Sequence[Path], given: FrameNames) -> dict[str, str]:
    """Return the `patterns` of a record that fit the files of these folders; what is given is not looked for.

    Raises:
        DataError: The first folder with files has no frames that can be told; says what was tried and what lies there.
        SettingsError: A given name is wrong.
    """
    asked = given.patterns()
    found = dict(asked)
    looked: list[tuple[Path, list[str]]] = []
    unclear = False
    for folder in folders:
        names = sorted(
            name for name in list_file_names(folder) if not (name[0] == "." or (folder / name).is_dir())
        )
        if not names or len(looked) == _LOOKED_AT:
            continue
        looked.append((folder, names))
        patterns = _patterns(names)
        pair = _flow(list(patterns))
        if pair is not None and "flow_x" not in found:
            found |= {"flow_x": patterns[pair[0]], "flow_y": patterns[pair[1]]}
        rest = [parts for parts in patterns if parts not in (pair or ())]
        pictures = [parts for parts in rest if "." in parts[1] and "flow" not in parts[0].lower()]
        rgb = _rgb(pictures)
        unclear = unclear or (rgb is None and len(pictures) > 1)
        if rgb is not None and "rgb" not in found:
            found["rgb"] = patterns[rgb]
    for name in asked.values():
        if looked and not any(names_by_number(names, name) for _, names in looked):
            raise DataError(f"{looked[0][0]}: no frame is named {name!r}; there lie {_some(looked[0][1])}")
    if looked and (not found or (unclear and "rgb" not in found)):
        tried = ", ".join(f"{stem}00001.jpg" for stem in _STEMS)
        endings = ", ".join(sorted(_IMAGES))
        raise DataError(
            f"{looked[0][0]}: no frames found: tried {tried}, the same with other numbers and endings ({endings}) and "
            f"any one kind of numbered pictures; there lie {_some(looked[0][1])}; give --rgb-pattern or --flow-pattern"
        )
    return found


def _some(names: Sequence[str]) -> str:
    return f"{', '.join(repr(name) for name in names[:2])}{', …' if len(names) > 2 else ''}"


def _patterns(names: Sequence[str]) -> dict[Parts, str]:
    """Return the pattern of each kind of numbered file, by what stands before and after the number."""
    digits: dict[Parts, list[str]] = defaultdict(list)
    for name in names:
        stem, dot, ending = name.rpartition(".")
        stem, ending = (stem, dot + ending) if dot else (name, "")
        match = _NUMBERED.fullmatch(stem)
        if match and (ending.lower() in _IMAGES or not ending) and not set("{}") & set(ending):
            digits[match[1], match[3] + ending].append(match[2])
    return {
        (before, after): f"{before}{{{_width(numbers)}}}{after}"
        for (before, after), numbers in digits.items()
    }


def _width(numbers: Sequence[str]) -> str:
    padded = [len(number) for number in numbers if number[0] == "0" and len(number) > 1]
    return f":0{min(padded)}d" if padded and min(padded) < 100 else ""


def _flow(kinds: Sequence[Parts]) -> tuple[Parts, Parts] | None:
    """Return the two kinds that differ in an x and a y, or a u and a v, only; those called flow first."""
    pairs = []
    for before, after in kinds:
        for place, letter in enumerate(before):
            other = before[:place] + {"x": "y", "u": "v"}.get(letter, letter) + before[place + 1 :]
            if other != before and (other, after) in kinds:
                pairs.append(((before, after), (other, after)))
        for place, letter in enumerate(after.partition(".")[0]):
            other = after[:place] + {"x": "y", "u": "v"}.get(letter, letter) + after[place + 1 :]
            if other != after and (before, other) in kinds:
                pairs.append(((before, after), (before, other)))
    return min(pairs, key=lambda pair: ("flow" not in pair[0][0], pair)) if pairs else None


def _rgb(kinds: Sequence[Parts]) -> Parts | None:
    """Return the kind of a usual name, else the only one there is."""
    for stem in _STEMS:
        known = [parts for parts in kinds if parts[0].lower() == stem and parts[1].startswith(".")]
        if known:
            return known[0]
    return kinds[0] if len(kinds) == 1 else None
