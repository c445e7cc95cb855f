"""Stops a run at the next safe point after Ctrl-C, SIGTERM or SIGHUP, and at once after a second Ctrl-C."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from two_stream.runtime import distributed

_REQUESTS = (signal.SIGINT, signal.SIGTERM)
STOPPING = (*_REQUESTS, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))


def stop_signals() -> list[int]:
    """Return the signals of `STOPPING`, without SIGHUP if `nohup` ignores it."""
    return [
        number for number in STOPPING if number in _REQUESTS or signal.getsignal(number) != signal.SIG_IGN
    ]


class StopRequest:
    """Context that records SIGINT, SIGTERM and SIGHUP, and restores the signal handlers at its end.

    A request is true once the run must stop. Several processes share their signals, so that all stop at the same step.

    Attributes:
        received: Number of the signal that this process received, or None.
        signal: The same for all processes.
    """

    def __init__(
        self, message: str = "stopping after this step", on_stop: Callable[[], None] = lambda: None
    ) -> None:
        """Store the arguments; signal handlers are set when the context is entered.

        Args:
            message: Printed when a signal arrives.
            on_stop: Called from the signal handler.
        """
        self.message = message
        self.on_stop = on_stop
        self.received: int | None = None
        self._agreed: int | None = None
        self._pid = os.getpid()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # only there may handlers be set
            for number in stop_signals():
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def signal(self) -> int | None:
        """Number of the signal that stops the run, or None."""
        return self.received if distributed.world_size() == 1 else self._agreed

    def __bool__(self) -> bool:
        return self.signal is not None

    def agree(self, *, failed: bool = False) -> bool:
        """Share signals with the other processes; return whether `failed` is true in any process."""
        number, any_failed = distributed.largest([self.received or 0, int(failed)])
        self._agreed = number or None
        return bool(any_failed)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        if os.getpid() != self._pid:
            return  # a forked loader process that has not set its own handlers yet
        if self.received is not None:
            if number not in _REQUESTS:
                return  # a closing terminal sends SIGHUP twice: from the shell and the kernel
            raise KeyboardInterrupt
        self.received = number
        self.on_stop()
        if not distributed.is_main():
            return
        # unbuffered: the signal may interrupt a buffered write
        try:
            os.write(2, f"\n{self.message}; press again to stop at once\n".encode())
        except OSError:  # the terminal is closed; later messages must not stop the saving
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1)
            os.dup2(nowhere, 2)
