"""Types that all packages share, and the meaning of shape suffixes.

Suffixes of tensor names: B batch, C channels, T time, H height, W width, K classes, D features,
V views, N videos. `x_BCTHW` is a clip batch, `x_BTD` pooled tokens, `z_BD` one vector per clip.

Clips are `uint8` with shape `(B, C, T, H, W)` until they are on the device. RGB clips have C = 3, in RGB order. Flow
clips have C = 2 (x, y), or 2 channels per field if fields are stacked. Frame numbers start at 1, as in the file names.
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
    """The input that a network expects; all preprocessing values come from this class.

    The recognizer maps a uint8 pixel p to `(p / 255 * (hi - lo) + lo - mean) / std` with
    `(lo, hi) = value_range`; mean and std have one entry per channel, in the units of `value_range`.
    """

    modality: Modality
    clip_length: int
    """number of frames per clip"""
    stride: int
    """distance between adjacent frames of a clip, or of a segment"""
    resize: tuple[int, int]
    """(height, width) to which every frame is resized before cropping, without keeping the aspect ratio"""
    crop: int | tuple[int, int]
    """size of the network's input: the side of a square, or (height, width)"""
    value_range: tuple[float, float]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    segments: int = 0
    """number of equal parts of the video; a clip has the same number of frames from each part; 0: no division"""
    stack: int = 1
    """number of adjacent flow fields per frame, stacked as channels x1, y1, x2, y2, …"""
    fps: float | None = None
    """frames per second at which videos are seen (see `video/rate.py`); None: every frame of a video"""

    @property
    def channels(self) -> int:
        """Number of channels: 3 for RGB, 2 for flow, times `stack`."""
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
    """Output of one pathway of a backbone before pooling; `tensor` has the shape `(B, C, T, H, W)`."""

    tensor: torch.Tensor
    pathway: str = "main"


@dataclass(frozen=True)
class FeatureLayout:
    """Layout of a row of cached features; a row contains the outputs of all pathways for one view."""

    shapes: tuple[tuple[int, ...], ...]
    """shape of the output of each pathway: tokens `(T, D)`, or a feature map `(C, T, H, W)`"""

    @property
    def maps(self) -> bool:
        """Whether the cached features are feature maps instead of tokens."""
        return len(self.shapes[0]) == 4

    @property
    def sizes(self) -> list[int]:
        """Number of values of each pathway."""
        return [math.prod(shape) for shape in self.shapes]

    @property
    def width(self) -> int:
        """Number of values of a row."""
        return sum(self.sizes)

    def __str__(self) -> str:
        what = "feature maps (C, T, H, W)" if self.maps else "tokens (T, D)"
        return f"{what} {' and '.join('×'.join(map(str, shape)) for shape in self.shapes)}"


@dataclass(frozen=True)
class VideoRecord:
    """One line of a split list."""

    id: str
    """folder of the frames, relative to the modality's root; score files are joined by this id"""
    num_frames: int
    """number of frames in this record's modality; flow has one frame fewer than RGB"""
    label: int
    """class (for a multi-label video, the first of `labels`)"""
    group: str = ""
    """source video; all videos of a group are in the same part of a split"""
    labels: tuple[int, ...] = ()
    """all classes of the video in a multi-label data set, in ascending order; empty in other data sets"""

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
    """clips of the same time spans for other networks, for example flow clips for RGB clips"""

    def pin_memory(self) -> Batch:
        """Return a copy in pinned memory; called by torch's `DataLoader`."""
        beside = tuple(clips.pin_memory() for clips in self.beside)
        return Batch(self.clips.pin_memory(), self.labels.pin_memory(), self.ids, beside)


Box = tuple[int, int, int, int]
"""`(y0, x0, y1, x1)` in a frame, lower bounds inclusive, upper exclusive."""


@dataclass
class VideoViews:
    """A batch of an evaluation loader: the views of one video, or of consecutive clips of a long video.

    A view is one crop of one clip. Views are not copies: each frame is stored once, a clip is a list of frame indices,
    and a crop is a box. Views are ordered by crop: all clips of crop 0, then all clips of crop 1, …
    """

    id: str
    label: int
    frames: torch.Tensor
    """uint8 `(F, H, W, C)`: the distinct frames of these clips after resizing; for full-frame views, at the input
    size"""
    clips: torch.Tensor
    """int64 `(N, T)`: for each clip, the indices of its frames in `frames`; an index may repeat"""
    boxes: Sequence[Box]
    """one box per crop, all of the same size"""
    flips: Sequence[bool]
    """for each crop, whether it is mirrored left to right"""
    signed: bool = False
    """whether mirroring a crop inverts channels 0, 2, … (`255 - x`), because flow x changes its sign"""
    first: int = 0
    """index of the first of these clips among all clips of the video"""
    total_clips: int = 0
    """number of clips of the complete video; 0: the batch contains all of them"""
    mirror_labels: Sequence[int] | None = None
    """for each label, the label of the mirrored action, used to reorder the logits of mirrored crops; None: no label
    changes"""

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
        """Return copies of all views, uint8 `(N * crops, C, T, h, w)`."""
        made = [self.view(index).permute(3, 0, 1, 2) for index in range(self.num_views)]
        out = self.frames.new_empty((len(made), *made[0].shape)) if made else self.frames.new_empty((0,) * 5)
        for row, view in zip(out, made):
            row.copy_(view)
        return out


@dataclass
class ScoreTable:
    """Logits of a set of videos, and how they were computed. Tables are joined by video id, never by row number."""

    ids: list[str]
    labels: NDArray[np.int64]
    """`(N,)`: class of each video, as an index of `class_names`"""
    class_names: list[str]
    logits: NDArray[np.float64]
    """`(N, K)`: one row per video, already aggregated over its views"""
    meta: dict[str, Any] = field(default_factory=dict)
    """model hash, dataset, modality, split, part, views, selection, code version, seeds …"""
    view_logits: NDArray[np.float32] | None = None
    """`(sum of view_counts, K)`: logits of each view, or None"""
    view_counts: NDArray[np.int64] | None = None
    """`(N,)`: number of views of each video, in the order of `ids`"""
    groups: list[str] | None = None
    """source video of each row, for confidence intervals"""
    targets: NDArray[np.bool_] | None = None
    """`(N, K)`: all classes of each video of a multi-label data set; `labels` contains only the first class"""

    def __repr__(self) -> str:
        own = str(self.meta.get("file") or self.meta.get("modality") or "scores")
        return f"ScoreTable({own}: {len(self.ids)} videos, {len(self.class_names)} classes)"

    def to_frame(self) -> Any:
        """Return a pandas data frame with `id`, `label`, `group` and a column of logits for each class.

        Raises:
            ImportError: pandas is not installed; two-stream does not require it.
        """
        try:
            import pandas  # type: ignore[import-not-found,import-untyped,unused-ignore]
        except ImportError:
            raise ImportError("to_frame requires pandas; run: pip install pandas") from None

        beside = {
            "id": self.ids,
            "label": [self.class_names[label] for label in self.labels],
            "group": self.groups,
        }
        return pandas.DataFrame(beside).join(pandas.DataFrame(self.logits, columns=self.class_names))


@dataclass(frozen=True)
class RunPaths:
    """Paths of a run's files."""

    root: Path

    @property
    def experiment(self) -> Path:
        """The resolved settings."""
        return self.root / "experiment.yaml"

    @property
    def data(self) -> Path:
        """Where the data set was in training."""
        return self.root / "data.json"

    @property
    def metrics(self) -> Path:
        """File with one JSON object per epoch."""
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
    def own(self) -> Path:
        """Folder for new files: the run folder; for a run in the cache of the Hugging Face hub, one in `runs/hub`."""
        cache = self.root.parent.parent.name
        if self.root.parent.name != "snapshots" or not cache.startswith("models--"):
            return self.root
        return Path("runs", "hub", f"{cache.removeprefix('models--')}@{self.root.name[:12]}")

    @property
    def scores(self) -> Path:
        """Folder for new score files."""
        return self.own / "scores"

    @property
    def report(self) -> Path:
        """The self-contained report page."""
        return self.own / "report.html"
