"""Measures time, memory and cost of networks on this machine."""

from __future__ import annotations

import ctypes
import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from two_stream.config.schema import EvaluateOptions, Experiment
from two_stream.errors import SettingsError
from two_stream.evaluation.runs.lookup import checkpoint_folder
from two_stream.evaluation.runs.run import Run, load_run
from two_stream.evaluation.scoring.network import (
    Compiled,
    example_clip,
    is_exact,
    prepare_for_inference,
    resolve_evaluation,
)
from two_stream.pretrained import WEIGHTS
from two_stream.profiling.costs import callables, clip_shape, meta_twin, multiply_adds, parameter_count
from two_stream.recognizer import Recognizer
from two_stream.runtime.device import autocast, pick_device
from two_stream.runtime.text import plural

_STATUS, _REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"


class PeakMemory:
    """Measures the peak memory since this object was created.

    On a GPU, this is the peak of the memory that torch has allocated on the GPU. On a CPU, this is the peak resident
    size of the process, including the interpreter and libraries. Only Linux can reset the peak of a process; on other
    systems, the peak since the start of the process is returned.

    Attributes:
        kind: Description of what is measured.
        before: Number of bytes in use when this object was created.
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
    """Release unused memory, reset the kernel's peak value, and return whether the reset succeeded."""
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
    """Return the value of an entry of `/proc/self/status` in bytes."""
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


Work = Literal["forward", "training"]
_BACKWARD = 3
"""A training step costs about three forward passes: the backward pass computes gradients of inputs and weights."""


@dataclass
class Speed:
    """Measurements of one kind of pass with one batch size and precision."""

    device: str
    precision: str
    batch_size: int
    passes: int
    milliseconds: float
    """median duration of a batch"""
    clips_per_second: float
    peak_memory: int
    """peak memory in bytes; `memory_kind` describes what is counted"""
    stages: dict[str, float] = field(default_factory=dict)
    """median duration in milliseconds of each stage of a forward pass; `other` is preprocessing, pooling and
    overhead"""
    work: str = "forward"
    """`forward`, or `training`: forward pass, loss and backward pass, without the optimizer"""
    fastest: float = 0.0
    memory_kind: str = ""
    memory_added: int = 0
    """peak memory in bytes minus the memory in use before the first pass: activations, gradients and workspace"""
    flops_per_second: float = 0.0
    """FLOP/s; a multiply-add counts as two operations, and a training step as three forward passes"""
    peak_flops: float = 0.0
    """FLOP/s of a matrix product on the same machine in the same precision; 0 if it was not measured"""

    @property
    def share_of_peak(self) -> float | None:
        """Fraction of the peak FLOP/s that is reached; None if the peak was not measured."""
        return self.flops_per_second / self.peak_flops if self.peak_flops else None

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**asdict(self), "share_of_peak": self.share_of_peak}


def measure_speed(
    model: Recognizer,
    *,
    batch_size: int,
    device: torch.device,
    precision: str,
    seconds: float = 5.0,
    work: Work = "forward",
    peak_flops: float = 0.0,
) -> Speed:
    """Time at least three passes on random pixels for about `seconds`, after a warm-up pass.

    Stages are timed in separate forward passes, because waiting for the GPU after each stage slows the passes down.

    Raises:
        SettingsError: The batch is too small for BatchNorm in training.
    """
    model = model.to(device).train(work == "training")
    clip = torch.randint(0, 256, clip_shape(model, batch_size), dtype=torch.uint8, device=device)
    labels = torch.arange(batch_size, device=device) % model.num_classes
    memory = PeakMemory(device)

    def forward() -> None:
        with torch.inference_mode(), autocast(device, precision):
            model(clip)

    def training() -> None:
        with autocast(device, precision):
            loss = F.cross_entropy(model(clip), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        model.zero_grad(set_to_none=True)

    run = forward if work == "forward" else training
    try:
        run()
    except ValueError as error:  # BatchNorm cannot compute statistics of a single value
        raise SettingsError(f"{work} with batch size {batch_size}: {error}; use a larger batch") from None
    times = time_runs(run, device, seconds)
    peak = memory.peak()
    model.eval()
    stages = _stage_times(model, forward, device, seconds / 2) if work == "forward" else {}
    median = statistics.median(times)
    operations = 2 * multiply_adds(model) * (1 if work == "forward" else _BACKWARD)
    return Speed(
        device=device_name(device),
        precision=precision,
        batch_size=batch_size,
        passes=len(times),
        milliseconds=median * 1e3,
        clips_per_second=batch_size / median,
        peak_memory=peak,
        stages=stages,
        work=work,
        fastest=min(times) * 1e3,
        memory_kind=memory.kind,
        memory_added=max(0, peak - memory.before),
        flops_per_second=operations * batch_size / median,
        peak_flops=peak_flops,
    )


def time_runs(run: Callable[[], object], device: torch.device, seconds: float, least: int = 3) -> list[float]:
    """Repeat a run for `seconds` in total, but at least `least` times, and return the seconds of each run."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < least or time.perf_counter() < end:
        wait_for_device(device)
        start = time.perf_counter()
        run()
        wait_for_device(device)
        times.append(time.perf_counter() - start)
    return times


def wait_for_device(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _stage_times(
    model: Recognizer, run: Callable[[], None], device: torch.device, seconds: float
) -> dict[str, float]:
    seen: dict[str, list[float]] = {name: [] for name, _ in callables(model)}
    with _stage_clock(model, seen, device):
        totals = time_runs(run, device, seconds)
    passes = len(totals)
    medians = {
        name: statistics.median(sum(times[i::passes]) for i in range(passes)) * 1e3
        if len(times) == passes
        else sum(times) / passes * 1e3
        for name, times in seen.items()
    }
    medians["other"] = max(0.0, statistics.median(totals) * 1e3 - sum(medians.values()))
    return medians


@contextmanager
def _stage_clock(model: Recognizer, seen: dict[str, list[float]], device: torch.device) -> Iterator[None]:
    starts: dict[str, float] = {}

    def before(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any) -> None:
            del module, args
            wait_for_device(device)
            starts[name] = time.perf_counter()

        return hook

    def after(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            del module, args, output
            wait_for_device(device)
            seen[name].append(time.perf_counter() - starts[name])

        return hook

    hooks = [part.register_forward_pre_hook(before(name)) for name, part in callables(model)]
    hooks += [part.register_forward_hook(after(name)) for name, part in callables(model)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def device_name(device: torch.device) -> str:
    """Return the name of a device for display, with the model of a GPU or the number of threads of a CPU."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({plural(torch.get_num_threads(), 'thread')})" if device.type == "cpu" else str(device)


Forward = Callable[[], None]
_TURNS, _MEMORY_TURNS = 5, 2
"""Number of turns in which each network is timed, and in which its memory is measured."""
_MIB = 2**20


@dataclass(frozen=True)
class NetworkCosts:
    """Size of a network on disk, and costs of one view."""

    file_bytes: int
    """size of `model.safetensors` in bytes"""
    parameters: int
    nonzero: int
    """number of parameters that are not 0"""
    multiply_adds: int
    """multiply-adds for one view; for an int8 network, those of its float version"""
    latency_ms: float
    """median duration in milliseconds of a view's forward pass in evaluation"""
    latency_low: float
    """median duration in the fastest of the turns (see `measure_networks`); `latency_high` is that of the slowest
    turn"""
    latency_high: float
    memory_mib: float
    """peak memory of the loaded network and one view's forward pass, minus the memory that the process used before"""


@dataclass(frozen=True)
class ViewCosts:
    """Measured costs of the forward pass of one view."""

    latency_ms: float
    memory_mib: float
    """peak memory, minus the memory in use before the first pass"""
    precision: str


def measure_view(
    model: Recognizer, experiment: Experiment, device: torch.device, seconds: float = 1.0
) -> ViewCosts:
    """Measure the forward pass of one view with the evaluation settings of an experiment, in at least three passes."""
    forward, precision = evaluated_forward(model, experiment, experiment.evaluate, device)
    memory = PeakMemory(device)
    ((latency,),) = time_in_turns([forward], device, seconds)
    return ViewCosts(latency, max(0, memory.peak() - memory.before) / _MIB, precision)


def measure_networks(
    runs: Sequence[Run], options: EvaluateOptions, *, device: str, seconds: float = 1.0
) -> list[NetworkCosts]:
    """Count and measure the networks of several runs.

    The networks take turns, so that machine load affects all of them.

    Each network is timed for about `seconds` in total, in five turns of at least three passes. To measure its memory,
    each network is loaded again.
    """
    where = pick_device(device)
    passes = [evaluated_forward(run.model.to(where), run.experiment, options, where)[0] for run in runs]
    medians = time_in_turns(passes, where, seconds, _TURNS)
    del passes
    memory = _memory(runs, options, where)
    return [
        NetworkCosts(
            file_bytes=(checkpoint_folder(run.paths.root, run.checkpoint) / WEIGHTS).stat().st_size,
            parameters=parameter_count(meta_twin(run.model)),
            nonzero=nonzero_parameters(run.model),
            multiply_adds=multiply_adds(run.model),
            latency_ms=statistics.median(times),
            latency_low=min(times),
            latency_high=max(times),
            memory_mib=peak,
        )
        for run, times, peak in zip(runs, medians, memory, strict=True)
    ]


def evaluated_forward(
    model: Recognizer, experiment: Experiment, options: EvaluateOptions, device: torch.device
) -> tuple[Forward, str]:
    """Return a function that computes one view with the evaluation options, and the name of its precision."""
    chosen = resolve_evaluation(model, options, device, exact=is_exact(experiment))
    return forward_of(prepare_for_inference(model, chosen), device, chosen.precision), chosen.precision


def forward_of(network: Recognizer | Compiled, device: torch.device, precision: str = "fp32") -> Forward:
    """Return a function that computes one view with a prepared network."""
    clip_BCTHW = example_clip(network.model if isinstance(network, Compiled) else network)

    def run() -> None:
        with torch.inference_mode(), autocast(device, precision):
            network(clip_BCTHW)

    return run


def time_in_turns(
    passes: Sequence[Forward], device: torch.device, seconds: float, turns: int = 1
) -> list[list[float]]:
    """Return the median duration in milliseconds of each pass in each turn, after a warm-up pass.

    Each pass is timed for about `seconds` in total, and at least three times in each turn.
    """
    for one in passes:
        one()
    medians: list[list[float]] = [[] for _ in passes]
    for _ in range(turns):
        for found, one in zip(medians, passes, strict=True):
            found.append(statistics.median(time_runs(one, device, seconds / turns)) * 1e3)
    return medians


def nonzero_parameters(model: nn.Module) -> int:
    """Return the number of parameters that are not 0. For int8 parameters, the stored integers are counted."""
    count = sum(int(torch.count_nonzero(parameter)) for parameter in model.parameters())
    quantized: list[Any] = [part for part in model.modules() if callable(getattr(part, "weight", None))]
    for part in quantized:  # int8 layers of torch.ao hold packed weights, which methods return
        bias = part.bias()
        count += int(torch.count_nonzero(part.weight().int_repr()))
        count += 0 if bias is None else int(torch.count_nonzero(bias))
    return count


def _memory(runs: Sequence[Run], options: EvaluateOptions, device: torch.device) -> list[float]:
    """Return the peak memory of each network in MiB.

    The smaller of two turns is used, because other memory of the process can only increase the value.
    """
    peaks: list[list[float]] = [[] for _ in runs]
    for _ in range(_MEMORY_TURNS):
        for found, run in zip(peaks, runs, strict=True):
            before = PeakMemory(device).before
            again = load_run(run.paths.root, run.checkpoint, str(device))
            forward, _precision = evaluated_forward(again.model, again.experiment, options, device)
            del again
            memory = PeakMemory(device)  # do not count temporary memory used for loading
            forward()
            found.append(max(0, memory.peak() - before) / _MIB)
            del forward
    return [min(found) for found in peaks]
