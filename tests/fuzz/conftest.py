"""Opens mutated files in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.helpers.runs import made_run

Guarded = Callable[[str, Path, Sequence[Path]], list[str]]


@pytest.fixture(scope="session")
def pt2_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PT2 file of few layers: every mutation of it is loaded, which takes time for each layer."""
    from two_stream.evaluation.runs.run import load_run
    from two_stream.export import export_run

    small = {"kind": "resnet3d", "depth": 10, "width": 0.125}
    run = made_run(tmp_path_factory.mktemp("pt2") / "run", "flow", backbone=small)
    return export_run(load_run(run), "pt2")[0]


@pytest.fixture
def guarded(tmp_path: Path) -> Guarded:
    """Open files under guard and return what each did."""

    def run(kind: str, first: Path, paths: Sequence[Path]) -> list[str]:
        folder = tmp_path / "empty"
        folder.mkdir(exist_ok=True)
        made = subprocess.run(
            [sys.executable, "-m", "tests.helpers.guarded", kind, str(first)],
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
