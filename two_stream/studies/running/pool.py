"""Runs jobs in processes on this machine: one at a time, several at a time, or one or more per GPU.

If a job crashes its process, the job counts as failed, and the next job gets a new process.
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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from two_stream.studies.running.cells import StudyJob, StudyOutcome, to_wire

TICK = 0.5
"""seconds between checks of the processes"""
_SAVING = 60.0
"""seconds for the processes to save their training runs when the study is stopped"""


@dataclass
class Slot:
    """A place for a worker process that runs one job at a time."""

    device: str = ""
    """device of the process; if empty, the device in the job's settings"""
    threads: int = 0
    """number of CPU threads; 0 for the number in the job's settings"""
    job: int | None = None
    process: subprocess.Popen[bytes] | None = None
    received: bytes = b""


_Received = tuple[Slot, subprocess.Popen[bytes], bytes]
"""a slot, its process and output of the process; empty output means that the process has closed it"""
_KILLED = 9
"""number of SIGKILL; Windows has no `signal.SIGKILL`"""
Event = tuple[int, StudyOutcome] | None
"""The index of a job and its outcome; None if no job has ended within `TICK` seconds."""


def run_jobs(jobs: Mapping[int, StudyJob], slots: Sequence[Slot], running: set[int]) -> Generator[Event]:
    """Run jobs in order. Yields `(index, outcome)` when a job ends, and None about every `TICK` seconds.

    The set `running` is updated with the indices of running jobs. Closing the generator stops the processes; they save
    their training runs first.
    """
    waiting = deque(jobs)
    received: queue.Queue[_Received] = queue.Queue()
    try:
        while waiting or any(slot.job is not None for slot in slots):
            for slot in slots:
                if slot.job is None and waiting:
                    _give(slot, waiting.popleft(), jobs, received)
            running.clear()
            running.update(slot.job for slot in slots if slot.job is not None)
            ended = list(_ended(jobs, received))
            yield from ended
            if not ended:
                yield None
    finally:
        running.clear()
        _stop(slots)


def _give(slot: Slot, index: int, jobs: Mapping[int, StudyJob], received: queue.Queue[_Received]) -> None:
    if slot.process is None or slot.process.poll() is not None:
        slot.process, slot.received = _started(), b""
        threading.Thread(target=_listen, args=(slot, slot.process, received), daemon=True).start()
    slot.job = index
    job = jobs[index]
    sent = replace(job, device=slot.device or job.device, threads=slot.threads or job.threads)
    pipe = _pipe(slot.process.stdin)
    with suppress(BrokenPipeError):  # it died on startup, which `_ended` reports
        pipe.write(to_wire(sent))
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


def _listen(slot: Slot, process: subprocess.Popen[bytes], received: queue.Queue[_Received]) -> None:
    """Forward the output of a process.

    The function runs in a thread, because Windows cannot wait for several pipes in one thread.
    """
    with _pipe(process.stdout) as output:
        while part := os.read(output.fileno(), 1 << 16):
            received.put((slot, process, part))
    received.put((slot, process, b""))


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe


def _ended(
    jobs: Mapping[int, StudyJob], received: queue.Queue[_Received]
) -> Generator[tuple[int, StudyOutcome]]:
    """Wait for output, and yield a job that has ended, with its outcome. If its process ended, the job has failed."""
    with suppress(queue.Empty):
        slot, process, output = received.get(timeout=TICK)
        if slot.process is process:
            slot.received += output
        if b"\n" in slot.received and slot.job is not None:
            line, slot.received = slot.received.split(b"\n", 1)
            index, slot.job = slot.job, None
            yield index, StudyOutcome(**json.loads(line))
        # a process that ended between two jobs may already have been replaced
        if not output and slot.process is process:
            slot.process = None
            if slot.job is not None:
                index, slot.job = slot.job, None
                yield index, StudyOutcome("failed", jobs[index].key, _death(process, jobs[index]))


def _death(process: subprocess.Popen[bytes], job: StudyJob) -> str:
    code = process.wait()
    if code == -_KILLED:
        return f"its process was killed (signal 9, often for lack of memory; use fewer --jobs); see {job.log}"
    what = f"signal {-code}" if code < 0 else f"exit code {code}"
    return f"its process ended with {what}; see {job.log}"


def _stop(slots: Sequence[Slot]) -> None:
    """Ask the processes to save their training runs and exit, and kill those that do not exit in time."""
    alive = [slot.process for slot in slots if slot.process is not None and slot.process.poll() is None]
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
