"""Exports networks as ONNX, `torch.export` and AOTInductor files, verifies each file, and loads it like a run.

Names are imported when they are first used, so that torch is not imported to read the card of a file.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from two_stream.export.card import ExportCard
    from two_stream.export.formats import read_card
    from two_stream.export.loading import ExportedRun, ExportedStream, load, load_stream
    from two_stream.export.writing import Timing, export_run, export_stream, plain_copy

_HOMES = {
    "ExportCard": "card",
    "read_card": "formats",
    "ExportedRun": "loading",
    "ExportedStream": "loading",
    "load": "loading",
    "load_stream": "loading",
    "Timing": "writing",
    "export_run": "writing",
    "export_stream": "writing",
    "plain_copy": "writing",
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
    """Import a name from its module when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
