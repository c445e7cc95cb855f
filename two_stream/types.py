"""Values that cross the borders between layers, and the legend of shape suffixes.

Suffixes of tensor names: B batch, C channels, T time, H height, W width, K classes, D features,
V views, N videos. `x_BCTHW` is a clip batch, `x_BTD` pooled tokens, `z_BD` one vector per clip.

A *clip* is `uint8` with shape `(B, C, T, H, W)` all the way to the device: RGB has C = 3 in RGB order,
flow has C = 2 (x, y). Frame numbers are 1-based, as in the file names.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

Modality = Literal["rgb", "flow"]
Part = Literal["train", "val", "test"]
"""`train` and `val` are the two sides of the holdout carved from the official training list (with selection
`paper` `train` is the whole of it); `test` is the official test list (published files call it `val_*`)."""

MODALITY_CHANNELS: dict[str, int] = {"rgb": 3, "flow": 2}


@dataclass(frozen=True)
class InputSpec:
    """What a backbone/weights pair expects; the only source of preprocessing facts.

    The recognizer maps a uint8 pixel p to `(p / 255 * (hi - lo) + lo - mean) / std` with
    `(lo, hi) = value_range`; mean and std have one entry per channel, in the units of `value_range`.
    """

    modality: Modality
    clip_length: int
    """frames per clip"""
    stride: int
    """step between neighbouring frames of a clip"""
    resize: tuple[int, int]
    """(height, width) every frame is resized to before cropping, without keeping the aspect ratio"""
    crop: int
    """side of the square crop that enters the network"""
    value_range: tuple[float, float]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def channels(self) -> int:
        """3 for RGB, 2 for flow."""
        return MODALITY_CHANNELS[self.modality]


@dataclass
class FeatureMap:
    """Output of one pathway of a backbone, before pooling: `tensor` is `(B, C, T, H, W)`."""

    tensor: torch.Tensor
    pathway: str = "main"


@dataclass(frozen=True)
class VideoRecord:
    """One line of a split list."""

    id: str
    """folder of the frames relative to the modality's root; the join key of score files"""
    num_frames: int
    """frames of this record's modality (flow has one fewer than RGB)"""
    label: int
    group: str = ""
    """source video; records of one group never stand on two sides of a split"""


@dataclass
class Batch:
    """What a training loader yields."""

    clips: torch.Tensor
    """uint8 `(B, C, T, H, W)`"""
    labels: torch.Tensor
    """int64 `(B,)`"""
    ids: list[str]


@dataclass
class VideoViews:
    """What an evaluation loader yields: every view (clip × crop) of one video."""

    id: str
    label: int
    views: torch.Tensor
    """uint8 `(V, C, T, H, W)`, crop-major: all clips of crop 0 first, then crop 1, …"""


@dataclass
class ScoreTable:
    """Logits of a set of videos and how they were made. Joined by id, never by position."""

    ids: list[str]
    labels: NDArray[np.int64]
    """`(N,)`"""
    class_names: list[str]
    logits: NDArray[np.float64]
    """`(N, K)`: one row per video, already aggregated over its views"""
    meta: dict[str, Any] = field(default_factory=dict)
    """model hash, dataset, modality, split, part, views, selection, code version, seeds …"""
    view_logits: NDArray[np.float32] | None = None
    """`(sum of V, K)` when kept"""
    view_counts: NDArray[np.int64] | None = None
    """`(N,)` views of each video, in the order of `ids`"""
    groups: list[str] | None = None
    """source video of each row, for grouped bootstrap"""


@dataclass(frozen=True)
class RunPaths:
    """Where a run keeps its files; see docs/design.md section 7."""

    root: Path

    @property
    def experiment(self) -> Path:
        """The resolved settings."""
        return self.root / "experiment.yaml"

    @property
    def metrics(self) -> Path:
        """One JSON object per epoch."""
        return self.root / "metrics.jsonl"

    @property
    def last(self) -> Path:
        """The newest checkpoint folder."""
        return self.root / "last"

    @property
    def best(self) -> Path:
        """The selected checkpoint folder."""
        return self.root / "best"

    @property
    def scores(self) -> Path:
        """Folder of score files."""
        return self.root / "scores"

    @property
    def report(self) -> Path:
        """The self-contained report page."""
        return self.root / "report.html"
