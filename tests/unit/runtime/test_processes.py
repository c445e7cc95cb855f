"""No worker outlives its parent, whatever ends that; what a dead process left unfinished goes with the next write."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from two_stream.runtime import workers
from two_stream.runtime.distributed import StopRequest
from two_stream.runtime.files import write_bytes

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals of Unix")

BURN = """
import os, sys, time
from pathlib import Path
def burn(place, *_):
    Path(place, str(os.getpid())).touch()
    while True:  # busy, silent, and deaf to the pipe, as a decoder is
        sum(range(1000))
"""
POOL = f"""{BURN}
if __name__ == "__main__":
    from two_stream.runtime.workers import run_tasks
    list(run_tasks(burn, [sys.argv[1]] * 2, processes=2, patience=100.0))
"""
LOADER = f"""{BURN}
if __name__ == "__main__":
    from torch.utils.data import DataLoader
    from two_stream.data.clips.loader import _start_worker
    class Clips:
        def __len__(self): return 4
        def __getitem__(self, index): burn(sys.argv[1])
    list(DataLoader(Clips(), num_workers=2, worker_init_fn=_start_worker))
"""
STUDY = f"""{BURN}
if __name__ == "__main__":
    from two_stream.studies.running import worker
    if len(sys.argv) == 3:
        worker.run_side_by_side = lambda jobs, logged: burn(sys.argv[1])
        import signal
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a job that takes long to save
        raise SystemExit(worker.main())
    import subprocess
    from two_stream.studies.running.cells import StudyJob, to_wire
    place = Path(sys.argv[1])
    (place / ".cells").mkdir()
    child = subprocess.Popen([sys.executable, __file__, str(place), "worker"], stdin=subprocess.PIPE)
    child.stdin.write(to_wire(StudyJob("t", "", str(place / ".cells" / "a.json"), str(place / ".log"), "k")))
    child.stdin.flush()
    child.wait()
"""


def lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state != "Z"  # dead, but its parent (here init) has not asked yet
    except FileNotFoundError:
        return False


@pytest.mark.integration
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("code", "count", "number"),
    [
        pytest.param(
            *(code, count, number),
            id=f"{name}-{number.name}",
            marks=[] if name == "pool" or number is signal.SIGKILL else pytest.mark.slow,
        )
        for name, code, count in (("pool", POOL, 2), ("loader", LOADER, 2), ("study", STUDY, 1))
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGKILL)
    ],
)
def test_no_worker_lives_five_seconds_longer_than_its_parent(tmp_path, code, count, number):
    script, place = tmp_path / "parent.py", tmp_path / "pids"
    script.write_text(code)
    place.mkdir()
    parent = subprocess.Popen([sys.executable, str(script), str(place)], stderr=subprocess.DEVNULL)
    pids: list[int] = []
    try:
        end = time.monotonic() + 60
        while len(pids) < count:
            assert time.monotonic() < end
            time.sleep(0.1)
            pids = [int(path.name) for path in place.iterdir() if path.name.isdecimal()]
        parent.send_signal(number)
        assert parent.wait(10) == -number
        end = time.monotonic() + 5
        while any(map(lives, pids)) and time.monotonic() < end:
            time.sleep(0.1)
        assert [pid for pid in pids if lives(pid)] == []
    finally:
        parent.kill()
        for pid in filter(lives, pids):
            os.kill(pid, signal.SIGKILL)


WATCHED = """
import os, sys, time
from two_stream.runtime import workers
workers.sys.platform = "other"
workers.end_with_parent(os.getppid())
print(os.getpid(), flush=True)
time.sleep(60)
"""


def test_where_the_system_does_not_end_workers_they_look_for_their_parent(tmp_path):
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {WATCHED!r}])"
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    assert parent.stdout.read() == b"", "the pipe closes when the worker has ended"
    end = time.monotonic() + 5  # a process closes its files a moment before it is gone
    while lives(worker) and time.monotonic() < end:
        time.sleep(0.05)
    assert not lives(worker)
    assert workers._LOOK_EVERY < 5


def test_what_a_dead_process_left_unfinished_goes_with_the_next_write(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from two_stream.runtime.files import atomic_path\n"
        "with atomic_path(Path(sys.argv[1])) as part: os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "model.onnx")], check=False)
    assert [path.suffix for path in tmp_path.iterdir()] == [".part"]
    write_bytes(tmp_path / "other", b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_a_hang_up_that_nohup_lets_pass_is_let_pass():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop
    finally:
        signal.signal(signal.SIGHUP, before)


HANGS_UP = """
import os, signal, sys
from pathlib import Path
from two_stream.runtime.distributed import StopRequest
with StopRequest() as stop:
    print("ready", flush=True)
    while not stop:
        signal.pause()
    os.kill(os.getpid(), signal.SIGHUP)  # the shell sends one, and the kernel another
    print("still talking", flush=True)
    Path(sys.argv[1]).write_text("saved")
"""


def test_saving_goes_on_when_the_terminal_has_gone(tmp_path):
    ours, theirs = os.pipe()
    child = subprocess.Popen(
        [sys.executable, "-c", HANGS_UP, str(tmp_path / "out")],
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    assert b"ready" in os.read(ours, 100)
    os.close(ours)  # nobody reads: writing is an error from here on, as to a terminal that has been closed
    child.send_signal(signal.SIGHUP)
    assert child.wait(20) == 0
    assert (tmp_path / "out").read_text() == "saved"
