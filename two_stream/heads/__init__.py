"""Temporal heads, which aggregate tokens over time. Importing this package registers all heads."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from two_stream.heads.base import HEADS, Head

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["HEADS", "Head"]
