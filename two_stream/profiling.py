"""What a model costs: parameters, multiply-adds, time and memory, in all and stage by stage."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from two_stream.config.model import ModelOptions
from two_stream.recognizer import Recognizer
from two_stream.runtime.device import autocast

CONVENTION = "one multiply-add is one multiplication with its addition: half the FLOPs torch counts"


@dataclass
class StageCost:
    """One stage of a model, for one clip."""

    name: str
    output: tuple[int, ...]
    """shape of what leaves it, without the batch"""
    parameters: int
    multiply_adds: int
    milliseconds: float | None = None
    """median time of a batch, when measured"""
    beside: tuple[tuple[int, ...], ...] = ()
    """shapes of the second pathway and further ones, where there are any"""


@dataclass
class Speed:
    """Measured forward passes."""

    device: str
    precision: str
    batch_size: int
    passes: int
    milliseconds: float
    """median time of a batch"""
    clips_per_second: float
    peak_memory: int
    """bytes: allocated on the GPU, or the process's largest resident size on the CPU"""
    stages: dict[str, float] = field(default_factory=dict)
    """median milliseconds of each stage; `other` is preprocessing, pooling and overhead"""

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def meta_model(options: ModelOptions, num_classes: int) -> Recognizer:
    """Build a model without memory for its weights: enough to count."""
    with torch.device("meta"):
        return Recognizer(options, num_classes).eval()


def parameter_count(model: nn.Module) -> int:
    """Return the number of parameters, frozen ones included."""
    return sum(parameter.numel() for parameter in model.parameters())


def multiply_adds(model: Recognizer) -> int:
    """Return the multiply-adds of one clip; see `CONVENTION`. Normalisations and activations are not counted."""
    return sum(stage.multiply_adds for stage in stage_costs(model))


def stage_costs(model: Recognizer) -> list[StageCost]:
    """Return output shape, parameters and multiply-adds of each stage for one clip, counted on the meta device."""
    twin = meta_model(model.options, model.num_classes)
    clip = torch.empty(clip_shape(twin, 1), device="meta", dtype=torch.uint8)
    shapes: dict[str, list[tuple[int, ...]]] = {name: [] for name, _ in _callables(twin)}

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
            del module, args
            maps = (output,) if isinstance(output, torch.Tensor) else output
            shapes[name] += [tuple(map_.shape[1:]) for map_ in maps]

        return hook

    hooks = [part.register_forward_hook(note(name)) for name, part in _callables(twin)]
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        twin(clip)
    for hook in hooks:
        hook.remove()
    counts = {scope: sum(ops.values()) // 2 for scope, ops in counter.get_flop_counts().items()}
    names = {id(part): f"{type(twin).__name__}.{name}" for name, part in twin.named_modules()}
    costs = []
    for name, stage in twin.stages():
        inside = sum(counts.get(names[id(part)], 0) for other, part in _callables(twin) if other == name)
        first, *beside = shapes[name]
        costs.append(StageCost(name, first, parameter_count(stage), inside, beside=tuple(beside)))
    missing = counts["Global"] - sum(cost.multiply_adds for cost in costs)
    head = next(cost for cost in costs if cost.name == "head")
    head.multiply_adds += missing  # what a head does while pooling runs outside its forward
    return costs


def clip_shape(model: Recognizer, batch_size: int) -> tuple[int, int, int, int, int]:
    """Return `(B, C, T, H, W)` of the clips a model expects."""
    spec = model.spec
    return batch_size, spec.channels, spec.clip_length, spec.crop, spec.crop


def measure(
    model: Recognizer, *, batch_size: int, device: torch.device, precision: str, seconds: float = 5.0
) -> Speed:
    """Time forward passes on random pixels for about `seconds`, at least three, after a warm-up pass.

    Stage times are taken in passes of their own, since waiting for the GPU between stages slows it.
    """
    model = model.to(device).eval()
    clip = torch.randint(0, 256, clip_shape(model, batch_size), dtype=torch.uint8, device=device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)

    def forward() -> None:
        with torch.inference_mode(), autocast(device, precision):
            model(clip)

    forward()
    times = _timed(forward, device, seconds)
    stages = _stage_times(model, forward, device, seconds / 2)
    median = statistics.median(times)
    return Speed(
        device=_device_name(device),
        precision=precision,
        batch_size=batch_size,
        passes=len(times),
        milliseconds=median * 1e3,
        clips_per_second=batch_size / median,
        peak_memory=_peak_memory(device),
        stages=stages,
    )


def _callables(model: Recognizer) -> list[tuple[str, nn.Module]]:
    """The stages as modules that are really called: the list of heads is not, its members are."""
    called: list[tuple[str, nn.Module]] = []
    for name, stage in model.stages():
        called += [(name, part) for part in stage] if isinstance(stage, nn.ModuleList) else [(name, stage)]
    return called


def _timed(run: Callable[[], None], device: torch.device, seconds: float) -> list[float]:
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        _wait(device)
        start = time.perf_counter()
        run()
        _wait(device)
        times.append(time.perf_counter() - start)
    return times


def _stage_times(
    model: Recognizer, run: Callable[[], None], device: torch.device, seconds: float
) -> dict[str, float]:
    seen: dict[str, list[float]] = {name: [] for name, _ in _callables(model)}
    with _stage_clock(model, seen, device):
        totals = _timed(run, device, seconds)
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
            _wait(device)
            starts[name] = time.perf_counter()

        return hook

    def after(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            del module, args, output
            _wait(device)
            seen[name].append(time.perf_counter() - starts[name])

        return hook

    hooks = [part.register_forward_pre_hook(before(name)) for name, part in _callables(model)]
    hooks += [part.register_forward_hook(after(name)) for name, part in _callables(model)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return resident if sys.platform == "darwin" else resident * 1024


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({torch.get_num_threads()} threads)" if device.type == "cpu" else str(device)
