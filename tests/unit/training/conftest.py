"""A trainer over the stand-ins of `training_fakes`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.helpers.training import TinyNet, memory_data, write_tensors
from two_stream.config.schema import Experiment
from two_stream.training.data import TrainingData
from two_stream.training.trainer import Trainer
from two_stream.types import RunPaths


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """On networks this small a second thread only waits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


MakeTrainer = Callable[..., Trainer]


@pytest.fixture
def make_trainer(tmp_path: Path) -> MakeTrainer:
    """Build a trainer over a tiny network; keyword arguments are fields of `TrainOptions`."""

    def make(
        name: str = "run",
        *,
        model: nn.Module | None = None,
        data: TrainingData | None = None,
        seed: int = 0,
        **train: Any,
    ) -> Trainer:
        options = {"epochs": 3, "batch_size": 2, "log_images": False, **train}
        experiment = Experiment.model_validate({"name": name, "seed": seed, "train": options})
        net = TinyNet() if model is None else model
        paths = RunPaths(tmp_path / name)
        paths.root.mkdir(exist_ok=True)
        return Trainer(
            experiment,
            net,
            data or memory_data(size=options["batch_size"]),
            paths,
            device=torch.device("cpu"),
            write_model=write_tensors,
        )

    return make
