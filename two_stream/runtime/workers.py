"""Tasks in several processes that survive what videos do to decoders: a crash or a hang costs one task, no more.

`concurrent.futures` gives up every task when one worker dies and cannot end a hanging one; hence this small pool.
Workers are spawned, never forked: a fork would copy the locks of OpenCV's and libav's threads.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

from two_stream.errors import TwoStreamError
from two_stream.runtime.processes import end_with_parent

T = TypeVar("T")
R = TypeVar("R")
Beat = Callable[[], None]
"""A task calls it whenever it gets on, at least once per frame; silence for too long counts as hanging."""

_BEAT_EVERY = 0.5
_START_SECONDS = 300.0


@dataclass(frozen=True)
class TaskFailure:
    """A task whose process crashed, hung or raised what the task did not foresee."""

    reason: str
    kind: str = "crashed"
    """crashed, hung or raised"""


def usable_processes() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_tasks(
    function: Callable[[T, Beat], R], items: Sequence[T], *, processes: int, patience: float
) -> Generator[tuple[int, R | TaskFailure]]:
    """Run `function(item, beat)` on every item and yield (index, result or Failure) as they finish.

    Args:
        function: A module-level function; it, the items and the results must be picklable.
        items: The work.
        processes: Worker processes; 0 runs in this process, without protection.
        patience: Seconds without a beat after which a worker is killed and its task reported as hung.

    Raises:
        TwoStreamError: No worker can be started.
    """
    if processes <= 0:
        for index, item in enumerate(items):
            yield index, function(item, _no_beat)
        return
    waiting = deque(range(len(items)))
    slots: list[_Slot[T, R]] = []
    try:
        slots.extend(_Slot(function) for _ in range(min(processes, len(items))))
        while slots:
            wait(
                [handle for slot in slots for handle in (slot.connection, slot.process.sentinel)], timeout=0.5
            )
            for slot in list(slots):
                answer = slot.poll(patience)
                if answer is not None:
                    yield answer
                if not slot.alive:
                    slots.remove(slot)
                    slot.end()
                    if waiting:
                        slots.append(_Slot(function))
                elif slot.free:
                    if waiting:
                        index = waiting.popleft()
                        slot.give(index, items[index])
                    else:
                        slots.remove(slot)
                        slot.end()
    finally:
        for slot in slots:
            slot.end()


def _no_beat() -> None:
    """Nobody watches a task that runs in this process."""


class _Slot(Generic[T, R]):
    """One worker process and the task it has."""

    def __init__(self, function: Callable[[T, Beat], R]) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, function), daemon=True)
        self.process.start()
        theirs.close()
        self.alive = True
        self.free = False
        self._ready = False
        self._index: int | None = None
        self._heard = time.monotonic()

    def give(self, index: int, item: T) -> None:
        """Hand over a task."""
        self.free = False
        self._index = index
        self._heard = time.monotonic()
        try:
            self.connection.send(item)
        except OSError:  # it died in between; `poll` will find out
            self._heard = 0.0

    def poll(self, patience: float) -> tuple[int, R | TaskFailure] | None:
        """Take in what the worker has said; return a finished task's answer."""
        try:
            while self.connection.poll():
                what, value = self.connection.recv()
                self._heard = time.monotonic()
                if what == "ready":
                    self.free = self._ready = True
                elif what != "beat":
                    self.free = True
                    return self._finish(TaskFailure(value, "raised") if what == "raised" else value)
        except (EOFError, OSError):
            return self._lost(self._obituary(), "crashed")
        if not self.process.is_alive() and not self.connection.poll():
            return self._lost(self._obituary(), "crashed")
        limit = patience if self._ready else _START_SECONDS
        if not self.free and time.monotonic() - self._heard > limit:
            return self._lost(f"timed out: no progress for {limit:g} s, killed", "hung")
        return None

    def _finish(self, answer: R | TaskFailure) -> tuple[int, R | TaskFailure]:
        index, self._index = self._index, None
        assert index is not None
        return index, answer

    def _lost(self, reason: str, kind: str) -> tuple[int, R | TaskFailure] | None:
        self.alive = False
        if self._index is None:
            if not self._ready:
                raise TwoStreamError(f"a worker process cannot start ({reason}); try --processes 0")
            return None
        return self._finish(TaskFailure(reason, kind))

    def _obituary(self) -> str:
        self.process.join(5)
        code = self.process.exitcode
        if code is not None and code < 0:
            return f"the worker process was killed by {signal.Signals(-code).name}"
        return f"the worker process ended with exit code {code}"

    def end(self) -> None:
        """End the worker: a free one at once by itself, a busy one by force."""
        self.connection.close()
        if not self.free or not self.alive:
            self.process.kill()
        self.process.join(5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.process.close()


def _serve(connection: Connection, function: Callable[[Any, Beat], Any]) -> None:
    """Body of a worker: take tasks until the other end closes, also when the parent was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid is not None:
        end_with_parent(parent.pid)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    last = 0.0

    def beat() -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _BEAT_EVERY:
            last = now
            connection.send(("beat", None))

    try:
        connection.send(("ready", None))
        while True:
            item = connection.recv()
            try:
                answer = ("done", function(item, beat))
            except (BrokenPipeError, EOFError):
                return
            except Exception as error:  # noqa: BLE001 - the border of a process: the parent reports it by name
                where = traceback.extract_tb(error.__traceback__)[-1]
                line = str(error).strip().splitlines()[:1] or [""]
                answer = (
                    "raised",
                    f"{type(error).__name__}: {line[0]} ({os.path.basename(where.filename)}:{where.lineno})",  # noqa: PTH119
                )
            connection.send(answer)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
