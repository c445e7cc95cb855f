"""Runs `guarded.py` over mutated files; the exported networks are those of the export's tests."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit" / "evaluation"))

from made_world import make_world

from two_stream.evaluation.run import load_run
from two_stream.export import export_run

HERE = Path(__file__).resolve().parent
Guarded = Callable[[str, Path, Sequence[Path]], list[str]]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine videos of three classes, their lists, an RGB and a flow run."""
    return make_world(tmp_path_factory.mktemp("fuzzed"))


@pytest.fixture(scope="session")
def onnx_file(world: Path) -> Path:
    pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    return export_run(load_run(world / "rgb"), "onnx")[0]


@pytest.fixture(scope="session")
def pt2_file(world: Path) -> Path:
    return export_run(load_run(world / "flow"), "pt2")[0]


@pytest.fixture
def guarded(tmp_path: Path) -> Guarded:
    """Open files under guard and return what each did."""

    def run(kind: str, first: Path, paths: Sequence[Path]) -> list[str]:
        folder = tmp_path / "empty"
        folder.mkdir(exist_ok=True)
        made = subprocess.run(
            [sys.executable, str(HERE / "guarded.py"), kind, str(first)],
            input="".join(f"{path}\n" for path in paths),
            capture_output=True,
            text=True,
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        found = made.stdout.splitlines()
        assert len(found) == len(paths), (
            made.stderr[-2000:],
            [one for one in found if not one.startswith(("opened", "refused"))][:9],
        )
        assert not list(folder.iterdir()), "a file was written"
        return found

    return run
