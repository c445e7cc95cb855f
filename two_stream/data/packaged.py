"""Records that come with the package: class lists in the official order, mirror pairs, source videos."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from two_stream.config.load import read_yaml

PACKAGED = Path(__file__).parent / "records"


def packaged_record(name: str) -> dict[str, Any] | None:
    """Return the content of the record of a data set; None where the package has none of this name."""
    path = PACKAGED / f"{name}.yaml"
    return read_yaml(path) if Path(name).name == name and path.is_file() else None


def packaged_names() -> set[str]:
    """Return the names of the data sets whose records come with the package."""
    return {path.stem for path in PACKAGED.glob("*.yaml")}
