"""Ranks, collective calls, shared errors and stop signals of a run with one or more processes.

An error in one process is raised in all processes and printed once. In a single process, no function communicates, and
torch is not imported.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NoReturn, TypeVar

from two_stream.errors import SettingsError, TwoStreamError
from two_stream.runtime import distributed

T = TypeVar("T")
E = TypeVar("E", bound=TwoStreamError)

TIMEOUT = timedelta(minutes=30)
"""how long a process waits for the others"""
_LOST = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Timed out waiting",
    "remote process exited",
)
"""messages of gloo, its store and NCCL when another process has exited"""

_store: list[Any] = []
"""torch's store, while the processes are joined"""
_was_joined: list[bool] = []
"""not empty once this process was joined to others"""


def rank() -> int:
    """Return the rank of this process; 0 for a single process."""
    return _number("RANK", 0) if world_size() > 1 else 0


def world_size() -> int:
    """Return the number of processes of the job."""
    return _number("WORLD_SIZE", 1)


def local_rank() -> int:
    """Return the rank of this process on its machine; 0 for a single process."""
    return _number("LOCAL_RANK", rank()) if world_size() > 1 else 0


def local_size() -> int:
    """Return the number of processes of the job on this machine."""
    return _number("LOCAL_WORLD_SIZE", world_size()) if world_size() > 1 else 1


def restarts() -> int:
    """Return how often `torchrun` has restarted the processes of this job."""
    return _number("TORCHELASTIC_RESTART_COUNT", 0)


def is_main() -> bool:
    """Whether this is rank 0, which writes files and prints messages."""
    return rank() == 0


def job() -> str:
    """Return a name of this `torchrun` job that stays the same over restarts; empty without `torchrun`.

    On several machines, the name contains the value of `--rdzv-id`; on one machine, it contains the process ID of
    `torchrun`.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return ""
    if _number("GROUP_WORLD_SIZE", 1) > 1:
        return f"torchrun {os.environ['TORCHELASTIC_RUN_ID']}"
    parent = os.getppid()
    stat = Path(f"/proc/{parent}/stat")
    begun = (
        stat.read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[19]
        if stat.exists()
        else ""
    )
    return f"torchrun {parent} {begun}".strip()


def init(*, cpu_only: bool = False) -> bool:
    """Join the other processes of a `torchrun` job and silence all but rank 0; return False for a single process.

    Tensors in main memory are exchanged with gloo, and tensors on GPUs with NCCL.

    Args:
        cpu_only: Do not use the machine's GPUs.

    Raises:
        SettingsError: The environment is incomplete, or this machine has fewer GPUs than processes.
    """
    if world_size() == 1:
        return False
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise SettingsError(
            f"WORLD_SIZE is {world_size()} but {missing[0]} is not set: start several processes with torchrun"
        )
    import torch
    from torch import distributed

    if distributed.is_initialized():
        return True
    silence_other_ranks()
    gpu = torch.cuda.is_available() and not cpu_only
    if gpu:
        if local_rank() >= torch.cuda.device_count():
            raise SettingsError(
                f"{local_size()} processes on a machine with {torch.cuda.device_count()} GPUs: start one process per "
                "GPU "
                "(torchrun --nproc-per-node gpu), or use --device cpu"
            )
        torch.cuda.set_device(local_rank())
    found, _, _ = next(distributed.rendezvous("env://", timeout=TIMEOUT))  # type: ignore[attr-defined]
    # torchrun's store survives a restart; without a prefix per start, processes would read addresses of dead ones
    _store.append(distributed.PrefixStore(f"start{restarts()}", found))  # type: ignore[attr-defined]
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if gpu else "gloo",
        timeout=TIMEOUT,
        store=_store[-1],
        rank=rank(),
        world_size=world_size(),
    )
    _was_joined.append(True)
    return True


def silence_other_ranks() -> None:
    """Silence messages and progress of all processes except rank 0."""
    if not is_main():
        from two_stream.runtime import console

        console.console.quiet = console.err.quiet = True


@contextmanager
def once_per_machine() -> Iterator[None]:
    """Context for code that every process of a machine runs; only local rank 0 prints its errors."""
    try:
        yield
    except TwoStreamError as error:
        error.shown_elsewhere = local_rank() > 0
        raise


def shutdown() -> None:
    """Leave the process group together, so that no process waits for one that has exited."""
    if not _joined():
        return
    from torch import distributed

    store = _store.pop()
    everyone = range(world_size())
    store.set(f"done{rank()}", "")
    store.wait([f"done{number}" for number in everyone], TIMEOUT)
    store.set(f"gone{rank()}", "")
    if is_main():  # this process may host the store
        store.wait([f"gone{number}" for number in everyone], TIMEOUT)
    distributed.destroy_process_group()


def exit_process(code: int) -> NoReturn:
    """Exit this process with a code.

    After DDP, gloo's threads survive `destroy_process_group` and can abort the process while Python shuts down
    ("terminate called without an active exception", exit code -6). A process that joined other processes therefore
    runs its exit handlers and then calls `os._exit`.
    """
    if not _was_joined:
        raise SystemExit(code)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def barrier() -> None:
    """Wait for all processes."""
    largest([0])


def largest(numbers: Sequence[int]) -> list[int]:
    """Return the elementwise maximum over all processes."""
    if not _joined():
        return list(numbers)
    import torch
    from torch import distributed

    held = torch.tensor(numbers, dtype=torch.int64)
    distributed.all_reduce(held, op=distributed.ReduceOp.MAX)
    return [int(value) for value in held]


def gather_numbers(numbers: Sequence[float]) -> list[list[float]]:
    """Return the lists of all processes, ordered by rank, on every process."""
    if not _joined():
        return [list(numbers)]
    import torch
    from torch import distributed

    own = torch.tensor(numbers, dtype=torch.float64)
    rows = [torch.empty_like(own) for _ in range(world_size())]
    distributed.all_gather(rows, own)
    return [row.tolist() for row in rows]


def gather_objects(value: T) -> list[T] | None:
    """Return the objects of all processes, ordered by rank, on rank 0; return None on other ranks."""
    if not _joined():
        return [value]
    from torch import distributed

    held: list[Any] | None = [None] * world_size() if is_main() else None
    distributed.gather_object(value, held)
    return held


def all_objects(value: T) -> list[T]:
    """Return the objects of all processes, ordered by rank, on every process."""
    return broadcast_object(gather_objects(value)) or []


def broadcast_object(value: T) -> T:
    """Return the object of rank 0 on every process."""
    if not _joined():
        return value
    from torch import distributed

    held = [value if is_main() else None]
    distributed.broadcast_object_list(held)
    return held[0]  # type: ignore[return-value]


def on_main(action: Callable[[], T]) -> T:
    """Call `action` on rank 0; return its result or raise its error on every process."""
    if not _joined():
        return action()
    result: T | None = None
    error: TwoStreamError | None = None
    if is_main():
        try:
            result = action()
        except TwoStreamError as caught:
            error = caught
    result, error = broadcast_object((result, error))
    if error is not None:
        raise shared_error(error)
    return result  # type: ignore[return-value]


@contextmanager
def raise_on_all_ranks() -> Iterator[None]:
    """Context for code without collective calls; at its end, an error of any process is raised on all processes."""
    if not _joined():
        yield
        return
    error: TwoStreamError | None = None
    try:
        yield
    except TwoStreamError as caught:
        error = caught
    raise_first(error)


def raise_first(error: TwoStreamError | None) -> None:
    """Raise the error of the lowest rank that has one, on every process."""
    if not _joined():
        if error is not None:
            raise error
        return
    for number, found in enumerate(all_objects(error)):
        if found is not None:
            raise shared_error(error if number == rank() and error is not None else found)


def shared_error(error: E) -> E:
    """Mark an error that every process raises, so that only rank 0 prints it."""
    error.shown_elsewhere = not is_main()
    return error


def is_peer_failure(error: BaseException) -> bool:
    """Whether an error only reports that another process has exited."""
    return world_size() > 1 and any(part in str(error) for part in _LOST)


def _joined() -> bool:
    if world_size() == 1:
        return False
    from torch import distributed

    return bool(distributed.is_initialized())


def _number(name: str, default: int) -> int:
    value = os.environ.get(name, "")
    if not value:
        return default
    if not value.isdecimal():
        raise SettingsError(f"{name} is {value!r}: expected a number, as set by torchrun")
    return int(value)


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
        signal: Number of the signal that stops the run, the same in all processes, or None.
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
