"""Formulas of pruning, against Distiller's numbers and torch's own pruning."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.utils import prune

from two_stream.compression.pruning import (
    global_masks,
    gradual_level,
    keep_mask,
    last_step,
    level_masks,
    level_threshold,
    sensitivity_masks,
)

FILE = Path("/work/shared/fixtures/families/compression.json")
WEIGHT = torch.from_numpy(np.random.default_rng(21).standard_normal((8, 4, 3, 3, 3)).astype(np.float32))


@pytest.fixture(scope="module")
def reference() -> dict:
    if not FILE.is_file():
        pytest.skip(f"{FILE} is not on this machine")
    return json.loads(FILE.read_text())


def test_level_rule_is_distillers(reference: dict) -> None:
    for level, expected in reference["level_pruning"]["levels"].items():
        threshold = level_threshold(WEIGHT, float(level))
        mask = keep_mask(WEIGHT, threshold)
        assert threshold == expected["threshold"]
        assert int((~mask).sum()) == expected["zeros"]
        assert float((WEIGHT * mask).sum()) == pytest.approx(expected["kept_sum"], abs=1e-4)


def test_sensitivity_rule_is_distillers(reference: dict) -> None:
    for factor, expected in reference["sensitivity_pruning"].items():
        mask = sensitivity_masks({"a": WEIGHT}, float(factor))["a"]
        assert int((~mask).sum()) == expected["zeros"]
        assert float(factor) * float(WEIGHT.std()) == pytest.approx(expected["threshold"], rel=1e-6)


def test_schedule_is_distillers(reference: dict) -> None:
    every, other = reference["agp_schedule"].values()
    how = {"initial": 0.05, "final": 0.8, "begin": 0, "end": 20}
    assert [gradual_level(e, **how, frequency=1) for e in range(20)] == pytest.approx(every, abs=1e-12)
    assert [gradual_level(e, **how, frequency=2) for e in range(0, 20, 2)] == pytest.approx(other, abs=1e-12)


def test_schedule_waits_and_stays() -> None:
    how = {"initial": 0.1, "final": 0.5, "begin": 2, "end": 7, "frequency": 2}
    levels = [gradual_level(epoch, **how) for epoch in range(10)]
    assert levels[:2] == [None, None]
    assert levels[2] == levels[3] == pytest.approx(0.1)
    assert levels[4] == levels[5] == pytest.approx(0.5 - 0.4 * 0.125)
    assert levels[6:] == [0.5] * 4
    assert last_step(2, 7, 2) == 6


@pytest.mark.parametrize("level", [0.0, 0.3, 0.6])
def test_masks_are_those_of_torch(level: float) -> None:
    torch.manual_seed(4)
    layers = {"a": torch.nn.Conv3d(3, 5, 3), "b": torch.nn.Linear(40, 7)}
    weights = {name: layer.weight.detach().clone() for name, layer in layers.items()}
    ours = level_masks(weights, dict.fromkeys(weights, level))
    for name, layer in layers.items():
        count = int(level * layer.weight.numel())
        prune.l1_unstructured(layer, "weight", amount=count)
        assert torch.equal(ours[name], layer.weight_mask.bool())
        prune.remove(layer, "weight")
        with torch.no_grad():
            layer.weight.copy_(weights[name])
    total = sum(w.numel() for w in weights.values())
    parts = [(layer, "weight") for layer in layers.values()]
    prune.global_unstructured(parts, prune.L1Unstructured, amount=int(level * total))
    together = global_masks(weights, level)
    for name, layer in layers.items():
        assert torch.equal(together[name], layer.weight_mask.bool())
