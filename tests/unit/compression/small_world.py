"""A data set of moving squares, RGB and flow, and settings of runs small enough for seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml

from two_stream.config.schema import Experiment

CLASSES = ["left", "right", "still"]
SOURCES, TEST_SOURCES = 6, 2
BACKBONE = {"kind": "resnet3d", "depth": 10, "width": 0.25, "temporal_stride": 4}


class SmallWorld:
    """The data set and what is trained on it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        folder = root / "settings" / "tiny"
        folder.mkdir(parents=True)
        record = {"name": "tiny", "classes": CLASSES, "group": r"_(g\d+)$"}
        record["frames"] = {"rgb": "frames", "flow": "frames"}
        (folder / "dataset.yaml").write_text(yaml.safe_dump(record))
        lists: dict[str, list[str]] = {}
        for label, name in enumerate(CLASSES):
            for source in range(SOURCES):
                video = f"{name}_g{source}"
                write_frames(folder / "frames" / video, shift=label - 1, seed=10 * label + source)
                part = "val" if source < TEST_SOURCES else "train"
                for modality, frames in (("rgb", 10), ("flow", 9)):
                    lists.setdefault(f"{part}_{modality}", []).append(f"{video} {frames} {label}\n")
        for part, lines in lists.items():
            (folder / f"{part}_split1.txt").write_text("".join(lines))

    def experiment(self, name: str = "run", modality: str = "rgb", **train: Any) -> Experiment:
        """Return settings of a run of two epochs of a small 3D ResNet with an average head."""
        options = {"epochs": 2, "batch_size": 4, "log_images": False, **train}
        options["optimizer"] = {"kind": "sgd", "lr": 0.01}
        return Experiment.model_validate(
            {
                "name": name,
                "runs": str(self.root / "runs"),
                "seed": 3,
                "device": "cpu",
                "threads": 1,
                "model": {
                    "modality": modality,
                    "backbone": BACKBONE,
                    "head": {"kind": "average"},
                    "dropout": 0.1,
                    "input": {"clip_length": 8, "resize": [36, 40], "crop": 32},
                },
                "data": {"dataset": "tiny", "settings_root": str(self.root / "settings"), "workers": 0},
                "train": options,
                "evaluate": {"views": "single", "crops": "center", "precision": "fp32"},
            }
        )


def write_frames(folder: Path, shift: int, seed: int) -> None:
    """Write ten frames of a texture that moves, and nine of its flow."""
    folder.mkdir(parents=True)
    texture = np.random.default_rng(seed).integers(0, 256, (36, 80, 3), dtype=np.uint8)
    for number in range(10):
        start = 20 + shift * number
        cv2.imwrite(str(folder / f"img_{number + 1:05d}.jpg"), texture[:, start : start + 40])
    for number in range(9):
        flow = np.full((36, 40), 127 + 40 * shift, np.uint8)
        cv2.imwrite(str(folder / f"flow_x_{number + 1:05d}.jpg"), flow)
        cv2.imwrite(str(folder / f"flow_y_{number + 1:05d}.jpg"), np.full((36, 40), 127, np.uint8))
