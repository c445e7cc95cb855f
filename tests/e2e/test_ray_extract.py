"""Extraction on a local Ray instance: the same files as the local pool, failures listed, the rest next time."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.videos import H264, make
from two_stream.errors import DataError, SettingsError
from two_stream.video.extraction.many_videos import extract
from two_stream.video.extraction.one_video import ExtractOptions
from two_stream.video.sources import find_sources

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason='Ray is not installed (pip install "two-stream[ray]")'
)
OPTIONS = ExtractOptions(flow="tvl1", short_side=None, processes=2)


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def clips(folder: Path, lengths: list[int]) -> None:
    rng = np.random.default_rng(0)
    for number, length in enumerate(lengths):
        place = folder / ("sub" if number % 2 else ".")
        place.mkdir(parents=True, exist_ok=True)
        frames = [rng.integers(0, 255, (48, 64, 3)).astype(np.uint8) for _ in range(length)]
        make(place / f"v{number}.mp4", H264, frames)


@pytest.mark.integration
@needs_ray
@pytest.mark.timeout(240)
def test_ray_writes_the_files_of_the_local_pool(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # relative paths, as people give them
    clips(Path("in"), [3, 6, 4])
    Path("in/bad.mp4").write_text("no video")
    sources, _ = find_sources(Path("in"))
    ours = extract(sources, Path("pool"), OPTIONS)
    rays = extract(sources, Path("ray"), OPTIONS, ray="local")
    assert digests(tmp_path / "ray") == digests(tmp_path / "pool")
    assert (
        len(digests(tmp_path / "ray")) == 3 * (3 + 6 + 4) - 2 * 3 + 3
    )  # pictures, two flows less one, manifests
    for one, other in zip(ours.outcomes, rays.outcomes):
        assert (one.id, one.path, one.status, one.frames, one.reason) == (
            (other.id, other.path, other.status, other.frames, other.reason)
        )
    assert [outcome.path for outcome in rays.failed] == ["in/bad.mp4"]

    (tmp_path / "ray/v0/img_00002.jpg").unlink()
    again = extract(sources, Path("ray"), OPTIONS, ray="local")
    assert {one.id: one.status for one in again.outcomes} == {
        "bad": "failed",
        "v0": "written",
        "sub/v1": "skipped",
        "v2": "skipped",
    }
    assert digests(tmp_path / "ray") == digests(tmp_path / "pool")


@pytest.mark.integration
@needs_ray
@pytest.mark.timeout(120)
def test_interrupted_on_ray_leaves_nothing_half_written(tmp_path):
    clips(tmp_path / "in", [200])
    command = [
        sys.executable,
        "-m",
        "two_stream",
        "extract",
        str(tmp_path / "in"),
        "--out",
        str(tmp_path / "out"),
    ]
    command += ["--flow", "tvl1", "--ray", "local", "--processes", "1", "--short-side", "0"]
    running = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    limit = time.monotonic() + 60
    while not list((tmp_path / "out").glob(".v0.*/flow_x_00002.jpg")) and time.monotonic() < limit:
        time.sleep(0.02)
    os.killpg(running.pid, signal.SIGINT)
    _, complaint = running.communicate(timeout=40)
    assert running.returncode == 130
    assert complaint.splitlines()[-1] == "two-stream: interrupted"
    assert "Traceback" not in complaint
    assert list((tmp_path / "out").iterdir()) == []


@needs_ray
def test_addresses_that_cannot_work(tmp_path):
    clips(tmp_path / "in", [2])
    sources, _ = find_sources(tmp_path / "in")
    with pytest.raises(SettingsError, match=r"--ray 127\.0\.0\.1:1: no connection to this address"):
        extract(sources, tmp_path / "out", OPTIONS, ray="127.0.0.1:1")
    with pytest.raises(SettingsError, match=r"--ray is 'nonsense': expected HOST:PORT"):
        extract(sources, tmp_path / "out", OPTIONS, ray="nonsense")


def test_without_ray_one_line_says_what_to_install(tmp_path, monkeypatch):
    clips(tmp_path / "in", [2])
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SettingsError, match=r'not installed: pip install "two-stream\[ray\]"'):
        extract(find_sources(tmp_path / "in")[0], tmp_path / "out", OPTIONS, ray="local")


class Cluster:
    """Stands for Ray with two machines, of which the second answers as told."""

    class exceptions:  # noqa: N801
        RayError = RuntimeError

    def __init__(self, **found):
        self.found = found

    def nodes(self):
        return [
            {"Alive": True, "Resources": {"CPU": 2.0}, "NodeID": name, "NodeManagerHostname": name}
            for name in ("here", "there")
        ] + [{"Alive": False, "Resources": {"CPU": 2.0}, "NodeID": "gone", "NodeManagerHostname": "gone"}]

    def remote(self, function):
        cluster = self

        class Task:
            def options(self, *, scheduling_strategy, **_):
                self.node = scheduling_strategy
                return self

            def remote(self, *args):
                found = function(*args)
                if self.node == "there":
                    found.update(cluster.found)
                return found

        return Task()

    def get(self, found, timeout):
        assert timeout > 0
        if isinstance(found.get("missing"), Exception):
            raise found["missing"]
        return found


@needs_ray
def test_machines_that_see_or_have_something_else_are_named(tmp_path, monkeypatch):
    import ray.util.scheduling_strategies as strategies

    from two_stream.video.extraction import ray_pool
    from two_stream.video.extraction.one_video import ExtractionJob

    monkeypatch.setattr(strategies, "NodeAffinitySchedulingStrategy", lambda node, soft: node)
    clips(tmp_path / "in", [2])
    mark = tmp_path / "out" / "mark"
    mark.parent.mkdir()
    mark.touch()
    jobs = [ExtractionJob(source, mark.parent, OPTIONS) for source in find_sources(tmp_path / "in")[0]]
    ray_pool._check_machines(Cluster(), jobs, mark)
    with pytest.raises(DataError, match=f"machine there cannot access {mark.parent};"):
        ray_pool._check_machines(Cluster(missing=[str(mark)]), jobs, mark)
    with pytest.raises(DataError, match=f"machine there cannot access {tmp_path / 'in'};"):
        ray_pool._check_machines(Cluster(missing=[str(tmp_path / "in")]), jobs, mark)
    other = {**ray_pool.versions("pyav"), "opencv": "4.10"}
    with pytest.raises(SettingsError, match=r"machine there has opencv 4\.10 \(here "):
        ray_pool._check_machines(Cluster(versions=other), jobs, mark)
    with pytest.raises(SettingsError, match=r"machine there cannot run two-stream .*no module"):
        ray_pool._check_machines(Cluster(missing=RuntimeError("no module")), jobs, mark)
    mark.unlink()
    with pytest.raises(DataError, match="machine here cannot access"):
        ray_pool._check_machines(Cluster(), jobs, mark)
    with pytest.raises(DataError, match="cannot access"):
        ray_pool.run_extraction_task(jobs[0], str(mark), 60.0)


@pytest.mark.integration
@pytest.mark.parametrize(("seconds", "code"), [(30, 1), (0, 0)])
def test_a_task_without_progress_ends_its_process(tmp_path, seconds, code):
    (tmp_path / "mark").touch()
    script = f"""
import time
from pathlib import Path
from two_stream.video.extraction import ray_pool
from two_stream.video.extraction.one_video import ExtractOptions, ExtractionJob
from two_stream.video.sources import Source

def hang(job, beat):
    beat()
    time.sleep({seconds})

ray_pool.extract_video = hang
job = ExtractionJob(Source("v", Path("v.mp4")), Path({str(tmp_path)!r}), ExtractOptions(flow="none"))
ray_pool.run_extraction_task(job, {str(tmp_path / "mark")!r}, 0.5)
time.sleep(1.0)  # the alarm is off when the task is done
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (code, "")
