"""One small data set for every test of stored features."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from stored_world import make_world

torch.set_num_threads(1)  # tiny networks: a second thread only waits


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("stored"))
