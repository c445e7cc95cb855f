"""Records of named models: parts, publication and cost.

`costs.json` contains the costs, so that models can be listed without building networks. `python
eval/documentation/model_tables.py --count` writes this file; a test compares it with the networks.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from two_stream.config.model import ModelOptions

FILE = Path(__file__).with_name("costs.json")
SOURCES = {
    "late_temporal": "LateTemporalModeling3DCNN",
    "efficient3d": "Efficient-3DCNNs",
    "3dresnets": "3D-ResNets-PyTorch",
    "compressed": "compressed-video-classification",
    "co3d": "co3d",
    "kinetics": "the authors' own Kinetics and IG-65M releases",
    "timm": "timm",
    "starter": "efficientnet_lite_pytorch",
    "transformers": "transformers",
    "torchvision": "torchvision",
}
"""Codebase that published the networks of a namespace."""


@dataclass(frozen=True)
class ModelRecord:
    """One named model."""

    name: str
    """`namespace/name`"""
    options: ModelOptions
    summary: str
    paper: str
    alias: str | None = None
    """short name without namespace"""

    @property
    def source(self) -> str:
        """Codebase that published the network."""
        return SOURCES[self.name.split("/", maxsplit=1)[0]]


@dataclass(frozen=True)
class ModelCost:
    """Parameters, multiply-adds and clip of a named model."""

    parameters: tuple[int, int]
    """number of parameters: constant part, and part per class"""
    multiply_adds: tuple[int, int]
    """multiply-adds of one clip: constant part, and part per class"""
    frames: int
    stride: int
    crop: int | list[int]
    """side of a square, or height and width"""

    def at(self, num_classes: int) -> tuple[int, int]:
        """Return parameters and multiply-adds for a number of classes."""
        return tuple(base + each * num_classes for base, each in (self.parameters, self.multiply_adds))  # type: ignore[return-value]


@cache
def model_costs() -> dict[str, ModelCost]:
    """Return the costs of all models by full name."""
    found = json.loads(FILE.read_text(encoding="utf-8"))
    return {
        name: ModelCost(
            (entry["parameters"][0], entry["parameters"][1]),
            (entry["multiply_adds"][0], entry["multiply_adds"][1]),
            *entry["clip"],
        )
        for name, entry in found.items()
    }
