"""Provenance of results: versions, machine, code."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path

_PACKAGES = ("torch", "torchvision", "numpy", "opencv-contrib-python-headless", "av", "timm", "transformers")

_SHOWS = ("cli.py", "__main__.py", "commands", "studies")
"""parts of the package that do not affect the numbers of a run"""


@cache
def code_version() -> str:
    """Return the package version, with the commit (and `+dirty`) when run from a checkout."""
    version = _version("two-stream")
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return version
    try:
        commit = _git(root, "rev-parse", "--short=12", "HEAD")
        dirty = "+dirty" if _git(root, "status", "--porcelain", "--untracked-files=no", "two_stream") else ""
    except (OSError, subprocess.SubprocessError):
        return version
    return f"{version}-{commit}{dirty}"


@cache
def source_digest() -> str:
    """Return the hash of the code that affects the numbers of a run, independent of git.

    Commands and studies are excluded, so that a changed report does not make runs out of date.
    """
    package = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package)
        if name.parts[0] not in _SHOWS:
            digest.update(f"{name.as_posix()}\x1f".encode() + path.read_bytes())
    return digest.hexdigest()


def environment() -> dict[str, str]:
    """Return versions and facts about the machine as text, without importing large modules."""
    facts = {name: _version(name) for name in _PACKAGES}
    facts["python"] = platform.python_version()
    facts["platform"] = platform.platform()
    facts["cpu"] = _cpu()
    facts["two-stream"] = code_version()
    return facts


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _git(root: Path, *args: str) -> str:
    done = subprocess.run(["git", *args], cwd=root, capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
