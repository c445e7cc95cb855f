"""Resizes and crops stored images for clips, and skips work on pixels that are cropped away.

Unless `Region.direct` is set, the pixels are bit-identical to those of three separate steps: resize the whole image,
crop it, and resize the crop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Region:
    """A crop of resized frames, and the size to which the crop is resized.

    Attributes:
        box: `(y0, x0, y1, x1)` in pixels of the resized frame, upper bounds exclusive.
        size: (height, width) of the result, bilinear.
        direct: Interpolate once, from the stored image directly to `size`. The box is rounded to whole pixels of
            the stored image, so the result differs slightly.
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
    """Return the factors by which both sides are reduced if they are 1, 2 or 4, otherwise None.

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
