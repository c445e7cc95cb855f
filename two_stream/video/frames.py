"""Frame folders: how their files are named, read and counted."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from two_stream.errors import SettingsError, VideoError
from two_stream.types import Modality
from two_stream.video.damage import damage_in, decoder_words, tell_damage
from two_stream.video.region import Region, fit_frame, reduction

_JPEG_START = b"\xff\xd8"
_JPEG_END = b"\xff\xd9"
_PNG_START = b"\x89PNG"
_READS_RGB = hasattr(cv2, "IMREAD_COLOR_RGB")  # OpenCV 4.11 on
FLAGS: dict[str, int] = {
    "rgb": cv2.IMREAD_COLOR_RGB if _READS_RGB else cv2.IMREAD_COLOR,
    "flow": cv2.IMREAD_GRAYSCALE,
}
"""how a stored picture of a modality is decoded; `join_decoded` makes a frame of the result"""
_REDUCED = {
    1: 0,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}
"""the flag of each reduction, without colour"""
_FIELD = re.compile(r"\{:0?(\d{0,2})d\}|\{\}")


@dataclass(frozen=True)
class FramePatterns:
    """Names of the files in a frame folder, with one place for the frame number.

    Frames are counted from 1 everywhere; where the files begin with another number, only their names shift.
    The published HMDB51 layout has flow files without an extension: `flow_x="flow_x_{:05d}"`.
    """

    rgb: str = "img_{:05d}.jpg"
    flow_x: str = "flow_x_{:05d}.jpg"
    flow_y: str = "flow_y_{:05d}.jpg"
    first_rgb: int = 1
    """number in the name of the first RGB file"""
    first_flow: int = 1

    def __post_init__(self) -> None:
        """Check that each pattern has one number and names a file of the folder itself."""
        for name, pattern in (("rgb", self.rgb), ("flow_x", self.flow_x), ("flow_y", self.flow_y)):
            if len(_FIELD.findall(pattern)) != 1 or pattern.count("{") != 1 or pattern.count("}") != 1:
                raise SettingsError(
                    f"frame pattern {name} is {pattern!r}: expected one place for the number, "
                    "of at most two digits' width, as in 'img_{:05d}.jpg'"
                )
            if Path(pattern).name != pattern or pattern.startswith("."):
                raise SettingsError(
                    f"frame pattern {name} is {pattern!r}: expected a plain, visible file name"
                )
        if len({self.rgb, self.flow_x, self.flow_y}) < 3:
            raise SettingsError(f"frame patterns must differ: {self.rgb!r}, {self.flow_x!r}, {self.flow_y!r}")
        if any(not isinstance(first, int) or first < 0 for first in (self.first_rgb, self.first_flow)):
            raise SettingsError(f"first frames {self.first_rgb!r}, {self.first_flow!r}: expected 0 or more")

    def of(self, modality: Modality) -> tuple[str, ...]:
        """Return the patterns of a modality: one for RGB, x and y for flow."""
        return (self.rgb,) if modality == "rgb" else (self.flow_x, self.flow_y)

    def first(self, modality: Modality) -> int:
        """Return the number in the name of a modality's first file."""
        return self.first_rgb if modality == "rgb" else self.first_flow

    def names(self, modality: Modality, number: int) -> tuple[str, ...]:
        """Return the files of a frame, counted from 1."""
        return tuple(pattern.format(number - 1 + self.first(modality)) for pattern in self.of(modality))

    def numbered(self, names: Sequence[str], modality: Modality) -> list[dict[int, str]]:
        """Pick the names that fit each pattern of a modality, by frame number counted from 1."""
        shift = 1 - self.first(modality)
        found = (numbers_by_name(names, pattern) for pattern in self.of(modality))
        return [{number + shift: name for number, name in one.items()} for one in found]

    def written(self) -> dict[str, str]:
        """Return the three names, as manifests keep them."""
        return {"rgb": self.rgb, "flow_x": self.flow_x, "flow_y": self.flow_y}


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
    """Count the frames of a modality in a folder; see `frame_numbers`."""
    return len(frame_numbers(folder, modality, patterns))


def frame_numbers(folder: Path, modality: Modality, patterns: FramePatterns | None = None) -> set[int]:
    """Return the numbers in the names of a folder's files; a flow frame counts when both x and y are there.

    Raises:
        VideoError: There is no such folder.
    """
    names = files_in(folder)
    found = [set(numbers_by_name(names, pattern)) for pattern in (patterns or FramePatterns()).of(modality)]
    return set.intersection(*found)


def files_in(folder: Path) -> list[str]:
    """Return the names in a folder; see `frame_numbers`."""
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
    region: Region | None = None,
    *,
    scaled_decoding: bool = False,
) -> NDArray[np.uint8]:
    """Read frames of a folder by number; each distinct number is decoded once.

    Args:
        folder: A folder as `two-stream extract` writes it.
        numbers: 1-based frame numbers, any order, repeats allowed.
        modality: "rgb" or "flow".
        patterns: Names of the files; None for the default ones.
        resize: (height, width) by bilinear interpolation, as the published code; None keeps the stored size.
        region: The part of the resized frames that is wanted; None is all of them.
        scaled_decoding: Let libjpeg shrink pictures of twice `resize` or more while it decodes: less work, other
            pixels.

    Returns:
        uint8 `(T, H, W, C)`; C is 3 (RGB order) or 2 (flow x, y).

    Raises:
        VideoError: No numbers, or a file is missing, damaged or of another size than the first; names the file.
    """
    chosen = patterns or FramePatterns()
    wanted = resize if scaled_decoding else None

    def picture(number: int) -> NDArray[np.uint8]:
        paths = [folder / name for name in chosen.names(modality, number)]
        flags = FLAGS[modality]
        planes = [
            read_picture(path, flags, wanted) if wanted else read_picture(path, flags) for path in paths
        ]
        return join_decoded(planes, paths[-1])

    return assemble_frames(
        folder, numbers, picture, resize, region, lambda number: chosen.names(modality, number)[0]
    )


def assemble_frames(
    name: Path | str,
    numbers: Sequence[int],
    picture: Callable[[int], NDArray[np.uint8]],
    resize: tuple[int, int] | None,
    region: Region | None,
    frame_name: Callable[[int], str] = str,
) -> NDArray[np.uint8]:
    """Fill one array with the wanted parts of pictures; each distinct number is asked for once.

    Args:
        name: What is read, for error messages.
        numbers: Frame numbers in the order of the result, repeats allowed.
        picture: Gives the stored picture `(H, W, C)` of a number.
        resize: See `read_frames`.
        region: See `read_frames`.
        frame_name: Gives a frame's name, for error messages.

    Raises:
        VideoError: No numbers, or pictures of different sizes where none is resized.
    """
    if not len(numbers):
        raise VideoError(name, "no frame numbers asked for")
    out: NDArray[np.uint8] | None = None
    rows: dict[int, int] = {}
    for row, number in enumerate(numbers):
        if number in rows:
            assert out is not None
            out[row] = out[rows[number]]
            continue
        rows[number] = row
        stored = picture(int(number))
        if out is None:
            first = fit_frame(stored, resize, region)
            out = np.empty((len(numbers), *first.shape), np.uint8)
            out[0] = first
        else:
            if resize is None and region is None and stored.shape != out.shape[1:]:
                size = f"{stored.shape[1]}×{stored.shape[0]}"
                raise VideoError(
                    f"{name}/{frame_name(number)}",
                    f"is {size}, other frames of the folder {out.shape[2]}×{out.shape[1]}",
                )
            fit_frame(stored, resize, region, out[row])
    assert out is not None
    return out


def join_decoded(planes: Sequence[NDArray[np.uint8]], second: Path | str) -> NDArray[np.uint8]:
    """Make one picture of what was decoded with `FLAGS`: RGB, or flow x and y.

    Flow is resized as one picture of two channels, as the published evaluators do: OpenCV rounds single planes
    otherwise.

    Raises:
        VideoError: x and y differ in size; names the second file.
    """
    if len(planes) == 1:
        return planes[0] if _READS_RGB else np.asarray(cv2.cvtColor(planes[0], cv2.COLOR_BGR2RGB), np.uint8)
    if planes[0].shape != planes[1].shape:
        raise VideoError(second, "differs in size from its x counterpart")
    return np.asarray(cv2.merge(list(planes)), np.uint8)


def read_picture(path: Path, flags: int, wanted: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """Read an image file whatever its suffix; see `decode_picture`.

    Raises:
        VideoError: The file is missing, empty, cut short or no image.
    """
    return decode_picture(content_of(path), path, flags, wanted)


def read_content(path: Path) -> bytes:
    """Return an image file's bytes.

    Raises:
        VideoError: The file is missing, empty, a cut JPEG or neither JPEG nor PNG.
    """
    content = content_of(path)
    _check_whole(content, path)
    if not content.startswith((_JPEG_START, _PNG_START)):
        raise VideoError(path, "neither a JPEG nor a PNG image")
    return content


def content_of(path: Path) -> bytes:
    """Return a frame file's bytes.

    Raises:
        VideoError: Missing or unreadable.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        where = "no such frame" if path.parent.is_dir() else "no such frame: its folder is missing"
        raise VideoError(path, where) from None
    except OSError as error:
        raise VideoError(path, f"cannot be read ({error.strerror})") from None


def _check_whole(content: bytes, name: Path | str) -> None:
    if not content:
        raise VideoError(name, "empty file (0 bytes)")
    # Some OpenCV builds fill the missing half of a cut JPEG with grey and call it read.
    if content.startswith(_JPEG_START) and _JPEG_END not in content[-1024:]:
        raise VideoError(name, "truncated JPEG: its end is missing")


def decode_picture(
    content: bytes, name: Path | str, flags: int, wanted: tuple[int, int] | None = None
) -> NDArray[np.uint8]:
    """Decode an image; see `decoded`. A damaged one is warned of by name.

    Raises:
        VideoError: See `decoded`.
    """
    picture, damage = decoded(content, name, flags, wanted)
    if damage:
        tell_damage(str(name), damage)
    return picture


def decoded(
    content: bytes, name: Path | str, flags: int, wanted: tuple[int, int] | None = None
) -> tuple[NDArray[np.uint8], str]:
    """Decode an image; `flags` are OpenCV's, the channel order is that of the flags.

    Args:
        content: The file's bytes.
        name: Of the file, for error messages.
        flags: How to decode.
        wanted: (height, width) that a JPEG may be shrunk towards while it is decoded; None: decode it as it is.

    Returns:
        The picture, and what shows that it is damaged (empty: nothing does).

    Raises:
        VideoError: Empty, cut short, no image, or of more pixels than `OPENCV_IO_MAX_IMAGE_PIXELS`.
    """
    _check_whole(content, name)
    stored = jpeg_size(content)
    if wanted is not None and stored:
        flags |= _REDUCED[reduction(stored, wanted)]
    height, width = stored or _png_size(content) or (0, 0)
    limit = int(os.environ.get("OPENCV_IO_MAX_IMAGE_PIXELS", 2**26))
    large = height * width > limit  # OpenCV has read that limit only if it was loaded after this package
    picture: Any = None
    words: list[str] = []
    try:
        if not large:
            with decoder_words() as words:
                picture = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    except cv2.error as error:
        large = "IMAGE_" in str(error)
    if large:
        raise VideoError(name, f"more than {limit} pixels (OPENCV_IO_MAX_IMAGE_PIXELS)")
    if picture is None:
        raise VideoError(name, "not an image, or damaged")
    return np.asarray(picture, np.uint8), damage_in(content, words, picture.shape[0] * picture.shape[1])


def _png_size(content: bytes) -> tuple[int, int] | None:
    """Return (height, width) from a PNG's header; None where there is none."""
    if not content.startswith(b"\x89PNG\r\n\x1a\n") or len(content) < 24:
        return None
    return int.from_bytes(content[20:24], "big"), int.from_bytes(content[16:20], "big")


def jpeg_size(content: bytes) -> tuple[int, int] | None:
    """Return (height, width) from a JPEG's frame header; None where there is none."""
    at = 2
    while content.startswith(_JPEG_START) and at + 9 <= len(content) and content[at] == 0xFF:
        kind = content[at + 1]
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):  # a start of frame, of any process
            return int.from_bytes(content[at + 5 : at + 7], "big"), int.from_bytes(
                content[at + 7 : at + 9], "big"
            )
        at += 1 if kind == 0xFF else 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    return None
