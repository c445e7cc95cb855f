"""What a trainer reads: the two parts of the data and how to iterate over them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

from torch.utils.data import Dataset

from two_stream.config.schema import Experiment
from two_stream.data.catalog import Record, load_record
from two_stream.data.clips.balance import class_counts
from two_stream.data.clips.dataset import ClipDataset, ClipFailure, ClipItem
from two_stream.data.clips.loader import Share, clip_loader, train_loader
from two_stream.data.mirror import Mirror, mirror_note, mirror_of
from two_stream.data.splits import load_part
from two_stream.errors import SettingsError
from two_stream.evaluation.features.batches import StoredClips, stored_centred, stored_epoch
from two_stream.evaluation.features.cache import FeatureCache, view_settings
from two_stream.evaluation.runs.frames_made import made_now
from two_stream.runtime import distributed
from two_stream.runtime.console import progress, warn
from two_stream.training.losses import Labels
from two_stream.types import Batch, InputSpec, Part, VideoRecord

Wrap = Callable[[ClipDataset], Dataset[ClipItem | ClipFailure]]
_PARTS: tuple[Part, Part] = ("train", "val")


class EpochLoader(Protocol):
    """One pass over the training part; never yields an empty batch."""

    position: int
    """one more than the number, in the epoch, of the micro-batch read last"""
    skipped: list[tuple[str, str]]
    """id and reason of the videos left out so far"""

    def __iter__(self) -> Iterator[Batch]: ...


@dataclass(frozen=True)
class TrainingData:
    """The data of a run, independent of where it comes from."""

    train: Callable[..., EpochLoader]
    """epoch (from 0) and micro-batches to skip -> loader; in one of several processes that of its share, and then
    `group=` says how many micro-batches make a step; `wrap=` may put other clips beside those of videos"""
    validation: Callable[[], Iterable[Batch]]
    """this process's part"""
    num_train: int
    """clips of an epoch, of all processes together, as `num_val`"""
    num_val: int
    class_names: list[str]
    labels: Labels | None = None
    """of the training part; None: one class per clip, their frequencies unknown"""
    dataset: str = ""
    extraction: dict[str, Any] | None = None
    """how the frames are made, where that is known"""
    fingerprint: str = ""
    """changes with the videos, their order, labels and frame counts"""
    mirror: Mirror = field(default_factory=Mirror)
    """what the mirror image of a video is an example of"""
    features: FeatureCache | None = None
    """stored features that stand in place of clips"""
    centred: Callable[[], Iterable[Batch]] = tuple
    """this process's part of the centred clips of the training part"""
    records: Sequence[VideoRecord] = ()
    """the training part"""


def training_data(experiment: Experiment, spec: InputSpec, *, pin: bool = False) -> TrainingData:
    """Read the lists of an experiment; clips are read when iterated.

    Args:
        experiment: Settings.
        spec: What the network expects.
        pin: Read into memory that a GPU copies from by itself.

    Raises:
        DataError: A record, list or folder is missing or wrong.
    """
    record = load_record(experiment.data.dataset, experiment.data.settings_root)
    train, val = (_part(experiment, spec, record, part) for part in _PARTS)
    protocol = experiment.data.augment.protocol
    note = mirror_note(record, protocol, experiment.data.augment.flip > 0)
    if note and distributed.is_main():
        warn(note)
    cache = None if experiment.data.features is None else FeatureCache(experiment.data.features)
    read = _clips if cache is None else partial(_stored, cache)
    open_epoch, open_validation, open_centred = read(experiment, spec, record, train, val, pin)
    lists = fingerprint(train, val, record.classes)
    return TrainingData(
        train=open_epoch,
        validation=open_validation,
        num_train=len(train),
        num_val=len(val),
        class_names=list(record.classes),
        labels=Labels(
            record.num_classes, record.multi_label, class_counts(train, record.num_classes), len(train)
        ),
        dataset=record.name,
        extraction=made_now(experiment.data, record, spec.modality) if cache is None else None,
        fingerprint=lists if cache is None else f"{lists} {cache.content}",
        mirror=mirror_of(record, protocol),
        features=cache,
        centred=open_centred,
        records=train,
    )


_Opened = tuple[Callable[..., EpochLoader], Callable[[], Iterable[Batch]], Callable[[], Iterable[Batch]]]


def _clips(
    experiment: Experiment,
    spec: InputSpec,
    record: Record,
    train: list[VideoRecord],
    val: list[VideoRecord],
    pin: bool,
) -> _Opened:
    """Return what opens the clips of an epoch, of the validation, and the centred ones of the training part."""
    whole = Share(distributed.rank(), distributed.world_size(), pin=pin)

    def open_epoch(epoch: int, skip: int, *, group: int = 0, wrap: Wrap | None = None) -> EpochLoader:
        share = replace(whole, group=group)
        return train_loader(
            experiment, spec, train, record, epoch=epoch, skip_batches=skip, share=share, wrap=wrap
        )

    centred = partial(clip_loader, experiment, spec)
    return (
        open_epoch,
        lambda: centred(val, record, share=whole),
        lambda: centred(train, record, share=whole),
    )


def _stored(
    cache: FeatureCache,
    experiment: Experiment,
    spec: InputSpec,
    record: Record,
    train: list[VideoRecord],
    val: list[VideoRecord],
    pin: bool,
) -> _Opened:
    """Return what opens the stored features in place of those clips."""
    if distributed.world_size() > 1:
        raise SettingsError("`data.features` is read by one process; start the run without torchrun")
    settings = view_settings(experiment.model, spec, experiment.data, record, training=True)
    cache.check_settings(settings, record.classes)
    shown, centred = (StoredClips(cache, experiment, part, record) for part in (train, val))
    return (
        lambda epoch, skip: stored_epoch(shown, experiment, epoch, skip, pin=pin),
        lambda: stored_centred(centred, experiment, pin=pin),
        lambda: stored_centred(shown, experiment, pin=pin),
    )


def _part(experiment: Experiment, spec: InputSpec, record: Record, part: Part) -> list[VideoRecord]:
    return load_part(
        record,
        spec.modality,
        experiment.data.split,
        part,
        selection=experiment.train.selection,
        holdout=experiment.data.holdout,
        seed=experiment.seed,
    )


def fingerprint(train: Sequence[VideoRecord], val: Sequence[VideoRecord], classes: Sequence[str]) -> str:
    """Return the SHA-256 of everything the lists say."""
    digest = hashlib.sha256("\x1f".join(classes).encode())
    for name, records in (("train", train), ("val", val)):
        digest.update(f"\x1e{name}".encode())
        for record in records:
            labels = ",".join(map(str, record.all_labels))
            digest.update(f"\x1f{record.id}\x1d{record.num_frames}\x1d{labels}".encode())
    return digest.hexdigest()


def with_progress(batches: Iterable[Batch], title: str, total: int) -> Iterator[Batch]:
    """Yield batches and display how many clips of all processes are read."""
    with progress(title, total) as advance:
        for batch in batches:
            yield batch
            advance(len(batch.ids) * distributed.world_size())
