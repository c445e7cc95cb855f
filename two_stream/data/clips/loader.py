"""Loaders: batches of training and validation clips.

The order of an epoch comes from (seed, epoch); a resumed epoch skips batches without reading them. Worker processes
draw no random numbers, so their number changes nothing.
"""

from __future__ import annotations

import atexit
import multiprocessing
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import cv2
import torch
from torch.utils.data import DataLoader, Dataset

from two_stream.config.schema import DataOptions, Experiment
from two_stream.data.catalog import Record
from two_stream.data.clips.balance import balanced_order
from two_stream.data.clips.dataset import ClipDataset, ClipFailure, ClipItem
from two_stream.data.mirror import mirror_of
from two_stream.data.sources.choose import make_source
from two_stream.errors import DataError, loader_killed
from two_stream.runtime.seeding import rng
from two_stream.runtime.workers import end_with_parent
from two_stream.types import Batch, InputSpec, VideoRecord

T = TypeVar("T")
_Loaded = tuple[T | None, list[ClipFailure]]

WORKER_TIMEOUT = 1800.0
"""seconds after which a worker that delivers nothing is given up"""


@dataclass(frozen=True)
class Share:
    """Which batches of an epoch one of several processes reads.

    The epoch's batches are those of a single process. Every `group` of them in a row make one optimizer step; within
    a group they are dealt out one after another.
    """

    rank: int = 0
    world: int = 1
    group: int = 0
    """0 is one batch per process"""
    pin: bool = False
    """put batches into memory that a GPU copies from by itself"""

    def numbers(self, start: int, stop: int) -> list[int]:
        """Return the numbers of this process's batches among `start` … `stop - 1`; `start` begins a group."""
        group = self.group or self.world
        return [n for n in range(start, stop) if (n - start) % group % self.world == self.rank]


class Loader(Generic[T]):
    """Yields what a plan of indices asks for, in its order.

    Attributes:
        skipped: (id, reason) of the videos left out since the iteration began (`on_error: skip`).
        position: One more than the number, in the whole plan, of the entry read last, empty ones included; the number
            to give as `skip_batches` to go on from here.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        plan: Sequence[Sequence[int]],
        collate: Callable[[list[Any]], _Loaded[T]],
        data: DataOptions,
        *,
        skip: int = 0,
        share: Share | None = None,
    ) -> None:
        """Plan a pass.

        Args:
            dataset: Gives an item or a `ClipFailure` per index.
            plan: Indices of each batch.
            collate: Joins the items of a batch, apart from failures.
            data: Workers and `on_error`.
            skip: Batches of the plan to leave out at the start, unread.
            share: Which of the others to read; all of them by default.
        """
        self.dataset = dataset
        self.plan = [list(batch) for batch in plan]
        self.skip = skip
        self.position = skip
        self.skipped: list[tuple[str, str]] = []
        share = share or Share()
        self.numbers = share.numbers(skip, len(self.plan))
        self._pin = share.pin
        self._collate = collate
        self._data = data

    def __len__(self) -> int:
        """Batches to read (with `on_error: skip`, at most)."""
        return len(self.numbers)

    def __iter__(self) -> Iterator[T]:
        """Read the plan.

        Raises:
            DataError: A video cannot be read and `on_error` is `raise`; or a worker died.
        """
        self.skipped = []
        self.position = self.skip
        with closing(self._loaded()) as entries:
            for number, (loaded, failures) in zip(self.numbers, entries, strict=True):
                self.position = number + 1
                for failure in failures:
                    self._meet(failure)
                if loaded is not None:
                    yield loaded

    def _meet(self, failure: ClipFailure) -> None:
        if failure.error is not None:
            raise failure.error
        if self._data.on_error == "raise":
            raise DataError(
                f"video {failure.id!r} cannot be read: {failure.reason}; mend it, or leave such videos out with "
                "`data.on_error: skip`"
            )
        self.skipped.append((failure.id, failure.reason))

    def _loaded(self) -> Generator[_Loaded[T], None, None]:
        workers = min(self._data.workers, len(self))
        loader: DataLoader[Any] = DataLoader(
            self.dataset,
            batch_sampler=[self.plan[number] for number in self.numbers],
            num_workers=workers,
            collate_fn=self._collate,
            worker_init_fn=_start_worker,
            timeout=WORKER_TIMEOUT if workers else 0,
            pin_memory=self._pin,
            # without a generator of its own a loader draws from torch's global one, and a resumed run drifts
            generator=torch.Generator(),
        )
        iterator = iter(loader)
        end = partial(_end_workers, iterator)
        atexit.register(end)  # an exception on its way out may hold this generator until the interpreter ends
        try:
            while True:
                try:
                    loaded = next(iterator)
                except StopIteration:
                    return
                except RuntimeError as error:
                    if "DataLoader" not in str(error):
                        raise
                    signalled = any(
                        (worker.exitcode or 0) < 0 for worker in getattr(iterator, "_workers", ())
                    )
                    if killed := loader_killed(error, by_signal=signalled):
                        raise DataError(killed) from error
                    reason = str(error).splitlines()[0]
                    raise DataError(
                        f"a loader process stopped: {reason}; with `data.workers: 0` the cause is shown in place"
                    ) from error
                yield loaded
        finally:
            end()
            atexit.unregister(end)


def train_loader(
    experiment: Experiment,
    spec: InputSpec,
    records: Sequence[VideoRecord],
    record: Record,
    *,
    epoch: int,
    skip_batches: int = 0,
    share: Share | None = None,
    wrap: Callable[[ClipDataset], Dataset[ClipItem | ClipFailure]] | None = None,
) -> Loader[Batch]:
    """Return the batches of one training epoch: shuffled, one augmented clip per video, the last may be smaller.

    Args:
        experiment: Data and training settings, seed.
        spec: What the network expects.
        records: The training part.
        record: The data set.
        epoch: From 0 or 1 on; decides order and augmentation together with the seed.
        skip_batches: Batches of this epoch that are done already; they are not read.
        share: What this process reads of it; all by default. Shares have no clip in common and leave none out.
        wrap: Makes the data set that is read of the clips, for example one that adds others beside them.

    Raises:
        DataError: No videos, or the folder of frames or videos is absent.
    """
    plan = epoch_plan(experiment, records, epoch)
    clips = drawn_clips(experiment, spec, records, record, epoch=epoch)
    dataset = clips if wrap is None else wrap(clips)
    return Loader(dataset, plan, collate_clips, experiment.data, skip=skip_batches, share=share)


def clip_loader(
    experiment: Experiment,
    spec: InputSpec,
    records: Sequence[VideoRecord],
    record: Record,
    *,
    share: Share | None = None,
) -> Loader[Batch]:
    """Return the centred clip and crop of every video in the records' order, in batches of the training size.

    Of several processes each reads every so-many-th batch.

    Raises:
        DataError: No videos, or the folder of frames or videos is absent.
    """
    plan = batches_of(range(len(_some(records, "validation"))), experiment.train.batch_size)
    dataset = centred_clips(experiment, spec, records, record)
    return Loader(dataset, plan, collate_clips, experiment.data, share=share)


def drawn_clips(
    experiment: Experiment,
    spec: InputSpec,
    records: Sequence[VideoRecord],
    record: Record,
    *,
    epoch: int,
) -> ClipDataset:
    """Return the augmented clips of an epoch, one per video; `train_loader` has the arguments.

    Raises:
        DataError: The folder of frames or videos is absent.
    """
    data = experiment.data
    dataset = ClipDataset(
        make_source(record, spec.modality, data),
        records,
        spec,
        sampling=data.sampling,
        augment=data.augment,
        seed=experiment.seed,
        epoch=epoch,
        resize_once=data.resize_once,
    )
    dataset.frame_order = data.frame_order
    dataset.mirror = mirror_of(record, data.augment.protocol)
    dataset.multi_label = _multi_label(record)
    return dataset


def centred_clips(
    experiment: Experiment, spec: InputSpec, records: Sequence[VideoRecord], record: Record
) -> ClipDataset:
    """Return the centred clip and crop of every video; of whole frames after `augment.crop: full`.

    Raises:
        DataError: The folder of frames or videos is absent.
    """
    data = experiment.data
    source = make_source(record, spec.modality, data)
    dataset = ClipDataset(source, records, spec, sampling=data.sampling)
    dataset.whole_frame = data.augment.whole_frame
    dataset.frame_order = experiment.data.frame_order
    dataset.multi_label = _multi_label(record)
    return dataset


def epoch_plan(experiment: Experiment, records: Sequence[VideoRecord], epoch: int) -> list[list[int]]:
    """Return which clips make each batch of an epoch; `ClipDataset` says what a number past the end is.

    Raises:
        DataError: No videos.
    """
    order = epoch_order(len(_some(records, "training")), experiment.seed, epoch)
    if experiment.data.balance == "classes":
        order = balanced_order(records, experiment.seed, epoch)
    return batches_of(order, experiment.train.batch_size)


def epoch_order(count: int, seed: int, epoch: int) -> list[int]:
    """Return the order of an epoch: a permutation that depends on seed and epoch alone."""
    return [int(index) for index in rng("order", seed, epoch).permutation(count)]


def collate_clips(items: list[ClipItem | ClipFailure]) -> _Loaded[Batch]:
    """Join clips to a batch `(B, C, T, H, W)`; None when none is whole."""
    whole = [item for item in items if isinstance(item, ClipItem)]
    failures = [item for item in items if isinstance(item, ClipFailure)]
    if not whole:
        return None, failures
    clips = torch.stack([item.clip for item in whole])
    targets = [item.targets for item in whole if item.targets is not None]
    labels = (
        torch.stack(targets) if targets else torch.tensor([item.label for item in whole], dtype=torch.int64)
    )
    beside = tuple(torch.stack(others) for others in zip(*(item.beside for item in whole), strict=True))
    return Batch(clips, labels, [item.id for item in whole], beside), failures


def _multi_label(record: Record) -> int:
    return record.num_classes if record.multi_label else 0


def batches_of(order: Sequence[int], size: int) -> list[list[int]]:
    """Cut an order into batches; the last may be smaller."""
    return [list(order[start : start + size]) for start in range(0, len(order), size)]


def _some(records: Sequence[VideoRecord], part: str) -> Sequence[VideoRecord]:
    if not records:
        raise DataError(f"the {part} part has no videos; check the split list and `data.holdout`")
    return records


def _start_worker(_number: int) -> None:
    """Leave Ctrl-C, SIGHUP and the first SIGTERM, which reach the whole process group, to the main process.

    It saves and then ends its workers; one of them dying first would turn a clean stop into a crash. They end with it.
    """
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid is not None:
        end_with_parent(parent.pid)
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))


def _end_workers(iterator: Any) -> None:
    """End the workers of a pass for good.

    One that is stuck in a decoder sees no SIGTERM, which is all that torch and multiprocessing send, and the process
    would wait for it at its exit.
    """
    shut_down = getattr(iterator, "_shutdown_workers", None)
    if shut_down is None:  # no workers
        return
    shut_down()  # asks first, and tells torch that the end of its workers is no accident
    for worker in iterator._workers:
        if worker.is_alive():
            worker.kill()
            worker.join()
