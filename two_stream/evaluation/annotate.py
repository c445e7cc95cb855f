"""Writing a video again with what was predicted drawn on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from av.container import OutputContainer
from av.video.stream import VideoStream
from numpy.typing import NDArray

from two_stream.errors import VideoError
from two_stream.evaluation.lettering import write
from two_stream.runtime.files import atomic_path
from two_stream.video.reader import open_video

CODECS = ("libx264", "mpeg4")
"""Tried in this order: H.264, and MPEG-4 where this FFmpeg has no H.264 encoder."""
DEFAULT_FPS = 25.0
"""For a video that does not say."""
_SHOWN = 3
_BAR = (79, 191, 174)


def annotate(
    path: Path | str, out: Path, guesses: Sequence[tuple[str, float]], *, backend: str = "pyav"
) -> str:
    """Write a video with its likeliest classes and a bar for each on a dark band, at the frame rate of the source.

    Sides are cut to even numbers, as H.264 wants. Sound is left out. The file is whole or absent.

    Args:
        path: The video.
        out: MP4 file to write.
        guesses: (label, probability), likeliest first.
        backend: Decoder.

    Returns:
        Name of the encoder used.

    Raises:
        VideoError: The video cannot be read or the file cannot be written.
    """
    if out.is_dir():
        raise VideoError(out, "is a directory; name the MP4 file to write")
    if out.exists() and out.samefile(path):
        raise VideoError(out, "is the video itself; name another file for the annotated copy")
    with open_video(path, backend) as video, atomic_path(out) as part:
        height, width = video.height // 2 * 2, video.width // 2 * 2
        if height < 2 or width < 2:
            raise VideoError(path, f"is {video.width}×{video.height}: too small to be written as a video")
        rate = Fraction(video.fps or DEFAULT_FPS).limit_denominator(1001)
        overlay = panel(height, width, guesses)
        with encoder(part, out, height, width, rate) as (container, stream):
            for picture in video.frames():
                drawn = blend(picture[:height, :width], *overlay)
                for packet in stream.encode(av.VideoFrame.from_ndarray(drawn, format="rgb24")):
                    container.mux(packet)
            for packet in stream.encode():
                container.mux(packet)
            return str(stream.codec_context.name)


def panel(
    height: int, width: int, guesses: Sequence[tuple[str, float]]
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Return the overlay: RGB `(H, W, 3)` and its opacity `(H, W, 1)`."""
    color = np.zeros((height, width, 3), np.uint8)
    opacity = np.zeros((height, width, 1), np.float32)
    line = max(11, min(28, height // 14))
    shown = list(guesses[: max(1, min(_SHOWN, (height // 2) // line))])
    band = min(height, line * len(shown) + line // 2)
    opacity[:band] = 0.6
    for row, (label, share) in enumerate(shown):
        baseline = line * (row + 1) - line // 6
        cv2.rectangle(
            color,
            (0, baseline + 2),
            (round(share * (width - 1)), baseline + max(3, line // 7)),
            (79, 191, 174),
            -1,
        )
        tint = (255, 255, 255) if row == 0 else (190, 196, 204)
        write(color, f"{label} {100 * share:.0f} %", (3, baseline - 1), line, tint)
    opacity[color.max(axis=2) > 0] = 1.0
    return color, opacity


def blend(
    picture_HWC: NDArray[np.uint8], color_HWC: NDArray[np.uint8], opacity_HW1: NDArray[np.float32]
) -> NDArray[np.uint8]:
    """Lay the overlay on a frame of the same size."""
    band = int(np.flatnonzero(opacity_HW1.any(axis=(1, 2))).max(initial=-1)) + 1
    drawn = np.ascontiguousarray(picture_HWC).copy()
    share = opacity_HW1[:band]
    drawn[:band] = np.rint(drawn[:band] * (1 - share) + color_HWC[:band] * share).astype(np.uint8)
    return drawn


@contextmanager
def encoder(
    part: Path, out: Path, height: int, width: int, rate: Fraction
) -> Iterator[tuple[OutputContainer, VideoStream]]:
    """Open an MP4 file for writing and yield it with its one stream, H.264 or MPEG-4.

    Args:
        part: Where to write.
        out: The name that messages give.
        height: Rows, even.
        width: Pixels per row, even.
        rate: Frames per second.

    Raises:
        VideoError: It cannot be written.
    """
    codec = next((name for name in CODECS if name in av.codecs_available), CODECS[-1])
    try:
        with av.open(str(part), "w", format="mp4") as container:
            stream = container.add_stream(codec, rate=rate)
            assert isinstance(stream, VideoStream)  # the codecs above are all for video
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            if codec == "libx264":
                stream.options = {"crf": "20", "preset": "veryfast"}
            else:
                stream.bit_rate = max(400_000, height * width * 4)
            yield container, stream
    except av.FFmpegError as error:
        raise VideoError(out, f"cannot be written ({error.strerror or error})") from None
