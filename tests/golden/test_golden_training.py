"""A short loss curve with a fixed seed: optimizer, schedule, accumulation, mixup, dropout, token masks, selection.

In float64, so that the curve does not depend on a machine's convolution kernels. After a change that is meant to
move it, write it anew and say why in the commit:

    UPDATE_GOLDEN=1 python -m pytest tests/golden/test_golden_training.py
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from two_stream.config.schema import Experiment
from two_stream.pretrained import write_model
from two_stream.recognizer import create_model
from two_stream.runtime.seeding import seed_everything
from two_stream.training.sources import TrainingData
from two_stream.training.trainer import Trainer
from two_stream.types import Batch, RunPaths

CURVE = Path(__file__).with_name("training_curve.json")
FIELDS = ("train_loss", "train_top1", "val_loss", "val_top1", "lr")
SETTINGS = {
    "seed": 5,
    "model": {
        "modality": "flow",
        "backbone": {"kind": "mobilenetv2_3d", "width": 0.25},
        "head": {"kind": "bert", "heads": 2, "hidden": 16},
        "dropout": 0.5,
        "input": {"clip_length": 8, "resize": [32, 32], "crop": 32},
    },
    "train": {
        "epochs": 4,
        "batch_size": 3,
        "accumulate": 2,
        "optimizer": {"kind": "adamw", "lr": 2e-3},
        "schedule": {"kind": "cosine", "warmup_epochs": 1},
        "label_smoothing": 0.1,
        "mixup": 0.2,
        "clip_grad": 5.0,
        "layer_decay": 0.9,
        "log_images": False,
    },
}


class _Clips:
    """Eight clips whose motion is their class, always in the same order."""

    def __init__(self, skip: int = 0) -> None:
        draw = torch.Generator().manual_seed(9)
        self.clips = torch.randint(90, 166, (8, 2, 8, 32, 32), generator=draw, dtype=torch.uint8)
        self.labels = torch.arange(8) % 2
        self.clips[self.labels == 1, 0] += 60
        self.position = skip
        self.skipped: list[tuple[str, str]] = []

    def __iter__(self) -> Iterator[Batch]:
        for start in range(3 * self.position, 8, 3):
            self.position += 1
            part = slice(start, start + 3)
            yield Batch(self.clips[part], self.labels[part], [f"clip{i}" for i in range(8)[part]])


def test_loss_curve(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = _curve(tmp_path)
    finally:
        torch.set_num_threads(threads)
    if os.environ.get("UPDATE_GOLDEN"):
        CURVE.write_text(json.dumps(found, indent=1) + "\n")
    wanted = json.loads(CURVE.read_text())
    assert len(found) == len(wanted)
    for line, expected in zip(found, wanted, strict=True):
        assert line == {key: pytest.approx(value, rel=1e-5) for key, value in expected.items()}


def _curve(root: Path) -> list[dict[str, float]]:
    experiment = Experiment.model_validate(SETTINGS)
    seed_everything(experiment.seed)
    model = create_model(experiment.model, 2).double()
    data = TrainingData(
        train=lambda _, skip: _Clips(skip),
        validation=_Clips,
        num_train=8,
        num_val=8,
        class_names=["still", "moving"],
    )
    trainer = Trainer(
        experiment, model, data, RunPaths(root), device=torch.device("cpu"), write_model=write_model
    )
    trainer.fit()
    return [{key: line[key] for key in FIELDS} for line in trainer.progress.history]
