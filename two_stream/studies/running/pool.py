"""Jobs over processes of this machine: one after another, several at once, or one (or several) per GPU.

A job that crashes its process is a failed job, not the end of the study; the next one gets a new process.
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
"""seconds between looks at what runs"""
_SAVING = 60.0
"""seconds that processes get to save what they train when the study is stopped"""


@dataclass
class Slot:
    """A place where one job at a time runs."""

    device: str = ""
    """empty: as the job's settings say"""
    threads: int = 0
    """0: as the job's settings say"""
    job: int | None = None
    since: float = 0.0
    process: subprocess.Popen[bytes] | None = None
    heard: bytes = b""


@dataclass
class Running:
    """What runs now, for the display; filled by `run_jobs`."""

    jobs: dict[int, float] = field(default_factory=dict)
    """job -> time it began (monotonic)"""


_Heard = tuple[Slot, subprocess.Popen[bytes], bytes]
"""what a process said; nothing: its output has ended"""
_KILLED = 9
"""number of SIGKILL, a name that Windows does not know"""
Event = tuple[int, StudyOutcome] | None
"""A job and how it ended; None: nothing happened for a moment."""


def run_jobs(jobs: Mapping[int, StudyJob], slots: Sequence[Slot], running: Running) -> Generator[Event]:
    """Do jobs and yield (index, outcome) as they end, and None from time to time.

    Closing the generator stops the processes; they save what they train first.

    Args:
        jobs: By index, in the order in which they are to begin.
        slots: Where they run.
        running: Kept up to date.
    """
    waiting = deque(jobs)
    heard: queue.Queue[_Heard] = queue.Queue()
    try:
        while waiting or any(slot.job is not None for slot in slots):
            for slot in slots:
                if slot.job is None and waiting:
                    _give(slot, waiting.popleft(), jobs, heard)
            running.jobs = {slot.job: slot.since for slot in slots if slot.job is not None}
            ended = list(_ended(jobs, heard))
            yield from ended
            if not ended:
                yield None
    finally:
        running.jobs = {}
        _stop(slots)


def _give(slot: Slot, index: int, jobs: Mapping[int, StudyJob], heard: queue.Queue[_Heard]) -> None:
    if slot.process is None or slot.process.poll() is not None:
        slot.process, slot.heard = _started(), b""
        threading.Thread(target=_listen, args=(slot, slot.process, heard), daemon=True).start()
    slot.job, slot.since = index, time.monotonic()
    job = jobs[index]
    sent = replace(job, device=slot.device or job.device, threads=slot.threads or job.threads)
    pipe = _pipe(slot.process.stdin)
    with suppress(BrokenPipeError):  # it died at its start; that is noticed when it is looked at
        pipe.write(to_wire(sent))
        pipe.flush()


def _started() -> subprocess.Popen[bytes]:
    # -P: not the current folder, whose modules may be a stranger's; the package is found also where it is not installed
    package = str(Path(__file__).resolve().parents[3])
    paths = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "two_stream.studies.running.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": paths},
        start_new_session=True,  # Ctrl-C is for the study, which tells its workers
    )


def _listen(slot: Slot, process: subprocess.Popen[bytes], heard: queue.Queue[_Heard]) -> None:
    """Pass on what a process says; Windows can wait for several pipes in threads alone."""
    with _pipe(process.stdout) as said:
        while part := os.read(said.fileno(), 1 << 16):
            heard.put((slot, process, part))
    heard.put((slot, process, b""))


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe


def _ended(jobs: Mapping[int, StudyJob], heard: queue.Queue[_Heard]) -> Generator[tuple[int, StudyOutcome]]:
    """Wait a moment and yield the jobs that ended, by an answer or by the end of their process."""
    with suppress(queue.Empty):
        slot, process, said = heard.get(timeout=TICK)
        if slot.process is process:
            slot.heard += said
        if b"\n" in slot.heard and slot.job is not None:
            line, slot.heard = slot.heard.split(b"\n", 1)
            index, slot.job = slot.job, None
            yield index, StudyOutcome(**json.loads(line))
        if (
            not said and slot.process is process
        ):  # else it ended between two jobs, and another has its place by now
            slot.process = None
            if slot.job is not None:
                index, slot.job = slot.job, None
                yield index, StudyOutcome("failed", jobs[index].key, _death(process, jobs[index]))


def _death(process: subprocess.Popen[bytes], job: StudyJob) -> str:
    code = process.wait()
    if code == -_KILLED:
        return f"its process was killed (signal 9: often too little memory; fewer --jobs need less); see {job.log}"
    what = f"signal {-code}" if code < 0 else f"exit code {code}"
    return f"its process ended with {what}; see {job.log}"


def _stop(slots: Sequence[Slot]) -> None:
    """End the processes: those that train save first, those that do not heed are killed."""
    alive = [slot.process for slot in slots if slot.process is not None and slot.process.poll() is None]
    for process in alive:
        with suppress(BrokenPipeError):
            _pipe(process.stdin).close()  # the end of its input is the sign to stop
    end = time.monotonic() + _SAVING
    for process in alive:
        try:
            process.wait(timeout=max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def slots_for(devices: Sequence[str], jobs: int, cores: int) -> list[Slot]:
    """Return the slots of a study.

    Args:
        devices: GPUs, or `cpu`, or nothing: as each job's settings say.
        jobs: Slots per device.
        cores: Processor cores, which the slots share.
    """
    names = list(devices) or [""]
    threads = max(1, cores // (jobs * len(names))) if jobs * len(names) > 1 else 0
    return [Slot(device=name, threads=threads) for _ in range(jobs) for name in names]
