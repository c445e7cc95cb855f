"""What passes from teacher to student, in numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from two_stream.compression.distillation import (
    attention_loss,
    feature_loss,
    fused_targets,
    soft_target_loss,
    tokens_of,
    vector_loss,
)


def drawn(seed: int) -> torch.Tensor:
    return torch.from_numpy((np.random.default_rng(seed).standard_normal((4, 7)) * 2).astype(np.float32))


def test_soft_targets_are_distillers(shared: Path) -> None:
    wanted: dict[str, Any] = json.loads((shared / "fixtures/families/compression.json").read_text())
    wanted = wanted["knowledge_distillation"]
    student, teacher, labels = drawn(31), drawn(32), torch.tensor(wanted["labels"])
    for name, values in wanted["values"].items():
        temperature, distill, own = (float(part.partition("=")[2]) for part in name.split(","))
        soft = fused_targets([teacher], temperature)
        said = soft_target_loss(student, soft, temperature) / len(student)
        assert float(said) / temperature**2 == pytest.approx(values["distill_loss_unscaled"], rel=1e-5)
        whole = own * F.cross_entropy(student, labels) + distill * said
        assert float(whole) == pytest.approx(values["overall"], rel=1e-5)


def test_several_teachers() -> None:
    one, other = drawn(1), drawn(2)
    mean = fused_targets([one, other], 2.0)
    torch.testing.assert_close(mean, ((one / 2).softmax(1) + (other / 2).softmax(1)) / 2)
    torch.testing.assert_close(fused_targets([one, other], 2.0, "logits"), ((one + other) / 4).softmax(1))
    torch.testing.assert_close(fused_targets([one, other], 1.0, weights=(3.0, 0.0)), one.softmax(1))
    assert float(soft_target_loss(one, fused_targets([one], 3.0), 3.0)) == pytest.approx(0.0, abs=1e-5)


def test_attention_looks_at_places_whatever_the_strength() -> None:
    left, right = torch.zeros(2, 3, 2, 4, 4), torch.zeros(2, 5, 2, 4, 4)
    left[..., 0], right[..., 0] = 1.0, 7.0
    assert float(attention_loss(left, right)) == pytest.approx(0.0, abs=1e-6)
    assert float(attention_loss(left, right.flip(-1))) == pytest.approx(2.0)  # nothing in common, two clips
    half = torch.zeros(1, 1, 1, 1, 2)
    half[..., 0] = 1.0
    even = torch.ones(1, 1, 1, 1, 2)  # squared and of length 1: (1, 0) and (√½, √½)
    assert float(attention_loss(half, even)) == pytest.approx(1 - 0.5**0.5)
    assert float(attention_loss(torch.ones(1, 2, 2, 2, 2), torch.ones(1, 2, 4, 4, 4))) == pytest.approx(
        0.0, abs=1e-6
    )


def test_features_meet_in_time() -> None:
    student = torch.tensor([[[0.0], [1.0]]])  # linear, ends kept half a step inside: 0, ¼, ¾, 1
    teacher = torch.tensor([[[0.0], [0.25], [0.75], [2.0]]])
    assert float(feature_loss(student, teacher)) == pytest.approx(0.25)
    maps = [torch.arange(8.0).reshape(1, 1, 2, 2, 2), torch.ones(1, 2, 4, 1, 1)]
    torch.testing.assert_close(tokens_of(maps), torch.tensor([[[1.5, 1.0, 1.0], [5.5, 1.0, 1.0]]]))


def test_vectors() -> None:
    one, other = torch.zeros(3, 4), torch.full((3, 4), 2.0)
    assert float(vector_loss(one, other)) == 12.0  # a sum over clips of means over numbers
