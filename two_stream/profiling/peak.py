"""The machine's own limit: how fast it multiplies large matrices, in the precision of a measurement."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial

import torch
import torch.nn.functional as F

_SIZES = {"cpu": (1024, 2048), "cuda": (4096, 8192), "mps": (2048, 4096)}
_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Product:
    """One way to multiply two matrices on a machine."""

    name: str
    run: Callable[[], object]
    operations: float
    """of one run; a multiply-add is two"""


def gemm_rate(device: torch.device, precision: str, *, seconds: float = 1.0) -> float:
    """Return the floating-point operations per second of the quickest matrix product; a multiply-add is two.

    On a GPU fp32 follows the switch of the convolutions: with TF32 allowed there, it is measured with TF32.

    Args:
        device: Where; on a CPU with torch's threads as they are set.
        precision: fp32, bf16 or fp16.
        seconds: How long to measure; each form is timed three times at least.
    """
    return quickest_product(device, precision, seconds=seconds)[1]


def quickest_product(device: torch.device, precision: str, *, seconds: float = 1.0) -> tuple[Product, float]:
    """Return the form of a large matrix product that runs quickest here, and its operations per second.

    On a CPU `torch.mm` may stand behind another library than the convolutions do, and a slower one (MKL in fp32 on a
    processor of AMD), so the same product is also asked for as a 1×1 convolution.
    """
    switch = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    try:
        forms = list(_products(device, _TYPES[precision]))
        rates = [_rate(device, form, seconds / len(forms)) for form in forms]
    finally:
        torch.backends.cuda.matmul.allow_tf32 = switch
    best = max(range(len(forms)), key=rates.__getitem__)
    return forms[best], rates[best]


def _products(device: torch.device, kind: torch.dtype) -> Iterator[Product]:
    generator = torch.Generator().manual_seed(0)
    for size in _SIZES.get(device.type, _SIZES["cpu"]):
        a, b = (torch.randn(size, size, generator=generator).to(device, kind) for _ in range(2))
        operations = 2.0 * size**3
        yield Product(f"torch.mm {size}", partial(torch.mm, a, b, out=torch.empty_like(a)), operations)
        if device.type == "cpu":
            rows = a.reshape(1, size // 16, 16, size).permute(0, 3, 1, 2)  # channels-last, as it lies
            yield Product(
                f"1×1 convolution {size}", partial(_pointwise, rows, b[..., None, None]), operations
            )


@torch.inference_mode()
def _pointwise(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return F.conv2d(rows, weight)


def _rate(device: torch.device, product: Product, seconds: float) -> float:
    product.run()
    best, turns, end = float("inf"), 0, time.perf_counter() + seconds
    while turns < 3 or time.perf_counter() < end:
        wait(device)
        start = time.perf_counter()
        product.run()
        wait(device)
        best = min(best, time.perf_counter() - start)
        turns += 1
    return product.operations / best


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
