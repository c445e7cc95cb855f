"""Smaller and faster networks from trained runs: pruning, quantization, distillation; each produces an ordinary run.

Importing this package registers the three with `training.extension`, so that settings with a `compress` section train.
"""

from two_stream.compression import distillation, pruning, quantization

__all__ = ["distillation", "pruning", "quantization"]
