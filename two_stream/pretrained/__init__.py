"""Weights in and out: safe reading, foreign layouts by key map, a report of what fitted, our own model folders."""

from two_stream.pretrained.folder import read_model, write_model
from two_stream.pretrained.loading import LoadReport, load_weights
from two_stream.pretrained.reading import WEIGHTS, read_state

__all__ = ["WEIGHTS", "LoadReport", "load_weights", "read_model", "read_state", "write_model"]
