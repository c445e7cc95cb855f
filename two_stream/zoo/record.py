"""What a named model is: parts, and where they were published."""

from __future__ import annotations

from dataclasses import dataclass

from two_stream.config.model import ModelOptions

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
}
"""The code base in which the networks of a namespace were published."""


@dataclass(frozen=True)
class ModelRecord:
    """One named model."""

    name: str
    """`namespace/name`"""
    options: ModelOptions
    summary: str
    paper: str
    alias: str | None = None
    """second name without namespace"""

    @property
    def source(self) -> str:
        """The code base in which it was published."""
        return SOURCES[self.name.split("/", maxsplit=1)[0]]
