"""The small data set of the evaluation's tests, and its RGB run exported once in each format."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "evaluation"))

from made_world import make_world

from two_stream.evaluation.run import load_run
from two_stream.export import export_run

torch.set_num_threads(1)  # tiny networks: a second thread only waits


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine videos of three classes, their lists, an RGB and a flow run."""
    return make_world(tmp_path_factory.mktemp("exported"))


@pytest.fixture(scope="session")
def onnx_file(world: Path) -> Path:
    pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    return export_run(load_run(world / "rgb"), "onnx")[0]


@pytest.fixture(scope="session")
def pt2_file(world: Path) -> Path:
    return export_run(load_run(world / "flow"), "pt2")[0]
