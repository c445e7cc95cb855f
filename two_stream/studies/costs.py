"""Costs of a study's variants: measured once per model and machine, and stored in the study's folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from two_stream.config.schema import Experiment
from two_stream.evaluation.scoring.network import is_exact
from two_stream.pretrained import alterations_in, read_model
from two_stream.profiling.costs import meta_twin, multiply_adds, parameter_count
from two_stream.profiling.network_cost import measure_view
from two_stream.profiling.timing import device_name
from two_stream.recognizer import Recognizer
from two_stream.runtime.files import write_json
from two_stream.runtime.provenance import environment
from two_stream.studies.statistics.results import VariantCost


def measure_variant(
    experiment: Experiment,
    num_classes: int,
    views: float | None,
    *,
    device: torch.device,
    seconds: float = 1.0,
    run: Path | None = None,
) -> VariantCost:
    """Count a variant's parameters and operations, and measure the forward pass of one view as it is evaluated.

    The network has random weights, which cost the same. Where a run has an altered network (narrowed, int8), give the
    run: its network is measured. `threads` of the settings is not applied.
    """
    model = Recognizer(experiment.model, num_classes).eval() if run is None else read_model(run)[0]
    device = torch.device("cpu") if model.cpu_only else device
    model = model.to(device)
    if experiment.channels_last:
        model.channels_last()
    parameters, operations = parameter_count(meta_twin(model)), multiply_adds(model)
    found = measure_view(model, experiment, device, seconds)
    return VariantCost(
        parameters=parameters,
        multiply_adds=operations,
        views=views,
        latency_ms=found.latency_ms,
        memory_mib=found.memory_mib,
        device=f"{device_name(device)}, {found.precision}",
    )


def stored_cost(
    path: Path,
    experiment: Experiment,
    num_classes: int,
    views: float | None,
    *,
    device: torch.device,
    run: Path | None = None,
) -> VariantCost:
    """Return a variant's cost from a JSON file of costs by key, or measure and store it.

    Variants with the same model, precision and machine share a measurement. A damaged file is replaced. The network of
    `run` is measured where it differs from the one in the settings.
    """
    altered = [] if run is None else alterations_in(run)
    key = cost_key(experiment, num_classes, device, altered)
    stored = _read(path)
    if key in stored:
        return replace(stored[key], views=views)
    cost = measure_variant(experiment, num_classes, views, device=device, run=run if altered else None)
    # read again: another process may have stored a cost in the meantime
    write_json(path, {name: asdict(one) for name, one in {**_read(path), key: cost}.items()})
    return cost


def cost_key(
    experiment: Experiment, num_classes: int, device: torch.device, altered: Sequence[dict[str, Any]] = ()
) -> str:
    """Return the hash of everything a cost depends on: model, classes, arithmetic of the evaluation, machine, torch."""
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
