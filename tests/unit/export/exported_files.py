"""The small data set of the evaluation's tests, its runs exported once, and such a file with one part changed."""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "evaluation"))

from made_world import make_world

from two_stream.evaluation.runs.run import load_run
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


def changed(source: Path, folder: Path, member: str, change: Callable[[Any], Any]) -> Path:
    """Copy an archive with one JSON member changed."""
    target = folder / "changed.pt2"
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for info in old.infolist():
            content = old.read(info)
            if info.filename.endswith(member):
                content = json.dumps(change(json.loads(content))).encode()
            new.writestr(info.filename, content)
    return target
