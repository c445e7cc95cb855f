"""Clips of a part of a data set, one item per video; the views of an evaluation are in `views.py`.

Offsets, crops and flips of a training clip are drawn from (seed, epoch, video id) and from nothing else, so they depend
neither on the number of workers nor on where a run was interrupted. A video that cannot be read becomes a
`ClipFailure` with its reason; the loader decides what follows from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from two_stream.config.augment import AugmentOptions
from two_stream.data.clips.pixels import change_pixels
from two_stream.data.clips.sampling import (
    clips_for,
    evaluation_protocol,
    reordered,
    sampling_of,
    training_protocol,
)
from two_stream.data.clips.transforms import View, center_box, draw_view, mirrored, whole_box
from two_stream.data.mirror import Mirror
from two_stream.data.sources.base import ClipSource, read_clip
from two_stream.errors import DataError, TwoStreamError, VideoError
from two_stream.runtime.seeding import rng
from two_stream.types import Frames, InputSpec, VideoRecord
from two_stream.video.region import Region

BROKEN = (VideoError, DataError, OSError, cv2.error)
"""What reading raises when a video is at fault."""


@dataclass(frozen=True)
class ClipFailure:
    """A video that gave no clip."""

    id: str
    reason: str
    error: TwoStreamError | None = None
    """set when the cause is not this video, for example a decoder that is not installed"""


@dataclass(frozen=True)
class ClipItem:
    """One clip: uint8 `(C, T, H, W)`."""

    id: str
    label: int
    clip: torch.Tensor
    targets: torch.Tensor | None = None
    """float32 `(K,)`, 1 where the clip has the class; None outside multi-label data sets"""
    beside: tuple[torch.Tensor, ...] = ()
    """uint8 clips of the same moment for other networks (`data/clips/companions.py`)"""


def failure_of(video_id: str, error: Exception) -> ClipFailure:
    """Return what a dataset gives in place of a video that cannot be read."""
    broken = isinstance(error, BROKEN)
    reason = " ".join(str(error).split())
    return ClipFailure(video_id, reason, None if broken or not isinstance(error, TwoStreamError) else error)


class ClipDataset(Dataset[ClipItem | ClipFailure]):
    """One clip per video: drawn and augmented in training, centred otherwise.

    Attributes:
        frame_order: `natural`, `shuffled` or `reversed`; see `DataOptions`.
        mirror: Whether a clip may be mirrored, and what class it has then; by default it may and keeps its own.
        multi_label: Classes K of a multi-label data set, whose clips carry `targets`; 0 in other data sets.
        whole_frame: Whether centred clips show whole frames, as training clips do after `augment.crop: full`.
    """

    def __init__(
        self,
        source: ClipSource,
        records: Sequence[VideoRecord],
        spec: InputSpec,
        *,
        sampling: str = "standard",
        augment: AugmentOptions | None = None,
        seed: int = 0,
        epoch: int = 0,
        resize_once: bool = False,
    ) -> None:
        """Describe the clips.

        Args:
            source: Where frames come from.
            records: Videos, in any order.
            spec: Clip length, stride, sizes.
            sampling: `standard`, `paper` or a family's.
            augment: Training: one drawn clip, crop and flip; None: the centred clip and crop.
            seed: Seed of the draws.
            epoch: Another one gives other draws.
            resize_once: See `DataOptions`.
        """
        self.source = source
        self.records = records
        self.spec = spec
        self.sampling = sampling
        self.augment = augment
        self.seed = seed
        self.epoch = epoch
        self.resize_once = resize_once
        self.frame_order = "natural"
        self.mirror = Mirror()
        self.multi_label = 0
        self.whole_frame = augment is not None and augment.whole_frame

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> ClipItem | ClipFailure:
        """Read one clip; a damaged video gives a `ClipFailure`. An index past the end reads another clip of a video."""
        again, place = divmod(index, len(self.records))
        record = self.records[place]
        try:
            return self._item(record, again)
        except (*BROKEN, TwoStreamError) as error:
            return failure_of(record.id, error)

    def is_mirrored(self, index: int) -> bool:
        """Whether the clip of a number is mirrored; it is not read for that."""
        return self.planned(index)[2].flip

    def planned(self, index: int) -> tuple[VideoRecord, list[int], View, tuple[object, ...]]:
        """Return what the clip of a number shows, which is not read for that.

        Returns:
            The video, its frame numbers in the order of time, crop and flip, and the key of `reordered`.
        """
        again, place = divmod(index, len(self.records))
        record = self.records[place]
        numbers, view, _ = self._plan(record, self._generator(record, again))
        return record, numbers, view, self._order_key(record, again)

    @property
    def direct(self) -> bool:
        """Whether a box is brought to its size in one interpolation; whole frames always are."""
        return self.resize_once or self.whole_frame

    def _generator(self, record: VideoRecord, again: int) -> np.random.Generator:
        return rng(self.seed, self.epoch, record.id, *([again] if again else []))

    def _order_key(self, record: VideoRecord, again: int) -> tuple[object, ...]:
        drawn = (self.seed, self.epoch, again) if self.augment is not None else ()
        return (*drawn, record.id)

    def _item(self, record: VideoRecord, again: int) -> ClipItem:
        spec = self.spec
        generator = self._generator(record, again)
        numbers, view, protocol = self._plan(record, generator)
        numbers = reordered(numbers, self.frame_order, *self._order_key(record, again))
        region = Region(view.box, spec.size, direct=self.direct)
        frames = read_clip(self.source, record, numbers, spec, region)
        labels = record.all_labels
        if view.flip:
            frames, labels = mirrored(frames, spec.modality, protocol), self.mirror.of(labels)
        if self.augment is not None:
            frames = change_pixels(frames, self.augment, spec, generator)
        targets = many_hot(labels, self.multi_label) if self.multi_label else None
        return ClipItem(record.id, labels[0], as_clip(frames), targets)

    def _plan(self, record: VideoRecord, generator: np.random.Generator) -> tuple[list[int], View, str]:
        """Return the frame numbers, the view and the flip protocol of a video's clip."""
        spec, frames = self.spec, record.num_frames
        sampling = sampling_of(spec, self.sampling)
        if self.augment is None:
            name, count = evaluation_protocol(sampling, "single")
            clips = clips_for(spec, name, frames, num_clips=count)
            whole = self.whole_frame
            box = whole_box(spec.resize) if whole else center_box(spec.resize, spec.size)
            return clips[0], View(box), "standard"
        clips = clips_for(spec, training_protocol(sampling, self.augment.clip), frames, rng=generator)
        view = draw_view(self.augment, spec, generator)
        return clips[0], replace(view, flip=view.flip and self.mirror.allowed), self.augment.protocol


def many_hot(labels: Sequence[int], num_classes: int) -> torch.Tensor:
    """Return float32 `(K,)`: 1 at the labels, 0 elsewhere."""
    targets_K = torch.zeros(num_classes)
    targets_K[list(labels)] = 1.0
    return targets_K


def as_clip(frames_THWC: Frames) -> torch.Tensor:
    """Turn frames `(T, H, W, C)` into a clip tensor `(C, T, H, W)`, uint8."""
    count, height, width, channels = frames_THWC.shape
    clip = np.empty((channels, count, height, width), np.uint8)
    planes = [plane.reshape(count * height, width) for plane in clip]
    rows = np.ascontiguousarray(frames_THWC).reshape(count * height, width, channels)
    for plane, made in zip(planes, cv2.split(rows, planes)):  # several times as quick as numpy's transpose
        if not np.may_share_memory(plane, made):  # OpenCV writes in place; nothing promises that
            plane[...] = made
    return torch.from_numpy(clip)
