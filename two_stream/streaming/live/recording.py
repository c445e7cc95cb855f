"""The annotated copy of a stream: every picture with what the networks last said of it, written in a thread."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import cv2
import numpy as np

from two_stream.errors import VideoError
from two_stream.evaluation.pictures.annotate import Encoder, blend, panel
from two_stream.runtime.files import atomic_path
from two_stream.streaming.live.inbox import Inbox
from two_stream.video.decoding.base import Image

Guesses = Sequence[tuple[str, float]]


def drawn(picture: Image, guesses: Guesses) -> Image:
    """Return a picture, its sides even, with the likeliest classes on it."""
    height, width = picture.shape[0] // 2 * 2, picture.shape[1] // 2 * 2
    return blend(picture[:height, :width], *panel(height, width, guesses))


class Recording:
    """Writes an MP4 file while the stream runs; the file is whole once it is closed, and absent before.

    A picture is shown from its own time on, so one that was dropped leaves the one before it standing. All have the
    size of the first.
    """

    def __init__(self, out: Path, fps: float | None = None) -> None:
        """Prepare a recording.

        Args:
            out: MP4 file to write.
            fps: Frame rate, for players; time stamps are the pictures' own.

        Raises:
            VideoError: It is a folder, or its folder is not there.
        """
        if out.is_dir():
            raise VideoError(out, "is a directory; name the MP4 file to write")
        if not out.parent.is_dir():
            raise VideoError(out, f"cannot be written: there is no folder {out.parent}")
        self.out = out
        self.fps = fps
        self._inbox: Inbox[tuple[Image, float, Guesses]] = Inbox(8, drop=False)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="recording")
        self._thread.start()

    def add(self, picture: Image, seconds: float, guesses: Guesses) -> None:
        """Hand on a picture `(H, W, 3)` and when it is from; waits when the encoder is behind.

        Raises:
            VideoError: The file cannot be written.
        """
        if not self._inbox.put((picture, seconds, tuple(guesses))) and self._error is not None:
            raise self._error

    def close(self) -> None:
        """Write what is left and put the file in its place.

        Raises:
            VideoError: The file cannot be written.
        """
        self._inbox.close()
        self._thread.join()
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _run(self) -> None:
        try:
            with ExitStack() as stack:
                self._write(stack)
        except BaseException as error:  # noqa: BLE001 - raised again by `add` and `close`
            self._error = error
        finally:
            self._inbox.close(empty=True)

    def _write(self, stack: ExitStack) -> None:
        file: Encoder | None = None
        shape = (0, 0)
        while not self._inbox.over:
            for picture, seconds, guesses in self._inbox.take(timeout=0.5):
                if file is not None and picture.shape[:2] != shape:  # a source may change its pictures' size
                    picture = np.asarray(
                        cv2.resize(picture, shape[::-1], interpolation=cv2.INTER_AREA), np.uint8
                    )
                made = drawn(picture, guesses)
                if file is None:
                    shape = picture.shape[:2]
                    part = stack.enter_context(atomic_path(self.out))
                    file = stack.enter_context(Encoder(part, self.out, made.shape[:2], self.fps))
                file.add(made, seconds)
