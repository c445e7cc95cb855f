"""One small data set for every test of stored features."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.helpers.datasets import write_frame_dataset

torch.set_num_threads(1)  # tiny networks: a second thread only waits


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_frame_dataset(tmp_path_factory.mktemp("stored"))
