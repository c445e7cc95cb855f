"""Several processes in one test: forked, so that nothing is imported again, and joined by gloo."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import Empty
from typing import Any

import torch
from training_fakes import CLASSES, TinyNet, write_tensors

from two_stream.config.schema import Experiment
from two_stream.data.clips.loader import Share
from two_stream.errors import DataError, TwoStreamError
from two_stream.runtime import distributed
from two_stream.training.data import TrainingData
from two_stream.training.trainer import Trainer
from two_stream.types import Batch, RunPaths


@dataclass
class Outcome:
    """What a process returned, or the error it ended with."""

    value: Any = None
    error: str = ""
    told: bool = False


def in_processes(world: int, action: Callable[[int], Any], timeout: float = 90.0) -> list[Outcome]:
    """Run an action in `world` joined processes and return their outcomes by rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [
        context.Process(target=_child, args=(rank, world, port, action, queue), daemon=True)
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    outcomes: dict[int, Outcome] = {}
    try:
        while len(outcomes) < world:
            rank, outcome = queue.get(timeout=timeout)
            outcomes[rank] = outcome
    except Empty:
        raise AssertionError(f"processes hang; only {sorted(outcomes)} came back: {outcomes}") from None
    finally:
        for process in processes:
            process.join(5)
            process.kill()
    return [outcomes[rank] for rank in range(world)]


def _child(rank: int, world: int, port: int, action: Callable[[int], Any], queue: Any) -> None:
    values = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in values.items()}, MASTER_ADDR="127.0.0.1")
    torch.set_num_threads(1)
    try:
        distributed.init(cpu_only=True)
        outcome = Outcome(action(rank))
        distributed.shutdown()
    except TwoStreamError as error:
        outcome = Outcome(error=f"{type(error).__name__}: {error}", told=error.shown_elsewhere)
    except Exception as error:  # noqa: BLE001 - the parent shows it
        outcome = Outcome(error=f"{type(error).__name__}: {error}")
    queue.put((rank, outcome))


class SharedLoader:
    """One epoch over clips in memory, or one process's share; `broken` ids are left out, `fatal` ones an error."""

    def __init__(self, data: Clips, epoch: int, skip: int, group: int) -> None:
        order = torch.randperm(data.count, generator=torch.Generator().manual_seed(100 + epoch)).tolist()
        self.plan = [order[start : start + data.size] for start in range(0, data.count, data.size)]
        share = Share(distributed.rank(), distributed.world_size(), group)
        self.numbers = share.numbers(skip, len(self.plan))
        self.data = data
        self.position = skip
        self.skipped: list[tuple[str, str]] = []

    def __iter__(self) -> Iterator[Batch]:
        for number in self.numbers:
            self.position = number + 1
            if set(self.plan[number]) & self.data.fatal:
                raise DataError(f"clip of batch {number} cannot be read")
            kept = [index for index in self.plan[number] if index not in self.data.broken]
            self.skipped += [(f"clip{index}", "broken") for index in self.plan[number] if index not in kept]
            if kept:
                yield self.data.batch(kept)


class Clips:
    """Clips whose class shows in the brightness of one channel, on noise."""

    def __init__(
        self, count: int, size: int, *, broken: set[int] | None = None, fatal: set[int] | None = None
    ) -> None:
        self.count, self.size, self.broken, self.fatal = count, size, broken or set(), fatal or set()
        draw = torch.Generator().manual_seed(0)
        self.labels = torch.arange(count) % len(CLASSES)
        self.pixels = torch.randint(0, 120, (count, 3, 4, 6, 6), generator=draw, dtype=torch.uint8)
        for index, label in enumerate(self.labels):
            self.pixels[index, label] += 100

    def batch(self, indices: list[int]) -> Batch:
        return Batch(self.pixels[indices], self.labels[indices], [f"clip{index}" for index in indices])

    def validation(self) -> list[Batch]:
        batches = [[start, start + 1] for start in range(0, 6, 2)]  # three: an odd number
        mine = Share(distributed.rank(), distributed.world_size()).numbers(0, len(batches))
        return [self.batch(batches[number]) for number in mine]

    def data(self) -> TrainingData:
        return TrainingData(
            train=lambda epoch, skip, group=0: SharedLoader(self, epoch, skip, group),
            validation=self.validation,
            num_train=self.count,
            num_val=6,
            class_names=CLASSES,
            fingerprint="clips",
        )


def trainer_over(
    clips: Clips, root: Path, *, model: torch.nn.Module | None = None, seed: int = 0, **train: Any
) -> Trainer:
    """Build a trainer over a tiny network in float64, in which rounding cannot hide a mistake."""
    options = {"epochs": 2, "batch_size": clips.size, "log_images": False, **train}
    experiment = Experiment.model_validate({"name": root.name, "seed": seed, "train": options})
    root.mkdir(parents=True, exist_ok=True)
    return Trainer(
        experiment,
        model or TinyNet(dtype=torch.float64),
        clips.data(),
        RunPaths(root),
        device=torch.device("cpu"),
        write_model=write_tensors,
    )
