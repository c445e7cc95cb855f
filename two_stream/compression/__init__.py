"""Smaller and faster networks from trained runs: pruning, quantisation, distillation; each yields an ordinary run."""
