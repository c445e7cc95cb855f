"""Reads and writes weights, in checkpoints of other codebases and in model folders.

Names are imported when they are first used, because `two-stream weights list` does not need torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from two_stream.pretrained.folder import (
        alterations_in,
        load_library,
        read_model,
        reshape_like,
        write_model,
    )
    from two_stream.pretrained.loading import LoadReport, load_weights
    from two_stream.pretrained.reading import WEIGHTS, read_state

_HOMES = {
    **dict.fromkeys(("alterations_in", "read_model", "reshape_like", "write_model"), "folder"),
    **dict.fromkeys(("LoadReport", "load_weights"), "loading"),
    **dict.fromkeys(("WEIGHTS", "read_state"), "reading"),
    "load_library": "folder",
}

__all__ = [
    "WEIGHTS",
    "LoadReport",
    "alterations_in",
    "load_library",
    "load_weights",
    "read_model",
    "read_state",
    "reshape_like",
    "write_model",
]


def __getattr__(name: str) -> Any:
    """Import a name when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
