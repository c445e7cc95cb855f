"""A small data set of picture folders and tiny networks whose logits differ between clips."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch.nn import functional

from two_stream.config.load import dump
from two_stream.config.model import ModelOptions
from two_stream.config.schema import Experiment
from two_stream.pretrained import write_model
from two_stream.recognizer import Recognizer, create_model

CLASSES = ["left", "right", "stay"]
INPUT = {"clip_length": 8, "resize": (36, 48), "crop": 32}
MOBILENET = {"kind": "mobilenetv2_3d", "width": 0.2, "temporal_stride": 4}
SLOWFAST = {"kind": "slowfast", "width": 0.25, "fast_stride": 1, "alpha": 2}
BERT = {"kind": "bert", "heads": 4, "hidden": 64}
NONLOCAL = {"kind": "nonlocal", "features": 24}
LARGER = {**INPUT, "resize": (52, 64), "crop": 48}
"""pictures that leave more than one place in the last map"""
SLOW = {"kind": "sgd", "lr": 1e-3}
"""a rate at which rounding stays rounding"""
LENGTHS = (7, 11, 17, 25)


def make_world(root: Path, *, multi_label: bool = False, pairs: bool = False) -> Path:
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


def experiment_of(
    world: Path, backbone: dict[str, Any] | None = None, head: dict[str, Any] | None = None, **settings: Any
) -> Experiment:
    """Settings over the world; keyword arguments are sections, given in part."""
    sections: dict[str, Any] = {
        "name": "run",
        "runs": world / "runs",
        "seed": 3,
        "device": "cpu",
        "model": {
            "backbone": backbone or MOBILENET,
            "head": head or BERT,
            "input": {**INPUT},
            "dropout": 0.3,
        },
        "data": {"dataset": "toy", "settings_root": world / "settings", "workers": 0, "holdout": 0.34},
        "train": {
            "epochs": 3,
            "batch_size": 2,
            "log_images": False,
            "freeze_until": "backbone",
            "optimizer": SLOW,
        },
        "evaluate": {
            "views": "multi",
            "crops": "ten",
            "batch_views": 5,
            "precision": "fp32",
            "keep_views": True,
        },
    }
    for name, value in settings.items():
        sections[name] = {**sections[name], **value} if isinstance(value, dict) else value
    return Experiment.model_validate(sections)


def settled_model(options: ModelOptions, seed: int = 0) -> Recognizer:
    """A network whose norms have the statistics of noise, and whose head is far from the identity.

    Rounding stays small in it, on any processor. A random layer whose ReLU cuts half of the signal off passes a
    difference on enlarged, and fifty layers a thousand times; norms with a bias of one let most of the signal through.
    Logits in float32 then lie within 2e-6 of those in float64 (3e-5 with a bias of zero), relative to the largest, so
    two ways to compute them within 4e-6 of each other: the tests' limit is 1e-5.
    """
    torch.manual_seed(seed)
    model = create_model(options, num_classes=len(CLASSES))
    norms = [
        part for part in model.modules() if isinstance(part, (torch.nn.BatchNorm2d, torch.nn.BatchNorm3d))
    ]
    for norm in norms:
        norm.momentum = None
        torch.nn.init.ones_(norm.bias)
    model.train()
    spec = model.spec
    with torch.no_grad():
        spots = 255 * torch.rand(6, spec.channels, 2, 4, 4)
        clips = functional.interpolate(spots, size=(spec.clip_length, 32, 32), mode="trilinear")
        model(clips)
        for norm in norms:
            norm.momentum = 0.1
        for parameter in [*model.heads.parameters(), *model.classifier.parameters()]:
            parameter.add_(0.02 * torch.randn_like(parameter))
        model.eval()
        model.classifier.weight.div_(model(clips).std(dim=0).max())
    return model


def write_run(experiment: Experiment, model: Recognizer) -> Path:
    """Write a run folder as training would."""
    folder = experiment.runs / experiment.name
    write_model(folder / "best", model, {"class_names": CLASSES, "epoch": 1})
    (folder / "experiment.yaml").write_text(dump(experiment))
    return folder


def difference(ours: NDArray[Any] | None, theirs: NDArray[Any] | None) -> float:
    """Largest difference of logits, relative to the largest logit where that is above 1."""
    assert ours is not None
    assert theirs is not None
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / max(1.0, np.abs(theirs).max()))


def with_features(experiment: Experiment, cache: Path, **train: Any) -> Experiment:
    """The same run over stored features."""
    data = experiment.data.model_copy(update={"features": cache})
    return experiment.model_copy(update={"data": data, "train": experiment.train.model_copy(update=train)})
