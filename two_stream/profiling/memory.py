"""Measurement of peak memory."""

from __future__ import annotations

import ctypes
import gc
import sys
from contextlib import suppress
from pathlib import Path

import torch

_STATUS, _REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"


class PeakMemory:
    """Measures the peak memory from the creation of this object on.

    On a GPU, the peak is that of the memory that torch has allocated on the GPU. On a CPU, the peak is that of the
    resident size of the process, including the interpreter and libraries. Only Linux can reset the peak of a process;
    on other systems, the peak since the start of the process is returned.

    Attributes:
        kind: Description of what is measured.
        before: Number of bytes at the creation.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        gc.collect()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.kind, self.before = "allocated on the GPU", torch.cuda.memory_allocated(device)
        elif _reset_mark():
            self.kind, self.before = "resident size of the process", _status("VmRSS")
        else:
            self.kind, self.before = "largest resident size since the process started", _process_peak()

    def peak(self) -> int:
        """Return the peak in bytes."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return _status("VmHWM") if self.kind.startswith("resident") else _process_peak()


def _reset_mark() -> bool:
    """Return unused memory to the system and reset the kernel's peak value; return whether the reset succeeded."""
    if not sys.platform.startswith("linux"):
        return False
    with suppress(OSError, AttributeError):  # with another C library, freed memory is still counted
        ctypes.CDLL(None).malloc_trim(0)
    try:
        _REFS.write_text(_RESET_PEAK, encoding="ascii")
        return _status("VmHWM") > 0
    except (OSError, KeyError):
        return False


def _status(key: str) -> int:
    """Return a size in `/proc/self/status` in bytes."""
    for line in _STATUS.read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) * 1024
    raise KeyError(key)


def _windows_peak() -> int:
    """Return the peak working set in bytes; 0 if it is unknown."""
    # PROCESS_MEMORY_COUNTERS: two 32-bit fields in the first place, then the peak
    sizes = (ctypes.c_size_t * 9)()
    system = getattr(ctypes, "windll", None)
    if system is None or not system.psapi.GetProcessMemoryInfo(
        ctypes.c_void_p(-1), ctypes.byref(sizes), ctypes.sizeof(sizes)
    ):
        return 0
    return sizes[1]


def _process_peak() -> int:
    try:
        import resource
    except ImportError:  # Windows
        return _windows_peak()
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return resident if sys.platform == "darwin" else resident * 1024
