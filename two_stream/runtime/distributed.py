"""The one place that knows how many processes work together (`torchrun` sets the environment).

What is decided by one process or must be the same in all goes through here, so that an error of one ends all of them
with one line. Alone, every function is a plain call, and torch is not even imported.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from two_stream.errors import SettingsError, TwoStreamError

T = TypeVar("T")
E = TypeVar("E", bound=TwoStreamError)

TIMEOUT = timedelta(minutes=30)
"""how long a process waits for the others before it gives up"""
_LOST = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Timed out waiting",
    "remote process exited",
)
"""what gloo, its store and NCCL say when a process at the other end has gone"""

_board: list[Any] = []
"""where the processes leave notes for each other: torch's store, while they are joined"""
_was_joined: list[bool] = []
"""not empty once this process has been joined to others"""


def rank() -> int:
    """Number of this process, 0 when alone."""
    return _number("RANK", 0) if world_size() > 1 else 0


def world_size() -> int:
    """Processes of the job, 1 when alone."""
    return _number("WORLD_SIZE", 1)


def local_rank() -> int:
    """Number of this process among those of its machine, 0 when alone."""
    return _number("LOCAL_RANK", rank()) if world_size() > 1 else 0


def local_size() -> int:
    """Processes of the job on this machine, 1 when alone."""
    return _number("LOCAL_WORLD_SIZE", world_size()) if world_size() > 1 else 1


def restarts() -> int:
    """How often `torchrun` has started the processes of this job anew."""
    return _number("TORCHELASTIC_RESTART_COUNT", 0)


def is_main() -> bool:
    """Whether this process writes files and talks to the person."""
    return rank() == 0


def job() -> str:
    """Return what names this `torchrun` job and stays the same over its restarts; empty without `torchrun`.

    On several machines that is the id given with `--rdzv-id`; on one, the process that started this one.
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
    """Join the other processes of a `torchrun` job; false when this process is alone.

    gloo carries what lies in main memory, NCCL what lies on a GPU. Only the main process keeps its voice.

    Args:
        cpu_only: Leave the machine's GPUs alone.

    Raises:
        SettingsError: The environment is not whole, or this machine has fewer GPUs than processes.
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
                f"{local_size()} processes on a machine with {torch.cuda.device_count()} GPUs: start one per GPU "
                "(torchrun --nproc-per-node gpu), or give --device cpu"
            )
        torch.cuda.set_device(local_rank())
    found, _, _ = next(distributed.rendezvous("env://", timeout=TIMEOUT))  # type: ignore[attr-defined]
    # torchrun's store outlives a restart: without a name of its own a process meets the addresses of its dead fellows
    _board.append(distributed.PrefixStore(f"start{restarts()}", found))  # type: ignore[attr-defined]
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if gpu else "gloo",
        timeout=TIMEOUT,
        store=_board[-1],
        rank=rank(),
        world_size=world_size(),
    )
    _was_joined.append(True)
    return True


def silence_other_ranks() -> None:
    """Silence messages and progress of every process but the main one."""
    if not is_main():
        from two_stream.runtime import console

        console.console.quiet = console.err.quiet = True


@contextmanager
def once_per_machine() -> Iterator[None]:
    """A block that every process of a machine runs alike: an error in it is shown by the first of them alone."""
    try:
        yield
    except TwoStreamError as error:
        error.told = local_rank() > 0
        raise


def shutdown() -> None:
    """Leave the other processes, together: one that goes first would break what another still waits for."""
    if not _joined():
        return
    from torch import distributed

    board = _board.pop()
    everyone = range(world_size())
    board.set(f"done{rank()}", "")
    board.wait([f"done{number}" for number in everyone], TIMEOUT)
    board.set(f"gone{rank()}", "")
    if is_main():  # the board may be kept by this process
        board.wait([f"gone{number}" for number in everyone], TIMEOUT)
    distributed.destroy_process_group()


def exit_process(code: int) -> NoReturn:
    """End this process with an exit code.

    torch keeps gloo's threads after `destroy_process_group` if a DDP network has lived, and while Python shuts down one
    of them can abort the process ("terminate called without an active exception", exit code -6). So a process that was
    joined to others ends at once, after its exit handlers.
    """
    if not _was_joined:
        raise SystemExit(code)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def barrier() -> None:
    """Wait until every process is here."""
    largest([0])


def largest(numbers: Sequence[int]) -> list[int]:
    """Return, for each place of a list, the largest number of any process."""
    if not _joined():
        return list(numbers)
    import torch
    from torch import distributed

    held = torch.tensor(numbers, dtype=torch.int64)
    distributed.all_reduce(held, op=distributed.ReduceOp.MAX)
    return [int(value) for value in held]


def gather_numbers(numbers: Sequence[float]) -> list[list[float]]:
    """Return the list of every process, in their order; sums over it are the same everywhere."""
    if not _joined():
        return [list(numbers)]
    import torch
    from torch import distributed

    own = torch.tensor(numbers, dtype=torch.float64)
    rows = [torch.empty_like(own) for _ in range(world_size())]
    distributed.all_gather(rows, own)
    return [row.tolist() for row in rows]


def gather_objects(value: T) -> list[T] | None:
    """Return the objects of all processes, in their order, on the main one; None on the others."""
    if not _joined():
        return [value]
    from torch import distributed

    held: list[Any] | None = [None] * world_size() if is_main() else None
    distributed.gather_object(value, held)
    return held


def all_objects(value: T) -> list[T]:
    """Return the objects of all processes, in their order, on every one."""
    return broadcast_object(gather_objects(value)) or []


def broadcast_object(value: T) -> T:
    """Return the main process's object on every process."""
    if not _joined():
        return value
    from torch import distributed

    held = [value if is_main() else None]
    distributed.broadcast_object_list(held)
    return held[0]  # type: ignore[return-value]


def on_main(action: Callable[[], T]) -> T:
    """Let the main process act, and return its result, or raise its error, on every process."""
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
    """A block that each process runs for itself; an error of any of them is raised on all at its end.

    What runs in it may not itself exchange anything with the other processes.
    """
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
    """Raise, on every process, the error of the first one that has any."""
    if not _joined():
        if error is not None:
            raise error
        return
    for number, found in enumerate(all_objects(error)):
        if found is not None:
            raise shared_error(error if number == rank() and error is not None else found)


def shared_error(error: E) -> E:
    """Return an error that every process raises, marked so that the main one alone shows it."""
    error.told = not is_main()
    return error


def is_peer_failure(error: BaseException) -> bool:
    """Whether an error only says that another process has gone."""
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
        raise SettingsError(f"{name} is {value!r}: expected a number, as torchrun sets it")
    return int(value)
