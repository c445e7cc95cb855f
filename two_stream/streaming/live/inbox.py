"""The only queue between two threads of a live pipeline: bounded, and it says what it let go."""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Inbox(Generic[T]):
    """Holds at most `size` things. When it is full, `put` waits, or the oldest thing makes room and is counted.

    Attributes:
        dropped: Things that made room.
    """

    def __init__(self, size: int, *, drop: bool) -> None:
        self.size = size
        self.drop = drop
        self.dropped = 0
        self._things: deque[T] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def put(self, thing: T) -> bool:
        """Add a thing; false when the inbox has been closed, and nothing was added."""
        with self._changed:
            while not self._closed and len(self._things) >= self.size:
                if self.drop:
                    self._things.popleft()
                    self.dropped += 1
                else:
                    self._changed.wait()
            if self._closed:
                return False
            self._things.append(thing)
            self._changed.notify_all()
            return True

    def take(self, most: int = 1, timeout: float | None = None) -> list[T]:
        """Wait for things and return the oldest, `most` at once; empty when it is closed, or nothing came in time."""
        with self._changed:
            if not self._things and not self._closed:
                self._changed.wait(timeout)
            taken = [self._things.popleft() for _ in range(min(most, len(self._things)))]
            if taken:
                self._changed.notify_all()
            return taken

    def close(self, *, empty: bool = False) -> None:
        """Let no more in; what is there can still be taken, unless it is to be emptied."""
        with self._changed:
            self._closed = True
            if empty:
                self._things.clear()
            self._changed.notify_all()

    @property
    def over(self) -> bool:
        """Closed, and everything taken."""
        with self._changed:
            return self._closed and not self._things

    def __len__(self) -> int:
        with self._changed:
            return len(self._things)
