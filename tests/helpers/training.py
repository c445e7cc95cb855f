"""A tiny network with stages and clips in memory: the trainer without videos, lists or real networks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from two_stream.config.schema import Experiment
from two_stream.data.clips.loader import Share
from two_stream.errors import DataError
from two_stream.runtime import distributed
from two_stream.training.data import TrainingData
from two_stream.training.trainer import Trainer
from two_stream.types import Batch, RunPaths

CLASSES = ["up", "down", "left"]


class TinyNet(nn.Module):
    """Convolution, norm, positions and classifier over clips of `(3, 4, 6, 6)`; float64 when asked."""

    def __init__(self, dropout: float = 0.0, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.stem = nn.Conv3d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm3d(6)
        self.positions = nn.Parameter(torch.zeros(1, 6))
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(6, len(CLASSES))
        self.to(dtype)

    def stages(self) -> list[tuple[str, nn.Module]]:
        return [("stem", self.stem), ("norm", self.norm), ("classifier", self.classifier)]

    def forward(self, clip: torch.Tensor) -> torch.Tensor:
        x = clip.to(self.positions.dtype) / 127.5 - 1.0
        x = torch.relu(self.norm(self.stem(x))).mean((2, 3, 4)) + self.positions
        return self.classifier(self.dropout(x))


class MemoryLoader:
    """One epoch over clips in memory, in an order that depends on the epoch; `broken` ids are left out."""

    def __init__(
        self, clips: torch.Tensor, labels: torch.Tensor, size: int, epoch: int, skip: int, broken: set[str]
    ) -> None:
        order = torch.randperm(len(clips), generator=torch.Generator().manual_seed(100 + epoch)).tolist()
        self.plan = [order[start : start + size] for start in range(0, len(order), size)]
        self.clips, self.labels, self.broken = clips, labels, broken
        self.position = skip
        self.skipped: list[tuple[str, str]] = []

    def __iter__(self) -> Iterator[Batch]:
        for indices in self.plan[self.position :]:
            self.position += 1
            kept = [i for i in indices if f"clip{i}" not in self.broken]
            self.skipped += [(f"clip{i}", "broken") for i in indices if i not in kept]
            if kept:
                yield Batch(self.clips[kept], self.labels[kept], [f"clip{i}" for i in kept])


def memory_data(
    count: int = 8, size: int = 2, broken: set[str] | None = None, clips: torch.Tensor | None = None
) -> TrainingData:
    """Clips whose class shows in the brightness of one channel, on noise."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % len(CLASSES)
    if clips is None:
        clips = torch.randint(0, 120, (count, 3, 4, 6, 6), generator=draw, dtype=torch.uint8)
        for index, label in enumerate(labels):
            clips[index, label] += 100
    whole = clips
    return TrainingData(
        train=lambda epoch, skip: MemoryLoader(whole, labels, size, epoch, skip, broken or set()),
        validation=lambda: [Batch(whole[:5], labels[:5], [f"clip{i}" for i in range(5)])],
        num_train=count,
        num_val=5,
        class_names=CLASSES,
        dataset="memory",
        fingerprint=f"{count}",
    )


def write_tensors(folder: Path, model: nn.Module, meta: dict[str, Any]) -> None:
    """Stand in for `pretrained.write_model`."""
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "model.safetensors")


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
