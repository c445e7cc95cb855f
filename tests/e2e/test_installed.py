"""The package as a user installs it: a wheel, used from an empty folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration
Run = Callable[..., str]


@pytest.fixture(scope="module")
def installed(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Build a wheel from the files that git knows, install it, and return a function that runs its command."""
    pytest.importorskip("setuptools", minversion="77", reason="the build needs setuptools 77")
    root = tmp_path_factory.mktemp("installed")
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=repository,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    for name in listed:
        if name.startswith(("two_stream", "settings", "weights", "setup", "pyproject", "README", "LICENSE")):
            (root / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(repository / name, root / "source" / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", root, root / "source"],
        check=True,
        timeout=300,
    )
    (wheel,) = root.glob("*.whl")
    subprocess.run(
        [*pip, "install", "--no-deps", "--no-compile", "--target", root / "site", wheel], check=True
    )
    folder = root / "empty"
    folder.mkdir()
    site = str(root / "site")
    script = (
        "import sys, two_stream; from two_stream.cli import main; "
        f"assert two_stream.__file__.startswith({site!r}); sys.exit(main(sys.argv[1:]))"
    )

    def run(*args: str, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-P", "-c", script, *args],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": site, "COLUMNS": "120"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


def test_settings_are_found_by_name_from_any_folder(installed: Run) -> None:
    listed = installed("settings")
    assert "own_videos_rgb" in listed
    assert "demo_heads" in listed
    shown = installed("settings", "small")
    assert "settings/experiments/small.yaml" in shown.replace("\\", "/")
    assert "temporal_stride: 4" in shown
    assert "copied" in installed("settings", "small", "--copy", "mine.yaml")
    assert "the file exists already" in installed("settings", "small", "--copy", "mine.yaml", code=2)
    assert "did you mean `small`?" in installed("train", "smal", code=2)
    for name in ("small", "settings/experiments/small.yaml", "mine.yaml"):
        assert "0.0005" in installed("train", name, "--help", "train.optimizer")


def test_studies_weights_and_data_sets_are_found(installed: Run) -> None:
    assert "0 of 21 cells are done" in installed("ablate", "demo_heads", "--dry-run")
    assert "i3d-rgb-imagenet-kinetics" in installed("weights", "list")
    assert "51 classes" in installed("check", "hmdb51", code=1)
