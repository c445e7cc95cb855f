"""Fixtures of the studies' tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_studio import Studio


@pytest.fixture
def studio(tmp_path: Path) -> Studio:
    return Studio(tmp_path / "runs")
