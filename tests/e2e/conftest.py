"""A browser tab for the tests of pages, and the package as a user installs it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.browser import NAMES, Browser, browser, find_chromium


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = find_chromium()
    if program is None:
        pytest.skip(
            f"no Chromium: none of {', '.join(NAMES)} is on the path (Debian: apt-get install chromium)"
        )
    with browser(program, tmp_path_factory.mktemp("profile")) as made:
        yield made


class Installed:
    """The command of an installed wheel, which runs in a folder that is empty at first."""

    def __init__(self, site: Path, folder: Path) -> None:
        self.folder = folder
        self.folder.mkdir()
        self.environment = os.environ | {"PYTHONPATH": str(site), "COLUMNS": "120"}
        self.script = (
            "import sys, two_stream; from two_stream.cli import main; "
            f"assert two_stream.__file__.startswith({str(site)!r}); sys.exit(main(sys.argv[1:]))"
        )

    def __call__(self, *args: str, code: int = 0) -> str:
        """Run `two-stream` with these arguments, check its exit code, and return what it printed."""
        done = subprocess.run(
            [sys.executable, "-P", "-c", self.script, *args],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, f"two-stream {' '.join(args)}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def installed(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Build an sdist from the files that git knows, a wheel from the sdist, and install the wheel."""
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
    pack = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", pack, root], cwd=root / "source", check=True, stdout=subprocess.DEVNULL
    )
    (sdist,) = root.glob("*.tar.gz")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", root, sdist], check=True, timeout=300
    )
    (wheel,) = root.glob("*.whl")
    subprocess.run(
        [*pip, "install", "--no-deps", "--no-compile", "--target", root / "site", wheel], check=True
    )
    return Installed(root / "site", root / "empty")
