"""Names drawn into pictures, with their own letters."""

from __future__ import annotations

import re
import unicodedata
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from two_stream.errors import printable

_FACE: Any = cv2.FontFace("sans") if hasattr(cv2, "FontFace") else None
"""OpenCV 5's font with the letters of most scripts; `?` stands for the others"""
_FONT = cv2.FONT_HERSHEY_SIMPLEX
"""OpenCV 4's, with the letters of ASCII alone"""
_WEIGHT = 400
"""of the letters: regular"""
_LONGEST = 300
"""letters of a name that are looked at"""
_DIRECTION = {"R": "r", "AL": "r", "NSM": "m", "WS": " "}
"""classes of Unicode that matter here: from the right, marks on a letter, spaces"""


def write(
    picture: NDArray[np.uint8], text: str, at: tuple[int, int], line: int, tint: tuple[int, int, int]
) -> None:
    """Write text into a picture of that width, shortened to fit; what is not printable is escaped.

    Args:
        picture: RGB, changed in place.
        text: What to write.
        at: Left end of the base line.
        line: Height of a line.
        tint: RGB.
    """
    # OpenCV 5 sets no accents on letters, and crashes on lone surrogates
    plain = unicodedata.normalize("NFC", printable(text[:_LONGEST]))
    size, scale = max(8, round(0.62 * line)), cv2.getFontScaleFromHeight(_FONT, max(5, line // 2), 1)
    if _FACE is None:
        bare = (c for c in unicodedata.normalize("NFKD", plain) if not unicodedata.combining(c))
        plain = "".join(bare).encode("ascii", "replace").decode("ascii")

    def width() -> int:
        if _FACE is None:
            return int(cv2.getTextSize(plain, _FONT, scale, 1)[0][0])
        return int(cv2.getTextSize((0, 0), plain, (0, 0), _FACE, size, _WEIGHT)[2])

    while len(plain) > 4 and width() > picture.shape[1] - 2 * at[0]:
        plain = plain[:-4] + "..."
    if _FACE is None:
        cv2.putText(picture, plain, at, _FONT, scale, tint, 1, cv2.LINE_AA)
    else:
        cv2.putText(picture, _from_the_left(plain), at, tint, _FACE, size, _WEIGHT)


def _from_the_left(text: str) -> str:
    """Turn round what is written from the right: OpenCV draws the first letter leftmost in any script."""
    kinds = "".join(_DIRECTION.get(unicodedata.bidirectional(c), "l") for c in text)
    for found in re.finditer("r(?:[rm ]*[rm])?", kinds):
        start, end = found.span()
        text = text[:start] + text[start:end][::-1] + text[end:]
    return text
