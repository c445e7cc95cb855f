"""Made-up runs: settings, learning curves, score files and frames, without any training."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import yaml

from two_stream.config.load import dump
from two_stream.config.model import ModelOptions
from two_stream.config.schema import DataOptions, Experiment
from two_stream.evaluation.scores.files import write_scores
from two_stream.types import ScoreTable

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
