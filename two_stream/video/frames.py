"""Reads and counts the files in frame folders, and resizes and crops stored images for clips.

Unless `Region.direct` is set, the pixels are bit-identical to those of three separate steps: resize the whole image,
crop it, and resize the crop.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from two_stream.errors import SettingsError, VideoError
from two_stream.runtime.text import parse_json
from two_stream.types import Modality
from two_stream.video.damage import capture_decoder_messages, find_picture_damage, warn_of_damage

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Region:
    """A crop of resized frames, and the size to which the crop is resized.

    Attributes:
        box: `(y0, x0, y1, x1)` in pixels of the resized frame, upper bounds exclusive.
        size: (height, width) of the result, bilinear.
        direct: Interpolate once, from the stored image directly to `size`. The box is rounded to whole pixels of
            the stored image, so the result differs slightly from a crop of the resized frame.
    """

    box: tuple[int, int, int, int]
    size: tuple[int, int]
    direct: bool = False


def fit_frame(
    picture: Image, resize: tuple[int, int] | None, region: Region | None = None, out: Image | None = None
) -> Image:
    """Resize a stored image `(H, W, C)` bilinearly to `resize` (height, width), and crop the region.

    The result is written to `out`. Without `out`, a new array is returned, or the image itself if nothing changes.
    """
    size = resize or (picture.shape[0], picture.shape[1])
    if region is None:
        return _scaled(picture, size, out)
    y0, x0, y1, x1 = region.box
    if region.direct and picture.shape[:2] != size:
        return _scaled(_stored_part(picture, size, region.box), region.size, out)
    shrink = _whole_shrink(picture, size)
    if shrink is not None:  # pixels outside the box have no influence
        ky, kx = shrink
        stored = picture[ky * y0 : ky * y1, kx * x0 : kx * x1]
        if (y1 - y0, x1 - x0) == region.size:
            return _scaled(stored, region.size, out)
        return _scaled(_scaled(stored, (y1 - y0, x1 - x0)), region.size, out)
    return _scaled(_scaled(picture, size)[y0:y1, x0:x1], region.size, out)


def jpeg_reduction(stored: tuple[int, int], wanted: tuple[int, int]) -> int:
    """Return the largest factor (1, 2, 4 or 8) by which libjpeg can shrink an image to at least the wanted size."""
    smallest = min(have // want for have, want in zip(stored, wanted))
    return max(k for k in (1, 2, 4, 8) if k <= max(smallest, 1))


def _scaled(picture: Image, size: tuple[int, int], out: Image | None = None) -> Image:
    if picture.shape[:2] == size:
        if out is None:
            return picture
        out[...] = picture
        return out
    made: Any = cv2.resize(picture, (size[1], size[0]), dst=out, interpolation=cv2.INTER_LINEAR)
    if out is None:
        return np.asarray(made, np.uint8)
    if made is not out:  # OpenCV writes in place wherever the layout allows it
        out[...] = made
    return out


def _whole_shrink(picture: Image, size: tuple[int, int]) -> tuple[int, int] | None:
    """Return the factors by which height and width are reduced if both are 1, both 2 or both 4, otherwise None.

    With these factors, each pixel of the result depends only on its own block of stored pixels, and the computation is
    exact.
    """
    factors = []
    for have, want in zip(picture.shape, size):
        factor, rest = divmod(have, want)
        if rest or factor not in (1, 2, 4):
            return None
        factors.append(factor)
    ky, kx = factors
    return (ky, kx) if ky == kx else None


def _stored_part(picture: Image, size: tuple[int, int], box: tuple[int, int, int, int]) -> Image:
    """Return the part of the stored image that a box in the resized image covers."""
    scale_y, scale_x = picture.shape[0] / size[0], picture.shape[1] / size[1]
    y0, x0, y1, x1 = box
    top, left = round(y0 * scale_y), round(x0 * scale_x)
    return picture[top : max(round(y1 * scale_y), top + 1), left : max(round(x1 * scale_x), left + 1)]


_JPEG_START = b"\xff\xd8"
_JPEG_END = b"\xff\xd9"
_PNG_START = b"\x89PNG"
_READS_RGB = hasattr(cv2, "IMREAD_COLOR_RGB")  # OpenCV 4.11 on
FLAGS: dict[str, int] = {
    "rgb": cv2.IMREAD_COLOR_RGB if _READS_RGB else cv2.IMREAD_COLOR,
    "flow": cv2.IMREAD_GRAYSCALE,
}
"""OpenCV flags that decode the stored images of a modality; `join_decoded` makes a frame from the result"""
_REDUCED = {
    1: 0,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}
"""OpenCV flag of each reduction factor, for greyscale decoding"""
_FIELD = re.compile(r"\{:0?(\d{0,2})d\}|\{\}")


FLOW_FOLDERS = ("u", "v", "x", "y", "flow_x", "flow_y")
"""sub-folders of a frame folder that may contain its flow, such as `u` and `v` of EPIC-Kitchens"""


@dataclass(frozen=True)
class FramePatterns:
    """Patterns for the names of files in a frame folder, each with one field for the frame number.

    A pattern of flow may begin with one of `FLOW_FOLDERS`, as in `u/frame_{:010d}.jpg`.

    Frames are counted from 1 everywhere, even if the numbers in file names start at another value. In the published
    HMDB51 data, flow files have no suffix: `flow_x="flow_x_{:05d}"`.
    """

    rgb: str = "img_{:05d}.jpg"
    flow_x: str = "flow_x_{:05d}.jpg"
    flow_y: str = "flow_y_{:05d}.jpg"
    first_rgb: int = 1
    """number in the name of the first RGB file"""
    first_flow: int = 1

    def __post_init__(self) -> None:
        """Check that each pattern has one field for the number, and no folder but those of `FLOW_FOLDERS`."""
        for name, pattern in (("rgb", self.rgb), ("flow_x", self.flow_x), ("flow_y", self.flow_y)):
            if len(_FIELD.findall(pattern)) != 1 or pattern.count("{") != 1 or pattern.count("}") != 1:
                expected = "one field for the number, with a width below 100, as in 'img_{:05d}.jpg'"
                raise SettingsError(f"frame pattern {name} is {pattern!r}: expected {expected}")
            inside, slash, file = pattern.partition("/")
            file = file if slash and name != "rgb" and inside in FLOW_FOLDERS else pattern
            if Path(file).name != file or file.startswith("."):
                raise SettingsError(
                    f"frame pattern {name} is {pattern!r}: expected a file name without a leading dot and without a "
                    f"folder (for flow, also in {', '.join(FLOW_FOLDERS)})"
                )
        if len({self.rgb, self.flow_x, self.flow_y}) < 3:
            raise SettingsError(
                f"frame patterns are {self.rgb!r}, {self.flow_x!r} and {self.flow_y!r}: expected three "
                "different patterns"
            )
        if any(not isinstance(first, int) or first < 0 for first in (self.first_rgb, self.first_flow)):
            raise SettingsError(
                f"the first frame numbers are {self.first_rgb!r} and {self.first_flow!r}: expected 0 or more"
            )

    def of(self, modality: Modality) -> tuple[str, ...]:
        """Return the patterns of a modality: one pattern for RGB, two patterns (x and y) for flow."""
        return (self.rgb,) if modality == "rgb" else (self.flow_x, self.flow_y)

    def first(self, modality: Modality) -> int:
        """Return the number in the name of the first file of a modality."""
        return self.first_rgb if modality == "rgb" else self.first_flow

    def names(self, modality: Modality, number: int) -> tuple[str, ...]:
        """Return the names of the files of a frame; frames are counted from 1."""
        return tuple(pattern.format(number - 1 + self.first(modality)) for pattern in self.of(modality))

    def numbered(self, names: Sequence[str], modality: Modality) -> list[dict[int, str]]:
        """Return, for each pattern of a modality, the matching names, with their frame numbers (1-based) as keys."""
        shift = 1 - self.first(modality)
        matches = (names_by_number(names, pattern) for pattern in self.of(modality))
        return [{number + shift: name for number, name in one.items()} for one in matches]

    def written(self) -> dict[str, str]:
        """Return the three patterns as they are recorded in manifests."""
        return {"rgb": self.rgb, "flow_x": self.flow_x, "flow_y": self.flow_y}


def names_by_number(names: Sequence[str], pattern: str) -> dict[int, str]:
    """Return the names that match a pattern, with the numbers in the names as keys."""
    field = _FIELD.search(pattern)
    assert field is not None  # checked by FramePatterns
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
    """Return the frame numbers of a modality in a folder; flow frames without an x or y file are left out.

    Raises:
        VideoError: No such folder.
    """
    names = list_file_names(folder)
    found = [set(names_by_number(names, pattern)) for pattern in (patterns or FramePatterns()).of(modality)]
    return set.intersection(*found)


def list_file_names(folder: Path) -> list[str]:
    """Return the names of the files and folders in a folder, and of the files in its `FLOW_FOLDERS`.

    Raises:
        VideoError: No such folder.
    """
    try:
        with os.scandir(folder) as entries:
            found = [entry.name for entry in entries]
        inside = [name for name in FLOW_FOLDERS if name in found and (folder / name).is_dir()]
        return found + [f"{name}/{path.name}" for name in inside for path in (folder / name).iterdir()]
    except NotADirectoryError:
        raise VideoError(folder, "expected a folder of frames, found a file") from None
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
    """Read frames of a folder by number; repeated numbers are decoded once.

    Args:
        folder: A folder as written by `two-stream extract`.
        numbers: 1-based frame numbers, any order, repeats allowed.
        modality: "rgb" or "flow".
        patterns: Names of the files; None for the default ones.
        resize: (height, width) by bilinear interpolation, as in the published code; None keeps the stored size.
        region: The part of the resized frames to return; None returns all.
        scaled_decoding: Let libjpeg shrink images of at least twice `resize` while decoding: faster, but with
            different pixels.

    Returns:
        uint8 `(T, H, W, C)`; C is 3 (RGB order) or 2 (flow x, y).

    Raises:
        VideoError: No numbers, or a file is missing, damaged or of a different size from the first; names the file.
    """
    names = (patterns or FramePatterns()).names
    wanted = resize if scaled_decoding else None

    def read(number: int) -> NDArray[np.uint8]:
        paths = [folder / name for name in names(modality, number)]
        return join_decoded([read_picture(path, FLAGS[modality], wanted) for path in paths], paths[-1])

    return assemble_frames(folder, numbers, read, resize, region, lambda number: names(modality, number)[0])


def assemble_frames(
    name: Path | str,
    numbers: Sequence[int],
    read: Callable[[int], NDArray[np.uint8]],
    resize: tuple[int, int] | None,
    region: Region | None,
    frame_name: Callable[[int], str] = str,
) -> NDArray[np.uint8]:
    """Read images into one array; repeated numbers are read once. See `read_frames` for `resize` and `region`.

    Args:
        name: Name of the folder or file, for error messages.
        numbers: Frame numbers in the order of the result, repeats allowed.
        read: Returns the stored image `(H, W, C)` of a number.
        resize: (height, width) of the whole images.
        region: The part of them to return.
        frame_name: Returns a frame's name, for error messages.

    Raises:
        VideoError: No numbers, or images of different sizes and neither `resize` nor `region`.
    """
    if not len(numbers):
        raise VideoError(name, "expected at least one frame number, found none")
    out: NDArray[np.uint8] | None = None
    rows: dict[int, int] = {}
    for row, number in enumerate(numbers):
        if number in rows:
            assert out is not None
            out[row] = out[rows[number]]
            continue
        rows[number] = row
        stored = read(int(number))
        if out is None:
            first = fit_frame(stored, resize, region)
            out = np.empty((len(numbers), *first.shape), np.uint8)
            out[0] = first
            continue
        if resize is None and region is None and stored.shape != out.shape[1:]:
            sizes = (
                f"is {stored.shape[1]}×{stored.shape[0]}, other frames of the folder "
                f"{out.shape[2]}×{out.shape[1]}"
            )
            raise VideoError(f"{name}/{frame_name(number)}", sizes)
        fit_frame(stored, resize, region, out[row])
    assert out is not None
    return out


def join_decoded(planes: Sequence[NDArray[np.uint8]], second: Path | str) -> NDArray[np.uint8]:
    """Return one image, given the images that were decoded with `FLAGS`: RGB, or flow x and y.

    Flow x and y are joined to one image before resizing, as in the published code, because OpenCV rounds separate
    planes differently.

    Raises:
        VideoError: x and y differ in size; names the second file.
    """
    if len(planes) == 1:
        return planes[0] if _READS_RGB else np.asarray(cv2.cvtColor(planes[0], cv2.COLOR_BGR2RGB), np.uint8)
    if planes[0].shape != planes[1].shape:
        raise VideoError(second, "the image has a different size from the flow x image")
    return np.asarray(cv2.merge(list(planes)), np.uint8)


def read_picture(path: Path, flags: int, wanted: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """Read an image file with any suffix; see `decode_picture`.

    Raises:
        VideoError: The file is missing, empty, cut or not an image.
    """
    return decode_picture(read_file_bytes(path), path, flags, wanted)


def read_image_bytes(path: Path) -> bytes:
    """Return the content of an image file.

    Raises:
        VideoError: The file is missing, empty, a cut JPEG or neither JPEG nor PNG.
    """
    content = read_file_bytes(path)
    check_complete(content, content, path)
    if not content.startswith((_JPEG_START, _PNG_START)):
        raise VideoError(path, "expected a JPEG or PNG image")
    return content


def read_file_bytes(path: Path) -> bytes:
    """Return the content of a frame file.

    Raises:
        VideoError: Missing or unreadable.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        where = "no such frame" if path.parent.is_dir() else "no such frame: its folder is missing"
        raise VideoError(path, where) from None
    except OSError as error:
        raise VideoError(path, f"the file cannot be read ({error.strerror})") from None


def check_complete(head: bytes, tail: bytes, name: Path | str) -> bool:
    """Check the first and last bytes of an image file; return whether it is a JPEG.

    Raises:
        VideoError: It is empty, or a JPEG without its end marker: some OpenCV builds fill the missing part with grey.
    """
    if not head:
        raise VideoError(name, "empty file (0 bytes)")
    is_jpeg = head.startswith(_JPEG_START)
    if is_jpeg and _JPEG_END not in tail[-1024:]:
        raise VideoError(name, "truncated JPEG: the end of the file is missing")
    return is_jpeg


def decode_picture(
    content: bytes, name: Path | str, flags: int, wanted: tuple[int, int] | None = None
) -> NDArray[np.uint8]:
    """Decode an image as in `decode_with_damage`, and warn if the image is damaged."""
    picture, damage = decode_with_damage(content, name, flags, wanted)
    if damage:
        warn_of_damage(str(name), damage)
    return picture


def decode_with_damage(
    content: bytes, name: Path | str, flags: int, wanted: tuple[int, int] | None = None
) -> tuple[NDArray[np.uint8], str]:
    """Decode an image.

    Args:
        content: The file's bytes.
        name: Name of the file, for error messages.
        flags: OpenCV's flags; they determine the order of channels.
        wanted: (height, width) towards which a JPEG may be shrunk while decoding; None decodes the full size.

    Returns:
        The image, and the sign of damage (empty if there is none).

    Raises:
        VideoError: Empty, cut, not an image, or of more pixels than `OPENCV_IO_MAX_IMAGE_PIXELS`.
    """
    check_complete(content, content, name)
    stored = jpeg_size(content)
    if wanted is not None and stored:
        flags |= _REDUCED[jpeg_reduction(stored, wanted)]
    height, width = stored or _png_size(content) or (0, 0)
    limit = int(os.environ.get("OPENCV_IO_MAX_IMAGE_PIXELS", 2**26))
    large = height * width > limit  # OpenCV has read that limit only if it was loaded after this package
    picture: Any = None
    messages: list[str] = []
    try:
        if not large:
            with capture_decoder_messages() as messages:
                picture = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    except cv2.error as error:
        large = "IMAGE_" in str(error)
    if large:
        raise VideoError(
            name, f"the image has more than {limit} pixels, the limit of OPENCV_IO_MAX_IMAGE_PIXELS"
        )
    if picture is None:
        raise VideoError(name, "not an image, or damaged")
    return np.asarray(picture, np.uint8), find_picture_damage(
        content, messages, picture.shape[0] * picture.shape[1]
    )


def _png_size(content: bytes) -> tuple[int, int] | None:
    """Return the (height, width) in the header of a PNG; None for other content."""
    if not content.startswith(b"\x89PNG\r\n\x1a\n") or len(content) < 24:
        return None
    return int.from_bytes(content[20:24]), int.from_bytes(content[16:20])


def jpeg_size(content: bytes) -> tuple[int, int] | None:
    """Return the (height, width) in the frame header of a JPEG; None if there is no such header."""
    at = 2
    while content.startswith(_JPEG_START) and at + 9 <= len(content) and content[at] == 0xFF:
        kind = content[at + 1]
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):  # a start-of-frame marker of any kind
            return int.from_bytes(content[at + 5 : at + 7]), int.from_bytes(content[at + 7 : at + 9])
        at += 1 if kind == 0xFF else 2 + int.from_bytes(content[at + 2 : at + 4])
    return None


MANIFEST = ".done.json"
"""Name of the manifest in a finished frame folder."""


def read_extraction_manifest(folder: Path) -> dict[str, Any] | None:
    """Return the manifest of a finished frame folder; None if there is no valid manifest."""
    try:
        found = parse_json((folder / MANIFEST).read_text(encoding="utf-8"))
        patterns = found["settings"]["patterns"]
        FramePatterns(**patterns)
        int(found["frames"]), int(found["flow_frames"]), int(found["size"]), int(found["mtime_ns"])
    except (OSError, ValueError, KeyError, TypeError, SettingsError):
        return None
    return dict(found)


RATE_FILE = "fps"
"""file in a frame folder, written by the scripts of 3D-ResNets-PyTorch"""


def recorded_times(folder: Path) -> list[float]:
    """Return the times of the images of a frame folder and of its end; empty if extraction recorded only a rate."""
    with suppress(ValueError, TypeError):
        times = [float(time) for time in _recorded_video(folder).get("times", [])]
        return times if all(0 <= one <= other < math.inf for one, other in pairwise(times)) else []
    return []


def recorded_rate(folder: Path) -> float | None:
    """Return the frames per second of a frame folder that extraction, or the file `RATE_FILE`, records."""
    found = _recorded_video(folder).get("fps")
    if found:
        return float(found)
    with suppress(OSError, ValueError):
        rate = float((folder / RATE_FILE).read_text(encoding="utf-8-sig"))
        return rate if rate > 0 else None
    return None


def _recorded_video(folder: Path) -> dict[str, Any]:
    """Return what extraction recorded about the video; empty for folders that other programs have written."""
    found = (read_extraction_manifest(folder) or {}).get("video")
    return found if isinstance(found, dict) else {}


def extraction_settings(root: Path) -> dict[str, Any] | None:
    """Return the settings with which frames below a folder were extracted; None for frames of other programs."""
    for folder in (root, *(path for path in sorted(root.iterdir()) if path.is_dir())):
        for video in (folder, *(path for path in sorted(folder.iterdir())[:3] if path.is_dir())):
            manifest = read_extraction_manifest(video)
            if manifest is not None:
                return dict(manifest["settings"])
    return None
