"""The rate over time, against hand-computed values and torch's own schedulers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from two_stream.config.schema import Constant, Cosine, MultiStep, Plateau, ScheduleOptions
from two_stream.training.optim import Schedule


def _build(options: ScheduleOptions, lr: float = 0.1, steps: int = 4, epochs: int = 5) -> Schedule:
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD(
        [{"params": [parameters[0]]}, {"params": [parameters[1]], "lr_scale": 0.5}], lr=lr
    )
    return Schedule(options, optimizer, base_lr=lr, steps_per_epoch=steps, epochs=epochs)


def test_constant_and_scaled_groups() -> None:
    schedule = _build(Constant())
    assert schedule.apply(7) == 0.1
    assert [group["lr"] for group in schedule.optimizer.param_groups] == [0.1, 0.05]


def test_multistep_falls_after_the_milestones() -> None:
    schedule = _build(MultiStep(milestones=(2, 3), gamma=0.1))
    assert [schedule.rate(step) for step in (0, 7, 8, 11, 12, 19)] == pytest.approx(
        [0.1, 0.1, 0.01, 0.01, 0.001, 0.001]
    )


def test_cosine_values_by_hand() -> None:
    schedule = _build(Cosine(warmup_epochs=1.0, min_lr=0.02))
    assert [schedule.rate(step) for step in range(4)] == pytest.approx([0.025, 0.05, 0.075, 0.1])
    assert schedule.rate(4) == pytest.approx(0.1)
    assert schedule.rate(12) == pytest.approx(0.06)
    assert schedule.rate(16) == pytest.approx(0.02 + 0.08 * 0.5 * (1 + math.cos(0.75 * math.pi)))
    assert schedule.rate(20) == schedule.rate(99) == pytest.approx(0.02)


def test_cosine_without_warmup_equals_torch() -> None:
    schedule = _build(Cosine(min_lr=0.003))
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20, eta_min=0.003)
    for step in range(20):
        assert schedule.rate(step) == pytest.approx(theirs.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        theirs.step()


def test_warmup_longer_than_the_run_never_divides_by_zero() -> None:
    schedule = _build(Cosine(warmup_epochs=50.0), epochs=1)
    assert [schedule.rate(step) for step in range(4)] == pytest.approx([0.025, 0.05, 0.075, 0.1])


@pytest.mark.parametrize("seed", range(5))
def test_plateau_equals_torch_and_survives_a_round_trip_every_epoch(seed: int) -> None:
    losses = np.random.default_rng(seed).uniform(0.5, 1.0, 40) * np.linspace(1.0, 0.8, 40)
    options = Plateau(factor=0.5, patience=2, min_lr=1e-3)
    schedule = _build(options)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=2, min_lr=1e-3)
    rates = []
    for loss in losses:
        schedule.end_epoch(float(loss))
        theirs.step(float(loss))
        fresh = _build(options)
        fresh.load_state_dict(schedule.state_dict())
        schedule = fresh
        rates.append(schedule.rate(0))
        assert rates[-1] == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
    assert len(set(rates)) > 2


def test_plateau_takes_nan_as_no_improvement() -> None:
    schedule = _build(Plateau(factor=0.1, patience=0))
    schedule.end_epoch(1.0)
    schedule.end_epoch(float("nan"))
    assert schedule.rate(0) == pytest.approx(0.01)
