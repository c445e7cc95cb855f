"""Seconds from the first frame, made of a file's time stamps as they come."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class Clock:
    """Told each frame's time stamp in order of presentation; its seconds begin at 0 and never run backwards.

    A frame without a stamp comes one frame after the one before. If stamps step back, time continues
    from there.
    """

    def __init__(self, fps: float | None) -> None:
        """Begin at 0; `fps` is for frames without a stamp."""
        self._apart = 1 / fps if fps else None
        self._seconds: list[float | None] = []
        self._stamp: float | None = None
        self._zero: float | None = None
        self._lasts: float | None = None
        self._true = False

    def tick(self, stamp: float | None, lasts: float | None = None) -> float | None:
        """Return when a frame appears; None where neither a stamp nor a rate tells.

        Args:
            stamp: Its time stamp in seconds, where it has one.
            lasts: For how long it is shown, where the file says so.
        """
        before = self._seconds[-1] if self._seconds else None
        now = 0.0 if not self._seconds else self._end()
        if stamp is not None and (now is not None or self._zero is not None):
            if self._zero is None or (self._stamp is not None and stamp < self._stamp):
                self._zero = stamp - (now or 0.0)
            self._stamp = stamp
            now = stamp - self._zero
        if now is not None and before is not None:
            now = max(now, before)
        if now is not None and before is not None and self._lasts:
            self._true = abs(now - before - self._lasts) <= self._lasts / 10  # many files say any duration
        self._seconds.append(now)
        self._lasts = lasts if lasts and lasts > 0 else None
        return now

    def _end(self) -> float | None:
        """Return when the newest frame ends."""
        last = self._seconds[-1]
        before = self._seconds[-2] if len(self._seconds) > 1 else None
        gap = None if last is None or before is None else last - before
        told = self._lasts if gap is None or self._true else None
        apart = told or gap or self._apart
        return None if last is None or apart is None else last + apart

    def edges(self) -> NDArray[np.float64] | None:
        """Return `(N + 1,)`: when each frame appears, and when the last one ends; None where that is not known."""
        if not self._seconds or None in self._seconds:
            return None
        end = self._end()
        return np.asarray([*self._seconds, end if end is not None else self._seconds[-1]], np.float64)


def uneven(edges: NDArray[np.float64] | None) -> list[float]:
    """Return the times of frames that come at no steady rate; none where each is within half a frame of its place."""
    if edges is None:
        return []
    apart = edges[-1] / (len(edges) - 1)
    even = np.abs(edges - apart * np.arange(len(edges))) <= apart / 2
    return [] if even.all() else edges.round(6).tolist()
