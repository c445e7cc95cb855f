"""Reads frames from a camera, from an RTSP or HTTP stream, or from a file, as they arrive.

Files are read with `open_video`, cameras with OpenCV, and streams with libav. Reading from a stream has a time limit,
so that a broken connection is detected.
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
from two_stream.video.decoding.base import Image, check_file
from two_stream.video.decoding.reader import open_video

SCHEMES = ("rtsp", "rtsps", "rtmp", "http", "https", "udp", "tcp", "srt")
OPEN_SECONDS, READ_SECONDS = 10.0, 5.0
"""time limits for opening an address and for its next packet"""
_JUMP = 10.0
"""seconds by which a live source's timestamps may differ from the clock before they count as reset"""
_CAMERA_DIGITS = 4
"""a longer number is not a camera"""
_NETWORK = "http,https,httpproxy,tcp,tls,udp,rtp,srtp,rtsp,rtsps,rtmp,srt,crypto,hls"
"""protocols a stream may redirect to: never a file of this machine"""


@dataclass(frozen=True)
class LiveFrame:
    """An image, its number and its time."""

    number: int
    """number of the frame, counted from 1 since the source was first opened"""
    seconds: float
    """time since the first frame, if the source has timestamps; otherwise since the source was opened"""
    arrived: float
    """`time.monotonic()` when the frame was decoded"""
    picture: Image
    """uint8 `(H, W, 3)`, RGB"""


class LiveSource(ABC):
    """The base class for sources of frames.

    Attributes:
        name: Name of the source, as given by the user.
        live: Whether frames arrive in real time; such a source is opened again when it ends.
        fps: Frames per second, None if the source does not state it.
    """

    live = True

    def __init__(self, name: str) -> None:
        self.name = name
        self.fps: float | None = None

    @abstractmethod
    def frames(self) -> Iterator[tuple[float | None, Image]]:
        """Open the source, and yield the timestamp in seconds (or None) and the image of each frame.

        Raises:
            VideoError: It cannot be opened or read. A live source also raises when it ends.
        """

    def numbered(self, first: int = 1, offset: float = 0.0) -> Iterator[LiveFrame]:
        """Yield frames with numbers from `first` on; `offset` is added to their times."""
        zero: float | None = None
        last, before = 0.0, time.monotonic()
        for number, (stamp, picture) in enumerate(self.frames(), first):
            now = time.monotonic()
            seconds = expected = last + now - before
            if stamp is not None:
                zero = stamp - last if zero is None else zero
                if self.live and not last - _JUMP <= stamp - zero <= expected + _JUMP:
                    zero = stamp - expected  # its clock was reset
                seconds = stamp - zero
            last, before = max(last, seconds), now  # a stamp that steps back must not reverse time
            yield LiveFrame(number, offset + last, now, picture)


class FileSource(LiveSource):
    """A video file, whose frames are yielded as fast as they are decoded."""

    live = False

    def __init__(self, name: str, backend: str = "pyav") -> None:
        super().__init__(name)
        check_file(Path(name))
        self.backend = backend
        self.damage: str | None = None
        with open_video(name, backend) as video:
            self.fps = video.fps

    def frames(self) -> Iterator[tuple[float | None, Image]]:
        """Yield every frame that can be decoded, with its time in the file."""
        with open_video(self.name, self.backend) as video:
            yield from video.timed_frames()
            self.damage = video.damage


class CameraSource(LiveSource):
    """A camera of this machine, identified by its number."""

    def frames(self) -> Iterator[tuple[float | None, Image]]:
        """Yield images until the camera stops."""
        cv2.utils.logging.setLogLevel(0)  # our one line replaces OpenCV's own messages
        camera = cv2.VideoCapture(int(self.name))
        try:
            if not camera.isOpened():
                raise VideoError(
                    f"camera {self.name}",
                    "the camera cannot be opened; check that it is connected and not in use",
                )
            rate = camera.get(cv2.CAP_PROP_FPS)
            self.fps = rate if 0 < rate <= 1000 else None
            while True:
                has_picture, picture = camera.read()
                if not has_picture:
                    raise VideoError(f"camera {self.name}", "the camera has stopped sending images")
                yield None, np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), np.uint8)
        finally:
            camera.release()


class AddressSource(LiveSource):
    """An RTSP, HTTP or other network stream that libav can read."""

    def frames(self) -> Iterator[tuple[float | None, Image]]:
        """Yield images until the stream ends or no data arrives."""
        options = {"protocol_whitelist": _NETWORK, "fflags": "nobuffer", "rtsp_transport": "tcp"}
        try:
            with av.open(
                self.name, options=options, timeout=(OPEN_SECONDS, READ_SECONDS), metadata_errors="replace"
            ) as container:
                stream = container.streams.best("video")
                if not isinstance(stream, VideoStream):
                    raise VideoError(self.name, "the stream contains no video")
                stream.thread_type = "SLICE"  # frame threads would delay some frames
                rate = stream.average_rate or stream.guessed_rate
                self.fps = float(rate) if rate and 0 < rate <= 1000 else None
                for packet in container.demux(stream):
                    try:
                        decoded = packet.decode()
                    except av.error.InvalidDataError:  # joined between two key frames, or lost a packet
                        continue
                    for frame in decoded:
                        yield frame.time, np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
        except av.error.ExitError:
            raise VideoError(self.name, f"no data received for {READ_SECONDS:g} seconds") from None
        except (av.FFmpegError, ValueError, OSError) as error:
            text = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise VideoError(
                self.name, f"the stream cannot be read ({text[:1].lower() + text[1:]})"
            ) from None
        raise VideoError(self.name, "the stream has ended")


def open_source(name: str, backend: str = "pyav") -> LiveSource:
    """Return a source by name: a number means a camera, an address with a scheme a stream, any other name a file.

    `backend` decodes files.

    Raises:
        VideoError: The scheme is unknown, or there is no such file, or it is not a video.
    """
    if name.isascii() and name.isdigit():
        if len(name) > _CAMERA_DIGITS:
            raise VideoError(name, "expected a camera number of at most 4 digits")
        return CameraSource(name)
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]+)://", name)
    if scheme is None:
        return FileSource(name, backend)
    if scheme[1].lower() not in SCHEMES:
        raise VideoError(name, f"unknown scheme {scheme[1]!r}; expected one of {', '.join(SCHEMES)}")
    return AddressSource(name)
