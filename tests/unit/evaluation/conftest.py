"""Fixtures of the evaluation's tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.helpers.runs import Runs, make_world

torch.set_num_threads(1)  # tiny networks: a second thread only waits


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path / "runs")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Nine videos of three classes, their lists, an RGB and a flow run."""
    return make_world(tmp_path_factory.mktemp("world"))
