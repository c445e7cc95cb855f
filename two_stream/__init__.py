"""Two-Stream: an experiment suite for RGB and optical-flow action recognition.

The public names below are stable; each is imported when it is first used, so that `import two_stream` is cheap.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from two_stream.api import compare, confusion, create_model, fuse, load_run
    from two_stream.data.clips.sampling import sample_clips
    from two_stream.evaluation.runs.run import predict
    from two_stream.evaluation.scores.files import read_scores
    from two_stream.pretrained import load_weights
    from two_stream.zoo import list_models

# OpenCV reads this limit when it is imported; its default is 2^30
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(2**26))

_HOMES = {
    **dict.fromkeys(("compare", "confusion", "create_model", "fuse", "load_run"), "two_stream.api"),
    "list_models": "two_stream.zoo",
    "load_weights": "two_stream.pretrained",
    "predict": "two_stream.evaluation.runs.run",
    "read_scores": "two_stream.evaluation.scores.files",
    "sample_clips": "two_stream.data.clips.sampling",
}

__all__ = [
    "compare",
    "confusion",
    "create_model",
    "fuse",
    "list_models",
    "load_run",
    "load_weights",
    "predict",
    "read_scores",
    "sample_clips",
]


def __dir__() -> list[str]:
    """Return the public names."""
    return [*__all__, "__version__"]


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name == "__version__":
        from importlib.metadata import version

        return version("two-stream")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
