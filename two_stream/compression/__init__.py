"""Smaller and faster networks from trained runs by pruning, quantization and distillation; each result is a run.

Importing this package registers the three methods in `training.step`, so that settings with a `compress` section can be
trained.
"""

from two_stream.compression import distillation, pruning, quantization

__all__ = ["distillation", "pruning", "quantization"]
