"""What two networks cost on this machine, measured in turns so that a busy minute is not put down to one of them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.ao.nn.quantized.modules.utils import WeightedQuantizedModule

from two_stream.config.schema import EvaluateOptions
from two_stream.evaluation.runs.run import Run, load_run
from two_stream.evaluation.scoring.network import (
    Compiled,
    example_clip,
    is_exact,
    prepare_for_inference,
    resolve_evaluation,
)
from two_stream.profiling import meta_twin, multiply_adds, parameter_count
from two_stream.profiling.memory import PeakMemory
from two_stream.profiling.timing import timed
from two_stream.recognizer import Recognizer
from two_stream.runtime.device import autocast, pick_device
from two_stream.runtime.files import complete_folder

_TURNS = 5
"""How often each network is timed, the networks taking turns."""
_MEMORY_TURNS = 2
_MIB = 2**20


@dataclass(frozen=True)
class NetworkCosts:
    """What one network is on disk and takes for one view."""

    file_bytes: int
    """of `model.safetensors`"""
    parameters: int
    nonzero: int
    """parameters that are not 0"""
    multiply_adds: int
    """of one view; the same for an int8 network and its float one"""
    latency_ms: float
    """median of a view's forward pass, as it is evaluated"""
    latency_low: float
    """smallest of the turns' medians"""
    latency_high: float
    """largest of them"""
    memory_mib: float
    """peak of loading and one view's forward pass, weights included, over what the process held before"""


def measure_networks(
    runs: Sequence[Run], options: EvaluateOptions, *, device: str, seconds: float = 1.0
) -> list[NetworkCosts]:
    """Count and measure several runs' networks, as `options` would evaluate them.

    Args:
        runs: Loaded; each is read anew for its memory, so that nothing else is counted.
        options: Precision, folding and compiling.
        device: Where.
        seconds: How long each network is timed in all; five turns of three passes at least.
    """
    where = pick_device(device)
    networks = [_network(run.model.to(where), run, options, where) for run in runs]
    passes = [_pass(network, where, precision) for network, precision in networks]
    medians: list[list[float]] = [[] for _ in runs]
    for one in passes:
        one()
    for _ in range(_TURNS):
        for found, one in zip(medians, passes, strict=True):
            found.append(statistics.median(timed(one, where, seconds / _TURNS)) * 1e3)
    del networks, passes
    memory = _memory(runs, options, where)
    return [
        NetworkCosts(
            file_bytes=_file_bytes(run),
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


def nonzero_parameters(model: nn.Module) -> int:
    """Return how many parameters are not 0; those of int8 layers are counted as they are stored."""
    count = sum(int(torch.count_nonzero(parameter)) for parameter in model.parameters())
    quantized: list[Any] = [part for part in model.modules() if isinstance(part, WeightedQuantizedModule)]
    for part in quantized:
        bias = part.bias()
        count += int(torch.count_nonzero(part.weight().int_repr()))
        count += 0 if bias is None else int(torch.count_nonzero(bias))
    return count


def _network(
    model: Recognizer, run: Run, options: EvaluateOptions, device: torch.device
) -> tuple[Recognizer | Compiled, str]:
    """Return what scores in a model's place, and in which precision."""
    exact = is_exact(run.experiment)
    chosen = resolve_evaluation(model, options, device, exact=exact)
    return prepare_for_inference(model, chosen), chosen.precision


def _pass(network: Recognizer | Compiled, device: torch.device, precision: str) -> Any:
    model = network.model if isinstance(network, Compiled) else network
    clip_BCTHW = example_clip(model)

    def run() -> None:
        with torch.inference_mode(), autocast(device, precision):
            network(clip_BCTHW)

    return run


def _memory(runs: Sequence[Run], options: EvaluateOptions, device: torch.device) -> list[float]:
    """Return the peak of each network in MiB: the lower of two turns, since the rest of the process only adds."""
    peaks: list[list[float]] = [[] for _ in runs]
    for _ in range(_MEMORY_TURNS):
        for found, run in zip(peaks, runs, strict=True):
            before = PeakMemory(device).before
            again = load_run(run.paths.root, run.checkpoint, str(device))
            network, precision = _network(again.model, again, options, device)
            del again
            memory = PeakMemory(device)  # what reading held for a moment does not count
            _pass(network, device, precision)()
            found.append(max(0, memory.peak() - before) / _MIB)
            del network
    return [min(found) for found in peaks]


def _file_bytes(run: Run) -> int:
    return (complete_folder(run.paths.root / run.checkpoint) / "model.safetensors").stat().st_size
