"""Batches of stored features in the order in which the clips themselves would come, read in this process.

A row is mapped memory, so a batch costs microseconds and no worker is worth its start.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from two_stream.config.schema import Experiment
from two_stream.data.catalog import Record, mirror_of
from two_stream.data.clips.dataset import many_hot
from two_stream.data.clips.loader import batches_of, epoch_plan
from two_stream.errors import DataError
from two_stream.evaluation.features.cache import CENTRED, FeatureCache, StoredVideo, stored_video
from two_stream.types import Batch, VideoRecord


class StoredClips:
    """The stored training rows of some videos, by the numbers that `epoch_plan` deals out.

    Epoch e shows augmented clip e, counted round and round over those that are stored; a video drawn again in the same
    epoch shows the next one.
    """

    def __init__(
        self, cache: FeatureCache, experiment: Experiment, records: Sequence[VideoRecord], record: Record
    ) -> None:
        """Look the videos up.

        Raises:
            DataError: One is not stored; or could not be read and `data.on_error` is `raise`.
            CheckpointError: The training part was not stored.
        """
        self.records = records
        self.part = cache.part("train")
        self.views = cache.facts.train_views
        self.mirror = mirror_of(record, experiment.data.augment.protocol)
        self.num_classes = record.num_classes
        self.multi_label = record.multi_label
        same = experiment.train.precision == self.part.facts.precision
        self.dtype = getattr(torch, self.part.facts.dtype) if same else torch.float32
        self.videos: list[StoredVideo | None] = []
        for video in records:
            stored = stored_video(cache, self.part, video)
            if stored is None and experiment.data.on_error == "raise":
                raise DataError(
                    f"video {video.id!r} could not be read when {cache} was written: "
                    f"{self.part.facts.skipped[video.id]}; leave such videos out with `data.on_error: skip`"
                )
            self.videos.append(stored)

    def batch(self, numbers: Sequence[int], epoch: int | None) -> tuple[Batch, list[tuple[str, str]]]:
        """Return a batch, and the videos of it that are not there with the reason.

        Args:
            numbers: Of videos; past the end they count the videos again, as `ClipDataset` does.
            epoch: Whose augmented clips; None takes the centred ones.
        """
        rows: list[int] = []
        ids: list[str] = []
        labels: list[tuple[int, ...]] = []
        skipped: list[tuple[str, str]] = []
        for number in numbers:
            again, place = divmod(number, len(self.records))
            record, stored = self.records[place], self.videos[place]
            if stored is None:
                skipped.append((record.id, self.part.facts.skipped[record.id]))
                continue
            row = stored.first if epoch is None else stored.first + CENTRED + (epoch + again) % self.views
            rows.append(row)
            ids.append(record.id)
            shown = record.all_labels
            labels.append(self.mirror.of(shown) if self.part.mirrored[row] else shown)
        features_BD = torch.from_numpy(np.asarray(self.part.rows[rows])).to(self.dtype)
        return Batch(features_BD, self._targets(labels), ids), skipped

    def _targets(self, labels: Sequence[tuple[int, ...]]) -> torch.Tensor:
        if self.multi_label and labels:
            return torch.stack([many_hot(each, self.num_classes) for each in labels])
        return torch.tensor([each[0] for each in labels], dtype=torch.int64)


class StoredLoader:
    """One pass over stored clips; never yields an empty batch.

    Attributes:
        position: One more than the number, in the pass, of the batch read last.
        skipped: (id, reason) of the videos left out since the iteration began.
    """

    def __init__(
        self,
        clips: StoredClips,
        plan: Sequence[Sequence[int]],
        *,
        epoch: int | None,
        skip: int = 0,
        pin: bool = False,
    ) -> None:
        """Plan a pass.

        Args:
            clips: What is read.
            plan: Numbers of the videos of each batch.
            epoch: Whose augmented clips; None takes the centred ones.
            skip: Batches of the plan to leave out at the start.
            pin: Read into memory that a GPU copies from by itself.
        """
        self.clips = clips
        self.plan = plan
        self.epoch = epoch
        self.skip = skip
        self.pin = pin
        self.position = skip
        self.skipped: list[tuple[str, str]] = []

    def __len__(self) -> int:
        """Batches to read (with `on_error: skip`, at most)."""
        return len(self.plan) - self.skip

    def __iter__(self) -> Iterator[Batch]:
        """Read the plan."""
        self.skipped, self.position = [], self.skip
        for number in range(self.skip, len(self.plan)):
            batch, skipped = self.clips.batch(self.plan[number], self.epoch)
            self.position = number + 1
            self.skipped += skipped
            if batch.ids:
                yield batch.pin_memory() if self.pin else batch


def stored_epoch(
    clips: StoredClips, experiment: Experiment, epoch: int, skip: int, *, pin: bool
) -> StoredLoader:
    """Return the batches of a training epoch, in the order in which `train_loader` gives the clips."""
    plan = epoch_plan(clips.records, experiment.data, experiment.train.batch_size, experiment.seed, epoch)
    return StoredLoader(clips, plan, epoch=epoch, skip=skip, pin=pin)


def stored_centred(clips: StoredClips, experiment: Experiment, *, pin: bool) -> StoredLoader:
    """Return the centred clip of every video, in batches of the training size."""
    plan = batches_of(range(len(clips.records)), experiment.train.batch_size)
    return StoredLoader(clips, plan, epoch=None, pin=pin)


__all__ = ["StoredClips", "StoredLoader", "stored_centred", "stored_epoch"]
