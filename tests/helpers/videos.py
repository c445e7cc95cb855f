"""Makes small real videos whose frame number can be read off the picture: frame i is painted 20 + 9 i."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

os.environ.setdefault("SVT_LOG", "-1")

import av
import numpy as np
import pytest

HEIGHT, WIDTH, FRAMES = 48, 64, 24


@dataclass(frozen=True)
class Codec:
    name: str
    suffix: str
    pix_fmt: str = "yuv420p"
    options: dict[str, str] = field(default_factory=dict)
    label: str = ""

    def __str__(self) -> str:
        return f"{self.label or self.name}-{self.pix_fmt}{self.suffix}"


CODECS = [
    Codec("libx264", ".mp4", options={"bf": "3", "g": "8"}, label="h264-b-frames"),
    Codec(
        "libx264", ".mkv", options={"bf": "2", "g": "6", "x264-params": "open-gop=1"}, label="h264-open-gop"
    ),
    Codec(
        "libx264", ".mp4", options={"g": "6", "x264-params": "intra-refresh=1"}, label="h264-intra-refresh"
    ),
    Codec("libx264", ".ts", options={"bf": "2", "g": "8"}, label="h264"),
    Codec("libx264", ".mp4", "yuv420p10le", {"g": "8"}, label="h264"),
    Codec("libx264", ".mp4", "yuv444p", {"g": "8"}, label="h264"),
    Codec("libx265", ".mp4", options={"g": "8", "x265-params": "log-level=none:pools=1"}, label="hevc"),
    Codec(
        "libx265", ".mp4", "yuv420p10le", {"g": "8", "x265-params": "log-level=none:pools=1"}, label="hevc"
    ),
    Codec("libsvtav1", ".mp4", options={"g": "8", "preset": "12", "svtav1-params": "lp=1"}, label="av1"),
    Codec("libsvtav1", ".mkv", "yuv420p10le", {"preset": "12", "svtav1-params": "lp=1"}, label="av1"),
    Codec("libvpx", ".webm", options={"g": "8", "deadline": "realtime"}, label="vp8"),
    Codec("libvpx-vp9", ".webm", options={"g": "8", "deadline": "realtime"}, label="vp9"),
    Codec("mpeg4", ".avi", options={"bf": "2", "g": "8", "qmin": "1", "qmax": "2"}, label="mpeg4-b-frames"),
    Codec("mjpeg", ".avi", "yuvj420p", {"qmin": "1", "qmax": "2"}),
    Codec("gif", ".gif", "gray"),
    Codec("ffv1", ".mkv", "bgr0"),
]
H264 = CODECS[0]


def level(number: int) -> int:
    return 20 + 9 * number


def picture(number: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    return np.full((height, width, 3), level(number), np.uint8)


def numbers_of(frames: np.ndarray) -> list[int]:
    """Read the frame numbers off the pictures; a picture between two levels is an error."""
    found = []
    for frame in frames:
        value = (float(np.asarray(frame, np.float64).mean()) - 20) / 9
        assert abs(value - round(value)) < 0.34, f"the picture belongs to no frame: {value}"
        found.append(round(value))
    return found


@contextmanager
def usual_priority() -> Iterator[None]:
    """Restore the scheduling of this thread.

    SVT-AV1, when run as root, makes the thread that starts it SCHED_FIFO at priority 99. Processes started later
    inherit that, and busy ones leave no processor time to any other process of the machine.
    """
    if not hasattr(os, "sched_getscheduler"):
        yield
        return
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameters)


def make(
    path: Path,
    codec: Codec = H264,
    frames: list[np.ndarray] | None = None,
    *,
    stamps: list[int] | None = None,
    fps: int = 25,
    rotation: int | None = None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Encode a video, by default of 24 frames (`FRAMES`) at 25 frames per second.

    Args:
        path: The file; its suffix chooses the container.
        codec: Encoder and its options; the test is skipped where PyAV lacks it.
        frames: Pictures (H, W, 3), RGB; by default the `picture` of each number.
        stamps: Milliseconds at which each frame is shown, for a variable frame rate.
        fps: Frames per second without `stamps`.
        rotation: Degrees that a player turns the pictures.
        container_options: For the container, as `movflags`.
    """
    try:
        av.Codec(codec.name, "w")
    except av.FFmpegError:
        pytest.skip(f"this PyAV has no encoder {codec.name}")
    pictures = [picture(number) for number in range(FRAMES)] if frames is None else frames
    with usual_priority(), av.open(str(path), "w", options=container_options or {}) as container:
        rate = Fraction(1000) if stamps else Fraction(fps)
        stream = container.add_stream(codec.name, rate=rate, options=dict(codec.options))
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = codec.pix_fmt
        stream.codec_context.thread_count = 1
        if codec.name != "libsvtav1":  # it wants a quality instead
            stream.bit_rate = 4_000_000
        if stamps:
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        if rotation is not None:
            stream.set_display_rotation(rotation)
        for number, image in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = stamps[number] if stamps else number
            frame.time_base = 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def make_cut(path: Path) -> Path:
    """Encode an MP4 whose last quarter is missing, as after a broken download."""
    make(path, H264, container_options={"movflags": "faststart"})
    content = path.read_bytes()
    start = content.find(b"mdat")
    path.write_bytes(content[: start + (len(content) - start) * 3 // 4])
    return path


def make_audio(path: Path) -> Path:
    """Encode a tenth of a second of tone."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        samples = (8000 * np.sin(np.arange(800) / 5)).astype(np.int16)[None]
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_video(path: Path, frames: int, step: int, fps: int = 12) -> Path:
    """Encode an H.264 video of 64×48 pixels in which a texture moves to the left.

    Args:
        path: The file; its folder is made.
        frames: Number of frames; the texture depends on it.
        step: Pixels from one frame to the next; 60 + `step` · `frames` must lie within 0 and 136.
        fps: Frames per second.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    grey = np.random.default_rng(frames).integers(0, 256, (48, 200, 1), dtype=np.uint8)
    texture = np.repeat(grey, 3, axis=2)  # JPEG halves the resolution of colour
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(frames):
            start = 60 + step * number
            picture = np.ascontiguousarray(texture[:, start : start + 64])
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path
