"""The torchcodec backend, an optional extra that requires the shared libraries of FFmpeg."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Generator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from two_stream.errors import SettingsError, VideoError
from two_stream.video.decoding.backend_pyav import PyavVideo
from two_stream.video.decoding.base import Decoded, Image, Video

_INSTALL = "pip install two-stream[torchcodec]"


def _decoder_class() -> Any:
    """Import the decoder class of torchcodec.

    Raises:
        SettingsError: The extra or FFmpeg's libraries are not installed.
    """
    if importlib.util.find_spec("torchcodec") is None:
        raise SettingsError(f"backend torchcodec is not installed: {_INSTALL}")
    try:
        return importlib.import_module("torchcodec.decoders").VideoDecoder
    except (ImportError, OSError, RuntimeError) as error:
        reason = f"backend torchcodec cannot load FFmpeg's libraries ({_first_line(error)}); install FFmpeg"
        raise SettingsError(reason) from None


_AT_ONCE = 16
"""frames read per call; all of them are in memory"""


class TorchcodecVideo(Video):
    """A video that torchcodec decodes. The whole file is indexed when it is opened (`seek_mode="exact"`)."""

    def __init__(self, path: Path) -> None:
        decoder_class = _decoder_class()
        seen = PyavVideo(path)  # says why a file is no video, and which stream and rotation to use
        super().__init__(path, seen.codec, seen.fps, seen.header_frames)
        try:
            self._decoder = decoder_class(
                str(path), stream_index=seen.stream_index, dimension_order="NHWC", num_ffmpeg_threads=1
            )
            self._listed = len(self._decoder)
            first = _pixels(self._decoder.get_frame_at(0))
        except (RuntimeError, ValueError, IndexError) as error:
            raise VideoError(path, f"torchcodec cannot decode {seen.codec} ({_first_line(error)})") from None
        # Whether torchcodec rotates depends on its version. A turn of 180° keeps the shape and is left to torchcodec.
        self._turns = seen.quarter_turns if first.shape[:2] != (seen.height, seen.width) else 0
        self.height, self.width = seen.height, seen.width

    def _walk(self) -> Generator[Decoded]:
        for index in range(self._listed):
            try:
                frame = self._decoder.get_frame_at(index)
            except (RuntimeError, ValueError, IndexError) as error:
                self._stopped = f"decoding stops after frame {index}: {_first_line(error)}"
                return
            picture = partial(np.ascontiguousarray, np.rot90(_pixels(frame), self._turns))
            yield Decoded(picture, frame.pts_seconds, frame.duration_seconds)
        self._at_end = True

    def _pick(self, wanted: list[int]) -> Iterator[tuple[int, Image]]:
        done = 0
        while wanted[-1] < self._listed and done < len(wanted):
            some = wanted[done : done + _AT_ONCE]
            try:
                batch = self._decoder.get_frames_at(indices=some).data.numpy()
            except (RuntimeError, ValueError, IndexError):
                break
            for index, frame in zip(some, batch):
                yield index, np.rot90(frame, self._turns)
            done += len(some)
        if done < len(wanted):
            yield from super()._pick(wanted[done:])


def _pixels(frame: Any) -> Image:
    return np.asarray(frame.data.numpy(), np.uint8)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def version() -> str:
    """Return torchcodec's version."""
    _decoder_class()
    return f"torchcodec {importlib.metadata.version('torchcodec')}"
