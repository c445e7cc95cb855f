"""Pictures of the embedded data set: digits on discs before a drifting texture, and their way into a file."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from two_stream.errors import DataError
from two_stream.runtime.seeding import rng

_FPS = 15

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Look:
    """What all videos of one source share."""

    discs: tuple[Image, Image]
    """RGBA pictures"""
    background: Image
    """RGB texture that is mirrored beyond its borders"""
    drift: tuple[float, float]
    """pixels per frame"""


@lru_cache(maxsize=64)
def look_of(seed: int, group: int, height: int, width: int) -> Look:
    """Return what the videos of a source have in common."""
    draw = rng("demo look", seed, group)
    discs = (_disc(draw), _disc(draw))
    noise = draw.normal(size=(height + 64, width + 64, 3)).astype(np.float32)
    coarse = cv2.GaussianBlur(noise, (0, 0), 5.0, borderType=cv2.BORDER_REFLECT)
    coarse = (coarse - coarse.mean()) / coarse.std()
    background = np.clip(draw.uniform(90, 165, 3) + 14.0 * coarse, 0, 255).astype(np.uint8)
    angle, speed = draw.uniform(0, 2 * np.pi), draw.uniform(0.0, 0.4)
    return Look(discs, background, (float(speed * np.cos(angle)), float(speed * np.sin(angle))))


def _disc(draw: np.random.Generator) -> Image:
    """Draw a digit on a two-coloured disc, RGBA, 64×64."""
    digit = _digits()[int(draw.integers(len(_digits())))]
    large = cv2.resize(digit, (44, 44), interpolation=cv2.INTER_CUBIC).clip(0, 1)
    ink = np.zeros((64, 64), np.float32)
    ink[10:54, 10:54] = large
    dark, light = draw.uniform(0, 60, 3), draw.uniform(195, 255, 3)
    rgb = dark + (light - dark) * ink[..., None]
    yy, xx = np.mgrid[:64, :64] - 31.5
    rgb[(yy < 0) & (ink < 0.3)] += (
        45.0  # the lower half is darker, so that every digit shows how it is turned
    )
    alpha = np.clip(31.5 - np.hypot(yy, xx), 0, 1) * 255
    return np.dstack([np.clip(rgb, 0, 255), alpha]).astype(np.uint8)


@lru_cache(maxsize=1)
def _digits() -> NDArray[np.float32]:
    from sklearn.datasets import load_digits

    return np.asarray(load_digits().images / 16.0, np.float32)


def scrolled(background: Image, shift: NDArray[np.float64], width: int, height: int) -> NDArray[np.float32]:
    """Cut the frame out of the texture at a fractional place; the texture is mirrored beyond its border."""
    matrix = np.array([[1, 0, -shift[0]], [0, 1, -shift[1]]])
    size = (width, height)
    cut = cv2.warpAffine(background, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    return np.asarray(cut, np.float32)


def stamp(
    picture: NDArray[np.float32], disc: Image, x: float, y: float, diameter: float, degrees: float
) -> None:
    """Blend a disc into a picture; what sticks out at the top or bottom appears at the other end."""
    height, width = picture.shape[:2]
    side = disc.shape[0]
    matrix = cv2.getRotationMatrix2D(((side - 1) / 2, (side - 1) / 2), -degrees, diameter / side)
    for turn in (-1, 0, 1):
        moved = matrix.copy()
        moved[:, 2] += (x - (side - 1) / 2, y + turn * height - (side - 1) / 2)
        layer = cv2.warpAffine(disc, moved, (width, height), flags=cv2.INTER_AREA).astype(np.float32)
        alpha = layer[..., 3:] / 255.0
        picture += alpha * (layer[..., :3] - picture)


def codec_here() -> str:
    """Return the encoder to use: H.264, or MPEG-4 where libav was built without it."""
    import av

    for name in ("libx264", "mpeg4"):
        if name in av.codecs_available:
            return name
    raise DataError("this PyAV can encode neither H.264 nor MPEG-4; pip install --force-reinstall av")


def encode(path: Path, frames: list[Image], codec: str) -> None:
    """Write frames `(H, W, 3)`, RGB, as an MP4 file of high quality, one thread: the same frames, the same file."""
    import av
    from av.video.stream import VideoStream

    # a fixed quantiser: x264's rate control was seen to write other bytes for one call in forty
    options = {"qp": "14", "preset": "veryfast"} if codec == "libx264" else {"qmin": "1", "qmax": "3"}
    with av.open(str(path), "w", format="mp4") as container:
        stream = cast(VideoStream, container.add_stream(codec, rate=Fraction(_FPS), options=options))
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        stream.codec_context.gop_size = 12
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
