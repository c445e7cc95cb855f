"""Backbones: the networks before the heads. Importing this package registers all backbones."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from two_stream.backbones.base import BACKBONES, Backbone

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["BACKBONES", "Backbone"]
