"""Clips of a part of a data set, one item per video; the views of an evaluation are in `views.py`.

Offsets, crops and flips of a training clip are random, but determined by (seed, epoch, video id): they do not depend on
the number of workers or on where a run was interrupted. A video that cannot be read becomes a `ClipFailure` with its
reason; the loader raises it or skips the video. Companions are clips of the same moments for other networks: of the
other modality, or of another length or size. They show the same part of the image, mirrored alike; colour changes and
erased boxes are applied to the training clip only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from two_stream.config.schema import DataOptions, Experiment
from two_stream.data.catalog import Mirror, Record, mirror_of
from two_stream.data.clips.sampling import (
    clip_span,
    clips_for,
    evaluation_protocol,
    reorder_frames,
    sampling_of,
    training_protocol,
)
from two_stream.data.clips.transforms import (
    View,
    center_box,
    change_pixels,
    draw_view,
    mirror_frames,
    whole_box,
)
from two_stream.data.sources.base import ClipSource, read_clip
from two_stream.data.sources.choose import make_source
from two_stream.data.splits import experiment_part
from two_stream.errors import DataError, TwoStreamError, VideoError
from two_stream.runtime.seeding import rng
from two_stream.types import Box, Frames, InputSpec, VideoRecord
from two_stream.video.region import Region

BROKEN = (VideoError, DataError, OSError, cv2.error)
"""errors that a damaged or missing video raises"""


@dataclass(frozen=True)
class ClipFailure:
    """A video that gave no clip."""

    id: str
    reason: str
    error: TwoStreamError | None = None
    """set when the video is not the cause, for example if the decoder is not installed"""


@dataclass(frozen=True)
class ClipItem:
    """One clip: uint8 `(C, T, H, W)`."""

    id: str
    label: int
    clip: torch.Tensor
    targets: torch.Tensor | None = None
    """float32 `(K,)`, 1 where the clip has the class; None outside multi-label data sets"""
    beside: tuple[torch.Tensor, ...] = ()
    """uint8 clips of the same moment for other networks; see `ClipsBeside`"""


def failure_of(video_id: str, error: Exception) -> ClipFailure:
    """Return the item of a video that cannot be read."""
    broken = isinstance(error, BROKEN)
    reason = " ".join(str(error).split())
    return ClipFailure(video_id, reason, None if broken or not isinstance(error, TwoStreamError) else error)


class ClipDataset(Dataset[ClipItem | ClipFailure]):
    """One clip per video: drawn and augmented in training, centred otherwise."""

    def __init__(
        self,
        source: ClipSource,
        records: Sequence[VideoRecord],
        spec: InputSpec,
        data: DataOptions | None = None,
        *,
        seed: int = 0,
        epoch: int | None = None,
        mirror: Mirror | None = None,
        multi_label: int = 0,
    ) -> None:
        """Describe the clips.

        Args:
            source: Where frames come from.
            records: Videos, in any order.
            spec: Clip length, stride, sizes.
            data: Frame choice, frame order and augmentation.
            seed: Seed of the draws.
            epoch: Number of the training epoch: clip, crop and flip are drawn again in every epoch. None: the centred
                clip and crop, or the whole frame if the network was trained with `augment.crop: full`.
            mirror: Whether a clip may be mirrored, and its class if it is; by default it may, and keeps its class.
            multi_label: Number of classes K of a multi-label data set, whose clips have `targets`; otherwise 0.
        """
        self.source = source
        self.records = records
        self.spec = spec
        self.data = data or DataOptions()
        self.seed = seed
        self.epoch = epoch
        self.mirror = mirror or Mirror()
        self.multi_label = multi_label
        self.frame_order = self.data.frame_order
        self.whole_frame = self.data.augment.whole_frame
        self.direct = self.whole_frame or (epoch is not None and self.data.resize_once)
        """whether a box is resized to its final size in a single interpolation; whole frames always are"""

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
        """Whether the clip of an index is mirrored; the clip is not read."""
        return self.planned(index)[2].flip

    def planned(self, index: int) -> tuple[VideoRecord, list[int], View, tuple[object, ...]]:
        """Return the frames and the crop of the clip at an index, without reading the clip.

        Returns:
            The video, its frame numbers in the order of time, crop and flip, and the key of `reorder_frames`.
        """
        again, place = divmod(index, len(self.records))
        record = self.records[place]
        numbers, view, _ = self._plan(record, self._generator(record, again))
        return record, numbers, view, self._order_key(record, again)

    def _generator(self, record: VideoRecord, again: int) -> np.random.Generator:
        return rng(self.seed, self.epoch or 0, record.id, *([again] if again else []))

    def _order_key(self, record: VideoRecord, again: int) -> tuple[object, ...]:
        drawn = (self.seed, self.epoch, again) if self.epoch is not None else ()
        return (*drawn, record.id)

    def _item(self, record: VideoRecord, again: int) -> ClipItem:
        spec = self.spec
        generator = self._generator(record, again)
        numbers, view, protocol = self._plan(record, generator)
        numbers = reorder_frames(numbers, self.frame_order, *self._order_key(record, again))
        region = Region(view.box, spec.size, direct=self.direct)
        frames = read_clip(self.source, record, numbers, spec, region)
        labels = record.all_labels
        if view.flip:
            frames, labels = mirror_frames(frames, spec.modality, protocol), self.mirror.of(labels)
        if self.epoch is not None:
            frames = change_pixels(frames, self.data.augment, spec, generator)
        targets = many_hot(labels, self.multi_label) if self.multi_label else None
        return ClipItem(record.id, labels[0], as_clip(frames), targets)

    def _plan(self, record: VideoRecord, generator: np.random.Generator) -> tuple[list[int], View, str]:
        """Return the frame numbers, the view and the flip protocol of a video's clip."""
        spec, frames = self.spec, record.num_frames
        sampling, augment = sampling_of(spec, self.data.sampling), self.data.augment
        if self.epoch is None:
            name, count = evaluation_protocol(sampling, "single")
            clips = clips_for(spec, name, frames, num_clips=count)
            box = whole_box(spec.resize) if self.whole_frame else center_box(spec.resize, spec.size)
            return clips[0], View(box), "standard"
        clips = clips_for(spec, training_protocol(sampling, augment.clip), frames, rng=generator)
        view = draw_view(augment, spec, generator)
        return clips[0], replace(view, flip=view.flip and self.mirror.allowed), augment.protocol


def open_clips(
    data: DataOptions,
    spec: InputSpec,
    records: Sequence[VideoRecord],
    record: Record,
    *,
    seed: int = 0,
    epoch: int | None = None,
) -> ClipDataset:
    """Return one clip per video of a data set, read as the settings say; see `ClipDataset`.

    Raises:
        DataError: The folder of frames or videos does not exist.
    """
    return ClipDataset(
        make_source(record, spec.modality, data),
        records,
        spec,
        data,
        seed=seed,
        epoch=epoch,
        mirror=mirror_of(record, data.augment.protocol),
        multi_label=record.num_classes if record.multi_label else 0,
    )


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
    for plane, made in zip(planes, cv2.split(rows, planes)):  # several times as fast as numpy's transpose
        if not np.may_share_memory(plane, made):  # OpenCV writes in place, but does not guarantee it
            plane[...] = made
    return torch.from_numpy(clip)


@dataclass(frozen=True)
class Companion:
    """The source of clips for another network."""

    source: ClipSource
    spec: InputSpec
    records: Mapping[str, VideoRecord]
    """by id, with the frame counts of its modality"""
    protocol: str
    """`augment.protocol` of its training, which decides how mirroring changes flow"""


def same_clip(one: InputSpec, other: InputSpec) -> bool:
    """Whether two networks need the same clips: modality, length, stride, segments, stack and size are equal."""
    return all(
        getattr(one, name) == getattr(other, name)
        for name in ("modality", "clip_length", "stride", "segments", "stack", "resize", "size")
    )


def companion(experiment: Experiment, record: Record, spec: InputSpec, protocol: str) -> Companion:
    """Return the source of another network's clips of the training videos of an experiment.

    Args:
        experiment: The experiment of the network that is trained.
        record: The data set.
        spec: What the other network expects.
        protocol: `augment.protocol` of the other network's training.

    Raises:
        DataError: The data set has no frames of that modality, or none for one of the videos.
    """
    data, modality = experiment.data, experiment.model.modality
    if data.source == "shards" and spec.modality != modality:
        raise DataError(
            f"`data.shards` contains {modality} frames, but the teacher expects {spec.modality}; "
            "read `frames` or `videos`"
        )
    found = {video.id: video for video in experiment_part(experiment, record, "train", spec.modality)}
    own = experiment_part(experiment, record, "train")
    missing = next((video.id for video in own if video.id not in found), None)
    if missing is not None:
        raise DataError(
            f"{record.name}: the {spec.modality} list of split {data.split} lacks {missing!r}, which a teacher of this "
            "modality needs; add the video, or remove it from the other list too"
        )
    return Companion(make_source(record, spec.modality, data), spec, found, protocol)


class ClipsBeside(Dataset[ClipItem | ClipFailure]):
    """The clips of a training run, each with the clips of its companions."""

    def __init__(self, clips: ClipDataset, companions: Sequence[Companion]) -> None:
        self.clips = clips
        self.companions = companions

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> ClipItem | ClipFailure:
        """Read a clip and its companions; if one of them cannot be read, return a `ClipFailure`."""
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
        shown = reorder_frames(shown, self.clips.frame_order, *key)
        box = scaled_box(view.box, self.clips.spec.resize, spec.resize)
        region = Region(box, spec.size, direct=self.clips.direct)
        frames = read_clip(other.source, seen, shown, spec, region)
        if view.flip:
            frames = mirror_frames(frames, spec.modality, other.protocol)
        return as_clip(frames)


def same_moment(numbers: Sequence[int], one: InputSpec, other: InputSpec, frames: int) -> list[int]:
    """Return the frame numbers (1-based) of another network's clip that shows the same moment as a given clip.

    Clips of equal length, stride and segments have the same numbers; if the other modality has one frame fewer, its
    last frame is repeated. Other segments cover the whole video. A clip of another length is centred on the middle of
    the given clip and shifted into the video; a video that is too short is looped from the clip's first frame.

    Args:
        numbers: Frame numbers of the given clip, in the order of time.
        one: Input specification of the given clip.
        other: Input specification of the other network.
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
