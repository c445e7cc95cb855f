"""Runs extraction jobs on a Ray cluster. The resulting files are the same as without Ray.

Every machine reads videos and writes to the output folder, so their paths must be the same on all machines. A first
task on each machine checks the paths and the library versions, because other versions of a decoder may return other
pixels.
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
from two_stream.video.extraction.one_video import ExtractionJob, ExtractionOutcome, extract_video

LOCAL = "local"
"""address of a Ray instance that is started here and ends with the run"""

_CHECK_SECONDS = 120.0
_CONNECT_SECONDS = 5.0
_END_SECONDS = 15.0
"""time for a cancelled task to remove its unfinished folder"""
_TASKS_PER_CPU = 2
"""submitted tasks per processor: one running, one waiting"""
_GPU_SHARE = 0.5
_STORE = 80 * 2**20
"""bytes of the local object store, its minimum: nothing large passes through it"""
_BEAT_EVERY = 0.5


def extract_on_ray(
    jobs: Sequence[ExtractionJob], address: str
) -> Generator[tuple[int, ExtractionOutcome | TaskFailure]]:
    """Run extraction jobs on a cluster, and yield (index, outcome or failure) of each job when it finishes.

    A task whose process ends unexpectedly is repeated once, on another machine if necessary. When the generator is
    closed, for example by Ctrl-C, the tasks are cancelled and remove their unfinished folders.

    Args:
        jobs: All jobs of a run, longest first.
        address: `host:port`, `auto`, `ray://…`, or `local`.

    Raises:
        SettingsError: Ray is not installed or not reachable, or a machine has different versions.
        DataError: A machine does not have the same paths.
    """
    ray = import_ray()
    options = jobs[0].options
    out = jobs[0].out.absolute()
    mark = unfinished(out / "ray")
    with connect_ray(ray, address, options.processes):
        mark.write_text("two-stream extract is running on Ray\n", encoding="utf-8")
        try:
            _check_machines(ray, jobs, mark)
            yield from _run(ray, [_absolute(job) for job in jobs], mark)
        finally:
            mark.unlink(missing_ok=True)


def import_ray() -> Any:
    """Import the Ray library.

    Raises:
        SettingsError: It is not installed.
    """
    try:
        import ray
    except ImportError:
        raise SettingsError(
            '--ray requires Ray, which is not installed: pip install "two-stream[ray]"'
        ) from None
    return ray


@contextmanager
def connect_ray(ray: Any, address: str, processes: int | None) -> Iterator[None]:
    """Connect to a cluster, or start one on this machine; an existing connection is used and not closed."""
    if ray.is_initialized():
        yield
        return
    _check_address(address)
    common = {"logging_level": logging.ERROR, "log_to_driver": False, "configure_logging": True}
    try:
        if address == LOCAL:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no usage statistics are sent
            count = usable_processes() if processes is None else max(1, processes)
            ray.init(num_cpus=count, include_dashboard=False, object_store_memory=_STORE, **common)
        else:
            ray.init(address=address, **common)
    except (ConnectionError, RuntimeError, ValueError, OSError, AssertionError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise SettingsError(
            f"--ray {address}: no Ray cluster responds at this address ({first}); expected HOST:PORT, auto or local"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def _check_address(address: str) -> None:
    """Check that the address accepts a connection, because Ray itself would try for more than ten minutes."""
    if address in (LOCAL, "auto"):
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
    except ValueError:
        raise SettingsError(
            f"--ray is {address!r}: expected HOST:PORT, ray://HOST:PORT, auto or local"
        ) from None
    except OSError as error:
        raise SettingsError(
            f"--ray {address}: no connection to this address ({error.strerror or error}); see `ray "
            "status` on the cluster"
        ) from None


def _absolute(job: ExtractionJob) -> ExtractionJob:
    """Return a job with absolute paths and one thread, because Ray assigns one processor to each task."""
    source = replace(job.source, path=job.source.path.absolute())
    return replace(job, source=source, out=job.out.absolute(), threads=job.options.threads or 1)


def versions(backend: str) -> dict[str, str]:
    """Return the versions of the libraries that determine the pixels."""
    return {"decoder": backend_version(backend), "opencv": cv2.__version__, "numpy": np.__version__}


def examine_machine(mark: str, folders: list[str], backend: str) -> dict[str, Any]:
    """Return the missing paths and the library versions of the machine that runs this function."""
    missing = [name for name in (mark, *folders) if not Path(name).exists()]
    return {"host": socket.gethostname(), "missing": missing, "versions": versions(backend)}


def _check_machines(ray: Any, jobs: Sequence[ExtractionJob], mark: Path) -> None:
    """Run `examine_machine` on every machine, and raise an error for missing paths or different versions."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    backend = jobs[0].options.backend
    folders = sorted({str(job.source.path.absolute().parent) for job in jobs})
    task = ray.remote(examine_machine)
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    if not nodes:
        raise SettingsError("--ray: the cluster has no machine with processors")
    references = []
    for node in nodes:
        strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        pinned = task.options(num_cpus=0, max_retries=0, scheduling_strategy=strategy)
        references.append(pinned.remote(str(mark), folders, backend))
    here = versions(backend)
    for node, reference in zip(nodes, references, strict=True):
        name = node.get("NodeManagerHostname") or node.get("NodeManagerAddress")
        try:
            found = ray.get(reference, timeout=_CHECK_SECONDS)
        except ray.exceptions.RayError as error:
            why = describe_ray_error(error)
            raise SettingsError(
                f"--ray: machine {name} cannot run two-stream ({why}); install the same version there as here"
            ) from None
        if found["missing"]:
            first = found["missing"][0]
            what = str(mark.parent) if first == str(mark) else first
            raise DataError(
                f"--ray: machine {name} cannot access {what}; extraction on a cluster needs videos "
                "and --out on a file system that all machines share under the same paths"
            )
        if found["versions"] != here:
            other = ", ".join(
                f"{k} {v} (here {here[k]})" for k, v in found["versions"].items() if v != here[k]
            )
            raise SettingsError(
                f"--ray: machine {name} has {other}, so its files would differ; install the same versions there as here"
            )


def _run(
    ray: Any, jobs: Sequence[ExtractionJob], mark: Path
) -> Generator[tuple[int, ExtractionOutcome | TaskFailure]]:
    options = jobs[0].options
    gpus = _GPU_SHARE if options.network is not None and ray.cluster_resources().get("GPU") else 0
    task = ray.remote(run_extraction_task).options(
        num_cpus=max(1, jobs[0].threads), num_gpus=gpus, max_retries=1
    )
    waiting = deque(range(len(jobs)))
    running: dict[Any, int] = {}
    try:
        while waiting or running:
            for _ in range(_most_tasks(ray, options.processes) - len(running)):
                if waiting:
                    place = waiting.popleft()
                    running[task.remote(jobs[place], str(mark), options.patience)] = place
            ready, _ = ray.wait(list(running), num_returns=1, timeout=1.0)
            for reference in ready:
                place = running.pop(reference)
                try:
                    yield place, ray.get(reference)
                except ray.exceptions.RayError as error:
                    yield place, TaskFailure(describe_ray_error(error))
    finally:
        cancel_tasks(ray, list(running))


def _most_tasks(ray: Any, processes: int | None) -> int:
    """Return how many tasks can be submitted now; the size of the cluster may change during a run."""
    most = int(ray.cluster_resources().get("CPU", 1)) * _TASKS_PER_CPU
    return max(1, most if processes is None else min(most, max(1, processes)))


def cancel_tasks(ray: Any, running: list[Any]) -> None:
    """Interrupt running tasks, so that they clean up; kill tasks that do not end in time."""
    for reference in running:
        with suppress(ray.exceptions.RayError, ValueError):
            ray.cancel(reference, force=False, recursive=False)
    end = time.monotonic() + _END_SECONDS
    while running and time.monotonic() < end:
        _, running = ray.wait(running, num_returns=len(running), timeout=0.5)
    for reference in running:
        with suppress(ray.exceptions.RayError, ValueError):
            ray.cancel(reference, force=True, recursive=False)


def describe_ray_error(error: Exception) -> str:
    """Shorten Ray's message about a failed task to one line."""
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


def run_extraction_task(job: ExtractionJob, mark: str, patience: float) -> ExtractionOutcome:
    """Extract one video in a Ray task; end the process if it makes no progress for `patience` seconds.

    The timer is a C thread, because a decoder that hangs may hold Python's global lock.
    """
    if not Path(mark).exists():  # a machine that joined after the check
        raise DataError(f"machine {socket.gethostname()} cannot access {Path(mark).parent}")
    _clear_leftovers_once(str(job.final.parent))
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
            return extract_video(job, beat)
        finally:
            faulthandler.cancel_dump_traceback_later()


@functools.cache
def _clear_leftovers_once(parent: str) -> None:
    """Remove the unfinished folders of stopped workers on this machine, once per worker and folder."""
    clear_leftovers([Path(parent)])
