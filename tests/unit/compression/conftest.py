"""Fixtures of the compression's tests: a small data set and a trained run of each modality."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.datasets import SmallWorld
from two_stream.training.train import train


@pytest.fixture(scope="session")
def small_world(tmp_path_factory: pytest.TempPathFactory) -> SmallWorld:
    return SmallWorld(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="session")
def rgb_run(small_world: SmallWorld) -> Path:
    return train(small_world.experiment("rgb")).run.root


@pytest.fixture(scope="session")
def flow_run(small_world: SmallWorld) -> Path:
    return train(small_world.experiment("flow", "flow")).run.root
