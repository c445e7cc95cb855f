"""Device, autocast, threads, determinism, the fastest precision of this machine, and seeded random numbers."""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from two_stream.errors import SettingsError
from two_stream.runtime import distributed
from two_stream.runtime.files import cache_folder, write_cached
from two_stream.runtime.provenance import environment
from two_stream.runtime.workers import usable_processes


def derive(*parts: object) -> int:
    """Return a stable 63-bit number for a tuple of strings and numbers (SHA-256 of their text)."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def rng(*parts: object) -> np.random.Generator:
    """Return a numpy generator seeded by `derive`."""
    return np.random.default_rng(derive(*parts))


def seed_everything(seed: int) -> None:
    """Seed Python, numpy's legacy generator and torch on every device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def seed_torch(seed: int, device: torch.device) -> None:
    """Seed torch for computations on a device. On a CPU, this is much faster than `torch.manual_seed`."""
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


def rng_state() -> dict[str, Any]:
    """Return the state of every generator as tensors and plain values, for `torch.load(…, weights_only=True)`."""
    version, words, gauss = random.getstate()
    name, keys, pos, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": [version, list(words), gauss],
        "numpy": [str(name), torch.from_numpy(np.asarray(keys).astype(np.int64)), pos, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": list(torch.cuda.get_rng_state_all()) if torch.cuda.is_available() else [],
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore the generators to a state from `rng_state`."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, pos, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), pos, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all(state["cuda"])


_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str = "auto") -> torch.device:
    """Return a device by name; `auto` selects CUDA if available, otherwise Apple's MPS, otherwise the CPU.

    If there are several processes, each process uses the GPU of its local rank.

    Raises:
        SettingsError: The name is unknown or the machine has no such device.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return _local_gpu()
        apple = torch.backends.mps.is_available() and distributed.world_size() == 1
        return torch.device("mps" if apple else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise SettingsError(f"device {name!r}: expected auto, cpu, cuda, cuda:N or mps") from None
    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }.get(device.type, False)
    if not available:
        raise SettingsError(
            f"device {name!r}: not available on this machine; use `--device auto` or `--device cpu`"
        )
    if distributed.world_size() > 1:
        if device.type == "mps" or ":" in name:
            raise SettingsError(
                f"device {name!r}: several processes cannot share one GPU; use `--device cuda` for one GPU per process"
            )
        return _local_gpu() if device.type == "cuda" else device
    return device


def _local_gpu() -> torch.device:
    return (
        torch.device("cuda", distributed.local_rank())
        if distributed.world_size() > 1
        else torch.device("cuda")
    )


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Return the context for a forward pass: autocast for bf16 and fp16, and no change for fp32."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=_TYPES[precision])


def set_threads(count: int) -> None:
    """Set torch's number of CPU threads; 0: torch's default, divided among the processes of a machine."""
    if not count and distributed.world_size() > 1 and not _is_omp_threads_set():
        count = max(1, usable_processes() // distributed.local_size())
    if count:
        torch.set_num_threads(count)


def _is_omp_threads_set() -> bool:
    """Whether the user set OMP_NUM_THREADS; torchrun sets it to 1 for its workers if it is not set."""
    if os.environ.get("OMP_NUM_THREADS", "1") != "1":
        return True
    try:
        before = Path(f"/proc/{os.getppid()}/environ").read_bytes()  # the environment at its start
    except OSError:
        return "OMP_NUM_THREADS" in os.environ
    return b"\0OMP_NUM_THREADS=" in b"\0" + before


def set_deterministic(on: bool, device: torch.device) -> None:
    """Use deterministic algorithms on a GPU; operations without a deterministic algorithm print a warning.

    On the CPU, the networks' operations are already deterministic for a given number of threads, and torch's setting
    would take seconds at the start.
    """
    if device.type != "cuda":
        return
    torch.use_deterministic_algorithms(on, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = not on


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

    Runs in fp32 and bf16 alternate, so that a change of the machine's load affects both.
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
