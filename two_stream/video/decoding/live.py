"""Frames as they come: from a file, a camera, or an RTSP or HTTP stream.

A file gives the frames that `open_video` gives. A camera goes through OpenCV, an address through libav with a limit on
how long one read may take, so that a source that dies is noticed.
"""

from __future__ import annotations

import re
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np
from av.video.stream import VideoStream

from two_stream.errors import VideoError
from two_stream.video.decoding.base import Image, existing_file
from two_stream.video.decoding.reader import open_video

SCHEMES = ("rtsp", "rtsps", "rtmp", "http", "https", "udp", "tcp", "srt")
OPEN_SECONDS, READ_SECONDS = 10.0, 5.0
"""how long opening an address, and waiting for its next packet, may take"""
_JUMP = 10.0
"""seconds by which a live source's time stamps may leave the clock before they count as set anew"""
_CAMERA_DIGITS = 4
"""more are no camera's number"""
_NETWORK = "http,https,httpproxy,tcp,tls,udp,rtp,srtp,rtsp,rtsps,rtmp,srt,crypto,hls"
"""protocols a stream may lead to: never a file of this machine"""


@dataclass(frozen=True)
class LiveFrame:
    """One picture and when it is from."""

    number: int
    """counts from 1 since the source was opened first"""
    seconds: float
    """by the source's own clock from its first frame, where it has one; else since it was opened"""
    arrived: float
    """`time.monotonic()` when it was decoded"""
    picture: Image
    """uint8 `(H, W, 3)`, RGB"""


class LiveSource(ABC):
    """Where frames come from.

    Attributes:
        name: As the person wrote it.
        live: Frames come at their own pace, and a source that ends is expected back.
        fps: Frames per second as the source says; None where it does not.
    """

    live = True

    def __init__(self, name: str) -> None:
        self.name = name
        self.fps: float | None = None

    @abstractmethod
    def frames(self) -> Iterator[tuple[float | None, Image]]:
        """Open it and yield the time stamp in seconds (None: it has none) and the picture of each frame.

        Raises:
            VideoError: It cannot be opened or read. A live source also raises when it ends.
        """

    def numbered(self, first: int = 1, offset: float = 0.0) -> Iterator[LiveFrame]:
        """Yield its frames, counted from `first`; `offset` is added to their seconds."""
        zero: float | None = None
        last, before = 0.0, time.monotonic()
        for number, (stamp, picture) in enumerate(self.frames(), first):
            now = time.monotonic()
            seconds = expected = last + now - before
            if stamp is not None:
                zero = stamp - last if zero is None else zero
                if self.live and not last - _JUMP <= stamp - zero <= expected + _JUMP:
                    zero = stamp - expected  # its clock was set anew
                seconds = stamp - zero
            last, before = max(last, seconds), now  # a stamp that steps back would turn time round
            yield LiveFrame(number, offset + last, now, picture)


class FileSource(LiveSource):
    """A video file, at the speed of its reader."""

    live = False

    def __init__(self, name: str, backend: str = "pyav") -> None:
        super().__init__(name)
        existing_file(Path(name))
        self.backend = backend
        self.damage: str | None = None
        with open_video(name, backend) as video:
            self.fps = video.fps

    def frames(self) -> Iterator[tuple[float | None, Image]]:
        """Yield every frame that decodes, with the time that the file says."""
        with open_video(self.name, self.backend) as video:
            yield from video.timed_frames()
            self.damage = video.damage


class CameraSource(LiveSource):
    """A camera of this machine, by its number."""

    def frames(self) -> Iterator[tuple[float | None, Image]]:
        """Yield pictures until the camera gives no more."""
        cv2.utils.logging.setLogLevel(0)  # OpenCV's own complaints would stand beside our one line
        camera = cv2.VideoCapture(int(self.name))
        try:
            if not camera.isOpened():
                raise VideoError(f"camera {self.name}", "cannot be opened; is it there, and free?")
            rate = camera.get(cv2.CAP_PROP_FPS)
            self.fps = rate if 0 < rate <= 1000 else None
            while True:
                there, picture = camera.read()
                if not there:
                    raise VideoError(f"camera {self.name}", "gives no more pictures")
                yield None, np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), np.uint8)
        finally:
            camera.release()


class AddressSource(LiveSource):
    """An RTSP, HTTP or other stream that libav reads."""

    def frames(self) -> Iterator[tuple[float | None, Image]]:
        """Yield pictures until the stream ends or stalls."""
        options = {"protocol_whitelist": _NETWORK, "fflags": "nobuffer", "rtsp_transport": "tcp"}
        try:
            with av.open(
                self.name, options=options, timeout=(OPEN_SECONDS, READ_SECONDS), metadata_errors="replace"
            ) as container:
                stream = container.streams.best("video")
                if not isinstance(stream, VideoStream):
                    raise VideoError(self.name, "a stream without video")
                stream.thread_type = "SLICE"  # threads over frames would hold some of them back
                rate = stream.average_rate or stream.guessed_rate
                self.fps = float(rate) if rate and 0 < rate <= 1000 else None
                for packet in container.demux(stream):
                    try:
                        decoded = packet.decode()
                    except av.error.InvalidDataError:  # joined between two key frames, or a lost packet
                        continue
                    for frame in decoded:
                        yield frame.time, np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
        except av.error.ExitError:
            raise VideoError(self.name, f"nothing has come for {READ_SECONDS:g} seconds") from None
        except (av.FFmpegError, ValueError, OSError) as error:
            text = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise VideoError(self.name, f"cannot be read ({text[:1].lower() + text[1:]})") from None
        raise VideoError(self.name, "the stream has ended")


def open_source(name: str, backend: str = "pyav") -> LiveSource:
    """Return the source that a person means: digits are a camera, an address with a scheme a stream, else a file.

    Args:
        name: What the person wrote.
        backend: Decoder of files.

    Raises:
        VideoError: A scheme that is not known; or no such file, or no video.
    """
    if name.isascii() and name.isdigit():
        if len(name) > _CAMERA_DIGITS:
            raise VideoError(name, "no number of a camera; they count from 0")
        return CameraSource(name)
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]+)://", name)
    if scheme is None:
        return FileSource(name, backend)
    if scheme[1].lower() not in SCHEMES:
        raise VideoError(name, f"unknown scheme {scheme[1]!r}; expected one of {', '.join(SCHEMES)}")
    return AddressSource(name)
