"""Extraction on a Ray cluster: the same jobs and the same files as the local pool, on the processors of many machines.

The machines write to the output folder themselves, so all of them must see it, and the videos, under the same paths.
A first task on each of them checks that, and that its libraries are this machine's: other decoders give other pixels.
"""

from __future__ import annotations

import faulthandler
import functools
import logging
import os
import socket
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from two_stream.errors import DataError, SettingsError
from two_stream.runtime.files import clear_leftovers, unfinished
from two_stream.runtime.workers import TaskFailure, usable_processes
from two_stream.video.decoding.reader import backend_version
from two_stream.video.extraction.one_video import ExtractionJob, ExtractionOutcome, extract_one

LOCAL = "local"
"""Address that stands for a Ray instance started here and ended with the run."""

_PROBE_SECONDS = 120.0
_KNOCK_SECONDS = 5.0
_END_SECONDS = 15.0
"""How long a cancelled task may take to remove its unfinished folder."""
_WAITING = 2
"""Tasks handed out per processor: one at work, one ready."""
_GPU_SHARE = 0.5
_STORE = 80 * 2**20
"""Bytes of the local object store, its smallest: nothing large passes through it."""
_BEAT_EVERY = 0.5


def extract_on_ray(
    jobs: Sequence[ExtractionJob], address: str
) -> Generator[tuple[int, ExtractionOutcome | TaskFailure]]:
    """Run extraction jobs on a cluster and yield (index, outcome or failure) as they finish.

    A task whose process dies is tried once more, on another machine when its own is gone. Closing the generator
    (Ctrl-C) cancels the tasks, which remove what they had begun.

    Args:
        jobs: All of one run, most work first.
        address: `host:port`, `auto`, `ray://…`, or `local`.

    Raises:
        SettingsError: Ray is not installed or not reachable, or a machine has other versions.
        DataError: A machine does not see the same paths.
    """
    ray = import_ray()
    options = jobs[0].options
    out = jobs[0].out.absolute()
    mark = unfinished(out / "ray")
    with connected(ray, address, options.processes):
        mark.write_text("two-stream extract is running on Ray\n", encoding="utf-8")
        try:
            _probe(ray, jobs, mark)
            yield from _run(ray, [_absolute(job) for job in jobs], mark)
        finally:
            mark.unlink(missing_ok=True)


def import_ray() -> Any:
    """Return the library.

    Raises:
        SettingsError: It is not installed.
    """
    try:
        import ray
    except ImportError:
        raise SettingsError(
            '--ray needs Ray, which is not installed: pip install "two-stream[ray]"'
        ) from None
    return ray


@contextmanager
def connected(ray: Any, address: str, processes: int | None) -> Iterator[None]:
    """Join a cluster, or start one here; a connection that was there before stays."""
    if ray.is_initialized():
        yield
        return
    _answering(address)
    common = {"logging_level": logging.ERROR, "log_to_driver": False, "configure_logging": True}
    try:
        if address == LOCAL:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to anybody
            count = usable_processes() if processes is None else max(1, processes)
            ray.init(num_cpus=count, include_dashboard=False, object_store_memory=_STORE, **common)
        else:
            ray.init(address=address, **common)
    except (ConnectionError, RuntimeError, ValueError, OSError, AssertionError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise SettingsError(
            f"--ray {address}: no Ray cluster answers there ({first}); expected HOST:PORT, auto or local"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def _answering(address: str) -> None:
    """Knock at the address first: Ray itself would try for more than ten minutes."""
    if address in (LOCAL, "auto"):
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_SECONDS).close()
    except ValueError:
        raise SettingsError(
            f"--ray is {address!r}: expected HOST:PORT, ray://HOST:PORT, auto or local"
        ) from None
    except OSError as error:
        raise SettingsError(
            f"--ray {address}: nothing answers there ({error.strerror or error}); see `ray status` on the cluster"
        ) from None


def _absolute(job: ExtractionJob) -> ExtractionJob:
    """Return a job that means the same in another working folder, with one thread: Ray counts processors."""
    source = replace(job.source, path=job.source.path.absolute())
    return replace(job, source=source, out=job.out.absolute(), threads=job.options.threads or 1)


def versions(backend: str) -> dict[str, str]:
    """Return the versions that decide pixels: decoder and OpenCV."""
    return {"decoder": backend_version(backend), "opencv": cv2.__version__, "numpy": np.__version__}


def examine_machine(mark: str, folders: list[str], backend: str) -> dict[str, Any]:
    """Say, on a machine of the cluster, what it sees and has."""
    missing = [name for name in (mark, *folders) if not Path(name).exists()]
    return {"host": socket.gethostname(), "missing": missing, "versions": versions(backend)}


def _probe(ray: Any, jobs: Sequence[ExtractionJob], mark: Path) -> None:
    """Run `examine_machine` on every machine and refuse those that would write other files, or none."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    backend = jobs[0].options.backend
    folders = sorted({str(job.source.path.absolute().parent) for job in jobs})
    task = ray.remote(examine_machine)
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    if not nodes:
        raise SettingsError("--ray: the cluster has no machine with processors")
    asked = []
    for node in nodes:
        strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        asked.append(
            task.options(num_cpus=0, max_retries=0, scheduling_strategy=strategy).remote(
                str(mark), folders, backend
            )
        )
    here = versions(backend)
    for node, reference in zip(nodes, asked, strict=True):
        name = node.get("NodeManagerHostname") or node.get("NodeManagerAddress")
        try:
            found = ray.get(reference, timeout=_PROBE_SECONDS)
        except ray.exceptions.RayError as error:
            raise SettingsError(
                f"--ray: machine {name} cannot run two-stream ({reason_of(error)}); install the same version there"
            ) from None
        if found["missing"]:
            lost = found["missing"][0]
            what = str(mark.parent) if lost == str(mark) else lost
            raise DataError(
                f"--ray: machine {name} does not see {what} as this one does; extraction on a cluster needs videos "
                "and --out on a file system that all machines share under the same paths"
            )
        if found["versions"] != here:
            other = ", ".join(
                f"{k} {v} (here {here[k]})" for k, v in found["versions"].items() if v != here[k]
            )
            raise SettingsError(
                f"--ray: machine {name} has {other}: its files would differ; install equal versions"
            )


def _run(
    ray: Any, jobs: Sequence[ExtractionJob], mark: Path
) -> Generator[tuple[int, ExtractionOutcome | TaskFailure]]:
    options = jobs[0].options
    gpus = _GPU_SHARE if options.network is not None and ray.cluster_resources().get("GPU") else 0
    task = ray.remote(work).options(num_cpus=job_threads(jobs), num_gpus=gpus, max_retries=1)
    waiting = deque(range(len(jobs)))
    running: dict[Any, int] = {}
    try:
        while waiting or running:
            for _ in range(_room(ray, options.processes) - len(running)):
                if waiting:
                    place = waiting.popleft()
                    running[task.remote(jobs[place], str(mark), options.patience)] = place
            ready, _ = ray.wait(list(running), num_returns=1, timeout=1.0)
            for reference in ready:
                place = running.pop(reference)
                try:
                    yield place, ray.get(reference)
                except ray.exceptions.RayError as error:
                    yield place, TaskFailure(reason_of(error))
    finally:
        cancel(ray, list(running))


def job_threads(jobs: Sequence[ExtractionJob]) -> int:
    """Return the processors one task takes."""
    return max(1, jobs[0].threads)


def _room(ray: Any, processes: int | None) -> int:
    """Return how many tasks may be out: the cluster may have grown since the last look."""
    there = int(ray.cluster_resources().get("CPU", 1)) * _WAITING
    return max(1, there if processes is None else min(there, max(1, processes)))


def cancel(ray: Any, running: list[Any]) -> None:
    """Interrupt what runs, so that it tidies up; end by force what does not heed."""
    for reference in running:
        with suppress(ray.exceptions.RayError, ValueError):
            ray.cancel(reference, force=False, recursive=False)
    end = time.monotonic() + _END_SECONDS
    while running and time.monotonic() < end:
        _, running = ray.wait(running, num_returns=len(running), timeout=0.5)
    for reference in running:
        with suppress(ray.exceptions.RayError, ValueError):
            ray.cancel(reference, force=True, recursive=False)


def reason_of(error: Exception) -> str:
    """Turn Ray's page about a failed task into one line."""
    cause = getattr(error, "cause", None)
    if cause is not None:
        line = (str(cause).strip().splitlines() or [""])[0]
        return f"{type(cause).__name__}: {line}"
    kind = type(error).__name__
    known = {
        "WorkerCrashedError": "its Ray worker died twice: a crash in the decoder, or no progress for too long",
        "OutOfMemoryError": "its Ray worker was killed because the machine ran out of memory",
        "NodeDiedError": "its machine left the cluster",
        "GetTimeoutError": "no answer in time",
        "TaskCancelledError": "cancelled",
    }
    return known.get(kind) or f"{kind}: {(str(error).strip().splitlines() or [''])[0]}"


def work(job: ExtractionJob, mark: str, patience: float) -> ExtractionOutcome:
    """Body of a task: extract one video, and die when it makes no progress for `patience` seconds.

    The alarm is a thread of the interpreter's C side, since a decoder that hangs may hold Python's own lock.
    """
    if not Path(mark).exists():  # a machine that joined after the others were asked
        raise DataError(f"machine {socket.gethostname()} does not see {Path(mark).parent}")
    _tidy(str(job.final.parent))
    last = time.monotonic()
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:

        def beat() -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= _BEAT_EVERY:
                last = now
                faulthandler.dump_traceback_later(patience, exit=True, file=nowhere)

        faulthandler.dump_traceback_later(patience, exit=True, file=nowhere)
        try:
            return extract_one(job, beat)
        finally:
            faulthandler.cancel_dump_traceback_later()


@functools.cache
def _tidy(parent: str) -> None:
    """Remove, once per worker and folder, what dead workers of this machine left."""
    clear_leftovers([Path(parent)])
