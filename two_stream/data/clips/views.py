"""Reads the views of each video for evaluation. Every frame is read and resized once; long videos are read in chunks.

A worker sends the distinct frames of a chunk, the indices of each clip's frames, and the boxes of the crops. Crops are
made on the network's device while a batch is assembled, so that frames are not copied for each view.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.utils.data import Dataset

from two_stream.config.schema import DataOptions, EvaluateOptions
from two_stream.data.catalog import Mirror, Record, mirror_of
from two_stream.data.clips.dataset import BROKEN, ClipFailure, failure_of, make_source
from two_stream.data.clips.loader import Loader
from two_stream.data.clips.sampling import clips_for, evaluation_protocol, reorder_frames, sampling_of
from two_stream.data.clips.transforms import View, evaluation_views, view_spec, whole_box
from two_stream.data.sources.files import ClipSource, read_clip
from two_stream.errors import DataError, TwoStreamError
from two_stream.types import InputSpec, VideoRecord, VideoViews
from two_stream.video.frames import Region

CHUNK_BYTES = 16 * 2**20
"""size of the resized frames of one chunk: four clips of 64 frames at 128×170. It bounds the memory of long videos;
with much smaller chunks, many frames of overlapping clips would be read twice"""


@dataclass(frozen=True)
class Chunk:
    """Clips `first` to `last` (exclusive) of a video, which are read together."""

    record: int
    first: int
    last: int


class ViewDataset(Dataset[VideoViews | ClipFailure]):
    """Data set of all views (every crop of every clip) of each video, with one item per chunk of clips.

    Attributes:
        chunks: The chunk that each item reads; the chunks of a video are consecutive, in the order of its clips.
    """

    def __init__(
        self,
        source: ClipSource,
        records: Sequence[VideoRecord],
        spec: InputSpec,
        evaluate: EvaluateOptions,
        data: DataOptions | None = None,
        *,
        chunk_bytes: int = CHUNK_BYTES,
        mirror: Mirror | None = None,
    ) -> None:
        """Plan the chunks.

        Args:
            source: Where frames come from.
            records: Videos, in any order.
            spec: Clip length, stride, sizes.
            evaluate: Clips and crops.
            data: Frame choice, frame order, flip protocol, and whether a centred crop is the whole frame (`view_spec`).
            chunk_bytes: Largest size of the frames of a chunk, unless a single clip is larger.
            mirror: Whether there are mirrored crops, and the classes of their logits.

        Raises:
            SettingsError: A number is out of range, or `paper` with a stride other than 1.
        """
        self.source = source
        self.records = records
        self._kept: tuple[str, list[list[int]]] = "", []
        self.spec = spec
        self.evaluate = evaluate
        self.data = data or DataOptions()
        self.mirror = mirror or Mirror()
        size = view_spec(spec, evaluate.crops, whole=self.data.augment.whole_frame).resize
        self.region = None if size == spec.resize else Region(whole_box(spec.resize), size, direct=True)
        self.crops = evaluation_views(evaluate.crops, size, spec.size, mirrored=self.mirror.allowed)
        frames = chunk_bytes // (size[0] * size[1] * spec.channels)
        self.chunks = [
            Chunk(index, part.start, part.stop)
            for index, record in enumerate(records)
            for part in self._parts(record, frames)
        ]

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, index: int) -> VideoViews | ClipFailure:
        """Read a chunk, or return a `ClipFailure` for a damaged video."""
        chunk = self.chunks[index]
        record = self.records[chunk.record]
        try:
            return self._views(record, chunk)
        except (*BROKEN, TwoStreamError) as error:
            return failure_of(record.id, error)

    def num_views(self, chunk: Chunk) -> int:
        """Return the number of views in a chunk: clips times crops."""
        return (chunk.last - chunk.first) * len(self.crops)

    def _parts(self, record: VideoRecord, frames: int) -> list[range]:
        try:
            return chunks_of(self._clips(record), frames)
        except BROKEN:  # reading the chunk raises it again
            return [range(1)]

    def _clips(self, record: VideoRecord) -> list[list[int]]:
        if self._kept[0] != record.id:  # a long recording has many chunks, which are read one after the other
            clips = evaluation_clips(self.evaluate, self.spec, self.source.count(record), self.data.sampling)
            self._kept = record.id, [reorder_frames(clip, self.data.frame_order, record.id) for clip in clips]
        return self._kept[1]

    def _views(self, record: VideoRecord, chunk: Chunk) -> VideoViews:
        spec = self.spec
        every = self._clips(record)
        clips = every[chunk.first : chunk.last]
        distinct = sorted({number for clip in clips for number in clip})
        frames = read_clip(self.source, record, distinct, spec, self.region)
        rows = {number: row for row, number in enumerate(distinct)}
        return VideoViews(
            record.id,
            record.label,
            torch.from_numpy(frames),
            torch.tensor([[rows[number] for number in clip] for clip in clips]),
            *boxes_and_flips(self.crops),
            signed=changes_flow_sign(spec, self.data.augment.protocol),
            first=chunk.first,
            total_clips=len(every),
            mirror_labels=self.mirror.labels,
        )


class ViewLoader(Loader[VideoViews]):
    """Loads chunks in the order of the videos. With `on_error: skip`, a video with an unreadable chunk is skipped.

    Earlier chunks of this video may have been yielded; `skipped` contains its id, so that they can be discarded.
    """

    def __iter__(self) -> Iterator[VideoViews]:
        """Read the chunks.

        Raises:
            DataError: A video cannot be read and `on_error` is `raise`; or a worker died.
        """
        for item in super().__iter__():
            if not self._left_out(item.id):
                yield item

    def _left_out(self, video_id: str) -> bool:
        return any(name == video_id for name, _ in self.skipped[-1:])

    def handle_failure(self, failure: ClipFailure) -> None:
        """See `Loader.handle_failure`; each video is added to `skipped` only once."""
        if not self._left_out(failure.id):  # its other chunks need no second line
            super().handle_failure(failure)


def view_loader(
    data: DataOptions,
    evaluate: EvaluateOptions,
    spec: InputSpec,
    records: Sequence[VideoRecord],
    record: Record,
    *,
    rank: int = 0,
    world: int = 1,
) -> ViewLoader:
    """Return a loader for the views of every video, in the order of `records`.

    Args:
        data: How videos are read.
        evaluate: Clips and crops.
        spec: What the network expects.
        records: The videos.
        record: The data set.
        rank: Rank of this process; every video is read by one process.
        world: Number of processes.

    Raises:
        DataError: No videos, or the folder of frames or videos is absent.
        SettingsError: A number is out of range, or `paper` with a stride other than 1.
    """
    if not records:
        raise DataError("the evaluation part has no videos; check the split list and `data.holdout`")
    dataset = ViewDataset(
        make_source(record, spec.modality, data, spec.fps),
        records,
        spec,
        evaluate,
        data,
        mirror=mirror_of(record, data.augment.protocol),
    )
    views = [0] * len(records)
    for chunk in dataset.chunks:
        views[chunk.record] += dataset.num_views(chunk)
    mine = set(assign_work(views, rank, world))
    plan = [[index] for index, chunk in enumerate(dataset.chunks) if chunk.record in mine]
    return ViewLoader(dataset, plan, collate_views, data)


def assign_work(work: Sequence[int], rank: int, world: int) -> list[int]:
    """Return, in ascending order, the indices of the work items that are assigned to this process.

    The largest items are assigned first, each to the process with the smallest load, so that all processes finish at
    about the same time. Every process computes the same assignment.
    """
    loads = [0] * world
    mine = []
    for index in sorted(range(len(work)), key=lambda index: (-work[index], index)):
        owner = min(range(world), key=lambda process: (loads[process], process))
        loads[owner] += work[index]
        if owner == rank:
            mine.append(index)
    return sorted(mine)


def collate_views(items: list[VideoViews | ClipFailure]) -> tuple[VideoViews | None, list[ClipFailure]]:
    """Return the chunk (None if it could not be read) and the failures."""
    (item,) = items
    return (None, [item]) if isinstance(item, ClipFailure) else (item, [])


def evaluation_clips(
    evaluate: EvaluateOptions, spec: InputSpec, num_frames: int, sampling: str = "standard"
) -> list[list[int]]:
    """Return the frame numbers (1-based) of each clip of an evaluation.

    Raises:
        SettingsError: A number is out of range, or `paper` with a stride other than 1.
    """
    name, count = evaluation_protocol(sampling_of(spec, sampling), evaluate.views, evaluate.num_clips)
    return clips_for(spec, name, num_frames, num_clips=count, step=evaluate.step)


def chunks_of(clips: Sequence[Sequence[int]], frames: int) -> list[range]:
    """Divide the clips of a video into chunks with at most `frames` distinct frames, and at least one clip."""
    if len({number for clip in clips for number in clip}) <= frames:
        return [range(len(clips))]
    found: list[range] = []
    start, held = 0, set(clips[0])
    for place, clip in enumerate(clips[1:], start=1):
        joined = held | set(clip)
        if len(joined) > frames:
            found.append(range(start, place))
            start, joined = place, set(clip)
        held = joined
    return [*found, range(start, len(clips))]


def boxes_and_flips(crops: Sequence[View]) -> tuple[list[tuple[int, int, int, int]], list[bool]]:
    """Return the box of each crop, and whether it is flipped."""
    return [view.box for view in crops], [view.flip for view in crops]


def changes_flow_sign(spec: InputSpec, protocol: str) -> bool:
    """Return whether mirroring changes the sign of the x channels: true for flow, unless the protocol is `paper`."""
    return spec.modality == "flow" and protocol != "paper"
