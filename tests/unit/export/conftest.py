"""The data set and runs behind the exported networks."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def world(exported_world: Path) -> Path:
    """Nine videos of three classes, their lists, an RGB and a flow run."""
    return exported_world
