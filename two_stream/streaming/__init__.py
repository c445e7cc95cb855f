"""Clip networks turned into networks that take a stream frame by frame, with the same weights."""

from __future__ import annotations

from two_stream.streaming.converting import convert
from two_stream.streaming.costs import multiply_adds_per_prediction
from two_stream.streaming.recognizer import StreamRecognizer
from two_stream.streaming.step import StepNetwork

__all__ = ["StepNetwork", "StreamRecognizer", "convert", "multiply_adds_per_prediction"]
