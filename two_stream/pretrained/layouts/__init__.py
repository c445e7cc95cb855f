"""Layouts of checkpoints of other codebases, recognised by keys and shapes."""

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


def recognise_layout(state: State) -> Layout | None:
    """Return the layout of a state dict; None if it is unknown."""
    return next((layout for layout in LAYOUTS if layout.recognise(state)), None)


_WRAPPERS = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.", "encoder.")
"""Prefixes that DDP, SWA, torch.compile, Lightning modules and encoders add to names."""


def strip_wrappers(state: State) -> tuple[State, list[str]]:
    """Remove the prefixes of wrappers from a state dict; also return the keys of other parts (losses, averages).

    Prefixes are removed only if the result has a known layout; otherwise the state is returned unchanged.
    """
    waiting = [("", state)]
    for prefix, names in waiting:  # grows, as wrappers may be nested
        if recognise_layout(names) is not None:
            return names, [key for key in state if not key.startswith(prefix) and key != "n_averaged"]
        for wrapper in _WRAPPERS if prefix.count(".") < 4 else ():
            inner = {
                key.removeprefix(wrapper): value for key, value in names.items() if key.startswith(wrapper)
            }
            waiting += [(prefix + wrapper, inner)] if inner else []
    return state, []


__all__ = ["CARRIED", "LAYOUTS", "OURS", "Layout", "Pair", "State", "recognise_layout", "strip_wrappers"]
