"""Models that leave Python: ONNX, `torch.export` and AOTInductor files, verified as they are written, read like runs.

Names are imported on first use: the card of a file needs no runtime.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from two_stream.export.card import ExportCard
    from two_stream.export.loading import ExportedRun, ExportedStream, load, load_stream
    from two_stream.export.opening import read_card
    from two_stream.export.stream_writing import Timing, export_stream
    from two_stream.export.writing import export_run, plain_copy

_HOMES = {
    "ExportCard": "card",
    "read_card": "opening",
    "ExportedRun": "loading",
    "ExportedStream": "loading",
    "load": "loading",
    "load_stream": "loading",
    "export_run": "writing",
    "plain_copy": "writing",
    "Timing": "stream_writing",
    "export_stream": "stream_writing",
}

__all__ = [
    "ExportCard",
    "ExportedRun",
    "ExportedStream",
    "Timing",
    "export_run",
    "export_stream",
    "load",
    "load_stream",
    "plain_copy",
    "read_card",
]


def __getattr__(name: str) -> Any:
    """Import a name from its home on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
