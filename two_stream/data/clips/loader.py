"""Loaders: batches of training and validation clips.

The order of an epoch depends only on the seed and the number of the epoch. A resumed epoch skips finished batches
without reading them. The random numbers for a clip depend only on the seed, the epoch and the video, so the number of
workers does not change the batches.
"""

from __future__ import annotations

import atexit
import multiprocessing
import signal
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from two_stream.config.schema import DataOptions
from two_stream.data.clips.dataset import ClipDataset, ClipFailure, ClipItem
from two_stream.errors import DataError, loader_killed
from two_stream.runtime.device import rng
from two_stream.runtime.workers import end_with_parent
from two_stream.types import Batch, VideoRecord

T = TypeVar("T")
_Loaded = tuple[T | None, list[ClipFailure]]

WORKER_TIMEOUT = 1800.0
"""seconds without a batch after which a worker is considered hung"""


@dataclass(frozen=True)
class Share:
    """The share of an epoch's batches that one of several processes reads.

    The batches of an epoch do not depend on the number of processes. Every `group` consecutive batches form one
    optimizer step and are assigned to the processes in turn.
    """

    rank: int = 0
    world: int = 1
    group: int = 0
    """number of batches per optimizer step, over all processes; 0: one batch per process"""
    pin: bool = False
    """put batches into page-locked memory, for asynchronous copies to a GPU"""

    def numbers(self, start: int, stop: int) -> list[int]:
        """Return this process's batches from `start` to `stop - 1`; `start` must be the first batch of a group."""
        group = self.group or self.world
        return [n for n in range(start, stop) if (n - start) % group % self.world == self.rank]


class Loader(Generic[T]):
    """Yields batches in the order of a plan, which lists the item indices of every batch.

    Attributes:
        skipped: (id, reason) of each video skipped since the iteration began (`on_error: skip`).
        position: Number of batches of the full plan that are done, including empty ones; to resume, use it as
            `skip_batches`.
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
            data: Number of workers, and `on_error`.
            skip: Batches at the start of the plan that are not read.
            share: Which of the remaining batches to read; all by default.
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
        """Return the number of batches; with `on_error: skip`, fewer may be yielded."""
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
                    self.handle_failure(failure)
                if loaded is not None:
                    yield loaded

    def handle_failure(self, failure: ClipFailure) -> None:
        """Raise the error of a video that could not be read, or add the video to `skipped` (`on_error: skip`)."""
        if failure.error is not None:
            raise failure.error
        if self._data.on_error == "raise":
            raise DataError(
                f"video {failure.id!r} cannot be read: {failure.reason}. Fix the file, or skip "
                "unreadable videos with "
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
            # without its own generator a loader draws from torch's global one, and a resumed run would differ
            generator=torch.Generator(),
        )
        yield from _read(loader)


def read_stream(dataset: IterableDataset[T], workers: int) -> Generator[T, None, None]:
    """Yield the items of a data set that divides its items between the loader processes itself.

    Raises:
        DataError: A loader process died.
    """
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_size=None,
        num_workers=workers,
        collate_fn=_unchanged,
        worker_init_fn=_start_worker,
        timeout=WORKER_TIMEOUT if workers else 0,
        generator=torch.Generator(),
    )
    yield from _read(loader)


def _unchanged(item: T) -> T:
    return item


def _read(loader: DataLoader[Any]) -> Generator[Any, None, None]:
    """Yield the items of a loader, and end its processes however the iteration ends."""
    iterator = iter(loader)
    end = partial(_end_workers, iterator)
    atexit.register(end)  # a propagating exception may keep this generator alive until the interpreter exits
    try:
        while True:
            try:
                loaded = next(iterator)
            except StopIteration:
                return
            except RuntimeError as error:
                if "DataLoader" not in str(error):
                    raise
                signalled = any((worker.exitcode or 0) < 0 for worker in getattr(iterator, "_workers", ()))
                if killed := loader_killed(error, by_signal=signalled):
                    raise DataError(killed) from error
                reason = str(error).splitlines()[0]
                raise DataError(
                    f"a loader process stopped: {reason}; set `data.workers: 0` to see the cause"
                ) from error
            yield loaded
    finally:
        end()
        atexit.unregister(end)


def clip_loader(
    clips: ClipDataset,
    batch_size: int,
    *,
    skip_batches: int = 0,
    share: Share | None = None,
    wrap: Callable[[ClipDataset], Dataset[ClipItem | ClipFailure]] | None = None,
) -> Loader[Batch]:
    """Return a loader for one pass over clips, shuffled for a training epoch, otherwise in the order of the videos.

    Args:
        clips: One clip per video; their seed and epoch decide the order.
        batch_size: Clips per batch; the last batch may be smaller.
        skip_batches: Batches of this epoch that are done already; they are not read.
        share: Which batches this process reads; all by default. Shares are disjoint and cover the epoch.
        wrap: Returns the data set to read, given the clips; for example one that adds clips for other networks.

    Raises:
        DataError: No videos.
    """
    plan = epoch_plan(clips.records, clips.data, batch_size, clips.seed, clips.epoch)
    dataset = clips if wrap is None else wrap(clips)
    return Loader(dataset, plan, collate_clips, clips.data, skip=skip_batches, share=share)


def epoch_plan(
    records: Sequence[VideoRecord], data: DataOptions, batch_size: int, seed: int, epoch: int | None
) -> list[list[int]]:
    """Return the clip indices of each batch of an epoch; if `epoch` is None, clips are in the order of the videos.

    Indices from `len(records)` upwards are explained in `balanced_order`.

    Raises:
        DataError: No videos.
    """
    if not records:
        part = "validation" if epoch is None else "training"
        raise DataError(f"the {part} part has no videos; check the split list and `data.holdout`")
    if epoch is None:
        order: Sequence[int] = range(len(records))
    elif data.balance == "classes":
        order = balanced_order(records, seed, epoch)
    else:
        order = epoch_order(len(records), seed, epoch)
    return batches_of(order, batch_size)


def epoch_order(count: int, seed: int, epoch: int) -> list[int]:
    """Return the order of an epoch, a permutation that depends only on the seed and the epoch."""
    return [int(index) for index in rng("order", seed, epoch).permutation(count)]


def balanced_order(records: Sequence[VideoRecord], seed: int, epoch: int) -> list[int]:
    """Draw `len(records)` clip indices with replacement; the result depends only on the seed and the epoch.

    The probability of a video is inversely proportional to the size of its class; for a video with several classes, it
    is the mean of the values for these classes. The second draw of video i gets the index `i + len(records)`, the third
    `i + 2 * len(records)`, so that each draw has its own clip and augmentation.
    """
    counts = Counter(label for record in records for label in record.all_labels)
    share = np.array([np.mean([1.0 / counts[label] for label in record.all_labels]) for record in records])
    drawn = rng("order", seed, epoch).choice(len(records), size=len(records), p=share / share.sum())
    seen: Counter[int] = Counter()
    order = []
    for index in map(int, drawn):
        order.append(index + seen[index] * len(records))
        seen[index] += 1
    return order


def class_counts(records: Sequence[VideoRecord], num_classes: int) -> tuple[int, ...]:
    """Return the number of videos of each class; a video with several classes is counted once for each of them."""
    counts = Counter(label for record in records for label in record.all_labels)
    return tuple(counts[label] for label in range(num_classes))


def collate_clips(items: list[ClipItem | ClipFailure]) -> _Loaded[Batch]:
    """Stack clips into a batch `(B, C, T, H, W)`; return None for the batch if no clip could be read."""
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


def batches_of(order: Sequence[int], size: int) -> list[list[int]]:
    """Split a sequence of indices into batches; the last batch may be smaller."""
    return [list(order[start : start + size]) for start in range(0, len(order), size)]


def _start_worker(_number: int) -> None:
    """Let only the main process handle Ctrl-C, SIGHUP and the first SIGTERM, which reach the whole process group.

    The main process saves a checkpoint and then ends its workers. If a worker ended first, the main process would
    crash.
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
    """Stop the worker processes of a loader.

    A worker that hangs in a decoder ignores SIGTERM, the only signal that torch and multiprocessing send. Such a worker
    is killed; otherwise the main process would wait for it at exit.
    """
    shut_down = getattr(iterator, "_shutdown_workers", None)
    if shut_down is None:  # no workers
        return
    shut_down()  # a regular stop, so that torch does not report the workers as crashed
    for worker in iterator._workers:
        if worker.is_alive():
            worker.kill()
            worker.join()
