"""Training step in channels-last against the default layout, side by side in one process.

    python eval/benchmarks/memory_format.py [--rounds 5] [--threads 2]

The two sides take turns, so that a change of the machine's load meets both; the figure is the ratio of the medians.
Writes `eval/benchmarks/results/memory_format.json` with machine and versions.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median

import torch
from torch.nn import functional as F

from two_stream import create_model
from two_stream.config.model import (
    BackboneOptions,
    BertHead,
    InputOptions,
    MobileNetV2,
    ModelOptions,
    ResNet3d,
    ResNeXt3d,
)
from two_stream.recognizer import Recognizer
from two_stream.runtime.files import write_json
from two_stream.runtime.provenance import environment

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


def step(model: Recognizer, clips: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the seconds of one forward and backward pass."""
    start = time.perf_counter()
    F.cross_entropy(model(clips), labels).backward()
    model.zero_grad(set_to_none=True)
    return time.perf_counter() - start


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    flags = parser.parse_args()
    torch.set_num_threads(flags.threads)
    rows = []
    for name, backbone, frames, side, batch in CASES:
        clips = torch.randint(0, 256, (batch, 3, frames, side, side), dtype=torch.uint8)
        labels = torch.arange(batch) % 51
        plain, last = build(backbone, frames, side), build(backbone, frames, side).channels_last()
        times: dict[str, list[float]] = {"default": [], "channels_last": []}
        for turn in range(flags.rounds + 1):
            for side_name, model in (("default", plain), ("channels_last", last)):
                seconds = step(model, clips, labels)
                if turn:  # the first turn chooses kernels
                    times[side_name].append(seconds)
        rates = {key: batch / median(value) for key, value in times.items()}
        ratio = rates["channels_last"] / rates["default"]
        rows.append(
            {
                "network": name,
                "frames": frames,
                "side": side,
                "batch": batch,
                "clips_per_s": rates,
                "ratio": ratio,
            }
        )
        print(
            f"{name:22s} default {rates['default']:7.2f} clips/s   channels-last {rates['channels_last']:7.2f} "
            f"clips/s   ratio {ratio:.2f}"
        )
    out = Path(__file__).parent / "results" / "memory_format.json"
    write_json(out, {"threads": flags.threads, "rows": rows, "environment": environment()})
    print(out)


if __name__ == "__main__":
    main()
