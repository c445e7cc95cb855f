"""Training step in channels-last against the default layout, side by side in one process.

    python eval/benchmarks/memory_format.py [--quick] [--rounds 5] [--threads 2]

Writes `eval/benchmarks/results/memory_format.json` with machine and versions.
"""

from __future__ import annotations

import copy
import sys
from functools import partial

import torch
from common import Row, finish, flags, interleaved, median_of, ratio_of
from torch.nn import functional as F

from two_stream import create_model
from two_stream.config.backbones import BackboneOptions, MobileNetV2, ResNet3d, ResNeXt3d
from two_stream.config.heads import BertHead
from two_stream.config.model import InputOptions, ModelOptions
from two_stream.recognizer import Recognizer

BOUND = 1e-4
"""largest difference of the logits, relative to the largest"""
CASES: list[tuple[str, BackboneOptions, int, int, int]] = [
    # name, backbone, frames, side, batch
    ("resnet3d-10 ×0.5", ResNet3d(depth=10, width=0.5, temporal_stride=4, stem_kernel=3), 16, 80, 8),
    ("mobilenetv2_3d ×0.5", MobileNetV2(width=0.5, temporal_stride=4), 16, 80, 8),
    ("resnext3d-101", ResNeXt3d(depth=101), 16, 112, 1),
]


def build(backbone: BackboneOptions, frames: int, side: int) -> Recognizer:
    """Return a network in training mode."""
    options = ModelOptions(
        backbone=backbone,
        head=BertHead(heads=4),
        input=InputOptions(clip_length=frames, resize=(side, side), crop=side),
    )
    return create_model(options, 51).train()


def step(model: Recognizer, clips: torch.Tensor, labels: torch.Tensor) -> None:
    """Do one forward and backward pass."""
    F.cross_entropy(model(clips), labels).backward()
    model.zero_grad(set_to_none=True)


def main(argv: list[str] | None = None) -> int:
    """Measure, print and write."""
    given = flags(__doc__, argv)
    rows, facts = [], {}
    for name, backbone, frames, side, batch in CASES[: 1 if given.smoke else 2 if given.quick else None]:
        clips = torch.randint(0, 256, (batch, 3, frames, side, side), dtype=torch.uint8)
        labels = torch.arange(batch) % 51
        plain = build(backbone, frames, side)
        last = copy.deepcopy(plain).channels_last()
        with torch.no_grad():
            one, two = plain.eval()(clips), last.eval()(clips)
        error = float((one - two).abs().max() / one.abs().max())
        plain.train(), last.train()
        sides = {
            "default": partial(step, plain, clips, labels),
            "channels_last": partial(step, last, clips, labels),
        }
        times = interleaved(sides, given.rounds)
        facts[name] = times
        rows.append(
            Row(
                f"training step, channels-last, {name}, {frames}×{side}², batch {batch}",
                "torch's default layout",
                batch / median_of(times["default"]),
                batch / median_of(times["channels_last"]),
                ratio_of(times, "default", "channels_last"),
                unit="clips/s",
                note=f"fp32, logits within {error:.0e}",
                problem="" if error < BOUND else f"logits differ by {error:.0e}",
            )
        )
    return finish("memory_format", rows, given, seconds=facts)


if __name__ == "__main__":
    sys.exit(main())
