"""A short loss curve with a fixed seed: optimizer, schedule, accumulation, mixup, dropout, token masks, selection.

The curve must not depend on the processor. It is computed in float64, with a network that keeps rounding small: its
last map has four places, so that no BatchNorm divides by the deviation of two or three values. (MobileNetV2, whose last
map is one place, turned a change of 1e-10 in the weights into one of 1e-3 within three epochs.) What differs between
processors are then the weights alone: they are drawn in float32, whose last bits depend on the vector instructions.
After a change that is meant to move the curve, write it again and say why in the commit:

    UPDATE_GOLDEN=1 python -m pytest tests/golden/test_training.py
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
from two_stream.runtime.device import seed_everything
from two_stream.training.data import TrainingData
from two_stream.training.trainer import Trainer
from two_stream.types import Batch, RunPaths

CURVE = Path(__file__).with_name("training_curve.json")
DRAWN = 1e-7
"""relative difference of weights drawn in float32 on two machines: 2**-24, in two or three operations"""
TOLERANCE = 1e-6
"""ten times that; a curve moves by less than the weights do, as the second test checks"""
FIELDS = ("train_loss", "train_top1", "val_loss", "val_top1", "lr")
SETTINGS = {
    "seed": 5,
    "model": {
        "modality": "flow",
        "backbone": {
            "kind": "resnet3d",
            "depth": 10,
            "width": 0.125,
            "stem_kernel": 3,
            "stem_pool": False,
            "temporal_stride": 4,
        },
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


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_loss_curve(tmp_path: Path) -> None:
    found = _curve(tmp_path)
    if os.environ.get("UPDATE_GOLDEN"):
        CURVE.write_text(json.dumps(found, indent=1) + "\n")
    _assert_equal(found, json.loads(CURVE.read_text()), TOLERANCE)


def test_curve_does_not_amplify_rounding(tmp_path: Path) -> None:
    """Weights that differ as those of two machines do move the curve by less than they differ themselves."""
    _assert_equal(_curve(tmp_path / "moved", DRAWN), _curve(tmp_path / "plain"), DRAWN)


def _assert_equal(found: list[dict[str, float]], wanted: list[dict[str, float]], tolerance: float) -> None:
    assert len(found) == len(wanted)
    for line, expected in zip(found, wanted, strict=True):
        assert line == {key: pytest.approx(value, rel=tolerance) for key, value in expected.items()}


def _curve(root: Path, moved: float = 0.0) -> list[dict[str, float]]:
    experiment = Experiment.model_validate(SETTINGS)
    seed_everything(experiment.seed)
    model = create_model(experiment.model, 2).double()
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1 + moved * torch.randn(weight.shape, generator=draw, dtype=torch.float64))
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
