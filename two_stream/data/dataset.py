"""Clips and views of a part of a data set, one item per video.

Offsets, crops and flips of a training clip are drawn from (seed, epoch, video id) and from nothing else, so they depend
neither on the number of workers nor on where a run was interrupted. A video that cannot be read becomes a
`Failure` with its reason; the loader decides what follows from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from two_stream.config.schema import AugmentOptions, EvaluateOptions
from two_stream.data.sampling import sample_clips
from two_stream.data.source import ClipSource
from two_stream.data.transforms import (
    Frames,
    View,
    apply_view,
    center_box,
    draw_view,
    evaluation_views,
)
from two_stream.errors import DataError, TwoStreamError, VideoError
from two_stream.runtime.seeding import rng
from two_stream.types import InputSpec, VideoRecord, VideoViews

_BROKEN = (VideoError, DataError, OSError, cv2.error)


@dataclass(frozen=True)
class Failure:
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


def _failure(video_id: str, error: Exception) -> Failure:
    broken = isinstance(error, _BROKEN)
    reason = " ".join(str(error).split())
    return Failure(video_id, reason, None if broken or not isinstance(error, TwoStreamError) else error)


class ClipDataset(Dataset[ClipItem | Failure]):
    """One clip per video: drawn and augmented in training, centred otherwise."""

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
    ) -> None:
        """Describe the clips.

        Args:
            source: Where frames come from.
            records: Videos, in any order.
            spec: Clip length, stride, sizes.
            sampling: `standard` or `paper`.
            augment: Training: one drawn clip, crop and flip; None: the centred clip and crop.
            seed: Seed of the draws.
            epoch: Another one gives other draws.
        """
        self.source = source
        self.records = records
        self.spec = spec
        self.sampling = sampling
        self.augment = augment
        self.seed = seed
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> ClipItem | Failure:
        """Read one clip; a broken video gives a `Failure`."""
        record = self.records[index]
        try:
            return ClipItem(record.id, record.label, as_clip(self._read(record)))
        except (*_BROKEN, TwoStreamError) as error:
            return _failure(record.id, error)

    def _read(self, record: VideoRecord) -> Frames:
        spec = self.spec
        numbers, view, protocol = self._plan(record)
        frames = self.source.read(record.id, numbers, spec.resize)
        return apply_view(frames, view, spec.crop, spec.modality, protocol)

    def _plan(self, record: VideoRecord) -> tuple[list[int], View, str]:
        """Return the frame numbers, the view and the flip protocol of a video's clip."""
        spec = self.spec
        paper = self.sampling == "paper"
        if self.augment is None:
            name = "paper-single" if paper else "single"
            clips = sample_clips(name, record.num_frames, spec.clip_length, stride=spec.stride)
            return clips[0], View(center_box(spec.resize, spec.crop)), "standard"
        generator = rng(self.seed, self.epoch, record.id)
        clips = sample_clips(
            "paper-train" if paper else "train",
            record.num_frames,
            spec.clip_length,
            stride=spec.stride,
            rng=generator,
        )
        return clips[0], draw_view(self.augment, spec, generator), self.augment.protocol


class ViewDataset(Dataset[VideoViews | Failure]):
    """Every view (clip × crop) of each video, for evaluation."""

    def __init__(
        self,
        source: ClipSource,
        records: Sequence[VideoRecord],
        spec: InputSpec,
        evaluate: EvaluateOptions,
        *,
        sampling: str = "standard",
        protocol: str = "standard",
    ) -> None:
        """Describe the views.

        Args:
            source: Where frames come from.
            records: Videos, in any order.
            spec: Clip length, stride, sizes.
            evaluate: Clips and crops.
            sampling: `standard` or `paper` frame choice of single and multi clips.
            protocol: `paper` leaves flow x as it is in mirrored crops.
        """
        self.source = source
        self.records = records
        self.spec = spec
        self.evaluate = evaluate
        self.sampling = sampling
        self.protocol = protocol

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> VideoViews | Failure:
        """Read every view of a video; a broken one gives a `Failure`."""
        record = self.records[index]
        try:
            return VideoViews(record.id, record.label, self._views(record))
        except (*_BROKEN, TwoStreamError) as error:
            return _failure(record.id, error)

    def _views(self, record: VideoRecord) -> torch.Tensor:
        spec = self.spec
        clips = evaluation_clips(self.evaluate, spec, record.num_frames, self.sampling)
        distinct = sorted({number for clip in clips for number in clip})
        frames = self.source.read(record.id, distinct, spec.resize)
        rows = {number: row for row, number in enumerate(distinct)}
        picks = [[rows[number] for number in clip] for clip in clips]
        views = []
        for view in evaluation_views(self.evaluate.crops, spec.resize, spec.crop):
            cropped = apply_view(frames, view, spec.crop, spec.modality, self.protocol)
            views += [as_clip(cropped[pick]) for pick in picks]
        return torch.stack(views)


def evaluation_clips(
    evaluate: EvaluateOptions, spec: InputSpec, num_frames: int, sampling: str = "standard"
) -> list[list[int]]:
    """Return the frame numbers (1-based) of each clip of an evaluation."""
    name = evaluate.views
    if sampling == "paper" and name in ("single", "multi"):
        name = f"paper-{name}"  # type: ignore[assignment]
    return sample_clips(
        name,
        num_frames,
        spec.clip_length,
        stride=spec.stride,
        num_clips=evaluate.num_clips,
        step=evaluate.step,
    )


def as_clip(frames_THWC: Frames) -> torch.Tensor:
    """Turn frames `(T, H, W, C)` into a clip tensor `(C, T, H, W)`, uint8."""
    return torch.from_numpy(np.ascontiguousarray(frames_THWC.transpose(3, 0, 1, 2)))
