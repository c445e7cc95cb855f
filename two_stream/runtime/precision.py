"""Precision for scoring on this machine: bf16 if it is measurably faster, otherwise fp32."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch.nn import functional

from two_stream.runtime.files import cache_folder, write_cached
from two_stream.runtime.provenance import environment

_CPU_BF16 = ("avx512_bf16", "amx_bf16", "bf16")
"""flags of /proc/cpuinfo: x86 with AVX-512 BF16 or AMX, ARM with BF16"""
CLEARLY_FASTER = 1.2
"""smallest speed of bf16 relative to fp32 at which `auto` chooses it despite its rounding"""
_TURNS = 5
_SECONDS = 0.2
"""time limit of a measurement; a machine that emulates bf16 completes one or two repetitions in it"""


@dataclass(frozen=True)
class Speedup:
    """Speed of bf16 on a CPU relative to fp32."""

    product: float
    """speedup of a matrix product"""
    convolution: float
    """speedup of a 3D convolution"""

    @property
    def least(self) -> float:
        """The smaller of the two speedups."""
        return min(self.product, self.convolution)


_found: dict[str, Speedup] = {}
"""results of this process, by the name of their cache file"""


def native_bf16(device: torch.device) -> bool:
    """Whether a device has bfloat16 instructions, as GPUs since Ampere and CPUs with AVX-512 BF16 or AMX do."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and bool(cpu_flags() & set(_CPU_BF16))


def cpu_flags() -> set[str]:
    """Return the CPU's flags in /proc/cpuinfo; empty if there is no such file."""
    try:
        content = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return set()
    lines = (
        line.split(":", 1)[-1].split() for line in content.splitlines() if line[:5] in ("flags", "Featu")
    )
    return set(next(lines, []))


def resolve_precision(precision: str, device: torch.device, *, exact: bool = False) -> str:
    """Return the precision of `auto`: bf16 if it is clearly faster and not `exact`, otherwise fp32.

    Some CPUs with bf16 instructions are slower in bf16 than in fp32, so the speed of a CPU is measured once. Any
    precision other than `auto` is returned unchanged.
    """
    if precision != "auto":
        return precision
    if exact or not native_bf16(device):
        return "fp32"
    return "bf16" if device.type != "cpu" or bf16_speedup().least >= CLEARLY_FASTER else "fp32"


def precision_reason(precision: str) -> str | None:
    """Return a precision with this CPU's speed, such as `bf16 (2.0x fp32 here)`; None if it was not measured."""
    found = _found.get(_key())
    if found is None or precision not in ("bf16", "fp32"):
        return None
    return (
        f"bf16 ({found.least:.1f}x fp32 here)"
        if precision == "bf16"
        else f"fp32 (bf16 {found.least:.1f}x here)"
    )


def bf16_speedup() -> Speedup:
    """Return this CPU's speed in bf16 relative to fp32, measured once per processor, torch version and thread count.

    The result is stored in the user's cache folder.
    """
    key = _key()
    if key not in _found:
        folder = cache_folder()
        path = None if folder is None else folder / "precision" / f"{key}.json"
        kept = None if path is None else _read(path)
        _found[key] = kept or _measure()
        if path is not None and kept is None:
            write_cached(path, json.dumps(asdict(_found[key])).encode())
    return _found[key]


def _key() -> str:
    """Return a hash of everything the speed depends on."""
    machine = [environment()["cpu"], sorted(cpu_flags()), torch.backends.cpu.get_cpu_capability()]
    settings = [torch.__version__, torch.get_num_threads(), os.environ.get("ONEDNN_MAX_CPU_ISA", "")]
    return hashlib.sha256(json.dumps([machine, settings]).encode()).hexdigest()[:16]


def _read(path: Path) -> Speedup | None:
    try:
        found = Speedup(**json.loads(path.read_bytes()))
        usable = all(math.isfinite(value) and value > 0 for value in asdict(found).values())
    except (OSError, ValueError, TypeError):
        return None
    return found if usable else None


@torch.inference_mode()
def _measure() -> Speedup:
    """Time a matrix product and a 3D convolution of 0.3 GFLOP each, in less than a second.

    The two types alternate, so that a change of the machine's load affects both.
    """
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.randn(512, 512, generator=draw) for _ in range(2))
    maps = torch.randn(1, 32, 8, 20, 20, generator=draw)
    weight = torch.randn(64, 32, 3, 3, 3, generator=draw)
    maps, weight = (tensor.to(memory_format=torch.channels_last_3d) for tensor in (maps, weight))

    def ratio(function: Callable[..., torch.Tensor], *tensors: torch.Tensor) -> float:
        kinds = (torch.float32, torch.bfloat16)
        sides = [partial(function, *(tensor.to(kind) for tensor in tensors)) for kind in kinds]
        for side in sides:  # warm-up: torch chooses kernels
            side()
        found: list[float] = []
        end = time.perf_counter() + _SECONDS
        while not found or (len(found) < _TURNS and time.perf_counter() < end):
            exact, short = (_seconds(side) for side in sides)
            found.append(exact / short)
        return median(found)

    return Speedup(
        product=ratio(torch.mm, a, b), convolution=ratio(partial(functional.conv3d, padding=1), maps, weight)
    )


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
