"""Training and evaluation on a GPU: bf16, channels-last, compiled, against exact fp32 eager of the same network.

    python eval/benchmarks/gpu.py [--quick]

Random clips that lie on the GPU already: this measures networks, not loading. Per network: training clips/s (forward,
loss, backward, fused SGD) and evaluation views/s; model FLOP utilisation from the multiply-adds (a training step counts
as three forward passes) and the GEMM rate measured in bf16. A network of grouped convolutions is bound by memory: its
share is that of the bytes its layers must read and write, at the copy rate measured here. Without CUDA it says so and
ends; with --smoke it takes the CPU.
"""

from __future__ import annotations

import argparse
import copy
import sys
from functools import partial

import torch
from common import Row, finish, flags, interleaved, median_of, ratio_of
from torch import nn
from torch.nn import functional as F

from two_stream.config.schema import EvaluateOptions
from two_stream.evaluation.scoring.network import prepare_for_inference
from two_stream.profiling.costs import clip_shape, multiply_adds
from two_stream.profiling.peak import copy_rate, gemm_rate
from two_stream.profiling.timing import wait_for_device
from two_stream.recognizer import Recognizer, create_model
from two_stream.runtime.device import autocast

NETWORKS = (
    # name, batch in training, batch of views, bound by memory
    ("rgb_resneXt3D64f101_bert10_FRMB", 8, 32, True),
    ("rgb_I3D64f_bert10_FRMB", 8, 32, False),
    ("rgb_slowfast64f_50_bert10_FRMB_early", 8, 32, False),
    ("rgb_r2plus1d_32f_34_bert10", 8, 32, False),
    ("3dresnets/resnet18", 16, 64, False),
)
SMALLEST = {"clip_length": 8, "resize": (32, 32), "crop": 32}
"""input of `--smoke`"""
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
FASTER, DENSE, MEMORY = 4.0, 0.4, 0.6
"""targets: times as fast, share of the GEMM peak, share of the memory roof"""


def exact_fp32(on: bool) -> None:
    """Switch TF32 off (on: True) everywhere, or give it back to the convolutions."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = not on


def layer_bytes(model: Recognizer, clips: torch.Tensor, size: int) -> float:
    """Return the bytes that convolutions and linear layers must move at the least: inputs, weights and outputs once."""
    total = 0.0

    def count(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal total
        total += size * (inputs[0].numel() + output.numel() + sum(p.numel() for p in module.parameters()))

    layers = [part for part in model.modules() if isinstance(part, nn.Conv3d | nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    with torch.inference_mode():
        model(clips)
    for hook in hooks:
        hook.remove()
    return total


def training(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    clips: torch.Tensor,
    labels: torch.Tensor,
    precision: str,
) -> None:
    """Do one step and wait for it."""
    exact_fp32(precision == "fp32")
    with autocast(clips.device, precision):
        loss = F.cross_entropy(model(clips), labels)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    wait_for_device(clips.device)


def scoring(model: nn.Module, clips: torch.Tensor, precision: str) -> torch.Tensor:
    """Score a batch of views and wait for it."""
    exact_fp32(precision == "fp32")
    with torch.inference_mode(), autocast(clips.device, precision):
        logits = model(clips).float()
    wait_for_device(clips.device)
    return logits.clone()


def compare(
    model: Recognizer, name: str, batch: int, views: int, bound: bool, given: argparse.Namespace
) -> list[Row]:
    """Return the rows of one network: training and evaluation, each with its speed and its share of the roof."""
    rounds, quick, plain = given.rounds, given.quick, model.to(DEVICE)
    fast = copy.deepcopy(plain).channels_last()
    per_clip = 2.0 * multiply_adds(plain)
    clips = torch.randint(0, 256, clip_shape(plain, views), dtype=torch.uint8, device=DEVICE)
    labels = torch.arange(batch, device=DEVICE) % 51
    bytes_per_clip = layer_bytes(plain.eval(), clips[:1], 2)

    scorer = prepare_for_inference(
        fast.eval(), EvaluateOptions(precision="bf16", compile=not quick, batch_views=views)
    )
    error = float((scoring(plain, clips, "fp32") - scoring(scorer, clips, "bf16")).abs().max())
    scale = float(scoring(plain, clips, "fp32").abs().max())
    times = interleaved(
        {"plain": partial(scoring, plain, clips, "fp32"), "ours": partial(scoring, scorer, clips, "bf16")},
        rounds,
        warm=3,
    )
    note = f"batch {views}, logits within {error / scale:.1e}"
    rows = _rows(f"evaluation, {name}", times, views, per_clip, bytes_per_clip, bound, note, "views/s")

    plain.train(), fast.train()
    network = fast if quick else torch.compile(fast, dynamic=False)
    steps = {
        side: partial(
            training,
            net,
            torch.optim.SGD(net.parameters(), 0.0, fused=fused),
            clips[:batch],
            labels,
            precision,
        )
        for side, net, precision, fused in (("plain", plain, "fp32", False), ("ours", network, "bf16", True))
    }
    times = interleaved(steps, rounds, warm=3)
    # backward reads and writes about twice what forward does
    rows += _rows(
        f"training, {name}",
        times,
        batch,
        3 * per_clip,
        3 * bytes_per_clip,
        bound,
        f"batch {batch}",
        "clips/s",
    )
    return rows


def _rows(
    name: str,
    times: dict[str, list[float]],
    batch: int,
    operations: float,
    moved: float,
    bound: bool,
    note: str,
    unit: str,
) -> list[Row]:
    rates = {side: batch / median_of(values) for side, values in times.items()}
    exact_fp32(True)
    made = Row(
        name,
        "fp32 (TF32 off), eager, NCDHW",
        rates["plain"],
        rates["ours"],
        ratio_of(times, "plain", "ours"),
        FASTER,
        unit=unit,
        note=note,
    )
    peak = gemm_rate(DEVICE, "bf16")
    if bound:
        roof = copy_rate(DEVICE) / moved
        share = Row(
            f"{name}: share of the memory roof",
            "bytes of the layers at the copy rate",
            roof,
            rates["ours"],
            rates["ours"] / roof,
            MEMORY,
            unit=unit,
            percent=True,
            note=f"{moved / 1e9:.2f} GB a clip; {100 * rates['ours'] * operations / peak:.0f} % of the GEMM peak",
        )
    else:
        share = Row(
            f"{name}: model FLOP utilisation",
            "GEMM peak in bf16",
            peak / 1e12,
            rates["ours"] * operations / 1e12,
            rates["ours"] * operations / peak,
            DENSE,
            unit="TFLOP/s",
            percent=True,
        )
    return [made, share]


def main(argv: list[str] | None = None) -> int:
    """Measure, print and write."""
    given = flags(__doc__, argv, rounds=10)
    if DEVICE.type == "cpu" and not given.smoke:
        print("gpu: no CUDA device here, nothing measured")
        return 0
    rows: list[Row] = []
    for name, batch, views, bound in NETWORKS[-1:] if given.smoke else NETWORKS[: 2 if given.quick else None]:
        torch.manual_seed(0)
        model = create_model(name, 51, **({"input": SMALLEST} if given.smoke else {}))
        try:
            rows += compare(model, name, batch, views, bound, given)
        except torch.OutOfMemoryError as error:
            rows.append(Row(name, "", None, None, None, problem=str(error).splitlines()[0]))
        torch.cuda.empty_cache()
        torch.compiler.reset()
    return finish("gpu", rows, given)


if __name__ == "__main__":
    sys.exit(main())
