"""The machine's own limit: how fast it multiplies large matrices, in the precision of a measurement."""

from __future__ import annotations

import time
from functools import cache

import torch

_SIZES = {"cpu": (1024, 2048), "cuda": (4096, 8192), "mps": (2048, 4096)}
_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def gemm_rate(device: torch.device, precision: str, *, seconds: float = 1.0) -> float:
    """Return the floating-point operations per second of the quickest matrix product; a multiply-add is two.

    On a GPU fp32 follows the switch of the convolutions: with TF32 allowed there, it is measured with TF32.

    Args:
        device: Where; on a CPU with torch's threads as they are set.
        precision: fp32, bf16 or fp16.
        seconds: How long to measure; each size is timed three times at least.
    """
    switch = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    try:
        sizes = _SIZES.get(device.type, _SIZES["cpu"])
        return max(_rate(device, _TYPES[precision], size, seconds / len(sizes)) for size in sizes)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = switch


def _rate(device: torch.device, kind: torch.dtype, size: int, seconds: float) -> float:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(size, size, generator=generator).to(device, kind) for _ in range(2))
    out = torch.empty_like(a)
    torch.mm(a, b, out=out)
    best, turns, end = float("inf"), 0, time.perf_counter() + seconds
    while turns < 3 or time.perf_counter() < end:
        wait(device)
        start = time.perf_counter()
        torch.mm(a, b, out=out)
        wait(device)
        best = min(best, time.perf_counter() - start)
        turns += 1
    return 2 * size**3 / best


@cache
def copy_rate(device: torch.device) -> float:
    """Return the bytes per second that a copy inside the device's memory reads and writes together."""
    count = 2**28 if device.type == "cuda" else 2**26
    source, target = (torch.zeros(count // 4, device=device) for _ in range(2))
    best = float("inf")
    for _ in range(5):
        wait(device)
        start = time.perf_counter()
        target.copy_(source)
        wait(device)
        best = min(best, time.perf_counter() - start)
    return 2 * count / best


def wait(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
