"""Loaders: batches of training and validation clips, and the views of one video at a time.

The order of an epoch comes from (seed, epoch); a resumed epoch skips batches without reading them. Worker processes
draw no random numbers, so their number changes nothing.
"""

from __future__ import annotations

import atexit
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from functools import partial
from itertools import cycle, islice
from typing import Any, Generic, TypeVar

import cv2
import torch
from torch.utils.data import DataLoader

from two_stream.config.schema import DataOptions, Experiment
from two_stream.data.catalog import Record
from two_stream.data.dataset import ClipDataset, ClipItem, Failure, ViewDataset
from two_stream.data.source import make_source
from two_stream.errors import DataError
from two_stream.runtime.seeding import rng
from two_stream.types import Batch, InputSpec, VideoRecord, VideoViews

T = TypeVar("T")
_Loaded = tuple[T | None, list[Failure]]

WORKER_TIMEOUT = 1800.0
"""seconds after which a worker that delivers nothing is given up"""


class Loader(Generic[T]):
    """Yields what a plan of indices asks for, in its order.

    Attributes:
        skipped: (id, reason) of the videos left out since the iteration began (`on_error: skip`).
        position: Entries of the whole plan used up, those skipped at the start and empty ones included; the number to
            give as `skip_batches` to go on from here.
    """

    def __init__(
        self,
        dataset: ClipDataset | ViewDataset,
        plan: Sequence[Sequence[int]],
        collate: Callable[[list[Any]], _Loaded[T]],
        data: DataOptions,
        *,
        skip: int = 0,
    ) -> None:
        """Plan a pass.

        Args:
            dataset: Gives an item or a `Failure` per index.
            plan: Indices of each batch.
            collate: Joins the items of a batch, apart from failures.
            data: Workers and `on_error`.
            skip: Batches of the plan to leave out at the start, unread.
        """
        self.dataset = dataset
        self.plan = [list(batch) for batch in plan]
        self.skip = skip
        self.position = skip
        self.skipped: list[tuple[str, str]] = []
        self._collate = collate
        self._data = data

    def __len__(self) -> int:
        """Batches that are still to come (with `on_error: skip`, at most)."""
        return max(0, len(self.plan) - self.skip)

    def __iter__(self) -> Iterator[T]:
        """Read the plan.

        Raises:
            DataError: A video cannot be read and `on_error` is `raise`; or a worker died.
        """
        self.skipped = []
        self.position = self.skip
        with closing(self._loaded()) as entries:
            for loaded, failures in entries:
                self.position += 1
                for failure in failures:
                    self._meet(failure)
                if loaded is not None:
                    yield loaded

    def _meet(self, failure: Failure) -> None:
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
            batch_sampler=self.plan[self.skip :],
            num_workers=workers,
            collate_fn=self._collate,
            worker_init_fn=_start_worker,
            timeout=WORKER_TIMEOUT if workers else 0,
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
    rank: int = 0,
    world: int = 1,
) -> Loader[Batch]:
    """Return the batches of one training epoch: shuffled, one augmented clip per video, the last may be smaller.

    Args:
        experiment: Data and training settings, seed.
        spec: What the network expects.
        records: The training part.
        record: The data set.
        epoch: From 0 or 1 on; decides order and augmentation together with the seed.
        skip_batches: Batches of this epoch that are done already; they are not read.
        rank: Number of this process among `world`; each reads its share, the last ones filled up from the front.
        world: Processes that train together.

    Raises:
        DataError: No videos, or the folder of frames or videos is absent.
    """
    data = experiment.data
    order = epoch_order(len(_some(records, "training")), experiment.seed, epoch)
    order = list(islice(cycle(order), -(-len(order) // world) * world))
    dataset = ClipDataset(
        make_source(record, spec.modality, data),
        records,
        spec,
        sampling=data.sampling,
        augment=data.augment,
        seed=experiment.seed,
        epoch=epoch,
    )
    plan = _batches(order[rank::world], experiment.train.batch_size)
    return Loader(dataset, plan, collate_clips, data, skip=skip_batches)


def clip_loader(
    experiment: Experiment,
    spec: InputSpec,
    records: Sequence[VideoRecord],
    record: Record,
    *,
    rank: int = 0,
    world: int = 1,
) -> Loader[Batch]:
    """Return the centred clip and crop of every video in the records' order, in batches of the training size.

    Raises:
        DataError: No videos, or the folder of frames or videos is absent.
    """
    data = experiment.data
    source = make_source(record, spec.modality, data)
    dataset = ClipDataset(source, _some(records, "validation"), spec, sampling=data.sampling)
    plan = _batches(list(range(len(records)))[rank::world], experiment.train.batch_size)
    return Loader(dataset, plan, collate_clips, data)


def view_loader(
    experiment: Experiment,
    spec: InputSpec,
    records: Sequence[VideoRecord],
    record: Record,
    *,
    rank: int = 0,
    world: int = 1,
) -> Loader[VideoViews]:
    """Return every view of every video, in the records' order, one video at a time.

    Raises:
        DataError: No videos, or the folder of frames or videos is absent.
    """
    data = experiment.data
    dataset = ViewDataset(
        make_source(record, spec.modality, data),
        _some(records, "evaluation"),
        spec,
        experiment.evaluate,
        sampling=data.sampling,
        protocol=data.augment.protocol,
    )
    plan = [[index] for index in range(len(records))[rank::world]]
    return Loader(dataset, plan, collate_views, data)


def epoch_order(count: int, seed: int, epoch: int) -> list[int]:
    """Return the order of an epoch: a permutation that depends on seed and epoch alone."""
    return [int(index) for index in rng("order", seed, epoch).permutation(count)]


def collate_clips(items: list[ClipItem | Failure]) -> _Loaded[Batch]:
    """Join clips to a batch `(B, C, T, H, W)`; None when none is whole."""
    whole = [item for item in items if isinstance(item, ClipItem)]
    failures = [item for item in items if isinstance(item, Failure)]
    if not whole:
        return None, failures
    clips = torch.stack([item.clip for item in whole])
    labels = torch.tensor([item.label for item in whole], dtype=torch.int64)
    return Batch(clips, labels, [item.id for item in whole]), failures


def collate_views(items: list[VideoViews | Failure]) -> _Loaded[VideoViews]:
    """Unwrap the one video of a plan's entry."""
    (item,) = items
    return (None, [item]) if isinstance(item, Failure) else (item, [])


def _batches(order: Sequence[int], size: int) -> list[list[int]]:
    return [list(order[start : start + size]) for start in range(0, len(order), size)]


def _some(records: Sequence[VideoRecord], part: str) -> Sequence[VideoRecord]:
    if not records:
        raise DataError(f"the {part} part has no videos; check the split list and `data.holdout`")
    return records


def _start_worker(_number: int) -> None:
    """Leave Ctrl-C and the first SIGTERM, which reach the whole process group, to the main process.

    It saves and then ends its workers; one of them dying first would turn a clean stop into a crash.
    """
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
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
