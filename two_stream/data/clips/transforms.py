"""Crops and flips of uint8 clips. All frames of a clip have the same crop and flip; labels are not changed here.

Arrays `(T, H, W, C)` contain frames that are already resized to `resize` of the input specification. Boxes are `(y0,
x0, y1, x1)` in these frames; lower bounds are inclusive, upper bounds exclusive. Protocol `paper` computes the
positions of multi-scale crops from the network's crop size, not from the size of the box. Some boxes therefore exceed
the frame; they are cut at its border, which distorts the crop. Protocol `paper` also mirrors flow without changing its
sign. Protocol `standard` corrects the positions and the sign.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import exp, log, sqrt

import cv2
import numpy as np
import torch

from two_stream.config.schema import AugmentOptions
from two_stream.errors import SettingsError
from two_stream.types import Box, Frames, InputSpec, Modality

Size = tuple[int, int]
"""(height, width)"""

_GRID = [(0, 0), (0, 4), (4, 0), (4, 4), (2, 2)]
_GRID += [(0, 2), (4, 2), (2, 0), (2, 4), (1, 1), (1, 3), (3, 1), (3, 3)]
"""the 13 positions of a multi-scale crop, in quarters of the free height and width, in the published order"""
_SNAP = 3
"""pixels; a crop side that differs by less from the network's is set to it"""


CORNERS = ("center", "top_left", "top_right", "bottom_left", "bottom_right")
"""positions of a corner crop"""
_TRIES = 10
"""draws of a resized crop before the centre is used, as in torchvision"""


@dataclass(frozen=True)
class View:
    """The box of a crop in the unmirrored frame, and whether the crop is mirrored afterwards."""

    box: Box
    flip: bool = False


def largest_box(frame: Size, shape: Size) -> tuple[float, float]:
    """Return the unrounded height and width of the largest box in a frame that has the aspect ratio of `shape`."""
    height, width = frame
    if height * shape[1] <= width * shape[0]:
        return height, height * shape[1] / shape[0]
    return width * shape[0] / shape[1], width


def crop_sizes(resize: Size, size: Size, scales: Sequence[float]) -> list[Size]:
    """Return the (height, width) candidates of a multi-scale crop, in the published order.

    Candidates are the largest box with the aspect ratio of the input, multiplied by `scales`. The scales of height and
    width are equal or adjacent in the list.
    """
    heights, widths = (
        [own if abs(int(side * scale) - own) < _SNAP else int(side * scale) for scale in scales]
        for side, own in zip(largest_box(resize, size), size, strict=True)
    )
    return [
        (height, width)
        for i, height in enumerate(heights)
        for j, width in enumerate(widths)
        if abs(i - j) <= 1
    ]


def multiscale_box(resize: Size, crop: Size, size: Size, place: int, protocol: str = "standard") -> Box:
    """Return the box of a multi-scale crop.

    Args:
        resize: Height and width of the frame.
        crop: Height and width of the network's input; `paper` computes the positions from it.
        size: Height and width of the box, one of `crop_sizes`.
        place: One of the 13 positions, in the published order.
        protocol: `standard`: positions of this box's own size, so that it lies inside and reaches the corners;
            `paper`: the published positions, the box cut at the frame's border.
    """
    height, width = resize
    quarter_y, quarter_x = _GRID[place]
    if protocol == "paper":
        y0 = (height - crop[0]) // 4 * quarter_y
        x0 = (width - crop[1]) // 4 * quarter_x
        return y0, x0, min(y0 + size[0], height), min(x0 + size[1], width)
    return _box_at((height - size[0]) * quarter_y // 4, (width - size[1]) * quarter_x // 4, size)


def center_box(resize: Size, size: Size) -> Box:
    """Return the box of `size` in the middle of the frame."""
    return _box_at((resize[0] - size[0]) // 2, (resize[1] - size[1]) // 2, size)


def corner_box(frame: Size, size: Size, place: str) -> Box:
    """Return a box of `size` in a corner or the centre of a frame, as in the corner crop of 3D-ResNets-PyTorch."""
    bottom, right = frame[0] - size[0], frame[1] - size[1]
    if place == "center":  # rounded as torchvision does
        return _box_at(round(bottom / 2), round(right / 2), size)
    y0 = bottom if place.startswith("bottom") else 0
    return _box_at(y0, right if place.endswith("right") else 0, size)


def placed_box(frame: Size, size: Size, y: float, x: float) -> Box:
    """Return a box of `size` (height, width); `y` and `x` are its position from 0 (top, left) to 1 (bottom, right)."""
    return _box_at(round(y * (frame[0] - size[0])), round(x * (frame[1] - size[1])), size)


def _box_at(y0: int, x0: int, size: Size) -> Box:
    return y0, x0, y0 + size[0], x0 + size[1]


def drawn_box(
    frame: Size, area: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> Box | None:
    """Draw a box with a random area and a log-uniform ratio of width to height; return None if ten attempts fail."""
    height, width = frame
    for _ in range(_TRIES):
        pixels = height * width * rng.uniform(*area)
        shape = exp(rng.uniform(log(ratio[0]), log(ratio[1])))
        w, h = round(sqrt(pixels * shape)), round(sqrt(pixels / shape))
        if 0 < w <= width and 0 < h <= height:
            return _box_at(int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), (h, w))
    return None


def resized_box(
    frame: Size, area: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> Box:
    """Draw the box of torchvision's random resized crop.

    If ten attempts fail, return the largest centred box whose ratio is within the limits.
    """
    height, width = frame
    box = drawn_box(frame, area, ratio, rng)
    if box is not None:
        return box
    shape = min(max(width / height, ratio[0]), ratio[1])
    w, h = (width, round(width / shape)) if shape > width / height else (round(height * shape), height)
    return center_box(frame, (h, w))


def whole_box(resize: Size) -> Box:
    """Return the box of the whole frame."""
    return 0, 0, *resize


def draw_view(options: AugmentOptions, spec: InputSpec, rng: np.random.Generator) -> View:
    """Draw the crop and the flip of one training clip."""
    height, width = spec.resize
    if options.whole_frame:
        box = whole_box(spec.resize)
    elif options.crop == "center":
        box = center_box(spec.resize, spec.size)
    elif options.crop == "random":
        y0 = int(rng.integers(height - spec.size[0] + 1))
        x0 = int(rng.integers(width - spec.size[1] + 1))
        box = _box_at(y0, x0, spec.size)
    elif options.crop == "multiscale":
        sizes = crop_sizes(spec.resize, spec.size, options.scales)
        size = sizes[int(rng.integers(len(sizes)))]
        place = int(rng.integers(len(_GRID)))
        box = multiscale_box(spec.resize, spec.size, size, place, options.protocol)
    else:
        box = _draw_scaled(options, spec, rng)
    return View(box, bool(rng.random() < options.flip))


def _draw_scaled(options: AugmentOptions, spec: InputSpec, rng: np.random.Generator) -> Box:
    """Draw the box of a crop for options that the paper does not use."""
    frame, size = spec.resize, spec.size
    if options.crop == "resized":
        own = size[1] / size[0]
        return resized_box(frame, options.area, (options.ratio[0] * own, options.ratio[1] * own), rng)
    height, width = largest_box(frame, size)
    if options.crop == "short_side":
        scale = rng.uniform(*options.short_sides)
        box = round(height / scale), round(width / scale)
    else:
        scale = options.scales[int(rng.integers(len(options.scales)))]
        box = int(height * scale), int(width * scale)
    if options.crop == "corner":
        return corner_box(frame, box, CORNERS[int(rng.integers(len(CORNERS)))])
    return placed_box(frame, box, float(rng.random()), float(rng.random()))


def view_spec(spec: InputSpec, crops: str, *, whole: bool = False) -> InputSpec:
    """Return the input specification for cropping the views of an evaluation.

    If the views are whole frames, frames are resized directly to the network's input size.

    Args:
        spec: The network's input.
        crops: As for `evaluation_views`.
        whole: The network was trained on whole frames (`AugmentOptions.whole_frame`), so that a centred view is the
            whole frame.
    """
    return replace(spec, resize=spec.size) if crops == "full" or (whole and crops == "center") else spec


def evaluation_views(crops: str, resize: Size, size: Size, *, mirrored: bool = True) -> list[View]:
    """Return the crops of an evaluation.

    Args:
        crops: `center` is one crop; `three` lie along the longer side; `ten` are centre, upper left, upper right, lower
            left, lower right, then the same five of the mirrored frame; `full` is the whole frame and its mirror image.
        resize: Height and width of the frames; see `view_spec`.
        size: Height and width of a crop.
        mirrored: false leaves out the mirror images.

    Raises:
        SettingsError: Unknown crops.
    """
    height, width = resize
    middle = center_box(resize, size)
    bottom, right = height - size[0], width - size[1]
    if crops == "three":
        y, x = middle[0], middle[1]
        corners = [(y, 0), (y, x), (y, right)] if width >= height else [(0, x), (y, x), (bottom, x)]
        return [View(_box_at(*corner, size)) for corner in corners]
    if crops == "ten":
        starts = [middle[:2], (0, 0), (0, right), (bottom, 0), (bottom, right)]
    elif crops in ("center", "full"):
        starts = [middle[:2]]
    else:
        raise SettingsError(f"unknown crops {crops!r}; known: center, three, ten, full")
    boxes = [_box_at(*start, size) for start in starts]
    plain = [View(box) for box in boxes]
    if crops == "center" or not mirrored:
        return plain
    return plain + [View((y0, width - x1, y1, width - x0), flip=True) for y0, x0, y1, x1 in boxes]


def mirror_frames(frames_THWC: Frames, modality: Modality, protocol: str) -> Frames:
    """Mirror uint8 frames `(T, H, W, C)` left to right.

    Unless the protocol is `paper`, the x channels of mirrored flow change their sign: `255 - x`, because displacements
    of ±20 pixels are stored as 0 to 255.
    """
    count, height, width, channels = frames_THWC.shape
    rows = np.ascontiguousarray(frames_THWC).reshape(count * height, width, channels)
    flipped = np.asarray(cv2.flip(rows, 1), np.uint8)  # much faster than [:, :, ::-1]
    flipped = flipped.reshape(frames_THWC.shape)
    if modality == "flow" and protocol != "paper":
        np.subtract(255, flipped[..., ::2], out=flipped[..., ::2])
    return flipped


def resize_frames(frames_THWC: Frames, resize: tuple[int, int]) -> Frames:
    """Resize uint8 frames to (height, width) with bilinear interpolation; the aspect ratio may change."""
    height, width = resize
    if frames_THWC.shape[1:3] == (height, width):
        return frames_THWC
    channels = frames_THWC.shape[-1]
    resized = np.stack([cv2.resize(np.ascontiguousarray(frame), (width, height)) for frame in frames_THWC])
    return np.asarray(resized.reshape(len(resized), height, width, channels), np.uint8)


NO_MOTION = 128
"""pixel value of zero flow"""
_ERASED_RATIO = (0.3, 1 / 0.3)
"""width to height of an erased box"""


def change_pixels(
    frames_THWC: Frames, options: AugmentOptions, spec: InputSpec, rng: np.random.Generator
) -> Frames:
    """Apply colour changes and random erasing to a clip, as set in the options.

    Args:
        frames_THWC: uint8 `(T, H, W, C)`, cropped and mirrored already.
        options: Colour options apply to RGB only.
        spec: Modality and normalisation: an erased box of RGB has the mean that is subtracted.
        rng: The clip's generator.
    """
    if options.colours and spec.modality == "rgb":
        clip_TCHW = torch.from_numpy(np.ascontiguousarray(frames_THWC)).permute(0, 3, 1, 2)
        with _seeded(rng):
            for change in _colour_changes(options):
                clip_TCHW = change(clip_TCHW)
        frames_THWC = np.ascontiguousarray(clip_TCHW.permute(0, 2, 3, 1).numpy())
    if options.erase and rng.random() < options.erase:
        size = (frames_THWC.shape[1], frames_THWC.shape[2])
        box = drawn_box(size, options.erase_area, _ERASED_RATIO, rng)
        if box is not None:
            frames_THWC = frames_THWC.copy()  # the frames may be a view of a larger array
            frames_THWC[:, box[0] : box[2], box[1] : box[3]] = erased_value(spec)
    return frames_THWC


def erased_value(spec: InputSpec) -> list[int]:
    """Return the value of erased pixels for each channel: zero flow, or for RGB the mean of the normalisation."""
    if spec.modality == "flow":
        return [NO_MOTION] * spec.channels
    low, high = spec.value_range
    return [min(255, max(0, round(255 * (mean - low) / (high - low)))) for mean in spec.mean]


def _colour_changes(options: AugmentOptions) -> Iterator[Callable[[torch.Tensor], torch.Tensor]]:
    from torchvision.transforms import v2

    jitter = {name: getattr(options, name) for name in ("brightness", "contrast", "saturation", "hue")}
    if any(jitter.values()):
        yield v2.ColorJitter(**jitter)
    if options.grayscale:
        yield v2.RandomGrayscale(options.grayscale)
    if options.rand_augment:
        yield v2.RandAugment(
            options.rand_augment,
            options.rand_magnitude,
            interpolation=v2.InterpolationMode.BILINEAR,
            fill=NO_MOTION,
        )


@contextmanager
def _seeded(rng: np.random.Generator) -> Iterator[None]:
    """Seed torch's global generator, which torchvision uses, from `rng`, and restore its state afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(2**63)))
        yield
