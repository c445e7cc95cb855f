"""The notebook of the documentation, run cell by cell."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import cv2
import pytest

pytestmark = pytest.mark.slow


def test_the_notebook_runs_and_draws_its_pictures(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jupytext, nbclient = pytest.importorskip("jupytext"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    notebook = jupytext.read(repository / "docs" / "notebook.md")
    place = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=500, kernel_name="python3", resources=place).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    printed = "".join(output.get("text", "") for output in outputs)
    assert "36 videos of 9 sources" in printed
    study = tmp_path / "runs" / "studies" / "heads"
    assert len(list((study / "runs").glob("*/best"))) == 6
    assert (study / "report.html").is_file()
    assert printed.count("Prediction(videos/rise/") == 2
    assert any("<table>" in output.get("data", {}).get("text/html", "") for output in outputs), (
        "the run as a table"
    )
    for name in ("confusion", "attention"):
        drawn = cv2.imread(str(tmp_path / f"notebook_{name}.png"))
        shown = cv2.imread(str(repository / "docs" / "pictures" / f"notebook_{name}.png"))
        assert drawn.shape == shown.shape
