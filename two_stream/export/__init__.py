"""Exports networks as ONNX, `torch.export` and AOTInductor files, verifies each file, and loads it like a run."""

from __future__ import annotations

from two_stream.export.card import ExportCard
from two_stream.export.formats import read_card
from two_stream.export.loading import ExportedRun, ExportedStream, load, load_stream
from two_stream.export.writing import Timing, export_run, export_stream, plain_copy

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
