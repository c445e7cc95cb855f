"""Forward pass of a convolution-bound network as a share of the machine's measured matrix-product rate.

    python eval/benchmarks/roofline.py [--quick]

R3D-18 (torchvision's r3d_18: stem 3×7×7 without pooling), 2 clips of 32×112², channels-last, BatchNorm folded, prepared
as an evaluation prepares it. The matrix products, in the form that runs quickest here, take turns with the network in
the same process, at the same precision and threads. A multiply-add counts as two operations on both sides.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from common import Row, finish, flags, interleaved, median_of, ratio_of

from two_stream.config.backbones import ResNet3d
from two_stream.config.heads import AverageHead
from two_stream.config.model import InputOptions, ModelOptions
from two_stream.config.schema import EvaluateOptions
from two_stream.evaluation.scoring.network import prepare_for_inference
from two_stream.profiling.costs import multiply_adds
from two_stream.profiling.peak import fastest_product
from two_stream.recognizer import Recognizer, create_model
from two_stream.runtime.device import autocast

BATCH = 2
CPU = torch.device("cpu")


def network(frames: int, side: int) -> Recognizer:
    """Return R3D-18, with weights drawn from a fixed seed."""
    torch.manual_seed(0)
    options = ModelOptions(
        backbone=ResNet3d(depth=18, shortcut="B", stem_kernel=3, stem_stride=1, stem_pool=False),
        head=AverageHead(),
        input=InputOptions(clip_length=frames, resize=(side, side), crop=side),
    )
    return create_model(options, 400).eval().channels_last()


def torchvision_agrees(model: Recognizer) -> str:
    """Say whether torchvision's r3d_18 has as many parameters: then it is the same network."""
    from torchvision.models.video import r3d_18

    counts = [sum(p.numel() for p in net.parameters()) for net in (model, r3d_18(weights=None))]
    return "" if counts[0] == counts[1] else f"{counts[0]} parameters, torchvision's r3d_18 has {counts[1]}"


def products(precision: str, target: float) -> tuple[Callable[[], None], float, str]:
    """Return a function that multiplies matrices for as long as the network may take, its operations and its name."""
    product, _ = fastest_product(CPU, precision)
    times = max(1, round(target / product.operations))

    def run() -> None:
        for _ in range(times):
            product.run()

    return run, times * product.operations, product.name


def main(argv: list[str] | None = None) -> int:
    """Measure, print and write."""
    given = flags(__doc__, argv, rounds=7)
    frames, side = (8, 32) if given.smoke else (32, 112)
    model = network(frames, side)
    clips = torch.randint(0, 256, (BATCH, 3, frames, side, side), dtype=torch.uint8)
    operations = 2.0 * multiply_adds(model) * BATCH
    problem = torchvision_agrees(model)
    rows, facts = [], {}
    with torch.inference_mode():
        exact = model(clips)
        for precision, target in (("bf16", 0.5), ("fp32", None)):
            prepared = prepare_for_inference(model, EvaluateOptions(precision=precision))

            def forward(prepared: torch.nn.Module = prepared, precision: str = precision) -> torch.Tensor:
                with autocast(CPU, precision):
                    return prepared(clips)

            error = float((forward().float() - exact).abs().max() / exact.abs().max())
            multiply, product_operations, form = products(precision, operations)
            times = interleaved({"gemm": multiply, "network": forward}, given.rounds)
            per_operation = {
                "gemm": [value / product_operations for value in times["gemm"]],
                "network": [value / operations for value in times["network"]],
            }
            rates = {side: 1e-9 / median_of(values) for side, values in per_operation.items()}
            bound = 0.03 if precision == "bf16" else 1e-4
            rows.append(
                Row(
                    f"convolution-bound forward, R3D-18 {frames}×{side}², {precision}",
                    f"GEMM peak of the machine at {precision}",
                    rates["gemm"],
                    rates["network"],
                    ratio_of(per_operation, "gemm", "network"),
                    target,
                    unit="GFLOP/s",
                    percent=True,
                    note=f"batch {BATCH}, {median_of(times['network']):.2f} s, {error:.1e} from fp32; {form}",
                    problem=problem
                    or ("" if error <= bound else f"logits differ by {error:.1e}, bound {bound:g}"),
                )
            )
            facts[precision] = times
    return finish("roofline", rows, given, seconds=facts, operations=operations)


if __name__ == "__main__":
    sys.exit(main())
