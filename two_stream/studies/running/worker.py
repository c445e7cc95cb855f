"""A worker process of a study: it reads one job per input line and writes one outcome per output line.

The worker is started as `python -m two_stream.studies.running.worker`. The output of a job goes to the job's log. When
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
from pathlib import Path

from two_stream.runtime.files import lock_worker
from two_stream.studies.running.cells import StudyJob, StudyOutcome, job_from, run_job, to_wire

_SAVING = 4.0
"""seconds for saving after the study's process has ended"""


def main() -> int:
    """Run jobs until the input ends, and return the exit code."""
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    jobs: queue.Queue[StudyJob | None] = queue.Queue()
    threading.Thread(target=_listen, args=(_input(), jobs, os.getppid()), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    lock = None
    while (job := jobs.get()) is not None:
        lock = lock or lock_worker(Path(job.record).parents[1])
        outcome = _logged(job)
        try:
            answers.write(to_wire(outcome))
        except BrokenPipeError:
            return 1
        if outcome.state == "interrupted":
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


def _listen(source: int, jobs: queue.Queue[StudyJob | None], parent: int) -> None:
    """Forward jobs from the input. When the input ends, stop the current job and exit."""
    received = b""
    while part := os.read(source, 1 << 16):
        *lines, received = (received + part).split(b"\n")
        for line in lines:
            jobs.put(job_from(json.loads(line)))
    jobs.put(None)
    if os.name == "nt":
        signal.raise_signal(signal.SIGTERM)  # on Windows, os.kill would end the process at once
    else:
        os.kill(os.getpid(), signal.SIGTERM)  # reaches the main thread, which may be waiting
    while os.getppid() == parent:  # a stopped study waits until its workers have saved
        time.sleep(0.2)
    time.sleep(_SAVING)
    os._exit(1)


def _logged(job: StudyJob) -> StudyOutcome:
    """Run a job with its standard output and standard error redirected to its log."""
    Path(job.log).parent.mkdir(parents=True, exist_ok=True)
    with Path(job.log).open("ab", buffering=0) as log:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        outcome = run_job(job)
        sys.stdout.flush()
        sys.stderr.flush()
    return outcome


if __name__ == "__main__":
    raise SystemExit(main())
