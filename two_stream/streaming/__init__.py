"""Clip networks turned into networks that take a stream frame by frame, with the same weights."""

from __future__ import annotations

from two_stream.streaming.converting import convert
from two_stream.streaming.recognizer import StreamRecognizer

__all__ = ["StreamRecognizer", "convert"]
