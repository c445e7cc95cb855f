"""Figures that look the same wherever they are drawn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any


@contextmanager
def plain_figures(style: Mapping[Any, Any] | None = None) -> Iterator[None]:
    """Draw with matplotlib's own defaults and a style over them; use it as a `with` block or as a decorator.

    matplotlib reads a `matplotlibrc` of the current folder, which may be a stranger's. `$` in a name is text here.

    Args:
        style: Parameters by their names in matplotlib.
    """
    import matplotlib as mpl

    with mpl.rc_context():
        mpl.rcdefaults()
        wanted: Any = {"text.parse_math": False, **(style or {})}
        mpl.rcParams.update(wanted)
        yield
