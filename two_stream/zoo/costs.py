"""What every named model costs and expects, counted once and kept in `costs.json`: a list needs no network built.

`python docs/models/tables.py` writes the file; a test compares it with the networks.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FILE = Path(__file__).with_name("costs.json")


@dataclass(frozen=True)
class ModelCost:
    """Parameters and multiply-adds of a clip, by the number of classes, and the clip."""

    parameters: tuple[int, int]
    """without a class, and per class"""
    multiply_adds: tuple[int, int]
    """of one clip: without a class, and per class"""
    frames: int
    stride: int
    crop: int | list[int]
    """side of a square, or height and width"""

    def at(self, num_classes: int) -> tuple[int, int]:
        """Return parameters and multiply-adds with this many classes."""
        return tuple(base + each * num_classes for base, each in (self.parameters, self.multiply_adds))  # type: ignore[return-value]


@cache
def costs() -> dict[str, ModelCost]:
    """Return the costs of every model by its full name."""
    found = json.loads(FILE.read_text(encoding="utf-8"))
    return {
        name: ModelCost(
            (entry["parameters"][0], entry["parameters"][1]),
            (entry["multiply_adds"][0], entry["multiply_adds"][1]),
            *entry["clip"],
        )
        for name, entry in found.items()
    }
