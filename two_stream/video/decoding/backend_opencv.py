"""The OpenCV backend. OpenCV is faster than PyAV for simple files, but does not report damage and cannot decode AV1."""

from __future__ import annotations

import os
import re
from collections.abc import Generator
from contextlib import closing
from pathlib import Path

os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # must be set before OpenCV opens its first video

import cv2
import numpy as np

from two_stream.errors import VideoError
from two_stream.video.decoding.backend_pyav import PyavVideo
from two_stream.video.decoding.base import Decoded, Image, Video

cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


class OpencvVideo(Video):
    """A video that OpenCV decodes, always from the first frame, because seeking in OpenCV is not exact.

    OpenCV decodes only the first video stream. If the best stream is a different one, PyAV is used instead.
    """

    def __init__(self, path: Path) -> None:
        # PyAV opens it first: its error says why a file is not a video; OpenCV crashes on a name that is not UTF-8.
        seen = PyavVideo(path)
        super().__init__(path, seen.codec, seen.fps, seen.header_frames)
        try:
            os.fsencode(path).decode("utf-8")
        except UnicodeDecodeError:
            raise VideoError(
                path, "OpenCV requires a UTF-8 file name; rename the file or use backend pyav"
            ) from None
        self._instead = None if seen.leads else seen
        with closing(self._walk()) as walk:
            first = next(walk, None)
            if first is None:
                raise VideoError(path, f"OpenCV cannot decode {seen.codec}; use backend pyav")
            self.height, self.width = first.picture().shape[:2]

    def _walk(self) -> Generator[Decoded]:
        if self._instead is not None:
            yield from self._instead._walk()
            self._stopped, self._suspicion = self._instead._stopped, self._instead._suspicion
            self._at_end = self._instead._at_end
            return
        capture = cv2.VideoCapture(str(self.path.absolute()), cv2.CAP_FFMPEG)
        number = 0

        def picture() -> Image:
            _, bgr = capture.retrieve()
            if bgr is None:
                raise VideoError(self.path, f"OpenCV cannot convert frame {number}")
            rgb = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
            if self.width and rgb.shape[:2] != (self.height, self.width):
                rgb = cv2.resize(rgb, (self.width, self.height))
            return np.asarray(rgb, np.uint8)

        try:
            while capture.grab():
                number += 1
                stamp = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
                yield Decoded(picture, stamp if stamp or number == 1 else None)  # 0 also means none
        finally:
            capture.release()
        self._at_end = True
        if self.header_frames and number < self.header_frames:
            self._stopped = (
                f"decoding stops after frame {number}, but the header states {self.header_frames} frames"
            )


def version() -> str:
    """Return the versions of OpenCV and of its libavcodec."""
    codec = re.search(r"avcodec:\s+YES \((\S+?)\)", cv2.getBuildInformation())
    return f"opencv {cv2.__version__} (libavcodec {codec[1] if codec else 'unknown'})"
