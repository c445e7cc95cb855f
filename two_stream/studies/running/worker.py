"""A process that does the jobs of a study: one line in, one line out, all output into the job's log.

Started as `python -m two_stream.studies.running.worker`. When the study's own process ends for whatever reason, the
standard input ends too. The worker then saves what it is training and exits.
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

from two_stream.runtime.locks import lock_worker
from two_stream.studies.running.cells import StudyJob, StudyOutcome, do, job_from, to_wire

_SAVING = 4.0
"""seconds to save in when the study's process has gone"""


def main() -> int:
    """Do jobs until the input ends."""
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
    """Return a descriptor of the input that nothing else knows of.

    A forked loader process closes `sys.stdin`, and would wait for ever for its lock, which the listening thread holds.
    """
    own = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return own


def _listen(source: int, jobs: queue.Queue[StudyJob | None], parent: int) -> None:
    """Hand on jobs; when the input ends ask the work at hand to stop, and do not outlive the study by much."""
    heard = b""
    while part := os.read(source, 1 << 16):
        *lines, heard = (heard + part).split(b"\n")
        for line in lines:
            jobs.put(job_from(json.loads(line)))
    jobs.put(None)
    if os.name == "nt":
        signal.raise_signal(signal.SIGTERM)  # there, os.kill ends the process
    else:
        os.kill(os.getpid(), signal.SIGTERM)  # to the thread that works, which may be waiting for something
    while os.getppid() == parent:  # a study that is stopped waits until its workers have saved
        time.sleep(0.2)
    time.sleep(_SAVING)
    os._exit(1)


def _logged(job: StudyJob) -> StudyOutcome:
    """Do a job with standard output and error going to its log."""
    Path(job.log).parent.mkdir(parents=True, exist_ok=True)
    with Path(job.log).open("ab", buffering=0) as log:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        outcome = do(job)
        sys.stdout.flush()
        sys.stderr.flush()
    return outcome


if __name__ == "__main__":
    raise SystemExit(main())
