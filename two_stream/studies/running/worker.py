"""A worker process of a study: it reads a list of jobs per input line and writes one outcome per output line.

The jobs of a line run side by side; an outcome is written as `[number of the job in the line, outcome]`. The worker is
started as `python -m two_stream.studies.running.worker`. The output of a job goes to the job's log. When
the study's process exits, the input ends; the worker then saves its training run and exits.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from two_stream.runtime.files import lock_worker
from two_stream.studies.running.cells import StudyJob, job_from, run_side_by_side, to_wire

_SAVING = 4.0
"""seconds for saving after the study's process has ended"""


def main() -> int:
    """Run jobs until the input ends, and return the exit code."""
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    groups: queue.Queue[list[StudyJob] | None] = queue.Queue()
    threading.Thread(target=_listen, args=(_input(), groups, os.getppid()), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    lock, threads = None, torch.get_num_threads()
    while (jobs := groups.get()) is not None:
        lock = lock or lock_worker(Path(jobs[0].record).parents[1])
        torch.set_num_threads(threads)  # a job with `threads: 0` does not keep the threads of the job before
        ended = 0
        for place, outcome in run_side_by_side(jobs, _logged):
            try:
                answers.write(to_wire(place, outcome))
            except BrokenPipeError:
                return 1
            ended += outcome.state != "interrupted"
        if ended < len(jobs):
            return 1
    return 0


def _input() -> int:
    """Move standard input to a private file descriptor and return the descriptor.

    Forked loader processes close `sys.stdin`. If the listening thread read `sys.stdin`, the loader processes would wait
    forever for the lock of `sys.stdin`.
    """
    own = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return own


def _listen(source: int, groups: queue.Queue[list[StudyJob] | None], parent: int) -> None:
    """Forward jobs from the input. When the input ends, stop the current job and exit."""
    received = b""
    while part := os.read(source, 1 << 16):
        *lines, received = (received + part).split(b"\n")
        for line in lines:
            groups.put([job_from(values) for values in json.loads(line)])
    groups.put(None)
    if os.name == "nt":
        signal.raise_signal(signal.SIGTERM)  # on Windows, os.kill would end the process at once
    else:
        os.kill(os.getpid(), signal.SIGTERM)  # reaches the main thread, which may be waiting
    while os.getppid() == parent:  # a stopped study waits until its workers have saved
        time.sleep(0.2)
    time.sleep(_SAVING)
    os._exit(1)


@contextmanager
def _logged(job: StudyJob) -> Iterator[None]:
    """Context manager that redirects standard output and standard error to the log of a job."""
    Path(job.log).parent.mkdir(parents=True, exist_ok=True)
    with Path(job.log).open("ab", buffering=0) as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()


if __name__ == "__main__":
    raise SystemExit(main())
