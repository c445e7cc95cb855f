"""Data sets of clips for training and validation, with one clip per video.

For the clips of an evaluation, see `views.py`.

The start, crop and flip of a training clip are random, but depend only on the seed, the epoch and the video id.
Training clips therefore do not depend on the number of workers or on interruptions. For a video that cannot be read,
the data set returns a `ClipFailure` with the reason; the loader raises an error or skips the video. Companion clips
show the same moments for other networks, for example in the other modality, or with another length or size. A companion
clip has the same crop and flip as the training clip; colour changes and erased boxes apply to the training clip only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, cast

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
from two_stream.data.sources.cache import CachedVideos, FrameCache
from two_stream.data.sources.files import ClipSource, FrameFolders, SeenSource, VideoFiles, read_clip
from two_stream.data.sources.segments import SegmentSource, segments_of
from two_stream.data.sources.shards import ShardSource, load_index, shard_storage
from two_stream.data.splits import experiment_part
from two_stream.errors import (
    DataError,
    SettingsError,
    TwoStreamError,
    VideoError,
)
from two_stream.runtime.device import rng
from two_stream.types import Box, Frames, InputSpec, Modality, VideoRecord
from two_stream.video.frames import Region, extraction_settings


def make_source(
    record: Record, modality: Modality, data: DataOptions, fps: float | None = None
) -> ClipSource:
    """Return the frame source that is selected by `data.source`, with the videos seen at `fps` frames per second.

    Raises:
        DataError: The record has no such folder, or it does not exist.
    """
    source = _make_source(record, modality, data)
    return source if fps is None else SeenSource(source, fps)


def _make_source(record: Record, modality: Modality, data: DataOptions) -> ClipSource:
    if data.source == "shards":
        assert data.shards is not None  # DataOptions has checked it
        source = ShardSource(data.shards, modality, scaled_decoding=data.scaled_decoding, fps=data.fps)
        packed = source.index.settings.get("dataset", record.name)
        if packed != record.name:
            raise DataError(
                f"{data.shards}: shards of the data set {packed!r}, expected {record.name!r}; correct `data.shards`"
            )
        return source
    videos: ClipSource
    if data.source == "frames":
        videos = FrameFolders(record, modality, scaled_decoding=data.scaled_decoding, fps=data.fps)
    else:
        videos = files = VideoFiles(record, modality, data.backend, data.flow)
        if data.cache is not None:
            videos = CachedVideos(files, FrameCache(data.cache, int(data.cache_gigabytes * 1e9)))
    if record.segments is None:
        return videos
    return SegmentSource(videos, segments_of(record))


BROKEN = (VideoError, DataError, OSError, cv2.error)
"""errors that a damaged or missing video raises"""


@dataclass(frozen=True)
class ClipFailure:
    """A video whose clip could not be read, and the reason."""

    id: str
    reason: str
    error: TwoStreamError | None = None
    """error to raise if the video is not the cause, for example if the decoder is not installed"""


@dataclass(frozen=True)
class ClipItem:
    """One clip, a uint8 tensor `(C, T, H, W)`."""

    id: str
    label: int
    clip: torch.Tensor
    targets: torch.Tensor | None = None
    """float32 `(K,)`, 1 for each class of the clip, otherwise 0; None if the data set is not multi-label"""
    beside: tuple[torch.Tensor, ...] = ()
    """uint8 clips of the same moment for other networks; see `ClipsBeside`"""


def failure_of(video_id: str, error: Exception) -> ClipFailure:
    """Return the `ClipFailure` for a video that cannot be read."""
    broken = isinstance(error, BROKEN)
    reason = " ".join(str(error).split())
    return ClipFailure(video_id, reason, None if broken or not isinstance(error, TwoStreamError) else error)


class ClipDataset(Dataset[ClipItem | ClipFailure]):
    """Data set with one clip per video: a random, augmented clip in training, otherwise the centred clip."""

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
        """Read one clip, or return a `ClipFailure` for a damaged video."""
        again, place = divmod(index, len(self.records))
        record = self.records[place]
        try:
            return self._item(record, again)
        except (*BROKEN, TwoStreamError) as error:
            return failure_of(record.id, error)

    def is_mirrored(self, index: int) -> bool:
        """Return whether the clip at an index is mirrored, without reading the clip."""
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
        """Return the frame numbers of a video's clip, its crop and flip, and the protocol for mirroring flow."""
        spec, frames = self.spec, self.source.count(record)
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
    """Return a `ClipDataset` of a part of a data set, configured by the settings.

    Raises:
        DataError: The folder of frames or videos does not exist.
    """
    return ClipDataset(
        make_source(record, spec.modality, data, spec.fps),
        records,
        spec,
        data,
        seed=seed,
        epoch=epoch,
        mirror=mirror_of(record, data.augment.protocol),
        multi_label=record.num_classes if record.multi_label else 0,
    )


def many_hot(labels: Sequence[int], num_classes: int) -> torch.Tensor:
    """Return a float32 vector `(K,)` that is 1 at the labels and 0 elsewhere."""
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
    """Frame source and videos from which companion clips for another network are read."""

    source: ClipSource
    spec: InputSpec
    records: Mapping[str, VideoRecord]
    """videos, with their ids as keys; the number of frames is that of the other network's modality"""
    protocol: str
    """`augment.protocol` of the other network's training, which decides how mirroring changes flow"""


def same_clip(one: InputSpec, other: InputSpec) -> bool:
    """Return whether two networks need the same clips: all but the pixel values is equal."""
    return all(
        getattr(one, name) == getattr(other, name)
        for name in ("modality", "clip_length", "stride", "segments", "stack", "fps", "resize", "size")
    )


def companion(experiment: Experiment, record: Record, spec: InputSpec, protocol: str) -> Companion:
    """Return the frame source and the training videos from which another network's companion clips are read.

    Args:
        experiment: The experiment of the network that is trained.
        record: The data set.
        spec: What the other network expects.
        protocol: `augment.protocol` of the other network's training.

    Raises:
        DataError: The data set has no frames of that modality, or none for one of the videos.
    """
    data, modality = experiment.data, experiment.model.reads
    if data.source == "shards" and spec.modality != modality:
        raise DataError(
            f"`data.shards` contains {modality} frames, but the teacher expects {spec.modality}; "
            "set `data.source` to `frames` or `videos`"
        )
    fps = experiment.model.input.fps
    if spec.fps != fps:
        raise SettingsError(
            f"`model.input.fps` is {fps}, but the teacher was trained with {spec.fps}; set the rate of the teacher"
        )
    found = {video.id: video for video in experiment_part(experiment, record, "train", spec.modality)}
    own = experiment_part(experiment, record, "train")
    missing = next((video.id for video in own if video.id not in found), None)
    if missing is not None:
        raise DataError(
            f"{record.name}: the {spec.modality} list of split {data.split} does not contain video "
            f"{missing!r}, which the teacher needs; add the video to this list, or remove it from the {modality} list"
        )
    return Companion(make_source(record, spec.modality, data, spec.fps), spec, found, protocol)


class ClipsBeside(Dataset[ClipItem | ClipFailure]):
    """Data set of training clips, each with its companion clips."""

    def __init__(self, clips: ClipDataset, companions: Sequence[Companion]) -> None:
        self.clips = clips
        self.companions = companions

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> ClipItem | ClipFailure:
        """Read a clip and its companion clips; if any of them cannot be read, return a `ClipFailure`."""
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
        shown = same_moment(numbers, self.clips.spec, spec, other.source.count(seen))
        shown = reorder_frames(shown, self.clips.frame_order, *key)
        box = scaled_box(view.box, self.clips.spec.resize, spec.resize)
        region = Region(box, spec.size, direct=self.clips.direct)
        frames = read_clip(other.source, seen, shown, spec, region)
        if view.flip:
            frames = mirror_frames(frames, spec.modality, other.protocol)
        return as_clip(frames)


def same_moment(numbers: Sequence[int], one: InputSpec, other: InputSpec, frames: int) -> list[int]:
    """Return the frame numbers (1-based) of another network's clip that shows the same moment as a given clip.

    Clips of equal length, stride and segments have the same frame numbers; if the other modality has one frame fewer,
    its last frame is repeated. If the other network uses different segments, its clip covers the whole video. A clip of
    another length has the same centre as the given clip, or is shifted to lie within the video. A video that is too
    short for the other clip is looped from the first frame of the given clip.

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
    """Scale a box from one frame size (height, width) to another frame size; the result has at least one pixel."""
    scales = [there / here for here, there in zip(size, other, strict=True)]
    y0, x0, y1, x1 = (round(side * scales[place % 2]) for place, side in enumerate(box))
    return y0, x0, max(y1, y0 + 1), max(x1, x0 + 1)


def current_extraction(data: DataOptions, record: Record, modality: Modality) -> dict[str, Any] | None:
    """Return the extraction settings of the frames that `data` selects; None if unknown.

    Raises:
        DataError: The frames or shards are not on this machine.
    """
    if data.source == "videos":
        return {"flow": data.flow, "short_side": record.short_side}
    if data.source == "shards" and data.shards is not None:
        packed = load_index(shard_storage(data.shards, modality)).settings
        if packed.get("source") == "videos":
            return {"flow": packed.get("flow"), "short_side": packed.get("short_side")}
        if packed.get("extraction"):
            return cast(dict[str, Any], packed["extraction"])  # read by `read_frame_settings`
        with suppress(DataError):  # shards of an earlier version, perhaps packed from the current frames
            return extraction_settings(record.frames_root(modality))
        return None
    return extraction_settings(record.frames_root(modality))
