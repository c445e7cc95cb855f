"""Key maps of checkpoints written by other code. A layout is recognised by its keys and shapes, never by a file's name.

A new family adds a module here that defines `LAYOUTS`.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from two_stream.pretrained.layouts.base import CARRIED, Layout, Pair, State

OURS = Layout(
    "two_stream",
    lambda s: "classifier.weight" in s and any(key.startswith("backbone.") for key in s),
    tuple((f"{part}.", f"{part}.") for part in ("backbone", "standards", "heads", "classifier")),
    unused=(CARRIED,),
)
LAYOUTS: tuple[Layout, ...] = (
    OURS,
    *(
        layout
        for module in iter_modules(__path__)
        if module.name != "base"
        for layout in import_module(f"{__name__}.{module.name}").LAYOUTS
    ),
)


def recognise(state: State) -> Layout | None:
    """Return the layout of a state dict, or none."""
    return next((layout for layout in LAYOUTS if layout.recognise(state)), None)


__all__ = ["CARRIED", "LAYOUTS", "OURS", "Layout", "Pair", "State", "recognise"]
