"""Run folders with random weights, for tests of what is done with a run."""

from __future__ import annotations

from pathlib import Path

import torch

from two_stream import create_model
from two_stream.config.load import dump
from two_stream.config.schema import Experiment
from two_stream.pretrained import write_model

NAMES = ["wave", "jump", "turn"]


def made_run(folder: Path, modality: str = "rgb", head: str = "average", **model) -> Path:
    """Write a run folder with random weights."""
    options = {
        "modality": modality,
        "backbone": {"kind": "mobilenetv2_3d", "width": 0.2, "temporal_stride": 2},
        "head": {"kind": head},
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
    folder.mkdir(parents=True)
    (folder / "experiment.yaml").write_text(dump(experiment))
    write_model(folder / "best", recognizer, {"class_names": NAMES})
    return folder
