"""Jobs over processes: order, crashes, stopping, and what a killed study leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock, Timeout

from two_stream.errors import SettingsError
from two_stream.runtime.files import study_lock
from two_stream.studies.running import pool
from two_stream.studies.running.cells import StudyJob, StudyOutcome
from two_stream.studies.running.pool import Slot, Workers, run_jobs, slots_for

WORKER = textwrap.dedent(
    """
    import json, os, signal, sys, time
    for place, job in ((place, job) for line in sys.stdin for place, job in enumerate(json.loads(line))):
        kind, _, rest = job["title"].partition(" ")
        open(job["log"], "a").write(f"{os.getpid()} {job['device']} {job['threads']}\\n")
        if kind == "die":
            os.kill(os.getpid(), int(rest))
        if kind == "exit":
            sys.exit(int(rest))
        if kind == "wait":
            open(job["log"], "a").write("waiting\\n")
            sys.stdin.read()  # the end of the input
            open(job["log"], "a").write("saved\\n")
            sys.exit(0)
        time.sleep(float(rest or 0))
        outcome = {"state": "done", "key": job["key"], "accuracy": 0.5}
        sys.stdout.write(json.dumps([place, outcome]) + "\\n")
        sys.stdout.flush()
        if kind == "last":
            sys.exit(0)
    """
)


@pytest.fixture(autouse=True)
def _fake_worker(monkeypatch, tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    monkeypatch.setattr(
        pool,
        "_started",
        lambda: subprocess.Popen(
            [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ),
    )
    monkeypatch.setattr(pool, "TICK", 0.05)


def jobs(tmp_path: Path, *titles: str) -> dict[int, StudyJob]:
    return {
        10 + number: StudyJob(
            title, "", str(tmp_path / f"{number}.json"), str(tmp_path / f"{number}.log"), f"k{number}"
        )
        for number, title in enumerate(titles)
    }


def outcomes(given: dict[int, StudyJob], slots: list[Slot]) -> list[tuple[int, StudyOutcome]]:
    with closing(Workers()) as workers:
        return [event for event in run_jobs(given, slots, set(), workers) if event is not None]


def said(tmp_path: Path, number: int) -> list[str]:
    return (tmp_path / f"{number}.log").read_text().split()


def test_one_slot_does_one_after_another_in_one_process(tmp_path: Path):
    found = outcomes(jobs(tmp_path, "ok", "ok", "ok"), [Slot()])
    assert [(index, outcome.state, outcome.key) for index, outcome in found] == [
        (10, "done", "k0"),
        (11, "done", "k1"),
        (12, "done", "k2"),
    ]
    assert len({said(tmp_path, number)[0] for number in range(3)}) == 1


def test_two_slots_work_at_once_each_on_its_device(tmp_path: Path):
    slots = slots_for(["cuda:0", "cuda:1"], 1, 8)
    # the first is longer than a process may take to start
    found = outcomes(jobs(tmp_path, "ok 4", "ok 0.1", "ok 0.1"), slots)
    assert [index for index, _ in found] == [11, 12, 10]
    assert [said(tmp_path, number)[1:] for number in range(3)] == [
        ["cuda:0", "4"],
        ["cuda:1", "4"],
        ["cuda:1", "4"],
    ]


@pytest.mark.parametrize(
    ("title", "reason"),
    [
        (f"die {signal.SIGKILL.value}", "its process was killed (signal 9, often for lack of memory"),
        (f"die {signal.SIGSEGV.value}", "its process ended with signal 11; see"),
        ("exit 3", "its process ended with exit code 3; see"),
    ],
)
def test_a_crash_is_a_failed_job_and_the_next_gets_a_new_process(tmp_path: Path, title: str, reason: str):
    found = dict(outcomes(jobs(tmp_path, "ok", title, "ok"), [Slot()]))
    assert [found[index].state for index in (10, 11, 12)] == ["done", "failed", "done"]
    assert reason in found[11].reason
    assert found[11].key == "k1"
    assert said(tmp_path, 0)[0] == said(tmp_path, 1)[0] != said(tmp_path, 2)[0]


def test_a_crash_is_told_where_sigkill_has_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Windows does not know it, and can wait for pipes in threads alone."""
    monkeypatch.delattr(signal, "SIGKILL")
    monkeypatch.setitem(sys.modules, "selectors", None)
    ((_, outcome),) = outcomes(jobs(tmp_path, "die 15"), [Slot()])
    assert "its process ended with signal 15" in outcome.reason


def test_a_process_that_ends_between_two_jobs_fails_none(tmp_path: Path):
    found = {}
    slot = Slot()
    for event in run_jobs(jobs(tmp_path, "last", "ok 0.3", "ok"), [slot], set(), Workers()):
        if event is not None:
            found[event[0]] = event[1].state
            if event[0] == 10 and slot.process is not None:
                slot.process.wait()  # it is seen to be over before its pipe is seen to be closed
    assert found == {10: "done", 11: "done", 12: "done"}


def test_what_runs_is_known_and_stopping_lets_it_save(tmp_path: Path):
    running: set[int] = set()
    events = run_jobs(jobs(tmp_path, "wait", "ok", "ok"), [Slot()], running, Workers())
    for event in events:
        assert event is None
        if (tmp_path / "0.log").exists() and "waiting" in said(tmp_path, 0):
            break
    assert list(running) == [10]
    events.close()
    assert "saved" in said(tmp_path, 0)
    assert not running
    assert not (tmp_path / "1.log").exists()


def grouped(tmp_path: Path, *titles: str) -> dict[int, StudyJob]:
    return {index: replace(job, group="g") for index, job in jobs(tmp_path, *titles).items()}


def processes(tmp_path: Path, count: int) -> list[str]:
    return [said(tmp_path, number)[0] for number in range(count)]


def test_a_group_is_given_to_one_process_at_once_and_shared_by_the_slots(tmp_path: Path):
    given = grouped(tmp_path, "ok 0.5", "ok", "ok", "ok", "ok", "ok") | {9: jobs(tmp_path, *["ok"] * 7)[16]}
    found = outcomes(given, [Slot(), Slot()])
    assert sorted((index, outcome.key) for index, outcome in found) == sorted(
        (index, job.key) for index, job in given.items()
    )
    first, second = processes(tmp_path, 6)[0], processes(tmp_path, 6)[4]
    assert processes(tmp_path, 4) == [first] * 4  # of seven jobs, half
    assert first != second


def test_after_a_crash_the_jobs_of_a_group_run_alone(tmp_path: Path):
    found = dict(outcomes(grouped(tmp_path, "ok", f"die {signal.SIGKILL.value}", "ok"), [Slot()]))
    assert {index: outcome.state for index, outcome in found.items()} == {
        10: "done",
        11: "failed",
        12: "done",
    }
    assert found[11].key == "k1"
    assert len(said(tmp_path, 1)) == 4  # it was begun twice: two lines of process and threads
    first, _, last = processes(tmp_path, 3)
    assert said(tmp_path, 1)[0] == first != last


def test_the_next_stage_uses_the_processes_again(tmp_path: Path):
    with closing(Workers()) as workers:
        for titles in (["ok"], ["ok", "ok"]):
            assert all(
                event is None or event[1].done
                for event in run_jobs(jobs(tmp_path, *titles), [Slot()], set(), workers)
            )
        (process,) = workers.idle
        assert set(said(tmp_path, 0)[::2] + said(tmp_path, 1)[::2]) == {str(process.pid)}
    assert process.poll() is not None


def test_slots_share_the_processor():
    assert [(slot.device, slot.threads) for slot in slots_for([], 1, 8)] == [("", 0)]
    assert [(slot.device, slot.threads) for slot in slots_for([], 3, 8)] == [("", 2)] * 3
    assert [slot.device for slot in slots_for(["cuda:0", "cuda:1"], 2, 8)] == ["cuda:0", "cuda:1"] * 2


LIFE_LINE = """
import sys, time
from pathlib import Path
from two_stream.studies.running import worker
def slow(job):
    Path(job.log).parent.mkdir(parents=True, exist_ok=True)
    Path(job.record).with_suffix(".began").write_text("x")
    time.sleep(60)
worker.run_side_by_side = lambda jobs, logged: slow(jobs[0])
raise SystemExit(worker.main())
"""


def test_a_worker_ends_when_the_study_has_gone_and_the_next_study_waits_for_it(tmp_path: Path):
    with study_lock(tmp_path):
        pass
    job = StudyJob("t", "", str(tmp_path / "cells" / "a.json"), str(tmp_path / "a.log"), "k")
    (tmp_path / "cells").mkdir()
    worker = subprocess.Popen(
        [sys.executable, "-c", LIFE_LINE], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert worker.stdin is not None
    worker.stdin.write(json.dumps([vars(job)]).encode() + b"\n")
    worker.stdin.flush()
    end = time.monotonic() + 60
    while not (tmp_path / "cells" / "a.began").exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    (mark,) = tmp_path.glob(".worker-*.lock")
    with pytest.raises(Timeout):
        FileLock(mark).acquire(timeout=0)
    worker.stdin.close()
    assert worker.wait(30) == -signal.SIGTERM
    with study_lock(tmp_path):
        pass


def test_a_second_study_in_the_folder_is_refused(tmp_path: Path):
    code = (
        "import sys, time; from pathlib import Path; from two_stream.runtime.files import study_lock\n"
        "with study_lock(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with (
            pytest.raises(SettingsError, match="another process is running this study"),
            study_lock(tmp_path),
        ):
            pass
    finally:
        os.kill(other.pid, signal.SIGKILL)
        other.wait()
    with study_lock(tmp_path):
        pass
