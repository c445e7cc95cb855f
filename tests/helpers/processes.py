"""Several processes in one test: forked, so that nothing is imported again, and joined by gloo."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty
from typing import Any

import torch

from two_stream.errors import TwoStreamError
from two_stream.runtime import distributed


@dataclass
class Outcome:
    """What a process returned, or the error it ended with."""

    value: Any = None
    error: str = ""
    told: bool = False


def in_processes(world: int, action: Callable[[int], Any], timeout: float = 90.0) -> list[Outcome]:
    """Run an action in `world` joined processes and return their outcomes by rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [
        context.Process(target=_child, args=(rank, world, port, action, queue), daemon=True)
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    outcomes: dict[int, Outcome] = {}
    try:
        while len(outcomes) < world:
            rank, outcome = queue.get(timeout=timeout)
            outcomes[rank] = outcome
    except Empty:
        raise AssertionError(f"processes hang; only {sorted(outcomes)} came back: {outcomes}") from None
    finally:
        for process in processes:
            process.join(5)
            process.kill()
    return [outcomes[rank] for rank in range(world)]


def _child(rank: int, world: int, port: int, action: Callable[[int], Any], queue: Any) -> None:
    values = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in values.items()}, MASTER_ADDR="127.0.0.1")
    torch.set_num_threads(1)
    try:
        distributed.init(cpu_only=True)
        outcome = Outcome(action(rank))
        distributed.shutdown()
    except TwoStreamError as error:
        outcome = Outcome(error=f"{type(error).__name__}: {error}", told=error.shown_elsewhere)
    except Exception as error:  # noqa: BLE001 - the parent shows it
        outcome = Outcome(error=f"{type(error).__name__}: {error}")
    queue.put((rank, outcome))
