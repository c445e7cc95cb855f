"""Peak rates of the machine for large matrix products in each precision and for copies in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial

import torch
import torch.nn.functional as F

from two_stream.profiling.timing import time_runs

_SIZES = {"cpu": (1024, 2048), "cuda": (4096, 8192), "mps": (2048, 4096)}
_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Product:
    """An implementation of a matrix product."""

    name: str
    run: Callable[[], object]
    operations: float
    """number of floating-point operations of one run; a multiply-add counts as two"""


def gemm_rate(device: torch.device, precision: str, *, seconds: float = 1.0) -> float:
    """Return the FLOP/s of the fastest matrix product, see `fastest_product`."""
    return fastest_product(device, precision, seconds=seconds)[1]


def fastest_product(device: torch.device, precision: str, *, seconds: float = 1.0) -> tuple[Product, float]:
    """Return the fastest implementation of a large matrix product on this machine and its FLOP/s.

    `seconds` is the total time; each implementation is timed at least three times. On a CPU, `torch.mm` can use a
    slower library than convolutions (such as MKL in fp32 on an AMD processor), so the product is also timed as a 1×1
    convolution. On a GPU, fp32 uses TF32 if TF32 is enabled for convolutions.
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
            rows = a.reshape(1, size // 16, 16, size).permute(0, 3, 1, 2)  # channels-last in memory
            yield Product(
                f"1×1 convolution {size}", partial(_pointwise, rows, b[..., None, None]), operations
            )


@torch.inference_mode()
def _pointwise(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return F.conv2d(rows, weight)


def _rate(device: torch.device, product: Product, seconds: float) -> float:
    product.run()
    return product.operations / min(time_runs(product.run, device, seconds))


@cache
def copy_rate(device: torch.device) -> float:
    """Return the bytes per second that a copy within the device's memory reads and writes, added together."""
    count = 2**28 if device.type == "cuda" else 2**26
    source, target = (torch.zeros(count // 4, device=device) for _ in range(2))
    return 2 * count / min(time_runs(lambda: target.copy_(source), device, 0.0, least=5))
