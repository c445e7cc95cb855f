"""Writes a copy of a video with the predicted classes drawn on it, and draws text in any script."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import av
import cv2
import numpy as np
from av.video.stream import VideoStream
from numpy.typing import NDArray

from two_stream.errors import VideoError, printable
from two_stream.runtime.files import atomic_path
from two_stream.runtime.plotting import DARK
from two_stream.video.decoding.memory import open_any

CODECS = ("libx264", "mpeg4")
"""Encoders in order of preference; MPEG-4 is used if FFmpeg has no H.264 encoder."""
DEFAULT_FPS = 25.0
"""frame rate for a video whose file contains no frame rate"""
_SHOWN = 3
_BAR: Any = tuple(bytes.fromhex(DARK["s3"][1:]))
_OTHERS: Any = tuple(bytes.fromhex(DARK["ink"][1:]))
_FACE: Any = cv2.FontFace("sans") if hasattr(cv2, "FontFace") else None
"""font of OpenCV 5 with the letters of most scripts; missing letters are drawn as `?`"""
_FONT = cv2.FONT_HERSHEY_SIMPLEX
"""font of OpenCV 4 with ASCII letters only"""
_WEIGHT = 400
"""weight of the font (regular)"""
_LONGEST = 300
"""largest number of characters that are drawn"""
_DIRECTION = {"R": "r", "AL": "r", "NSM": "m", "WS": " "}
"""bidirectional classes of Unicode: right-to-left letters (r), combining marks (m), spaces"""


def annotate(
    path: Path | str, out: Path, guesses: Sequence[tuple[str, float]], *, backend: str = "pyav"
) -> str:
    """Write a copy of a video with its most likely classes and their probabilities, and return the name of the encoder.

    `guesses` are pairs `(label, probability)`, with the most likely class first. `out` is an MP4 file that is written
    completely or not at all. Frames keep their times. Width and height are cropped to even numbers, as H.264 requires.
    The sound is not copied.

    Raises:
        VideoError: The video cannot be read, or the file cannot be written.
    """
    if out.is_dir():
        raise VideoError(out, "is a directory; expected an MP4 file to write")
    if out.exists() and Path(path).exists() and out.samefile(path):
        raise VideoError(out, "is the input video; choose another file for the annotated copy")
    with open_any(path, backend) as video, atomic_path(out) as part:
        height, width = video.height // 2 * 2, video.width // 2 * 2
        if height < 2 or width < 2:
            raise VideoError(
                path,
                f"is {video.width}×{video.height} pixels, which is too small to encode; "
                "expected at least 2×2",
            )
        overlay = panel(height, width, guesses)
        with Encoder(part, out, (height, width), video.fps) as encoder:
            for number, (seconds, picture) in enumerate(video.timed_frames()):
                at = number / encoder.fps if seconds is None else seconds
                encoder.add(blend(picture[:height, :width], *overlay), at)
            if video.times is not None:
                encoder.end(float(video.times[-1]))
            return encoder.codec


def panel(
    height: int, width: int, guesses: Sequence[tuple[str, float]]
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Return the overlay as an RGB image `(H, W, 3)` and its opacity `(H, W, 1)`."""
    color = np.zeros((height, width, 3), np.uint8)
    opacity = np.zeros((height, width, 1), np.float32)
    line = max(11, min(28, height // 14))
    shown = list(guesses[: max(1, min(_SHOWN, (height // 2) // line))])
    band = min(height, line * len(shown) + line // 2)
    opacity[:band] = 0.6
    for row, (label, share) in enumerate(shown):
        baseline = line * (row + 1) - line // 6
        end = (round(share * (width - 1)), baseline + max(3, line // 7))
        cv2.rectangle(color, (0, baseline + 2), end, _BAR, -1)
        tint = (255, 255, 255) if row == 0 else _OTHERS
        draw_text(color, f"{label} {100 * share:.0f} %", (3, baseline - 1), line, tint)
    opacity[color.max(axis=2) > 0] = 1.0
    return color, opacity


def blend(
    picture_HWC: NDArray[np.uint8], color_HWC: NDArray[np.uint8], opacity_HW1: NDArray[np.float32]
) -> NDArray[np.uint8]:
    """Return a frame with the overlay drawn on it."""
    band = int(np.flatnonzero(opacity_HW1.any(axis=(1, 2))).max(initial=-1)) + 1
    drawn = np.ascontiguousarray(picture_HWC).copy()
    share = opacity_HW1[:band]
    drawn[:band] = np.rint(drawn[:band] * (1 - share) + color_HWC[:band] * share).astype(np.uint8)
    return drawn


class Encoder:
    """Writes an MP4 file with one H.264 or MPEG-4 stream whose images have individual times.

    Attributes:
        codec: Name of the encoder.
        fps: Nominal frame rate.
    """

    def __init__(self, part: Path, out: Path, size: tuple[int, int], fps: float | None) -> None:
        """Prepare a file; the context manager opens it.

        `part` is the file to write, and `out` is its name in messages. `size` is `(height, width)`; both must be even.
        `fps` is the nominal frame rate.
        """
        self.part, self.out, self.size = part, out, size
        self.fps = fps or DEFAULT_FPS
        self.codec = next((name for name in CODECS if name in av.codecs_available), CODECS[-1])
        self._ticks = 120_000 if self.codec == "libx264" else 60_000  # MPEG-4 allows at most 65535
        self._last, self._end = -1, 0
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        """Open the file; raise `VideoError` if the file cannot be written."""
        with self._named():
            self._container = self._stack.enter_context(av.open(str(self.part), "w", format="mp4"))
            rate = Fraction(self.fps).limit_denominator(1001)
            stream = self._container.add_stream(self.codec, rate=rate)
            assert isinstance(stream, VideoStream)  # the codecs above are all for video
            stream.height, stream.width = self.size
            stream.pix_fmt = "yuv420p"
            if self.codec == "libx264":
                # without B-frames the length of the file is exact
                stream.options = {"crf": "20", "preset": "veryfast", "bf": "0"}
            else:
                stream.bit_rate = max(400_000, self.size[0] * self.size[1] * 4)
            stream.codec_context.time_base = Fraction(1, self._ticks)
            self._stream = stream
        return self

    def add(self, picture: NDArray[np.uint8], seconds: float) -> None:
        """Write the next image, which is displayed from `seconds` on.

        Raises `VideoError` if the file cannot be written.
        """
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        self._last = max(self._last + 1, round(seconds * self._ticks))
        frame.pts, frame.time_base = self._last, Fraction(1, self._ticks)
        self._mux(frame)

    def end(self, seconds: float) -> None:
        """Set the end time of the last image. By default, it is displayed for as long as the previous image."""
        self._end = round(seconds * self._ticks)

    def _mux(self, frame: av.VideoFrame | None) -> None:
        with self._named():
            for packet in self._stream.encode(frame):
                if packet.pts == self._last and self._end > self._last:
                    packet.duration = self._end - self._last
                self._container.mux(packet)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._named(), self._stack:
            if kind is None:
                self._mux(None)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Context manager that turns errors of FFmpeg into `VideoError`."""
        try:
            yield
        except av.FFmpegError as error:
            raise VideoError(self.out, f"cannot be written ({error.strerror or error})") from None


def draw_text(
    picture: NDArray[np.uint8], text: str, at: tuple[int, int], line: int, tint: tuple[int, int, int]
) -> None:
    """Draw text into an image. The text is shortened to the width of the image, and unprintable characters are escaped.

    `picture` is an RGB image that is changed in place. `at` is the left end `(x, y)` of the baseline. `line` is the
    height of a line in pixels.
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
    """Reverse right-to-left text, because OpenCV draws every text from left to right."""
    kinds = "".join(_DIRECTION.get(unicodedata.bidirectional(c), "l") for c in text)
    for found in re.finditer("r(?:[rm ]*[rm])?", kinds):
        start, end = found.span()
        text = text[:start] + text[start:end][::-1] + text[end:]
    return text
