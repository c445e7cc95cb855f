"""Conversion of clip networks to stream networks, which process a video frame by frame with the same weights."""

from __future__ import annotations

from two_stream.streaming.network.recognizer import StreamRecognizer, convert, multiply_adds_per_prediction
from two_stream.streaming.network.step import StepNetwork

__all__ = ["StepNetwork", "StreamRecognizer", "convert", "multiply_adds_per_prediction"]
