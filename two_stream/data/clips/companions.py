"""Clips of the same moments for other networks: of the other modality, or of another length or size.

A companion clip shows the frames around the middle of the clip it stands beside, the same part of the picture, mirrored
alike. Colours and erased boxes belong to the clip alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from torch.utils.data import Dataset

from two_stream.config.schema import Experiment
from two_stream.data.catalog import Record
from two_stream.data.clips.dataset import BROKEN, ClipDataset, ClipFailure, ClipItem, as_clip, failure_of
from two_stream.data.clips.sampling import clip_span, clips_for, reordered
from two_stream.data.clips.transforms import mirrored
from two_stream.data.sources.base import ClipSource, read_clip
from two_stream.data.sources.choose import make_source
from two_stream.data.splits import load_part
from two_stream.errors import DataError, TwoStreamError
from two_stream.types import Box, InputSpec, Modality, VideoRecord
from two_stream.video.region import Region


@dataclass(frozen=True)
class Companion:
    """What another network sees of the videos."""

    source: ClipSource
    spec: InputSpec
    records: Mapping[str, VideoRecord]
    """by id; of its modality, whose frames they count"""
    protocol: str
    """`augment.protocol` of its training, which says what a mirror does to flow"""


def same_clip(one: InputSpec, other: InputSpec) -> bool:
    """Whether two networks can take one clip: modality, length, stride, segments, stack and size are alike."""
    return all(
        getattr(one, name) == getattr(other, name)
        for name in ("modality", "clip_length", "stride", "segments", "stack", "resize", "size")
    )


def companion(experiment: Experiment, record: Record, spec: InputSpec, protocol: str) -> Companion:
    """Return what gives another network's clips beside the training clips of an experiment.

    Args:
        experiment: Of the network that is trained.
        record: The data set.
        spec: What the other network expects.
        protocol: `augment.protocol` of the other network's training.

    Raises:
        DataError: The data set has no frames of that modality, or lacks a video's.
    """
    data, modality = experiment.data, experiment.model.modality
    if data.source == "shards" and spec.modality != modality:
        raise DataError(
            f"`data.shards` holds {modality} frames and a teacher sees {spec.modality}; read `frames` or `videos`"
        )
    found = _training_videos(experiment, record, spec.modality)
    missing = next(
        (name for name in _training_videos(experiment, record, modality) if name not in found), None
    )
    if missing is not None:
        raise DataError(
            f"{record.name}: the {spec.modality} list of split {data.split} has no {missing!r}, which a teacher of "
            "that modality must see; add it, or leave the video out of the other list too"
        )
    return Companion(make_source(record, spec.modality, data), spec, found, protocol)


def _training_videos(experiment: Experiment, record: Record, modality: Modality) -> dict[str, VideoRecord]:
    data = experiment.data
    part = load_part(
        record,
        modality,
        data.split,
        "train",
        selection=experiment.train.selection,
        holdout=data.holdout,
        seed=experiment.seed,
    )
    return {video.id: video for video in part}


class ClipsBeside(Dataset[ClipItem | ClipFailure]):
    """The clips of a training, each with those of its companions."""

    def __init__(self, clips: ClipDataset, companions: Sequence[Companion]) -> None:
        self.clips = clips
        self.companions = companions

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> ClipItem | ClipFailure:
        """Read a clip and its companions; a video of which one cannot be read gives a `ClipFailure`."""
        item = self.clips[index]
        if isinstance(item, ClipFailure):
            return item
        try:
            return replace(item, beside=tuple(self._beside(index, other) for other in self.companions))
        except (*BROKEN, TwoStreamError) as error:
            return failure_of(item.id, error)

    def _beside(self, index: int, other: Companion) -> torch.Tensor:
        video, numbers, view, key = self.clips.planned(index)
        spec = other.spec
        seen = other.records[video.id]
        shown = same_moment(numbers, self.clips.spec, spec, seen.num_frames)
        shown = reordered(shown, self.clips.frame_order, *key)
        box = scaled_box(view.box, self.clips.spec.resize, spec.resize)
        region = Region(box, spec.size, direct=self.clips.direct)
        frames = read_clip(other.source, seen, shown, spec, region)
        if view.flip:
            frames = mirrored(frames, spec.modality, other.protocol)
        return as_clip(frames)


def same_moment(numbers: Sequence[int], one: InputSpec, other: InputSpec, frames: int) -> list[int]:
    """Return the frame numbers (1-based) of another network's clip of the moment that a clip shows.

    Clips of one length, stride and segments have the same numbers; where the other modality has one frame fewer, the
    last one stands for it. Other segments show the whole video. Another length is laid around the middle of the clip
    and moved into the video; a video shorter than that is looped from the clip's first frame.

    Args:
        numbers: Of the clip, in the order of time.
        one: Its input.
        other: The other network's.
        frames: Frames of the video in the other network's modality.
    """
    if all(getattr(one, name) == getattr(other, name) for name in ("clip_length", "stride", "segments")):
        return [min(number, frames) for number in numbers]
    if other.segments:
        return clips_for(other, "segments-single", frames)[0]
    span = clip_span(other.clip_length, other.stride)
    looped = any(later < earlier for earlier, later in pairwise(numbers))
    if span > frames or looped:
        start = min(numbers[0], frames) - 1
    else:
        middle = (numbers[0] + numbers[-1]) / 2
        start = int(np.clip(round(middle - (span - 1) / 2), 1, frames - span + 1)) - 1
    return [(start + place * other.stride) % frames + 1 for place in range(other.clip_length)]


def scaled_box(box: Box, size: tuple[int, int], other: tuple[int, int]) -> Box:
    """Return the box that shows the same part of a frame of another (height, width); at least one pixel."""
    scales = [there / here for here, there in zip(size, other, strict=True)]
    y0, x0, y1, x1 = (round(side * scales[place % 2]) for place, side in enumerate(box))
    return y0, x0, max(y1, y0 + 1), max(x1, x0 + 1)
