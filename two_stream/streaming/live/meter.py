"""Latency and rate of a stream that may run for weeks, in memory that does not grow."""

from __future__ import annotations

import math
import time
from collections import deque

_PER_DOUBLING = 16
"""bins per factor of two: a percentile is right to 4.4 %"""
_LEAST = 1e-4
"""seconds below which latencies are not told apart"""


class Latency:
    """Percentiles of latencies, from a histogram of ever wider bins."""

    def __init__(self) -> None:
        self.count = 0
        self.worst = 0.0
        self._bins: dict[int, int] = {}

    def add(self, seconds: float) -> None:
        """Count one."""
        self.count += 1
        self.worst = max(self.worst, seconds)
        place = round(_PER_DOUBLING * math.log2(max(seconds, _LEAST) / _LEAST))
        self._bins[place] = self._bins.get(place, 0) + 1

    def percentile(self, share: float) -> float | None:
        """Return the latency in seconds that a share (0..1) of all stays at or below, to 4.4 %; None before any."""
        if not self.count:
            return None
        left = math.ceil(share * self.count)
        for place in sorted(self._bins):
            left -= self._bins[place]
            if left <= 0:
                return min(self.worst, _LEAST * float(2 ** (place / _PER_DOUBLING)))
        return self.worst


class Rate:
    """Events per second over the last few seconds."""

    def __init__(self, seconds: float = 5.0) -> None:
        self.seconds = seconds
        self.total = 0
        self._times: deque[tuple[float, int]] = deque()

    def add(self, count: int = 1, now: float | None = None) -> None:
        """Count events."""
        now = time.monotonic() if now is None else now
        self.total += count
        self._times.append((now, count))
        while self._times and self._times[0][0] < now - self.seconds:
            self._times.popleft()

    def per_second(self, now: float | None = None) -> float:
        """Return the rate; 0 before two events."""
        now = time.monotonic() if now is None else now
        recent = [(at, count) for at, count in self._times if at >= now - self.seconds]
        if len(recent) < 2:
            return 0.0
        span = recent[-1][0] - recent[0][0]
        return sum(count for _, count in recent[1:]) / span if span > 0 else 0.0
