"""What a variant costs: counted and measured once per model and machine, kept beside the study."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from two_stream.config.schema import Experiment
from two_stream.evaluation.scoring.network import (
    example_clip,
    is_exact,
    prepare_for_inference,
    resolve_evaluation,
)
from two_stream.pretrained import alterations_in, read_model
from two_stream.profiling import meta_twin, multiply_adds, parameter_count
from two_stream.profiling.memory import PeakMemory
from two_stream.profiling.timing import device_name, timed
from two_stream.recognizer import Recognizer
from two_stream.runtime.device import autocast
from two_stream.runtime.files import write_json
from two_stream.runtime.provenance import environment
from two_stream.studies.statistics.results import VariantCost

_SECONDS = 1.0
"""of timed passes per model"""
_MIB = 2**20


def measure_cost(
    experiment: Experiment,
    num_classes: int,
    views: float | None,
    *,
    device: torch.device,
    seconds: float = _SECONDS,
    run: Path | None = None,
) -> VariantCost:
    """Count a variant's parameters and operations, and time the forward pass of one view as it is evaluated.

    The network has random weights, which cost the same; precision, folding and memory format are those of the
    evaluation. A first pass warms up and counts for memory only.

    Args:
        experiment: The variant; `threads` is left as the process has it.
        num_classes: Of its data set.
        views: Views per video, as evaluated; passed on.
        device: Where.
        seconds: How long to time; three passes at least.
        run: A run of it whose network was altered (narrowed, int8): that very network is measured.
    """
    model = Recognizer(experiment.model, num_classes).eval() if run is None else read_model(run)[0]
    device = torch.device("cpu") if model.cpu_only else device
    model = model.to(device)
    if experiment.channels_last:
        model.channels_last()
    exact = is_exact(experiment)
    options = resolve_evaluation(model, experiment.evaluate, device, exact=exact)
    parameters, operations = parameter_count(meta_twin(model)), multiply_adds(model)
    network = prepare_for_inference(model, options)
    clip_BCTHW = example_clip(model)
    del model
    memory = PeakMemory(device)

    def forward() -> None:
        with torch.inference_mode(), autocast(device, options.precision):
            network(clip_BCTHW)

    forward()
    times = timed(forward, device, seconds)
    return VariantCost(
        parameters=parameters,
        multiply_adds=operations,
        views=views,
        latency_ms=statistics.median(times) * 1e3,
        memory_mib=max(0, memory.peak() - memory.before) / _MIB,
        device=f"{device_name(device)}, {options.precision}",
    )


def kept_cost(
    path: Path,
    experiment: Experiment,
    num_classes: int,
    views: float | None,
    *,
    device: torch.device,
    run: Path | None = None,
) -> VariantCost:
    """Return a variant's cost from a file, or measure it and keep it there.

    Variants whose models, precision and machine are the same share a measurement; a file that is damaged or of
    another version is measured anew.

    Args:
        path: JSON file of costs by key; made when absent.
        experiment: The variant.
        num_classes: Of its data set.
        views: Views per video, as evaluated.
        device: Where.
        run: A run of the variant; its network counts where it is not the one its settings say.
    """
    altered = [] if run is None else alterations_in(run)
    key = cost_key(experiment, num_classes, device, altered)
    kept = _read(path)
    if key in kept:
        return replace(kept[key], views=views)
    cost = measure_cost(experiment, num_classes, views, device=device, run=run if altered else None)
    write_json(path, {name: asdict(one) for name, one in {**_read(path), key: cost}.items()})
    return cost


def cost_key(
    experiment: Experiment, num_classes: int, device: torch.device, altered: Sequence[dict[str, Any]] = ()
) -> str:
    """Return the hash of everything a cost depends on: model, classes, evaluation's arithmetic, machine, torch."""
    facts: dict[str, Any] = {
        "model": experiment.model.model_dump(mode="json"),
        "classes": num_classes,
        "evaluate": experiment.evaluate.model_dump(mode="json", include={"precision", "fold", "compile"}),
        "exact": is_exact(experiment),
        "channels_last": experiment.channels_last,
        "device": device_name(device),
        "machine": environment()["cpu"],
        "torch": torch.__version__,
    }
    if altered:
        facts["altered"] = list(altered)
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _read(path: Path) -> dict[str, VariantCost]:
    try:
        return {str(key): VariantCost(**value) for key, value in json.loads(path.read_bytes()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
