"""What a trainer reads: the two parts of the data and how to iterate over them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from two_stream.config.schema import Experiment
from two_stream.data.catalog import Record, load_record
from two_stream.data.loader import clip_loader, train_loader
from two_stream.data.splits import load_part
from two_stream.runtime import distributed
from two_stream.types import Batch, InputSpec, Part, VideoRecord

_PARTS: tuple[Part, Part] = ("train", "val")


class EpochLoader(Protocol):
    """One pass over the training part; never yields an empty batch."""

    position: int
    """micro-batches of the epoch used up so far, those left out whole included"""
    skipped: list[tuple[str, str]]
    """id and reason of the videos left out so far"""

    def __iter__(self) -> Iterator[Batch]: ...


@dataclass(frozen=True)
class TrainingData:
    """The data of a run, independent of where it comes from."""

    train: Callable[[int, int], EpochLoader]
    """epoch (from 0) and micro-batches to skip -> loader"""
    validation: Callable[[], Iterable[Batch]]
    num_train: int
    num_val: int
    class_names: list[str]
    dataset: str = ""
    fingerprint: str = ""
    """changes with the videos, their order, labels and frame counts"""


def training_data(experiment: Experiment, spec: InputSpec) -> TrainingData:
    """Read the lists of an experiment; clips are read when iterated.

    Raises:
        DataError: A record, list or folder is missing or wrong.
    """
    record = load_record(experiment.data.dataset, experiment.data.settings_root)
    train, val = (_part(experiment, spec, record, part) for part in _PARTS)
    rank, world = distributed.rank(), distributed.world_size()
    return TrainingData(
        train=lambda epoch, skip: train_loader(
            experiment, spec, train, record, epoch=epoch, skip_batches=skip, rank=rank, world=world
        ),
        validation=lambda: clip_loader(experiment, spec, val, record),
        num_train=-(-len(train) // world),
        num_val=len(val),
        class_names=list(record.classes),
        dataset=record.name,
        fingerprint=fingerprint(train, val, record.classes),
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
            digest.update(f"\x1f{record.id}\x1d{record.num_frames}\x1d{record.label}".encode())
    return digest.hexdigest()
