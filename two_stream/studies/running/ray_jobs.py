"""The jobs of a study on a Ray cluster: the same jobs and the same files as with the local processes.

Every machine works in the same folders, so all of them must see the study's folder and the data under the same paths.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Generator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from two_stream.errors import DataError
from two_stream.runtime.provenance import source_digest
from two_stream.studies.running.cells import StudyJob, StudyOutcome, do
from two_stream.studies.running.pool import TICK, Event, Running
from two_stream.video.extraction.ray_pool import cancel_tasks, connect_ray, describe_ray_error, import_ray


def run_on_ray(
    jobs: Mapping[int, StudyJob], address: str, running: Running, *, per_gpu: int = 1
) -> Generator[Event]:
    """Do jobs on a cluster and yield (index, outcome) as they end, and None from time to time.

    Closing the generator interrupts the tasks, which save what they train.

    Args:
        jobs: By index, in the order in which they are to begin.
        address: `host:port`, `auto`, `ray://…`, or `local`.
        running: Kept up to date.
        per_gpu: Jobs that share a GPU, where the cluster has any.

    Raises:
        SettingsError: Ray is not installed or not reachable.
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
                    running.jobs[index] = time.monotonic()
                ready, _ = ray.wait(list(out), num_returns=1, timeout=TICK)
                for reference in ready:
                    index = out.pop(reference)
                    running.jobs.pop(index, None)
                    yield index, _outcome(ray, reference, jobs[index])
                if not ready:
                    yield None
        finally:
            running.jobs.clear()
            cancel_tasks(ray, list(out))


def _room(ray: Any, gpus: float) -> int:
    """Return how many tasks may be out; the cluster may have grown since the last look."""
    there = ray.cluster_resources()
    return max(1, int(there.get("GPU", 0) / gpus) if gpus else int(there.get("CPU", 1)))


def _outcome(ray: Any, reference: Any, job: StudyJob) -> StudyOutcome:
    try:
        outcome: StudyOutcome = ray.get(reference)
    except ray.exceptions.RayError as error:
        return StudyOutcome("failed", job.key, describe_ray_error(error))
    return outcome


def work(job: StudyJob, folder: str, code: str) -> StudyOutcome:
    """Body of a task: do a job where the study's own process works, with one thread unless the settings say more.

    Raises:
        DataError: This machine has other code, or does not see the study's folder.
    """
    if source_digest() != code:
        raise DataError(
            "this machine of the cluster has other code of two-stream; install the same version there"
        )
    os.chdir(folder)
    if not Path(job.record).parent.parent.is_dir():
        raise DataError(
            f"this machine of the cluster does not see {Path(job.record).parent.parent.absolute()}"
        )
    return do(replace(job, threads=job.threads or 1))
