"""Runs tasks in several processes; a task that crashes or hangs its process does not affect the others.

`concurrent.futures` fails every task when one worker dies, and cannot stop a worker that hangs. Workers are spawned,
because a fork would copy the locks of OpenCV's and libav's threads.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

from two_stream.errors import TwoStreamError

T = TypeVar("T")
R = TypeVar("R")
Beat = Callable[[], None]
"""Called by a task for each frame or other small piece of work; without a call for too long it counts as hanging."""

_BEAT_EVERY = 0.5
_START_SECONDS = 300.0
_PR_SET_PDEATHSIG = 1
_LOOK_EVERY = 1.0


@dataclass(frozen=True)
class TaskFailure:
    """A task whose process crashed, hung or raised an exception."""

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
    """Run `function(item, beat)` on every item and yield (index, result or `TaskFailure`) as tasks finish.

    Args:
        function: A module-level function; it, the items and the results must be picklable.
        items: The work.
        processes: Worker processes; 0: run in this process, without protection.
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
    """Do nothing: a task in this process is not monitored."""


class _Slot(Generic[T, R]):
    """A worker process and its current task."""

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
        """Send a task to the worker."""
        self.free = False
        self._index = index
        self._heard = time.monotonic()
        try:
            self.connection.send(item)
        except OSError:  # it died in the meantime, which `poll` notices
            self._heard = 0.0

    def poll(self, patience: float) -> tuple[int, R | TaskFailure] | None:
        """Receive the worker's messages; return the result of a finished task."""
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
            return self._lost(self._exit_reason(), "crashed")
        if not self.process.is_alive() and not self.connection.poll():
            return self._lost(self._exit_reason(), "crashed")
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

    def _exit_reason(self) -> str:
        self.process.join(5)
        code = self.process.exitcode
        if code is not None and code < 0:
            return f"the worker process was killed by {signal.Signals(-code).name}"
        return f"the worker process ended with exit code {code}"

    def end(self) -> None:
        """Stop the worker: an idle worker exits when its pipe closes, a busy worker is killed."""
        self.connection.close()
        if not self.free or not self.alive:
            self.process.kill()
        self.process.join(5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.process.close()


def _serve(connection: Connection, function: Callable[[Any, Beat], Any]) -> None:
    """Run tasks in a worker process until the pipe is closed or the parent process has exited."""
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid is not None:
        end_with_parent(parent.pid)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the process group; the parent decides
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


def end_with_parent(parent: int) -> None:
    """Kill this process when its parent, with process ID `parent`, exits.

    On systems other than Linux, the process checks repeatedly whether its parent is still running.
    """
    if not sys.platform.startswith("linux") or ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL):
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    if hasattr(os, "getppid") and os.getppid() != parent:
        os._exit(1)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK_EVERY)
    os._exit(1)
