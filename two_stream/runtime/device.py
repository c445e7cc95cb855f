"""Device, autocast, threads and determinism."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from two_stream.errors import SettingsError
from two_stream.runtime import distributed
from two_stream.runtime.workers import usable_processes

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
