"""Costs of trained networks on this machine, for studies and for the reports of compressed runs."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from two_stream.config.schema import EvaluateOptions, Experiment
from two_stream.evaluation.runs.run import Run, load_run
from two_stream.evaluation.scoring.network import (
    Compiled,
    example_clip,
    is_exact,
    prepare_for_inference,
    resolve_evaluation,
)
from two_stream.profiling.costs import meta_twin, multiply_adds, parameter_count
from two_stream.profiling.memory import PeakMemory
from two_stream.profiling.timing import time_runs
from two_stream.recognizer import Recognizer
from two_stream.runtime.device import autocast, pick_device
from two_stream.runtime.files import complete_folder

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
    """smallest of the medians of all turns; `latency_high` is the largest"""
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

    Each network is timed for about `seconds` in total, in at least five turns of three passes. To measure its memory,
    each network is loaded again.
    """
    where = pick_device(device)
    passes = [evaluated_forward(run.model.to(where), run.experiment, options, where)[0] for run in runs]
    medians = time_in_turns(passes, where, seconds, _TURNS)
    del passes
    memory = _memory(runs, options, where)
    return [
        NetworkCosts(
            file_bytes=(complete_folder(run.paths.root / run.checkpoint) / "model.safetensors")
            .stat()
            .st_size,
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
    """Return a function that computes one view with the evaluation options, and the precision."""
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
