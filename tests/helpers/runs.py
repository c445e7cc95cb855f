"""Run folders: with random weights, or with made-up learning curves and scores; nothing is trained."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import yaml

from tests.helpers.datasets import CLASSES, write_video_dataset
from tests.helpers.models import settle
from two_stream import create_model
from two_stream.config.load import dump
from two_stream.config.model import AverageHead, InputOptions, MobileNetV2, ModelOptions
from two_stream.config.schema import DataOptions, EvaluateOptions, Experiment, TrainOptions
from two_stream.evaluation.scores.files import write_scores
from two_stream.pretrained import write_model
from two_stream.recognizer import Recognizer
from two_stream.types import ScoreTable

NAMES = ["wave", "jump", "turn"]
SMALL = EvaluateOptions(views="multi", crops="three", batch_views=5, keep_views=True, precision="fp32")
INPUT = {"clip_length": 8, "resize": (36, 48), "crop": 32}
MOBILENET = {"kind": "mobilenetv2_3d", "width": 0.2, "temporal_stride": 4}
SLOWFAST = {"kind": "slowfast", "width": 0.25, "fast_stride": 1, "alpha": 2}
BERT = {"kind": "bert", "heads": 4, "hidden": 64}
NONLOCAL = {"kind": "nonlocal", "features": 24}
LARGER = {**INPUT, "resize": (52, 64), "crop": 48}
"""pictures that leave more than one place in the last map"""
SLOW = {"kind": "sgd", "lr": 1e-3}
"""a rate at which rounding stays rounding"""
NOISE = {"rgb": 1.6, "flow": 1.3}


class Runs:
    """Writes made-up runs below one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def make(
        self,
        modality: str = "rgb",
        *,
        classes: list[str] | None = None,
        videos: int = 60,
        name: str = "",
        **meta,
    ) -> Path:
        """Write a run with test and holdout scores; streams of one call signature share videos and labels."""
        names = classes or ["wave", "clap", "turn left", "turn right"]
        folder = self.root / (name or f"run-{modality}")
        folder.mkdir(parents=True, exist_ok=True)
        data = DataOptions(dataset="toy", settings_root=self.root / "settings")
        experiment = Experiment(
            name=folder.name.replace(" ", "-"),
            runs=self.root,
            data=data,
            model=ModelOptions(modality=modality),
        )
        (folder / "experiment.yaml").write_text(dump(experiment))
        rows = [
            {
                "epoch": e,
                "train_loss": 1.4 / (e + 1),
                "val_loss": 1.5 / (e + 1) + 0.02 * e,
                "lr": 0.01 * 0.8**e,
            }
            | {"train_top1": 1 - 0.7 * 0.75**e, "val_top1": 0.9 - 0.6 * 0.8**e}
            for e in range(1, 13)
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        for part in ("val", "test"):
            facts = {
                "run": str(folder),
                "name": folder.name,
                "modality": modality,
                "part": part,
                "dataset": "toy",
            }
            facts |= {"split": 1, "selection": "holdout", "protocol": "multi-clip × ten-crop, mean of logits"}
            facts |= {
                "views": "multi",
                "crops": "ten",
                "aggregate": "logits",
                "model_sha256": f"sha-{modality}",
            }
            facts |= {"seed": 0, "skipped": [], "environment": {"torch": "2.14.1"}, **meta}
            write_scores(
                folder / "scores" / f"{part}_multi_ten_logits.npz", self.table(names, videos, part, facts)
            )
        return folder

    def table(self, names: list[str], videos: int, part: str, meta: dict) -> ScoreTable:
        modality = str(meta["modality"])
        labels = np.arange(videos) % len(names)
        noise = np.random.default_rng([len(modality), len(part)]).normal(size=(videos, len(names)))
        logits = 2.0 * np.eye(len(names))[labels] + NOISE[modality] * noise
        ids = [f"{names[label]}/{part}_{i:03d}" for i, label in enumerate(labels)]
        return ScoreTable(ids, labels, names, logits, meta, groups=[f"g{i // 3}" for i in range(videos)])

    def frames(self, ids: list[str], classes: list[str], count: int = 9) -> None:
        """Write the data set's record and RGB frames of the named videos: a square that moves right."""
        record = {"name": "toy", "classes": classes, "frames": {"rgb": str(self.root / "frames")}}
        path = self.root / "settings" / "toy" / "dataset.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(record))
        for place, name in enumerate(ids):
            folder = self.root / "frames" / name
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                picture = np.full((48, 64, 3), (60, 90, 20 * place % 255), np.uint8)
                picture[16:32, 4 + 5 * number : 20 + 5 * number] = (255, 255, 255)
                cv2.imwrite(str(folder / f"img_{number + 1:05d}.jpg"), picture)


def save_run(
    experiment: Experiment, model: Recognizer, *, names: list[str] = CLASSES, epoch: int = 1
) -> Path:
    """Write a run folder as training would."""
    folder = experiment.runs / experiment.name
    write_model(folder / "best", model, {"class_names": list(names), "epoch": epoch})
    (folder / "experiment.yaml").write_text(dump(experiment))
    return folder


def write_run(root: Path, modality: str, *, names=CLASSES, selection="holdout", **data) -> Path:
    options = ModelOptions(
        modality=modality,
        backbone=MobileNetV2(width=0.25),
        head=AverageHead(),
        input=InputOptions(clip_length=4, resize=(36, 48), crop=32),
    )
    given = {"dataset": "toy", "settings_root": root / "settings", "source": "videos", "workers": 0, **data}
    experiment = Experiment(
        name=modality,
        runs=root,
        seed=3,
        model=options,
        data=DataOptions(**given),
        evaluate=SMALL,
        train=TrainOptions(selection=selection),
    )
    torch.manual_seed(len(modality))
    model = create_model(options, num_classes=len(names))
    settle(model)
    return save_run(experiment, model, names=names, epoch=7)


def make_world(root: Path) -> Path:
    """Nine videos of three classes, their lists, an RGB and a flow run."""
    write_video_dataset(root)
    write_run(root, "rgb")
    write_run(root, "flow")
    return root


def made_run(
    folder: Path, modality: str = "rgb", head: str | dict[str, Any] = "average", **model: Any
) -> Path:
    """Write a run folder with random weights."""
    options = {
        "modality": modality,
        "backbone": {"kind": "mobilenetv2_3d", "width": 0.2, "temporal_stride": 2},
        "head": {"kind": head} if isinstance(head, str) else head,
        "input": {"clip_length": 8, "crop": 32, "resize": (36, 48), "stride": 2},
    }
    experiment = Experiment.model_validate(
        {"name": folder.name, "runs": folder.parent, "model": options | model, "data": {"source": "videos"}}
    )
    torch.manual_seed(5)
    recognizer = create_model(experiment.model, len(NAMES))
    for part in recognizer.modules():  # statistics of pictures, so that classes differ
        if isinstance(part, torch.nn.BatchNorm3d):
            part.running_var.fill_(0.3)
    return save_run(experiment, recognizer, names=NAMES)


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


def with_features(experiment: Experiment, cache: Path, **train: Any) -> Experiment:
    """The same run over stored features."""
    data = experiment.data.model_copy(update={"features": cache})
    return experiment.model_copy(update={"data": data, "train": experiment.train.model_copy(update=train)})


def changed(source: Path, folder: Path, member: str, change: Callable[[Any], Any]) -> Path:
    """Copy an archive with one JSON member changed."""
    target = folder / "changed.pt2"
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for info in old.infolist():
            content = old.read(info)
            if info.filename.endswith(member):
                content = json.dumps(change(json.loads(content))).encode()
            new.writestr(info.filename, content)
    return target
