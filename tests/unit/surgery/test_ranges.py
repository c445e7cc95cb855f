"""Ranges and the scales that follow from them, against Distiller's numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from two_stream.surgery.int8_graph import MovingRange, layer_config


@pytest.fixture(scope="module")
def numbers(shared: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((shared / "fixtures/families/compression.json").read_text())
    return found


def test_the_moving_range_is_the_corrected_average(numbers: dict[str, Any]) -> None:
    wanted = numbers["qat_range_ema"]
    observer = MovingRange(decay=wanted["decay"])
    for value, (biased, corrected) in zip(wanted["values"], *[iter(list(wanted.values())[-1])], strict=True):
        observer(torch.tensor([-value, value / 2]))
        assert float(-observer.sums[0]) == pytest.approx(biased, rel=1e-5)
        assert float(-observer.min_val) == pytest.approx(corrected, rel=2e-5)
        assert float(observer.max_val) == pytest.approx(corrected / 2, rel=2e-5)


def test_validation_does_not_move_a_range() -> None:
    observer = MovingRange(decay=0.5)
    observer(torch.tensor([-1.0, 2.0]))
    observer.eval()
    observer(torch.tensor([-100.0, 100.0]))
    assert observer.min_val == -1.0
    assert observer.max_val == 2.0


@pytest.mark.parametrize(
    ("fake", "observer"), [(False, "minmax"), (False, "moving_average"), (True, "minmax")]
)
def test_activations_take_the_asymmetric_range(numbers: dict[str, Any], fake: bool, observer: str) -> None:
    x = torch.from_numpy(np.random.default_rng(22).standard_normal(16).astype(np.float32))
    case = numbers["linear_quantisation"]["cases"]["asymmetric_unsigned_8"]
    follow = layer_config(observer, per_channel=True, fake=fake).activation()
    follow(x)
    scale, zero = follow.calculate_qparams()
    assert 1.0 / float(scale) == pytest.approx(case["scale"][0], rel=1e-4)
    assert float(-zero) == case["zero_point"][0]
    made = torch.quantize_per_tensor(x, float(scale), int(zero), torch.quint8)
    assert made.int_repr().tolist() == [int(value) for value in case["quantised"]]
    np.testing.assert_allclose(made.dequantize().numpy(), case["dequantised"], rtol=1e-4)


@pytest.mark.parametrize("fake", [False, True])
@pytest.mark.parametrize("per_channel", [False, True])
def test_weights_take_the_symmetric_range(numbers: dict[str, Any], fake: bool, per_channel: bool) -> None:
    x = torch.from_numpy(np.random.default_rng(22).standard_normal(16).astype(np.float32))
    case = numbers["linear_quantisation"]["cases"]["symmetric_8"]
    follow = layer_config("minmax", per_channel=per_channel, fake=fake).weight()
    follow(torch.stack((x, x / 2)) if per_channel else x)
    scale, zero = follow.calculate_qparams()
    # Distiller and torch divide by 127.5 and clamp; ours reaches the largest value with 127 steps on either side
    assert 1.0 / float(scale[0]) == pytest.approx(case["scale"][0] * 127 / 127.5, rel=1e-5)
    assert not zero.any()
    if per_channel:
        assert float(scale[1]) == pytest.approx(float(scale[0]) / 2)


def test_the_fake_range_of_weights_is_that_of_the_moment() -> None:
    for per_channel in (True, False):
        follow = layer_config("minmax", per_channel=per_channel, fake=True).weight()
        follow(torch.full((2, 3), 8.0))
        follow(torch.full((2, 3), 2.0))
        assert follow.calculate_qparams()[0].tolist() == pytest.approx(
            [2.0 / 127] * (2 if per_channel else 1)
        )
