"""Percentiles and rates in memory that does not grow."""

from __future__ import annotations

import numpy as np
import pytest

from two_stream.streaming.live.screen import Latency, Rate


@pytest.mark.parametrize("share", [0.01, 0.5, 0.9, 0.99])
def test_percentiles_are_numpys_to_a_bin(share: float) -> None:
    values = np.random.default_rng(0).lognormal(-3.5, 1.0, 20_000)
    latency = Latency()
    for value in values:
        latency.add(float(value))
    wanted = float(np.quantile(values, share, method="inverted_cdf"))
    assert latency.percentile(share) == pytest.approx(wanted, rel=0.03)
    assert latency.worst == values.max()
    assert len(latency._bins) < 300


def test_before_anything_came_there_is_no_percentile() -> None:
    assert Latency().percentile(0.5) is None


def test_one_value_is_every_percentile() -> None:
    latency = Latency()
    latency.add(0.25)
    assert latency.percentile(0.0) == latency.percentile(1.0) == pytest.approx(0.25, rel=0.03)
    latency.add(0.0)  # no latency is not an error
    assert latency.percentile(0.5) == pytest.approx(1e-4)


def test_a_rate_forgets_what_is_old() -> None:
    rate = Rate(seconds=2.0)
    for tick in range(100):
        rate.add(2, now=tick / 10)
    assert rate.total == 200
    assert rate.per_second(now=9.9) == pytest.approx(20.0)
    assert rate.per_second(now=60.0) == 0.0
    assert len(rate._times) <= 22
