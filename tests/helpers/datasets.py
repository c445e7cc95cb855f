"""Small data sets on disk: videos or frame folders, their lists and their record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml

from tests.helpers.videos import write_video
from two_stream.config.schema import Experiment

CLASSES = ["left", "right", "stay"]
LENGTHS = (7, 11, 17, 25)


def write_video_dataset(root: Path) -> Path:
    """Nine videos of three classes, and their lists."""
    settings = root / "settings" / "toy"
    settings.mkdir(parents=True)
    record = {"name": "toy", "classes": CLASSES, "videos": str(root / "videos"), "group": r"_(g\d)$"}
    record["frames"] = {"rgb": str(root / "frames"), "flow": str(root / "frames")}
    (settings / "dataset.yaml").write_text(yaml.safe_dump(record))
    lists = {(part, modality): [] for part in ("train", "val") for modality in ("rgb", "flow")}
    for label, (name, step) in enumerate(zip(CLASSES, (-4, 4, 0))):
        for group, frames in enumerate((5, 9, 13), start=1):
            video = f"{name}/v_g{group}"
            write_video(root / "videos" / f"{video}.mp4", frames, step)
            part = "val" if group == 3 else "train"
            lists[part, "rgb"].append(f"{video} {frames} {label}")
            lists[part, "flow"].append(f"{video} {frames - 1} {label}")
    for (part, modality), found in lists.items():
        (settings / f"{part}_{modality}_split1.txt").write_text("\n".join(found) + "\n")
    return root


def write_frame_dataset(root: Path, *, multi_label: bool = False, pairs: bool = False) -> Path:
    """Write twelve videos of three classes from four sources each, the last source for testing."""
    settings = root / "settings" / "toy"
    settings.mkdir(parents=True)
    record: dict[str, Any] = {
        "name": "toy",
        "classes": CLASSES,
        "group": r"_(g\d)$",
        "multi_label": multi_label,
    }
    record["frames"] = {"rgb": str(root / "frames")}
    if pairs:
        record["mirror_pairs"] = [["left", "right"]]
    (settings / "dataset.yaml").write_text(yaml.safe_dump(record))
    lists: dict[str, list[str]] = {"train": [], "val": []}
    for label, name in enumerate(CLASSES):
        for group, frames in enumerate(LENGTHS, start=1):
            video = f"{name}/v_g{group}"
            write_frames(root / "frames" / video, frames, seed=10 * label + group)
            labels = f"{label},2" if multi_label and group % 2 and label < 2 else f"{label}"
            lists["val" if group == len(LENGTHS) else "train"].append(f"{video} {frames} {labels}")
    for part, lines in lists.items():
        (settings / f"{part}_rgb_split1.txt").write_text("\n".join(lines) + "\n")
    return root


def write_frames(folder: Path, count: int, seed: int) -> None:
    folder.mkdir(parents=True)
    texture = np.random.default_rng(seed).integers(0, 256, (12, 40, 3), dtype=np.uint8)
    picture = cv2.resize(texture, (160, 48), interpolation=cv2.INTER_CUBIC)
    for number in range(count):
        cv2.imwrite(str(folder / f"img_{number + 1:05d}.jpg"), picture[:, 4 * number : 4 * number + 60])


SMALL_CLASSES = ["left", "right", "still"]
SOURCES, TEST_SOURCES = 6, 2
BACKBONE = {"kind": "resnet3d", "depth": 10, "width": 0.25, "temporal_stride": 4}


class SmallWorld:
    """The data set and what is trained on it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        folder = root / "settings" / "tiny"
        folder.mkdir(parents=True)
        record = {"name": "tiny", "classes": SMALL_CLASSES, "group": r"_(g\d+)$"}
        record["frames"] = {"rgb": "frames", "flow": "frames"}
        (folder / "dataset.yaml").write_text(yaml.safe_dump(record))
        lists: dict[str, list[str]] = {}
        for label, name in enumerate(SMALL_CLASSES):
            for source in range(SOURCES):
                video = f"{name}_g{source}"
                write_small_frames(folder / "frames" / video, shift=label - 1, seed=10 * label + source)
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


def write_small_frames(folder: Path, shift: int, seed: int) -> None:
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


def write_rolled_dataset(root: Path, *, val: slice) -> Path:
    """Write 15 folders of ten frames, three classes (rolled to the left, to the right, not at all); return `root`."""
    folder = root / "settings" / "tiny"
    folder.mkdir(parents=True)
    lines = []
    for label, name in enumerate(SMALL_CLASSES):
        for source in range(5):
            video = f"{name}_g{source}"
            frames = folder / "frames" / video
            frames.mkdir(parents=True)
            texture = np.random.default_rng(10 * label + source).integers(0, 255, (36, 40, 3), dtype=np.uint8)
            for number in range(1, 11):
                rolled = np.roll(texture, 2 * (label - 1) * number, axis=1)
                cv2.imwrite(str(frames / f"img_{number:05d}.jpg"), rolled)
            lines.append(f"{video} 10 {label}\n")
    record = {"name": "tiny", "classes": SMALL_CLASSES, "frames": {"rgb": "frames"}, "group": r"_(g\d+)$"}
    (folder / "dataset.yaml").write_text(yaml.safe_dump(record))
    (folder / "train_rgb_split1.txt").write_text("".join(lines))
    (folder / "val_rgb_split1.txt").write_text("".join(lines[val]))
    return root
