"""Runs jobs in processes on this machine: one at a time, several at a time, or one or more per GPU.

Jobs with the same `group` run side by side in a process. If a job crashes its process, the job counts as failed, and
the next job gets a new process. If the process ran several jobs, each of them is run again alone.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

from two_stream.studies.running.cells import StudyJob, StudyOutcome, to_wire

TICK = 0.5
"""seconds between checks of the processes"""
_SAVING = 60.0
"""seconds for the processes to save their training runs when the study is stopped"""


@dataclass
class Slot:
    """A place for a worker process that runs one job at a time, or the jobs of a group."""

    device: str = ""
    """device of the process; if empty, the device in the job's settings"""
    threads: int = 0
    """number of CPU threads; 0 for the number in the job's settings"""
    jobs: dict[int, int] = field(default_factory=dict)
    """indices of the running jobs, by their place in the line that was sent"""
    side_by_side: bool = False
    """whether the process was given several jobs"""
    process: subprocess.Popen[bytes] | None = None
    received: bytes = b""


_MOST = 16
"""largest number of jobs that run side by side in a process"""
_KILLED = 9
"""number of SIGKILL; Windows has no `signal.SIGKILL`"""
Event = tuple[int, StudyOutcome] | None
"""The index of a job and its outcome; None if no job has ended within `TICK` seconds."""


class Workers:
    """Worker processes, which can be used again by the next stage of a study."""

    def __init__(self) -> None:
        self.idle: list[subprocess.Popen[bytes]] = []
        self.received: queue.Queue[tuple[subprocess.Popen[bytes], bytes]] = queue.Queue()
        """processes and their output; empty output means that the process has closed it"""

    def take(self) -> subprocess.Popen[bytes]:
        """Return an idle process, or a new one."""
        while self.idle:
            if (process := self.idle.pop()).poll() is None:
                return process
        process = _started()
        threading.Thread(target=_listen, args=(process, self.received), daemon=True).start()
        return process

    def close(self) -> None:
        """Stop the idle processes."""
        _stop(self.idle)


def run_jobs(
    jobs: Mapping[int, StudyJob], slots: Sequence[Slot], running: set[int], workers: Workers
) -> Generator[Event]:
    """Run jobs in order. Yields `(index, outcome)` when a job ends, and None about every `TICK` seconds.

    The set `running` is updated with the indices of running jobs. Closing the generator stops the processes; they save
    their training runs first. At the end of all jobs, the processes become idle.
    """
    jobs = dict(jobs)
    waiting = deque(jobs)
    try:
        while waiting or any(slot.jobs for slot in slots):
            for slot in slots:
                if not slot.jobs and waiting:
                    _give(slot, _next(waiting, jobs, len(slots)), jobs, workers)
            running.clear()
            running.update(*(slot.jobs.values() for slot in slots))
            ended = list(_ended(jobs, slots, waiting, workers))
            yield from ended
            if not ended:
                yield None
        workers.idle += [slot.process for slot in slots if slot.process is not None]
    except BaseException:
        _stop([slot.process for slot in slots if slot.process is not None])
        raise
    finally:
        running.clear()


def _next(waiting: deque[int], jobs: Mapping[int, StudyJob], slots: int) -> list[int]:
    """Remove the next job from the waiting ones, with others of its group, and return them.

    Jobs are left for the other slots, so that all slots end at about the same time.
    """
    group = jobs[waiting[0]].group
    most = min(_MOST, -(-len(waiting) // slots)) if group else 1
    taken = [index for index in waiting if jobs[index].group == group][:most]
    for index in taken:
        waiting.remove(index)
    return taken


def _give(slot: Slot, indices: Sequence[int], jobs: Mapping[int, StudyJob], workers: Workers) -> None:
    if slot.process is None or slot.process.poll() is not None:
        slot.process, slot.received = workers.take(), b""
    slot.jobs = dict(enumerate(indices))
    slot.side_by_side = len(indices) > 1
    given = [jobs[index] for index in indices]
    sent = [replace(j, device=slot.device or j.device, threads=slot.threads or j.threads) for j in given]
    pipe = _pipe(slot.process.stdin)
    with suppress(BrokenPipeError):  # it died on startup, which `_ended` reports
        pipe.write(to_wire(*sent))
        pipe.flush()


def _started() -> subprocess.Popen[bytes]:
    # -P: import no modules from the current folder; the package is found even if it is not installed
    package = str(Path(__file__).resolve().parents[3])
    paths = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "two_stream.studies.running.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": paths},
        start_new_session=True,  # Ctrl-C only reaches the study, which then stops its workers
    )


def _listen(
    process: subprocess.Popen[bytes], received: queue.Queue[tuple[subprocess.Popen[bytes], bytes]]
) -> None:
    """Forward the output of a process.

    The function runs in a thread, because Windows cannot wait for several pipes in one thread.
    """
    with _pipe(process.stdout) as output:
        while part := os.read(output.fileno(), 1 << 16):
            received.put((process, part))
    received.put((process, b""))


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe


def _ended(
    jobs: dict[int, StudyJob], slots: Sequence[Slot], waiting: deque[int], workers: Workers
) -> Generator[tuple[int, StudyOutcome]]:
    """Wait for output, and yield the jobs that have ended, with their outcomes.

    If a process ended, its job has failed, or its several jobs wait again, without a group.
    """
    with suppress(queue.Empty):
        process, output = workers.received.get(timeout=TICK)
        # a process that ended between two jobs may already have been replaced
        slot = next((slot for slot in slots if slot.process is process), None)
        if slot is None:
            return
        *lines, slot.received = (slot.received + output).split(b"\n")
        for line in lines:
            place, values = json.loads(line)
            yield slot.jobs.pop(place), StudyOutcome(**values)
        if not output:
            slot.process = None
            open_jobs, slot.jobs = list(slot.jobs.values()), {}
            for index in open_jobs:
                if slot.side_by_side:
                    jobs[index] = replace(jobs[index], group="")
                    waiting.append(index)
                else:
                    yield index, StudyOutcome("failed", jobs[index].key, _death(process, jobs[index]))


def _death(process: subprocess.Popen[bytes], job: StudyJob) -> str:
    code = process.wait()
    if code == -_KILLED:
        return f"its process was killed (signal 9, often for lack of memory; use fewer --jobs); see {job.log}"
    what = f"signal {-code}" if code < 0 else f"exit code {code}"
    return f"its process ended with {what}; see {job.log}"


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ask the processes to save their training runs and exit, and kill those that do not exit in time."""
    alive = [process for process in processes if process.poll() is None]
    for process in alive:
        with suppress(BrokenPipeError):
            _pipe(process.stdin).close()  # the end of its input tells it to stop
    end = time.monotonic() + _SAVING
    for process in alive:
        try:
            process.wait(timeout=max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def slots_for(devices: Sequence[str], jobs: int, cores: int) -> list[Slot]:
    """Return `jobs` slots for each device; the slots share the CPU cores equally.

    If `devices` is empty, each job runs on the device in its settings.
    """
    names = list(devices) or [""]
    threads = max(1, cores // (jobs * len(names))) if jobs * len(names) > 1 else 0
    return [Slot(device=name, threads=threads) for _ in range(jobs) for name in names]
