"""Cost of loading clips: reading and decoding, cropping, collating, and copying to the device."""

from __future__ import annotations

import math
import time
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, cast

import cv2
import torch

from two_stream.config.schema import DataOptions, Experiment
from two_stream.data.catalog import Record, dataset_record
from two_stream.data.clips.dataset import open_clips
from two_stream.data.clips.loader import Loader, clip_loader, collate_clips
from two_stream.data.splits import experiment_part
from two_stream.profiling.timing import wait_for_device
from two_stream.types import Batch, InputSpec, VideoRecord

if TYPE_CHECKING:
    from collections.abc import Generator

_DECISIVE = 1.1
"""Two rates are treated as equal if they differ by less than this factor."""
_AHEAD, _MOST = 2, 2000
"""Number of batches that a worker prefetches, and largest number of batches to read."""


@dataclass
class LoadingCost:
    """Milliseconds per training clip on one CPU core, and the rate of all workers."""

    dataset: str
    source: str
    modality: str
    clips: int
    read: float
    """milliseconds for reading, decoding and resizing"""
    transform: float
    """milliseconds for cropping, mirroring and changing the memory layout"""
    collate: float
    copy: float
    workers: int
    clips_per_second: float
    """clips per second of all workers together, without a network"""

    @property
    def worker_milliseconds(self) -> float:
        """Milliseconds that a worker needs for one clip."""
        return self.read + self.transform + self.collate

    def workers_for(self, clips_per_second: float) -> int:
        """Return the number of loader processes, each on its own CPU core, that can keep up with a model."""
        return max(1, math.ceil(clips_per_second * self.worker_milliseconds / 1e3))

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**asdict(self), "worker_milliseconds": self.worker_milliseconds}


class _Clocked:
    """Wraps a clip source and sums the time that its methods take."""

    def __init__(self, source: Any) -> None:
        self._source = source
        self.seconds = 0.0

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._source, name)
        if not callable(found):
            return found

        def call(*args: Any, **options: Any) -> Any:
            start = time.perf_counter()
            try:
                return found(*args, **options)
            finally:
                self.seconds += time.perf_counter() - start

        return call


def measure_loading(
    experiment: Experiment, spec: InputSpec, device: torch.device, *, seconds: float = 5.0
) -> LoadingCost:
    """Time the loading of an experiment's training clips, once with the workers and once in this process.

    Each measurement takes about `seconds` and reads at least one batch.

    Raises:
        DataError: The data set, its split list or a video cannot be read.
    """
    record, records = training_part(experiment, spec)
    data = experiment.data
    clips = open_clips(experiment.data, spec, records, record, seed=experiment.seed, epoch=0)
    plan = clip_loader(clips, experiment.train.batch_size)
    together = _together(plan, data, seconds)
    times, count = _alone(plan, device, seconds)
    return LoadingCost(
        dataset=record.name,
        source=data.source,
        modality=spec.modality,
        clips=count,
        **{name: value / count * 1e3 for name, value in times.items()},
        workers=data.workers,
        clips_per_second=together,
    )


def training_part(experiment: Experiment, spec: InputSpec) -> tuple[Record, list[VideoRecord]]:
    """Return the data set and the training videos of an experiment.

    Raises:
        DataError: The data set or its split list cannot be read.
    """
    record = dataset_record(experiment.data)
    return record, experiment_part(experiment, record, "train", spec.modality)


def _alone(loader: Any, device: torch.device, seconds: float) -> tuple[dict[str, float], int]:
    """Load clips in this process as a worker does; return the seconds of each step and the number of clips."""
    source = _Clocked(loader.dataset.source)
    loader.dataset.source = source
    times = dict.fromkeys(("read", "transform", "collate", "copy"), 0.0)
    threads = cv2.getNumThreads(), torch.get_num_threads()
    cv2.setNumThreads(0)  # as in a worker
    torch.set_num_threads(1)
    count, end = 0, time.perf_counter() + seconds
    try:
        for number, plan in enumerate(loader.plan):
            if number and time.perf_counter() > end:
                break
            source.seconds = 0.0
            start = time.perf_counter()
            items = [loader.dataset[index] for index in plan]
            fetched = time.perf_counter()
            batch, failures = collate_clips(items)
            joined = time.perf_counter()
            for failure in failures:
                loader.handle_failure(failure)
            if batch is None:
                continue
            wait_for_device(device)
            sent = time.perf_counter()
            batch.clips.to(device, copy=True)
            wait_for_device(device)
            times["copy"] += time.perf_counter() - sent
            times["read"] += source.seconds
            times["transform"] += fetched - start - source.seconds
            times["collate"] += joined - fetched
            count += len(batch.ids)
    finally:
        cv2.setNumThreads(threads[0])
        torch.set_num_threads(threads[1])
    return times, max(1, count)


def _together(loader: Loader[Batch], data: DataOptions, seconds: float) -> float:
    """Return the clips per second of the loader. The epoch is repeated if necessary.

    The first batches are not counted, because the workers prefetch them (two per worker).
    """
    ready = _AHEAD * data.workers + 1
    repeats = -(-(ready + _MOST) // len(loader.plan))
    long = Loader(loader.dataset, loader.plan * repeats, collate_clips, data)
    count, start = 0, time.perf_counter()
    last = start
    with closing(cast("Generator[Batch]", iter(long))) as batches:
        for number, batch in enumerate(batches, start=1):
            last = time.perf_counter()
            if number <= ready:
                start = last
                continue
            count += len(batch.ids)
            if last - start >= seconds and number >= 2 * ready:
                break
    return count / max(last - start, 1e-9)


def loading_verdict(loading: LoadingCost, model_clips_per_second: float, what: str) -> str:
    """Return a sentence on whether the loader or the model limits the speed of a run."""
    loader, model = loading.clips_per_second, model_clips_per_second
    workers = f"{loading.workers} workers" if loading.workers != 1 else "1 worker"
    gives = f"the loader delivers {_rate(loader)} clips/s with {workers}, the model processes {_rate(model)} ({what})"
    need = loading.workers_for(model)
    if loader > model * _DECISIVE:
        return f"{gives}: the model is the limit"
    if model > loader * _DECISIVE:
        return f"{gives}: the loader is the limit; {need} workers with one processor each would keep up"
    return f"{gives}: they are about equal"


def _rate(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}"
