"""Score tables and run folders of made-up studies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from two_stream.config.load import dump
from two_stream.config.schema import Experiment
from two_stream.evaluation.scores.files import write_scores
from two_stream.types import ScoreTable

CLASSES = ["wave", "clap", "turn left", "turn right"]


class Studio:
    """Makes score tables and runs of one made-up data set."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def table(
        self,
        skill: float = 1.0,
        *,
        split: int = 1,
        seed: int = 1,
        videos: int = 120,
        stream: int = 0,
        sources: bool = True,
        **meta: Any,
    ) -> ScoreTable:
        """Scores of a stream; the same split has the same videos, labels and sources in every table."""
        part = str(meta.get("part", "test"))
        labels = np.arange(videos) % len(CLASSES)
        hard = np.random.default_rng([split, len(part), 1]).normal(size=(videos, len(CLASSES)))
        own = np.random.default_rng([split, len(part), 2, seed, stream]).normal(size=(videos, len(CLASSES)))
        logits = skill * np.eye(len(CLASSES))[labels] + 0.5 * hard + 0.5 * own
        facts = {
            "dataset": "toy",
            "split": split,
            "seed": seed,
            "part": part,
            "selection": "holdout",
            "modality": "rgb",
            "views": "multi",
            "crops": "ten",
            "aggregate": "logits",
            "sampling": "standard",
            "protocol": "multi-clip × ten-crop, mean of logits",
            "precision": "fp32",
            "code_version": "0.1.0",
            "model_sha256": f"{skill}-{split}-{seed}-{stream}",
            "skipped": [],
        } | meta
        ids = [f"{CLASSES[label]}/{part}_s{split}_{place:03d}" for place, label in enumerate(labels)]
        groups = [f"s{split}g{place // 4}" for place in range(videos)] if sources else None
        return ScoreTable(ids, labels, CLASSES, logits, facts, groups=groups)

    def tables(self, skill: float = 1.0, **options: Any) -> dict[tuple[int, int], ScoreTable]:
        """A variant: two splits, three trainings each."""
        return {
            (split, seed): self.table(skill, split=split, seed=seed, **options)
            for split in (1, 2)
            for seed in (1, 2, 3)
        }

    def run(self, name: str, skill: float = 1.0, *, head: str = "average", **meta: Any) -> Path:
        """Write a run folder with test and holdout scores."""
        folder = self.root / name
        modality = str(meta.get("modality", "rgb"))
        experiment = Experiment.model_validate(
            {
                "name": name,
                "runs": str(self.root),
                "seed": meta.get("seed", 1),
                "data": {"dataset": "toy", "split": meta.get("split", 1)},
                "model": {"modality": modality, "head": {"kind": head}},
            }
        )
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "experiment.yaml").write_text(dump(experiment))
        (folder / "metrics.jsonl").write_text(json.dumps({"epoch": 1, "val_top1": 0.5}) + "\n")
        for part in ("val", "test"):
            facts = {"name": name, "run": str(folder), **meta, "part": part}
            table = self.table(skill, stream=len(head) + 10 * (modality == "flow"), **facts)
            write_scores(folder / "scores" / f"{part}_multi_ten_logits.npz", table)
        return folder

    def settings(self, folder: Path) -> dict[str, Any]:
        """What a run's settings file holds."""
        return dict(yaml.safe_load((folder / "experiment.yaml").read_text()))
