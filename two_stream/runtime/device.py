"""Which device computes, and how exactly."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from two_stream.errors import SettingsError

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str = "auto") -> torch.device:
    """Return a device by name; `auto` takes CUDA, then Apple's MPS, then the CPU.

    Raises:
        SettingsError: The name is unknown or the machine has no such device.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
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
        raise SettingsError(f"device {name!r}: this machine has none; use `--device auto` or `--device cpu`")
    return device


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Return the context of a forward pass: nothing for fp32, autocast for bf16 and fp16."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=_TYPES[precision])


def set_threads(count: int) -> None:
    """Set torch's CPU threads; 0 leaves them."""
    if count:
        torch.set_num_threads(count)


def set_deterministic(on: bool, device: torch.device) -> None:
    """Ask for deterministic algorithms on a GPU; an operation that has none warns instead of failing.

    On the CPU nothing is asked for: what the networks use repeats bit for bit with a given number of threads, and
    torch's switch costs seconds at the start.
    """
    if device.type != "cuda":
        return
    torch.use_deterministic_algorithms(on, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = not on
