"""Networks in int8 against the same in fp32 as they are evaluated (folded, channels-last), side by side.

    python eval/benchmarks/quantisation.py [--quick] [--rounds 5] [--threads 2]

Writes `eval/benchmarks/results/quantisation.json` with machine and versions. Weights are random: the speed is that of
trained ones, and accuracies stand in `eval/results/compression.md`.
"""

from __future__ import annotations

import sys
import tempfile
from functools import partial
from pathlib import Path

import torch
from common import Row, finish, flags, interleaved, median_of, ratio_of

from two_stream import create_model
from two_stream.compression.quantization import quantise
from two_stream.config.compress import Quantize
from two_stream.config.schema import EvaluateOptions
from two_stream.evaluation.scoring.network import prepare_for_inference
from two_stream.pretrained import write_model
from two_stream.recognizer import Recognizer

NAMES = (
    "efficient3d/resnet18_B",
    "efficient3d/mobilenetv2_1.0x",
    "co3d/x3d_s",
    "rgb_I3D64f",
    "rgb_slowfast64f_50",
)


def built(name: str) -> Recognizer:
    """Return a network of 16 frames of 112²."""
    torch.manual_seed(0)
    size = {"clip_length": 16, "resize": (112, 112), "crop": 112}
    return create_model(name, 101, head={"kind": "average"}, input=size).eval().channels_last()


def megabytes(model: Recognizer) -> float:
    """Return the size of its model file."""
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), model, {})
        return (Path(folder) / "model.safetensors").stat().st_size / 1e6


def main(argv: list[str] | None = None) -> int:
    """Measure, print and write."""
    given = flags(__doc__, argv)
    rows, facts = [], {}
    clip = torch.randint(0, 256, (1, 3, 16, 112, 112), dtype=torch.uint8)
    for name in NAMES[1:2] if given.smoke else NAMES[: 2 if given.quick else None]:
        plain = prepare_for_inference(built(name), EvaluateOptions(precision="fp32", fold=True))
        small = built(name)
        size = megabytes(small)
        quantise(small, Quantize(observer="minmax"), [clip])
        with torch.inference_mode():
            times = interleaved({"float": partial(plain, clip), "int8": partial(small, clip)}, given.rounds)
        facts[name] = times
        rows.append(
            Row(
                f"a view, int8, {name}, 16×112²",
                "the same in fp32, folded, channels-last",
                median_of(times["float"]) * 1e3,
                median_of(times["int8"]) * 1e3,
                ratio_of(times, "float", "int8"),
                unit="ms",
                note=f"file {size:.1f} MB, in int8 {megabytes(small):.1f} MB",
            )
        )
    return finish("quantisation", rows, given, seconds=facts)


if __name__ == "__main__":
    sys.exit(main())
