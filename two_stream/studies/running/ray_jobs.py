"""Runs the jobs of a study on a Ray cluster. The study's files are the same as with local processes.

All machines must be able to access the study's folder and the data at the same paths.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from two_stream.errors import DataError
from two_stream.runtime.provenance import source_digest
from two_stream.studies.running.cells import StudyJob, StudyOutcome, run_job
from two_stream.studies.running.pool import TICK, Event
from two_stream.video.extraction.ray_pool import (
    cancel_tasks,
    connect_ray,
    describe_ray_error,
    import_ray,
)


def run_on_ray(
    jobs: Mapping[int, StudyJob], address: str, running: set[int], *, per_gpu: int = 1
) -> Generator[Event]:
    """Run jobs on a cluster in order. Yields `(index, outcome)` when a job ends, and None about every `TICK` seconds.

    Closing the generator interrupts the tasks; they save their training runs first. `address` is `host:port`, `auto`,
    `ray://…` or `local`. If the cluster has GPUs, `per_gpu` jobs share one GPU.

    Raises:
        SettingsError: Ray is not installed, or the cluster cannot be reached.
    """
    ray = import_ray()
    with connect_ray(ray, address, None):
        gpus = 1.0 / per_gpu if ray.cluster_resources().get("GPU") else 0
        task = ray.remote(work)
        waiting = deque(jobs)
        out: dict[Any, int] = {}
        try:
            while waiting or out:
                while waiting and len(out) < _room(ray, gpus):
                    index = waiting.popleft()
                    threads = max(1, jobs[index].settings().threads)
                    placed = task.options(num_cpus=threads, num_gpus=gpus, max_retries=0)
                    reference = placed.remote(jobs[index], str(Path.cwd()), source_digest())
                    out[reference] = index
                    running.add(index)
                ready, _ = ray.wait(list(out), num_returns=1, timeout=TICK)
                for reference in ready:
                    index = out.pop(reference)
                    running.discard(index)
                    yield index, _outcome(ray, reference, jobs[index])
                if not ready:
                    yield None
        finally:
            running.clear()
            cancel_tasks(ray, list(out))


def _room(ray: Any, gpus: float) -> int:
    """Return the number of tasks that can run at the same time with the cluster's current resources."""
    found = ray.cluster_resources()
    return max(1, int(found.get("GPU", 0) / gpus) if gpus else int(found.get("CPU", 1)))


def _outcome(ray: Any, reference: Any, job: StudyJob) -> StudyOutcome:
    try:
        outcome: StudyOutcome = ray.get(reference)
    except ray.exceptions.RayError as error:
        return StudyOutcome("failed", job.key, describe_ray_error(error))
    return outcome


def work(job: StudyJob, folder: str, code: str) -> StudyOutcome:
    """Body of a Ray task: run a job in the study's working directory, with one thread unless the job sets `threads`.

    Raises:
        DataError: This machine has a different version of the code or cannot access the study's folder.
    """
    if source_digest() != code:
        raise DataError(
            "a machine of the cluster has another version of two-stream than this machine; install the same "
            "version on all machines"
        )
    os.chdir(folder)
    if not Path(job.record).parent.parent.is_dir():
        raise DataError(
            f"a machine of the cluster cannot access {Path(job.record).parent.parent.absolute()}; put the study "
            "on storage that all machines share"
        )
    return run_job(replace(job, threads=job.threads or 1))
