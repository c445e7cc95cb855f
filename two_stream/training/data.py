"""The training and validation data of a run, read from clips or from stored features."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

from torch.utils.data import Dataset

from two_stream.config.schema import Experiment
from two_stream.data.catalog import Mirror, Record, mirror_note, mirror_of
from two_stream.data.clips.dataset import (
    BROKEN,
    ClipDataset,
    ClipFailure,
    ClipItem,
    current_extraction,
    make_source,
    open_clips,
)
from two_stream.data.clips.loader import Share, class_counts, clip_loader
from two_stream.data.splits import fingerprint, training_lists
from two_stream.errors import SettingsError
from two_stream.evaluation.features.cache import (
    FeatureCache,
    SharedFeatures,
    StoredClips,
    stored_centred,
    stored_epoch,
    view_settings,
)
from two_stream.runtime import distributed
from two_stream.runtime.console import progress, warn
from two_stream.training.losses import Labels
from two_stream.types import Batch, InputSpec, VideoRecord

Wrap = Callable[[ClipDataset], Dataset[ClipItem | ClipFailure]]


class EpochLoader(Protocol):
    """One pass over the training part; it yields no empty batches."""

    position: int
    """number of the next micro-batch in the epoch"""
    skipped: list[tuple[str, str]]
    """`(id, reason)` for each video skipped so far"""

    def __iter__(self) -> Iterator[Batch]: ...


@dataclass(frozen=True)
class TrainingData:
    """Training and validation data of a run."""

    train: Callable[..., EpochLoader]
    """function that returns the loader of this process's share of the training clips. Its arguments are the epoch (from
    0), the number of micro-batches to skip, `group` (number of micro-batches per step if there are several processes),
    and `wrap` (a function that wraps the data set, for example to add clips for teachers)"""
    validation: Callable[[], Iterable[Batch]]
    """function that returns this process's batches of the validation part"""
    num_train: int
    """training clips per epoch, summed over all processes"""
    num_val: int
    class_names: list[str]
    labels: Labels | None = None
    """labels of the training part; None means that clips have one class and the class frequencies are unknown"""
    dataset: str = ""
    extraction: dict[str, Any] | None = None
    """how the frames were extracted; None if unknown"""
    fingerprint: str = ""
    """hash of the videos, their order, labels and frame counts"""
    lists: dict[str, Any] = field(default_factory=dict)
    """`training_videos` and `training_list`, as returned by `list_facts`"""
    mirror: Mirror = field(default_factory=Mirror)
    """how mirroring a video changes its label"""
    features: FeatureCache | None = None
    """stored features that replace the clips; None if clips are read"""
    centred: Callable[[], Iterable[Batch]] = tuple
    """function that returns this process's batches of the training part, with the centred clip of each video"""
    records: Sequence[VideoRecord] = ()
    """videos of the training part"""


def training_data(
    experiment: Experiment,
    record: Record,
    spec: InputSpec,
    *,
    pin: bool = False,
    shared: SharedFeatures | None = None,
) -> TrainingData:
    """Read the split lists of an experiment and prepare the loaders. Clips are read during iteration.

    Args:
        experiment: Settings.
        record: The data set.
        spec: Input of the network.
        pin: Whether to read clips into pinned memory.
        shared: Stored features that several runs of this process share.

    Raises:
        DataError: A list or folder is missing or invalid.
        SettingsError: Stored features do not fit the settings, or are used with several processes.
    """
    data, size = experiment.data, experiment.train.batch_size
    train, val, facts = training_lists(experiment, record)
    protocol = data.augment.protocol
    note = mirror_note(record, protocol, data.augment.flip > 0)
    if note and distributed.is_main():
        warn(note)
    classes = record.num_classes
    common = partial(
        TrainingData,
        num_train=len(train),
        num_val=len(val),
        class_names=list(record.classes),
        labels=Labels(classes, record.multi_label, class_counts(train, classes), len(train)),
        dataset=record.name,
        mirror=mirror_of(record, protocol),
        records=train,
        lists=facts,
    )
    lists = fingerprint(train, val, record.classes)
    if data.features is not None:
        if distributed.world_size() > 1:
            raise SettingsError("`data.features` supports one process only; start the run without torchrun")
        cache = FeatureCache(data.features)
        settings = view_settings(experiment.model, spec, data, record, training=True)
        cache.check_settings(settings, record.classes)
        open_clips_of = StoredClips if shared is None else shared.clips
        shown, centred = (open_clips_of(cache, experiment, part, record) for part in (train, val))
        return common(
            train=lambda epoch, skip: stored_epoch(shown, experiment, epoch, skip, pin=pin),
            validation=lambda: stored_centred(centred, experiment, pin=pin),
            centred=lambda: stored_centred(shown, experiment, pin=pin),
            features=cache,
            fingerprint=f"{lists} {cache.content}",
        )
    for video in train[:1] if spec.fps is not None else []:  # wrong settings, before a run folder is written
        with suppress(*BROKEN):
            make_source(record, spec.modality, data, spec.fps).count(video)
    share = Share(distributed.rank(), distributed.world_size(), pin=pin)

    def open_epoch(epoch: int, skip: int, *, group: int = 0, wrap: Wrap | None = None) -> EpochLoader:
        clips = open_clips(data, spec, train, record, seed=experiment.seed, epoch=epoch)
        return clip_loader(clips, size, skip_batches=skip, share=replace(share, group=group), wrap=wrap)

    def open_centred(videos: list[VideoRecord]) -> Iterable[Batch]:
        return clip_loader(open_clips(data, spec, videos, record), size, share=share)

    return common(
        train=open_epoch,
        validation=lambda: open_centred(val),
        centred=lambda: open_centred(train),
        extraction=current_extraction(data, record, spec.modality),
        fingerprint=lists,
    )


def with_progress(batches: Iterable[Batch], title: str, total: int) -> Iterator[Batch]:
    """Yield batches and show how many clips all processes together have read."""
    with progress(title, total) as advance:
        for batch in batches:
            yield batch
            advance(len(batch.ids) * distributed.world_size())
