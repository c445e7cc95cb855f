"""Tasks in processes: a crash, a hang or a surprise costs one task and is told by name."""

from __future__ import annotations

import os
import signal
import time

import pytest

from two_stream.errors import VideoError
from two_stream.runtime.workers import TaskFailure, run_tasks


def task(item, beat):
    what, value = item
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "exit":
        os._exit(3)
    if what == "hang":
        time.sleep(600)
    if what == "slow":
        for _ in range(8):
            time.sleep(0.3)
            beat()
    if what == "raise":
        raise VideoError("a.mp4", "broken")
    if what == "unpicklable":
        return lambda: value
    return value * 10


@pytest.mark.timeout(120)
def test_one_bad_task_costs_one_task():
    items = [
        ("fine", 1),
        ("die", 2),
        ("fine", 3),
        ("hang", 4),
        ("exit", 5),
        ("raise", 6),
        ("slow", 7),
        ("fine", 8),
    ]
    answers = dict(run_tasks(task, items, processes=3, patience=2.0))
    assert {k: answers[k] for k in (0, 2, 6, 7)} == {
        0: 10,
        2: 30,
        6: 70,
        7: 80,
    }  # slow beats, so it may take long
    assert answers[1] == TaskFailure("the worker process was killed by SIGKILL", "crashed")
    assert answers[3] == TaskFailure("timed out: no progress for 2 s, killed", "hung")
    assert answers[4] == TaskFailure("the worker process ended with exit code 3", "crashed")
    assert isinstance(answers[5], TaskFailure)
    assert answers[5].kind == "raised"
    assert "VideoError: a.mp4: broken (test_workers.py:" in answers[5].reason


@pytest.mark.timeout(60)
def test_an_answer_that_cannot_travel_costs_one_task():
    answers = dict(run_tasks(task, [("unpicklable", 1), ("fine", 2)], processes=1, patience=20.0))
    assert isinstance(answers[0], TaskFailure)
    assert answers[1] == 20


def test_without_processes_the_work_happens_here():
    assert list(run_tasks(task, [("fine", 1), ("fine", 2)], processes=0, patience=1.0)) == [(0, 10), (1, 20)]
    with pytest.raises(VideoError):
        list(run_tasks(task, [("raise", 1)], processes=0, patience=1.0))


@pytest.mark.timeout(60)
def test_leaving_early_ends_the_workers():
    answers = run_tasks(task, [("fine", 1), ("hang", 2)], processes=2, patience=100.0)
    assert next(answers) == (0, 10)
    start = time.monotonic()
    answers.close()
    assert time.monotonic() - start < 10
