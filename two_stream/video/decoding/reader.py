"""Opens videos with one of the decoder backends.

The index of a frame is its position, in the order of presentation, among the frames that can be decoded. The number of
frames in the header is not relied on, because it is often wrong. Frames and pixels differ between decoders, so every
run records `backend_version`.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import cast

from two_stream.errors import SettingsError
from two_stream.video.decoding.base import VIDEO_SUFFIXES, Video

_CLASSES = {"pyav": "PyavVideo", "opencv": "OpencvVideo", "torchcodec": "TorchcodecVideo"}
BACKENDS = tuple(_CLASSES)
"""Names of the backends; the first is the default."""

__all__ = ["BACKENDS", "VIDEO_SUFFIXES", "Video", "backend_version", "open_video"]


def open_video(path: str | Path, backend: str = "pyav") -> Video:
    """Open a video file with one of `BACKENDS`.

    Raises:
        VideoError: The file is missing, empty, not a video, or not one frame of it decodes.
        SettingsError: The backend is unknown or not installed.
    """
    module = _module(backend)
    return cast(Video, getattr(module, _CLASSES[backend])(Path(path)))


def backend_version(backend: str) -> str:
    """Return the name and version of a backend, for example `pyav 18.1.0 (libavcodec 62.28.102)`.

    Raises:
        SettingsError: The backend is unknown or not installed.
    """
    return cast(str, _module(backend).version())


def _module(backend: str) -> ModuleType:
    if backend not in BACKENDS:
        raise SettingsError(f"unknown video backend {backend!r}; known: {', '.join(BACKENDS)}")
    return import_module(f"two_stream.video.decoding.backend_{backend}")
