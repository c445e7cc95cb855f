"""The package as a user installs it: a wheel, used from an empty folder."""

from __future__ import annotations

import pytest

from tests.e2e.conftest import Installed

pytestmark = pytest.mark.integration


def test_settings_are_found_by_name_from_any_folder(installed: Installed) -> None:
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


def test_studies_weights_and_data_sets_are_found(installed: Installed) -> None:
    assert "0 of 36 cells are done" in installed("ablate", "demo_heads", "--dry-run")
    assert "i3d-rgb-imagenet-kinetics" in installed("weights", "list")
    assert "51 classes" in installed("check", "hmdb51", code=1)
