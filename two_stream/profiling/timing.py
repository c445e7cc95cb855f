"""Measured costs of a model in the forward pass or in training: time, memory and fraction of the peak FLOP/s."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from two_stream.errors import SettingsError
from two_stream.profiling.costs import callables, clip_shape, multiply_adds
from two_stream.profiling.memory import PeakMemory
from two_stream.recognizer import Recognizer
from two_stream.runtime.device import autocast

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
    return f"{device} ({torch.get_num_threads()} threads)" if device.type == "cpu" else str(device)
