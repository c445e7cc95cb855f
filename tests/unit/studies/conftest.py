"""Fixtures of the studies' tests."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from tests.helpers.studies import Studio
from two_stream.studies.running import plan as variants

CLASSES = ["left", "right"]
SIZE = (48, 64)


@pytest.fixture
def studio(tmp_path: Path) -> Studio:
    return Studio(tmp_path / "runs")


def picture(rng: np.random.Generator, shade: float) -> np.ndarray:
    return np.clip(rng.normal(shade, 20, (*SIZE, 3)), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes, seven sources, the last two for testing: `left` is darker and moves to the left, on the whole."""
    root = tmp_path_factory.mktemp("world")
    folder = root / "settings" / "toy"
    folder.mkdir(parents=True)
    record = {"name": "toy", "classes": CLASSES, "group": r"_(g\d)$"}
    frames = {name: str(root / "frames") for name in ("rgb", "flow")}
    lists: dict[str, list[str]] = {}
    for label, name in enumerate(CLASSES):
        for group in range(1, 8 if label else 9):  # one more to the left: the majority
            rng = np.random.default_rng([label, group])
            video, part = f"{name}/v_g{group}", "val" if group in (6, 7) else "train"
            images = root / "frames" / video
            images.mkdir(parents=True)
            for number in range(1, 9):
                cv2.imwrite(str(images / f"img_{number:05d}.jpg"), picture(rng, 110 + 20 * label))
                for axis, shade in (("x", 110 + 36 * label), ("y", 128)):
                    flow = picture(rng, shade)[..., 0]
                    cv2.imwrite(str(images / f"flow_{axis}_{number:05d}.jpg"), flow)
            for modality in frames:
                lists.setdefault(f"{part}_{modality}", []).append(f"{video} 8 {label}")
    for name, lines in lists.items():
        (folder / f"{name}_split1.txt").write_text("\n".join(lines) + "\n")
    (folder / "dataset.yaml").write_text(yaml.safe_dump({**record, "frames": frames}))
    return root


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory):
    """The baseline's own settings at a size that takes seconds."""
    settings = yaml.safe_load(variants.SETTINGS.read_text())
    settings["common"]["model"]["input"] = {"clip_length": 4, "segments": 4, "resize": SIZE, "crop": SIZE}
    settings["common"]["data"]["workers"] = 0
    settings["common"]["train"]["optimizer"] |= {"cs": [0.01, 0.1], "repeats": 1}
    path = tmp_path_factory.mktemp("small") / "baseline.yaml"
    path.write_text(yaml.safe_dump(json.loads(json.dumps(settings))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(variants, "SETTINGS", path)
        yield
