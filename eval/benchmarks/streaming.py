"""A prediction of a stream against one of clips that slide along at the same rate: multiply-adds and CPU time.

    python eval/benchmarks/streaming.py [--quick] [--rounds 5] [--threads 2]

Both sides are the same network with its BatchNorms folded, in channels-last, fp32. A convolution by itself is timed
against the continual-inference library's, where that is installed. Writes `eval/benchmarks/results/streaming.json`.
"""

from __future__ import annotations

import sys
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from common import Row, finish, flags, interleaved, median_of, ratio_of
from torch import nn

from two_stream import create_model
from two_stream.evaluation.scoring.network import example_clip, fold_batchnorm
from two_stream.profiling.costs import multiply_adds
from two_stream.profiling.timing import PeakMemory
from two_stream.recognizer import Recognizer
from two_stream.streaming import convert, multiply_adds_per_prediction
from two_stream.streaming.network.layers import CellChoice, make_cell

BOUND = 1e-4
"""largest difference of the logits of one clip by itself, relative to the largest"""
CASES: tuple[tuple[str, str, float | None, float | None], ...] = (
    # what, name in the zoo, targets: multiply-adds, time
    ("CoX3D-M", "co3d/x3d_m", 8.0, 4.0),
    ("CoX3D-S", "co3d/x3d_s", None, None),
    ("MobileNetV2", "efficient3d/mobilenetv2_1.0x", None, None),
    ("CoX3D-L", "co3d/x3d_l", None, None),
    ("CoSlow-50", "co3d/slow_8x8_r50", None, None),
    ("CoI3D-50", "co3d/i3d_8x8_r50", None, None),
    ("ResNet-18", "efficient3d/resnet18_B", None, None),
    ("ResNeXt-101 + BERT", "rgb_resneXt3D64f101_bert10_FRMB", None, None),
    ("R(2+1)D-34 + BERT", "rgb_r2plus1d_32f_34_bert10", None, None),
)
QUICK = 3
LAYER = (108, 56)
"""channels and side of the convolution that is timed by itself: one of X3D-M's second layer"""


def prepared(name: str) -> Recognizer:
    """Return a network as it would run: folded, channels-last."""
    torch.manual_seed(0)
    model = create_model(name, 400).eval()
    fast = fold_batchnorm(model, example_clip(model, 32))
    assert isinstance(fast, Recognizer)
    return fast.channels_last()


def difference(model: Recognizer, clip: torch.Tensor) -> float:
    """Return how far a stream that is one clip is from the clip network."""
    stream = convert(model, squeeze="clip", window=model.spec.clip_length)
    found = torch.cat((stream.step(clip), stream.finish()), 1)[:, -1]
    with torch.inference_mode():
        wanted = model(clip)
    return float((found - wanted).abs().max() / wanted.abs().max())


@torch.inference_mode()
def clip_prediction(model: Recognizer, clip: torch.Tensor) -> torch.Tensor:
    """Return the logits of one clip."""
    return model(clip)


def compared(
    what: str, name: str, targets: tuple[float | None, float | None], rounds: int
) -> tuple[list[Row], Any]:
    """Return the rows of a network, and its times."""
    model = prepared(name)
    clip = example_clip(model, model.spec.crop)
    error = difference(model, clip)
    stream = convert(model)
    frames = clip[:, :, : stream.stride]
    while stream.step(frames).shape[1] == 0:
        pass
    sides = {"clip": partial(clip_prediction, model, clip), "stream": partial(stream.step, frames)}
    times = interleaved(sides, rounds)
    base, mine = multiply_adds(model), multiply_adds_per_prediction(model)
    problem = f"a clip by itself differs by {error:.1e}" if error > BOUND else ""
    note = (
        f"every {stream.stride} frames; delay {stream.delay} frames, sees {stream.receptive_field} (a clip "
        f"{model.spec.clip_length}); a clip by itself gives the same to {error:.0e}"
    )
    against = "clips that slide along"
    rows = [
        Row(
            f"multiply-adds of a prediction, {what}",
            against,
            base / 1e9,
            mine / 1e9,
            base / mine,
            targets[0],
            note,
            "G",
        ),
        Row(
            f"CPU time of a prediction, {what}",
            against,
            1000 * median_of(times["clip"]),
            1000 * median_of(times["stream"]),
            ratio_of(times, "clip", "stream"),
            targets[1],
            unit="ms",
        ),
    ]
    for row in rows:
        row.problem = problem
    return rows, times


def library_row(rounds: int) -> Row:
    """Return the row of one convolution, frame by frame, against the library's."""
    name, against = "a 3×3×3 convolution of X3D-M, one frame", "continual-inference"
    if find_spec("continual") is None:
        return Row(name, against, None, None, None, note="continual-inference is not installed")
    import continual as co

    channels, side = LAYER
    part = nn.Conv3d(channels, channels, 3, padding=1, groups=channels, bias=False).eval()
    theirs = co.Conv3d.build_from(part, temporal_fill="zeros")
    ours = make_cell("layer", part, CellChoice("frame", "zeros", 16), 1, False)
    assert ours is not None
    frame = torch.randn(1, channels, 1, side, side)
    with torch.inference_mode():
        for _ in range(4):
            wanted, found = theirs.forward_step(frame[:, :, 0]), ours.push([frame], False)
        assert found is not None
        error = float((found[:, :, 0] - wanted).abs().max())
        sides = {
            "theirs": lambda: [theirs.forward_step(frame[:, :, 0]) for _ in range(20)],
            "ours": lambda: [ours.push([frame], False) for _ in range(20)],
        }
        times = interleaved(sides, rounds)
    base, mine = (50 * median_of(times[side]) for side in ("theirs", "ours"))
    return Row(
        name, against, base, mine, ratio_of(times, "theirs", "ours"), note=f"same to {error:.0e}", unit="ms"
    )


def memory_row(count: int) -> Row:
    """Return the row of the most memory that many frames take, against a tenth of them."""
    stream = convert(
        create_model("efficient3d/mobilenetv2_0.2x", 400, input={"crop": 64, "resize": (64, 64)})
    )
    chunk = example_clip(stream.model, 64)
    for _ in range(20):
        stream.step(chunk)
    peaks = []
    for frames in (count // 10, count):
        memory = PeakMemory(torch.device("cpu"))
        for _ in range(frames // chunk.shape[2]):
            stream.step(chunk)
        peaks.append(memory.peak() / 2**20)
    note = f"MobileNetV2 ×0.2 at 64²; the stream keeps {stream.state_bytes() / 2**20:.1f} MiB"
    name, against = f"peak memory of a stream of {count:,} frames", f"{count // 10:,} frames"
    return Row(name, against, peaks[0], peaks[1], peaks[1] / peaks[0], 1.05, note, "MiB", at_most=True)


def main(argv: list[str] | None = None) -> int:
    """Measure, print and write."""
    given = flags(__doc__, argv)
    rows: list[Row] = []
    facts = {}
    for what, name, *targets in CASES[2:3] if given.smoke else CASES[: QUICK if given.quick else None]:
        found, facts[what] = compared(what, name, (targets[0], targets[1]), given.rounds)
        rows += found
    rows += [
        library_row(given.rounds),
        memory_row(1_600 if given.smoke else 16_000 if given.quick else 108_000),
    ]
    return finish("streaming", rows, given, seconds=facts)


if __name__ == "__main__":
    sys.exit(main())
