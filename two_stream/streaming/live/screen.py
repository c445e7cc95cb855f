"""Displays the status of a running stream in the terminal: most probable classes, rates, latency, dropped frames."""

from __future__ import annotations

import math
import re
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from rich.console import Group
from rich.live import Live
from rich.text import Text

from two_stream.errors import printable
from two_stream.runtime.console import bar, err, note

_BAR = 30


@dataclass
class Status:
    """The state of a running stream."""

    source: str
    delay: str
    """description of the delay of the networks"""
    seconds: float = 0.0
    """time of the latest frame in seconds since the start of the source"""
    guesses: Sequence[tuple[str, float]] = ()
    dropped: int = 0
    interruptions: int = 0
    networks: str = ""
    """names of the networks"""

    def __post_init__(self) -> None:
        self.latency, self.frames, self.predictions = Latency(), Rate(), Rate()

    def speed(self) -> str:
        """Return one line with rates, latencies and the number of dropped frames."""
        frames, predictions = self.frames.per_second(), self.predictions.per_second()
        return " · ".join([f"{frames:.1f} frames/s", f"{predictions:.1f} predictions/s", *self._losses()])

    def summary(self, elapsed: float) -> str:
        """Return a summary of a stream that ended after `elapsed` seconds."""
        counts = f"{self.frames.total} frames, {self.predictions.total} predictions in {elapsed:.1f} s"
        return " · ".join([f"{self.source}: {counts}", *self._losses()])

    def facts(self) -> dict[str, Any]:
        """Return the state as values for JSON, with printable names and without the user and password of an address."""
        median, late = self.latency.percentile(0.5), self.latency.percentile(0.99)
        rates = {"frames": self.frames, "predictions": self.predictions}
        return {
            "source": f"camera {self.source}"
            if self.source.isdigit()
            else hide_password(printable(self.source)),
            "networks": self.networks,
            "delay": self.delay,
            "seconds": round(self.seconds, 3),
            "guesses": [
                (printable(name), round(share, 4) if math.isfinite(share) else None)
                for name, share in self.guesses
            ],
            "latency": None if median is None or late is None else [round(1000 * median), round(1000 * late)],
            "dropped": self.dropped,
            "interruptions": self.interruptions,
            **{name: {"rate": one.per_second(), "total": one.total} for name, one in rates.items()},
        }

    def _losses(self) -> list[str]:
        parts = []
        median, late = self.latency.percentile(0.5), self.latency.percentile(0.99)
        if median is not None and late is not None:
            parts.append(f"latency p50 {1000 * median:.0f} ms, p99 {1000 * late:.0f} ms")
        parts.append(f"{self.dropped} dropped")
        if self.interruptions:
            parts.append(f"{self.interruptions} interruptions")
        return parts


def hide_password(text: str) -> str:
    """Return text without the user names and passwords of addresses."""
    return re.sub(r"(?<=://)[^/\s]*@", "", text)


class Screen:
    """Prints the status on standard error: as a live display in a terminal, otherwise as a line every few seconds."""

    def __init__(self, status: Status, every: float = 2.0) -> None:
        self.status = status
        self.every = every
        self._live = Live(console=err, auto_refresh=False, transient=True) if err.is_terminal else None
        self._last = 0.0

    def __enter__(self) -> Self:
        self._last = time.monotonic()
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self) -> None:
        """Print the status, unless it was printed very recently."""
        now = time.monotonic()
        if now - self._last < (0.1 if self._live is not None else self.every):
            return
        self._last = now
        if self._live is not None:
            self._live.update(self._picture(), refresh=True)
        else:
            best = " ".join(f"{name} {100 * share:.0f} %" for name, share in self.status.guesses[:1]) or "…"
            note(f"{self.status.seconds:8.1f} s  {best} · {self.status.speed()}")

    def _picture(self) -> Group:
        status = self.status
        width = max((len(name) for name, _ in status.guesses), default=0)
        lines = [Text(f"{status.source} · {status.seconds:.1f} s", style="bold")]
        for place, (name, share) in enumerate(status.guesses):
            line = f"  {name:<{width}}  {100 * share:5.1f} %  {bar(share, _BAR)}"
            lines.append(Text(line, style="" if place else "cyan"))
        if not status.guesses:
            lines.append(Text(f"  waiting for the first prediction ({status.delay})", style="dim"))
        lines.append(Text(status.speed(), style="dim"))
        return Group(*lines)


_PER_DOUBLING = 16
"""number of bins per factor of two, so that percentiles are exact to 4.4 %"""


_LEAST = 1e-4
"""latencies below this number of seconds are not distinguished"""


class Latency:
    """Percentiles of latencies from a histogram with logarithmic bins, whose size does not grow with the stream."""

    def __init__(self) -> None:
        self.count = 0
        self.worst = 0.0
        self._bins: dict[int, int] = {}

    def add(self, seconds: float) -> None:
        """Add one latency."""
        self.count += 1
        self.worst = max(self.worst, seconds)
        place = round(_PER_DOUBLING * math.log2(max(seconds, _LEAST) / _LEAST))
        self._bins[place] = self._bins.get(place, 0) + 1

    def percentile(self, share: float) -> float | None:
        """Return a percentile in seconds, or None before the first latency; `share` is from 0 to 1."""
        if not self.count:
            return None
        left = math.ceil(share * self.count)
        for place in sorted(self._bins):
            left -= self._bins[place]
            if left <= 0:
                return min(self.worst, _LEAST * float(2 ** (place / _PER_DOUBLING)))
        return self.worst


class Rate:
    """Number of events per second over the last few seconds."""

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
        """Return the number of events per second; 0 before the second event."""
        now = time.monotonic() if now is None else now
        recent = [(at, count) for at, count in self._times if at >= now - self.seconds]
        if len(recent) < 2:
            return 0.0
        span = recent[-1][0] - recent[0][0]
        return sum(count for _, count in recent[1:]) / span if span > 0 else 0.0
