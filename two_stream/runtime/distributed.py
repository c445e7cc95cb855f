"""The one place that knows how many processes work together (`torchrun` sets the environment)."""

from __future__ import annotations

import os


def rank() -> int:
    """Number of this process, 0 when alone."""
    return int(os.environ.get("RANK", "0")) if world_size() > 1 else 0


def world_size() -> int:
    """Processes of the job, 1 when alone."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process writes files and talks to the person."""
    return rank() == 0
