"""Types that all layers share, and the legend of shape suffixes.

Suffixes of tensor names: B batch, C channels, T time, H height, W width, K classes, D features,
V views, N videos. `x_BCTHW` is a clip batch, `x_BTD` pooled tokens, `z_BD` one vector per clip.

A *clip* is `uint8` with shape `(B, C, T, H, W)` all the way to the device: RGB has C = 3 in RGB order,
flow has C = 2 (x, y), or several such pairs in a row. Frame numbers start at 1, as in the file names.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

Frames: TypeAlias = "NDArray[np.uint8]"
"""uint8 frames of a clip, `(T, H, W, C)`"""
Modality = Literal["rgb", "flow"]
Part = Literal["train", "val", "test"]
"""`test` is the official test list (published files call it `val_*`); by default, `val` is the holdout, split off from
the official training list, and `train` is the rest of that list (for other selections see `data.splits.load_part`)."""

MODALITY_CHANNELS: dict[str, int] = {"rgb": 3, "flow": 2}


@dataclass(frozen=True)
class InputSpec:
    """The input that a network expects with its weights; the only source of preprocessing values.

    The recognizer maps a uint8 pixel p to `(p / 255 * (hi - lo) + lo - mean) / std` with
    `(lo, hi) = value_range`; mean and std have one entry per channel, in the units of `value_range`.
    """

    modality: Modality
    clip_length: int
    """frames per clip"""
    stride: int
    """step between neighbouring frames of a clip, or of a segment"""
    resize: tuple[int, int]
    """(height, width) to which every frame is resized before cropping, without keeping the aspect ratio"""
    crop: int | tuple[int, int]
    """size of the network's input: the side of a square, or (height, width)"""
    value_range: tuple[float, float]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    segments: int = 0
    """number of equal parts of the video, from each of which a clip takes equally many frames; 0: one run of frames"""
    stack: int = 1
    """neighbouring flow fields that make one frame, stacked as channels x1, y1, x2, y2, …"""

    @property
    def channels(self) -> int:
        """3 for RGB, 2 for flow, times `stack`."""
        return MODALITY_CHANNELS[self.modality] * self.stack

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the network's input."""
        return (self.crop, self.crop) if isinstance(self.crop, int) else self.crop


def size_text(crop: int | Sequence[int]) -> str:
    """Return the size of a network's input as text: `112²`, or `144×192` (height first)."""
    return f"{crop}²" if isinstance(crop, int) else "×".join(map(str, crop))


@dataclass
class FeatureMap:
    """Output of one pathway of a backbone, before pooling: `tensor` is `(B, C, T, H, W)`."""

    tensor: torch.Tensor
    pathway: str = "main"


@dataclass(frozen=True)
class FeatureLayout:
    """Layout of a row of cached features: the outputs of a backbone's pathways for one view, in order."""

    shapes: tuple[tuple[int, ...], ...]
    """per pathway: tokens `(T, D)`, or a feature map `(C, T, H, W)`"""

    @property
    def maps(self) -> bool:
        """Whether feature maps are cached, not tokens."""
        return len(self.shapes[0]) == 4

    @property
    def sizes(self) -> list[int]:
        """Values per pathway."""
        return [math.prod(shape) for shape in self.shapes]

    @property
    def width(self) -> int:
        """Values per row."""
        return sum(self.sizes)

    def __str__(self) -> str:
        what = "feature maps (C, T, H, W)" if self.maps else "tokens (T, D)"
        return f"{what} {' and '.join('×'.join(map(str, shape)) for shape in self.shapes)}"


@dataclass(frozen=True)
class VideoRecord:
    """One line of a split list."""

    id: str
    """folder of the frames relative to the modality's root; the join key of score files"""
    num_frames: int
    """frames of this record's modality (flow has one fewer than RGB)"""
    label: int
    """class (for a multi-label video, the first of `labels`)"""
    group: str = ""
    """source video; a split never divides a group"""
    labels: tuple[int, ...] = ()
    """every class of a video of a multi-label data set, ascending; empty in other data sets"""

    @property
    def all_labels(self) -> tuple[int, ...]:
        """The classes of the video: one, unless the data set is multi-label."""
        return self.labels or (self.label,)


@dataclass
class Batch:
    """A batch from a training loader."""

    clips: torch.Tensor
    """uint8 `(B, C, T, H, W)`; for stored features float `(B, D)`, one row per view"""
    labels: torch.Tensor
    """int64 `(B,)`; for a multi-label data set float32 `(B, K)`, 1 where the clip has the class"""
    ids: list[str]
    beside: tuple[torch.Tensor, ...] = ()
    """clips of the same moments for other networks, for example flow for RGB clips"""

    def pin_memory(self) -> Batch:
        """Return a copy in pinned memory; called by torch's loader."""
        beside = tuple(clips.pin_memory() for clips in self.beside)
        return Batch(self.clips.pin_memory(), self.labels.pin_memory(), self.ids, beside)


Box = tuple[int, int, int, int]
"""`(y0, x0, y1, x1)` in a frame, lower bounds inclusive, upper exclusive."""


@dataclass
class VideoViews:
    """A batch of an evaluation loader: views (clip × crop) of one video, or of consecutive clips of a long one.

    Views are not copies: each frame is held once, a clip selects rows and a crop is a box. The order is crop-major: all
    clips of crop 0 first, then of crop 1, …
    """

    id: str
    label: int
    frames: torch.Tensor
    """uint8 `(F, H, W, C)`: the distinct frames of these clips, resized (whole frames to the network's size)"""
    clips: torch.Tensor
    """int64 `(N, T)`: rows of `frames` per clip; rows may repeat"""
    boxes: Sequence[Box]
    """one box per crop, all of the same size"""
    flips: Sequence[bool]
    """whether a crop is mirrored left to right, per crop"""
    signed: bool = False
    """whether mirroring a crop inverts channels 0, 2, … (`255 - x`), because flow x changes its sign"""
    first: int = 0
    """number of the first of these clips in the video"""
    total_clips: int = 0
    """clips of the complete video; 0: these are all"""
    mirror_labels: Sequence[int] | None = None
    """for each label, that of its mirror image, by which logits of mirrored crops are reordered; None: all the same"""

    @property
    def num_views(self) -> int:
        """Number of views of this batch."""
        return len(self.clips) * len(self.boxes)

    def view(self, index: int) -> torch.Tensor:
        """Return one view as uint8 `(T, h, w, C)`, without a copy if its frames are consecutive."""
        crop, clip = divmod(index, len(self.clips))
        y0, x0, y1, x1 = self.boxes[crop]
        cut, rows = self.frames[:, y0:y1, x0:x1], self.clips[clip]
        start, count = int(rows[0]), len(rows)
        neighbours = bool((rows[1:] - rows[:-1] == 1).all())
        cut = cut[start : start + count] if neighbours else cut.index_select(0, rows.to(cut.device))
        if self.flips[crop]:
            cut = cut.flip(2)  # a copy, so it may be inverted in place: 255 - x is the complement of a byte
            if self.signed:
                cut[..., ::2].bitwise_not_()
        return cut

    @property
    def views(self) -> torch.Tensor:
        """Copies of all views, uint8 `(N * crops, C, T, h, w)`; scoring does not need them."""
        made = [self.view(index).permute(3, 0, 1, 2) for index in range(self.num_views)]
        out = self.frames.new_empty((len(made), *made[0].shape)) if made else self.frames.new_empty((0,) * 5)
        for row, view in zip(out, made):
            row.copy_(view)
        return out


@dataclass
class ScoreTable:
    """Logits of a set of videos and how they were computed. Tables are joined by id, never by position."""

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
    """source video of each row, for confidence intervals"""
    targets: NDArray[np.bool_] | None = None
    """`(N, K)`: every class of each video of a multi-label data set, where `labels` contains the first one only"""


@dataclass(frozen=True)
class RunPaths:
    """Paths of a run's files; see docs/design.md section 7."""

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
