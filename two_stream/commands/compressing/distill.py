"""`two-stream compress distill RUN`."""

from __future__ import annotations


def main(args: list[str]) -> int:
    """Run the method and return its exit code."""
    raise NotImplementedError(args)
