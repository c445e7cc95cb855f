"""Frame folders: how their files are named, read and counted."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from two_stream.errors import SettingsError, VideoError
from two_stream.types import Modality

_JPEG_START = b"\xff\xd8"
_JPEG_END = b"\xff\xd9"
_FIELD = re.compile(r"\{:0?(\d*)d\}|\{\}")


@dataclass(frozen=True)
class FramePatterns:
    """Names of the files in a frame folder, with one place for the frame number, counted from 1.

    The published HMDB51 layout has flow files without an extension: `flow_x="flow_x_{:05d}"`.
    """

    rgb: str = "img_{:05d}.jpg"
    flow_x: str = "flow_x_{:05d}.jpg"
    flow_y: str = "flow_y_{:05d}.jpg"

    def __post_init__(self) -> None:
        """Check that each pattern has one number and names a file of the folder itself."""
        for name, pattern in (("rgb", self.rgb), ("flow_x", self.flow_x), ("flow_y", self.flow_y)):
            if len(_FIELD.findall(pattern)) != 1 or pattern.count("{") != 1 or pattern.count("}") != 1:
                raise SettingsError(
                    f"frame pattern {name} is {pattern!r}: expected one place for the number, as in 'img_{{:05d}}.jpg'"
                )
            if Path(pattern).name != pattern or pattern.startswith("."):
                raise SettingsError(
                    f"frame pattern {name} is {pattern!r}: expected a plain, visible file name"
                )
        if len({self.rgb, self.flow_x, self.flow_y}) < 3:
            raise SettingsError(f"frame patterns must differ: {self.rgb!r}, {self.flow_x!r}, {self.flow_y!r}")

    def of(self, modality: Modality) -> tuple[str, ...]:
        """Return the patterns of a modality: one for RGB, x and y for flow."""
        return (self.rgb,) if modality == "rgb" else (self.flow_x, self.flow_y)


def numbers_by_name(names: Sequence[str], pattern: str) -> dict[int, str]:
    """Pick the names that fit a pattern, by frame number."""
    field = _FIELD.search(pattern)
    assert field is not None  # FramePatterns has checked it
    before, after = pattern[: field.start()], pattern[field.end() :]
    digits = rf"\d{{{field[1]},}}" if field[1] else r"\d+"
    matcher = re.compile(rf"{re.escape(before)}({digits}){re.escape(after)}", re.ASCII)
    found: dict[int, str] = {}
    for name in names:
        match = matcher.fullmatch(name)
        if match and pattern.format(int(match[1])) == name:
            found[int(match[1])] = name
    return found


def count_frames(folder: Path, modality: Modality, patterns: FramePatterns | None = None) -> int:
    """Count the frames of a modality in a folder; a flow frame counts when both x and y are there.

    Raises:
        VideoError: There is no such folder.
    """
    chosen = patterns or FramePatterns()
    names = _names(folder)
    sets = [set(numbers_by_name(names, pattern)) for pattern in chosen.of(modality)]
    return len(set.intersection(*sets))


def _names(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries]
    except NotADirectoryError:
        raise VideoError(folder, "is a file, not a folder of frames") from None
    except OSError as error:
        what = "no such folder of frames" if isinstance(error, FileNotFoundError) else str(error.strerror)
        raise VideoError(folder, what) from None


def read_frames(
    folder: Path,
    numbers: Sequence[int],
    modality: Modality,
    patterns: FramePatterns | None = None,
    resize: tuple[int, int] | None = None,
) -> NDArray[np.uint8]:
    """Read frames of a folder by number; each distinct number is decoded once.

    Args:
        folder: A folder as `two-stream extract` writes it.
        numbers: 1-based frame numbers, any order, repeats allowed.
        modality: "rgb" or "flow".
        patterns: Names of the files; None for the default ones.
        resize: (height, width) by bilinear interpolation, as the published code; None keeps the stored size.

    Returns:
        uint8 `(T, H, W, C)`; C is 3 (RGB order) or 2 (flow x, y).

    Raises:
        VideoError: No numbers, or a file is missing, damaged or of another size than the first; names the file.
    """
    if not len(numbers):
        raise VideoError(folder, "no frame numbers asked for")
    chosen = (patterns or FramePatterns()).of(modality)
    out: NDArray[np.uint8] | None = None
    rows: dict[int, int] = {}
    for row, number in enumerate(numbers):
        if number in rows:
            assert out is not None
            out[row] = out[rows[number]]
            continue
        rows[number] = row
        picture = _read_frame(folder, int(number), chosen, resize)
        if out is None:
            out = np.empty((len(numbers), *picture.shape), np.uint8)
        elif picture.shape != out.shape[1:]:
            raise VideoError(
                folder / chosen[0].format(number),
                f"is {picture.shape[1]}×{picture.shape[0]}, other frames of the folder {out.shape[2]}×{out.shape[1]}",
            )
        out[row] = picture
    assert out is not None
    return out


def _read_frame(
    folder: Path, number: int, patterns: tuple[str, ...], resize: tuple[int, int] | None
) -> NDArray[np.uint8]:
    if len(patterns) == 1:
        bgr = _resized(read_picture(folder / patterns[0].format(number), cv2.IMREAD_COLOR), resize)
        return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)
    planes = [read_picture(folder / pattern.format(number), cv2.IMREAD_GRAYSCALE) for pattern in patterns]
    if planes[0].shape != planes[1].shape:
        raise VideoError(folder / patterns[1].format(number), "differs in size from its x counterpart")
    # resized as one picture of two channels, as the published evaluators do: OpenCV rounds single planes otherwise
    return _resized(np.stack(planes, axis=-1), resize)


def _resized(picture: NDArray[np.uint8], size: tuple[int, int] | None) -> NDArray[np.uint8]:
    if size is None or picture.shape[:2] == tuple(size):
        return picture
    return np.asarray(cv2.resize(picture, (size[1], size[0]), interpolation=cv2.INTER_LINEAR), np.uint8)


def read_picture(path: Path, flags: int) -> NDArray[np.uint8]:
    """Read an image file whatever its suffix; `flags` are OpenCV's, the channel order is OpenCV's too.

    Raises:
        VideoError: The file is missing, empty, cut short or no image.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        where = "no such frame" if path.parent.is_dir() else "no such frame: its folder is missing"
        raise VideoError(path, where) from None
    except OSError as error:
        raise VideoError(path, f"cannot be read ({error.strerror})") from None
    if not content:
        raise VideoError(path, "empty file (0 bytes)")
    # Some OpenCV builds fill the missing half of a cut JPEG with grey and call it read.
    if content.startswith(_JPEG_START) and _JPEG_END not in content[-1024:]:
        raise VideoError(path, "truncated JPEG: its end is missing")
    picture: Any = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    if picture is None:
        raise VideoError(path, "not an image, or damaged")
    return np.asarray(picture, np.uint8)
