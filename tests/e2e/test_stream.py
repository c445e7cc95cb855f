"""`two-stream stream` as a person runs it: a file, a live address that dies and returns, Ctrl-C, and what is wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from tests.helpers.runs import NAMES, made_run
from tests.helpers.server import LiveServer
from two_stream import load_run
from two_stream.cli import main
from two_stream.evaluation.runs.run import reading_of
from two_stream.streaming.live import outputs
from two_stream.streaming.live.networks import Prepare
from two_stream.streaming.live.outputs import BrowserWindow
from two_stream.video.decoding.reader import open_video


@pytest.fixture(scope="module")
def rgb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_run(tmp_path_factory.mktemp("runs") / "rgb")


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_run(tmp_path_factory.mktemp("runs") / "flow", "flow", "lstm")


@pytest.fixture
def video(shared: Path) -> Path:
    return sorted((shared / "data" / "fight2" / "fight").glob("*.mp4"))[0]


def pictures() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    base = generator.integers(0, 255, (12, 16, 3)).astype(np.uint8)
    return [np.kron(np.roll(base, step, axis=1), np.ones((6, 6, 1), np.uint8)) for step in range(16)]


def states(response) -> list[dict]:
    """The messages of the live page's `/state`, up to the end of the stream."""
    found: list[dict] = []
    with response:
        while not found or found[-1]["state"] != "ended":
            line = response.readline()
            if line.startswith(b"data: "):
                found.append(json.loads(line[6:]))
            assert line, "the connection ended without a last state"
    return found


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_time_line_of_a_file_is_the_clip_network_over_the_whole_of_it(
    rgb: Path, video: Path, tmp_path: Path
) -> None:
    out = tmp_path / "lines.jsonl"
    assert (
        main(
            ["stream", str(video), "--rgb", str(rgb), "--json", str(out), "--precision", "fp32", "--top", "3"]
        )
        == 0
    )
    run = load_run(rgb)
    prepare = Prepare(run.model.spec, reading_of(run))
    with open_video(video) as opened:
        clip = torch.stack([prepare(None, picture) for picture in opened.frames()][::2], dim=1)[None]
    with torch.inference_mode():
        (tokens_BTD,) = run.model.forward_features(clip)
        windows = tokens_BTD[0].unfold(0, 4, 1).mean(-1)  # a clip of 8 frames gives 4 tokens
        wanted = torch.softmax(run.model.classifier(windows), dim=1).numpy()
    found = lines(out)
    assert len(found) == len(wanted)
    shares = [{one["class"]: one["probability"] for one in line["top"]} for line in found]
    np.testing.assert_allclose(
        [[share[name] for name in NAMES] for share in shares], wanted, rtol=0, atol=2e-5
    )
    assert np.ptp(wanted, axis=0).max() > 0.01  # the line is not flat
    assert [line["first_frame"] for line in found] == [1 + 4 * place for place in range(len(found))]


def test_two_streams_an_annotated_file_and_the_summary(
    rgb: Path, flow: Path, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, copy = tmp_path / "lines.jsonl", tmp_path / "copy.mp4"
    flags = ["--rgb", str(rgb), "--flow", str(flow), "--json", str(out), "--annotate", str(copy)]
    assert main(["stream", str(video), *flags, "--weights", "0.6", "0.4"]) == 0
    with open_video(video) as opened, av.open(str(copy)) as made:
        # every picture up to the last that a network saw, at its own time
        times = [frame.time for frame in made.decode(video=0)]
        assert opened.num_frames - 2 <= len(times) <= opened.num_frames
        assert times == pytest.approx([place / opened.fps for place in range(len(times))], abs=1e-3)
    assert [line["first_frame"] for line in lines(out)][:3] == [2, 6, 10]
    shown = capsys.readouterr()
    assert f"{video}: " in shown.out
    assert "frames," in shown.out
    assert "0 dropped" in shown.out
    assert "rgb: first after" in shown.err


def test_the_live_page_is_told_all_classes_the_time_line_and_the_end(
    rgb: Path, flow: Path, video: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[dict] = []
    readers: list[threading.Thread] = []

    class Watched(BrowserWindow):
        def __init__(self, *given) -> None:
            super().__init__(*given)
            response = urllib.request.urlopen(f"{self.address}state", timeout=30)
            readers.append(threading.Thread(target=lambda: told.extend(states(response))))
            readers[0].start()

    monkeypatch.setattr(outputs, "BrowserWindow", Watched)
    assert main(["stream", str(video), "--rgb", str(rgb), "--flow", str(flow), "--window", "0"]) == 0
    readers[0].join(10)
    assert "live page: http://127.0.0.1:" in capsys.readouterr().err
    assert told[0]["state"] == "connecting"
    last = told[-1]
    assert (last["state"], last["reason"], last["networks"]) == ("ended", "end of the file", "rgb + flow")
    assert sorted(name for name, _ in last["guesses"]) == sorted(NAMES)
    assert last["frames"]["total"] > 50
    assert last["predictions"]["total"] > 10
    points = [point for state in told for point in state["points"]]
    assert [seconds for seconds, _ in points] == sorted({seconds for seconds, _ in points})
    assert points


def test_a_network_without_a_stream_goes_over_sliding_clips(
    video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made_run(
        tmp_path / "timm",
        backbone={"kind": "timm", "name": "convnext_atto", "tsm": 0.125},
    )
    capsys.readouterr()
    out = tmp_path / "lines.jsonl"
    assert main(["stream", str(video), "--rgb", str(run), "--json", str(out)]) == 0
    assert "the network is run on sliding clips instead" in capsys.readouterr().err
    assert [line["first_frame"] for line in lines(out)][:3] == [1, 9, 17]
    assert main(["stream", str(video), "--rgb", str(run), "--mode", "continual"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def watched(address: str, rgb: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "two_stream",
        "stream",
        address,
        "--rgb",
        str(rgb),
        "--json",
        str(out),
        *more,
    ]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def until(condition, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


@pytest.mark.integration
def test_a_live_source_that_dies_and_returns_is_picked_up_and_ctrl_c_leaves(
    rgb: Path, tmp_path: Path
) -> None:
    out = tmp_path / "lines.jsonl"
    server = LiveServer(pictures(), fps=25)
    process = watched(server.address, rgb, out, "--annotate", str(tmp_path / "copy.mp4"))
    try:
        until(lambda: out.exists() and len(lines(out)) > 3)
        server.close()
        time.sleep(1.0)
        before = len(lines(out))
        server = LiveServer(pictures(), fps=25, port=server.port)
        until(lambda: len(lines(out)) > before + 3)
        process.send_signal(signal.SIGINT)
        told, complaints = process.communicate(timeout=30)
    finally:
        process.kill()
        server.close()
    assert process.returncode == 130
    assert "waiting up to 60 s until the source is available again" in complaints
    assert "the networks are reset" in complaints
    assert "Traceback" not in complaints
    assert "1 interruptions" in told
    seconds = [line["seconds"] for line in lines(out)]
    assert seconds == sorted(seconds)
    with av.open(str(tmp_path / "copy.mp4")) as copy:  # whole, although it was interrupted
        assert sum(1 for _ in copy.decode(video=0)) > 8


@pytest.mark.integration
def test_a_source_that_stays_away_ends_it_with_one_line(rgb: Path, tmp_path: Path) -> None:
    out = tmp_path / "lines.jsonl"
    server = LiveServer(pictures(), fps=25)
    process = watched(server.address, rgb, out, "--patience", "1")
    try:
        until(lambda: out.exists() and len(lines(out)) > 1)
        server.close()
        _, complaints = process.communicate(timeout=30)
    finally:
        process.kill()
        server.close()
    assert process.returncode == 2
    last = complaints.strip().splitlines()[-1]
    assert last.startswith(f"two-stream: {server.address}: was lost for ")
    assert "Traceback" not in complaints


@pytest.mark.integration
def test_the_limit_holds_while_the_source_is_away(rgb: Path, tmp_path: Path) -> None:
    out = tmp_path / "lines.jsonl"
    server = LiveServer(pictures(), fps=25)
    process = watched(server.address, rgb, out, "--limit", "9")
    try:
        until(lambda: out.exists() and len(lines(out)) > 0)
        server.close()
        begin = time.monotonic()
        _, complaints = process.communicate(timeout=30)
    finally:
        process.kill()
        server.close()
    assert process.returncode == 0
    assert time.monotonic() - begin < 15
    assert "rgb: first after 79 frames (3.2 s), then every 4" in complaints  # its frame rate is known by then


def test_a_full_disk_is_one_line_that_names_the_file(
    rgb: Path, video: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    assert main(["stream", str(video), "--rgb", str(rgb), "--json", "/dev/full"]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last == "two-stream: --json /dev/full: cannot be written (No space left on device)"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["x.mp4"], "no run given: use an RGB run"),
        (["no.mp4", "--rgb", "RUN"], "no.mp4: no such file"),
        (["foo://x", "--rgb", "RUN"], "foo://x: unknown scheme 'foo'"),
        (["VIDEO", "--flow", "RUN"], "this run uses rgb; pass it with --rgb"),
        (["VIDEO", "--rgb", "RUN", "--queue", "0"], "--queue is 0: expected 1 or more"),
        (["VIDEO", "--rgb", "RUN", "--weights", "1", "2"], "--weights requires both --rgb and --flow"),
        (["VIDEO", "--rgb", "RUN", "--annotate", "/no/such/x.mp4"], "the folder /no/such does not exist"),
        (
            ["VIDEO", "--rgb", "RUN", "--json", "/no/such/x.jsonl"],
            "--json /no/such/x.jsonl: cannot be written",
        ),
        (
            ["VIDEO", "--rgb", "RUN", "--mode", "continual", "--step", "3"],
            "--step applies only to sliding clips",
        ),
        (
            ["http://127.0.0.1:9/", "--rgb", "RUN"],
            "http://127.0.0.1:9/: the stream cannot be read (connection refused",
        ),
    ],
)
def test_what_is_wrong_is_one_line(
    args: list[str], said: str, rgb: Path, video: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = threading.active_count()
    given = [str({"RUN": rgb, "VIDEO": video}.get(arg, arg)) for arg in args]
    assert main(["stream", *given]) == 2
    complaint = capsys.readouterr().err.strip().splitlines()[-1]
    assert complaint.startswith("two-stream")
    assert said in complaint
    until(lambda: threading.active_count() <= before, 5.0)


def test_memory_stays_flat_while_a_stream_goes_on(rgb: Path) -> None:
    """Twice as many frames through the whole pipeline keep no more than the first half did."""
    import resource

    from two_stream.streaming import convert
    from two_stream.streaming.live.networks import NetworkTrack
    from two_stream.streaming.live.pipeline import Pipeline
    from two_stream.video.decoding.live import LiveSource

    class Endless(LiveSource):
        live = False

        def frames(self):
            generator = np.random.default_rng(1)
            for number in range(2400):
                yield number / 25, generator.integers(0, 255, (36, 48, 3)).astype(np.uint8)

    run = load_run(rgb)
    network = convert(run.model)
    frame = torch.zeros(1, 3, 1, *run.model.spec.size, dtype=torch.uint8)
    most = max(len(network.step(frame)) * network.state_bytes() for _ in range(100))
    network.reset()
    stream = NetworkTrack("rgb", network, Prepare(run.model.spec, reading_of(run)), every=2)
    sizes: list[int] = []
    peaks: list[list[float]] = [[], []]
    for count, _ in enumerate(Pipeline(Endless("noise"), [stream]).run()):
        sizes.append(network.state_bytes())  # depends on how many frames went in at once
        peaks[min(count // 600, 1)].append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    assert len(sizes) >= 1200
    assert max(sizes) <= most
    assert peaks[1][-1] - peaks[0][-1] < 2 * 1024  # KiB


def resident(pid: int) -> float:
    """Memory of a process in MiB."""
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads a process's memory from /proc")
def test_ten_minutes_of_a_looped_stream(rgb: Path, flow: Path, tmp_path: Path) -> None:
    """Memory stays flat, what is dropped is counted, a source that dies and returns is picked up, Ctrl-C leaves."""
    minutes = float(os.environ.get("TWO_STREAM_SOAK_MINUTES", "10"))
    out = tmp_path / "lines.jsonl"
    server = LiveServer(pictures(), fps=25)
    process = watched(server.address, rgb, out, "--flow", str(flow), "--annotate", str(tmp_path / "copy.mp4"))
    memory: list[float] = []
    try:
        until(lambda: out.exists() and len(lines(out)) > 3)
        begin, died = time.monotonic(), False
        while time.monotonic() - begin < 60 * minutes:
            assert process.poll() is None, process.communicate()[1]
            memory.append(resident(process.pid))
            if not died and time.monotonic() - begin > 20 * minutes:
                server.close()
                time.sleep(3)
                server, died = LiveServer(pictures(), fps=25, port=server.port), True
            time.sleep(1)
        process.send_signal(signal.SIGINT)
        told, complaints = process.communicate(timeout=30)
    finally:
        process.kill()
        server.close()
    third = len(memory) // 3
    print(told, [f"{max(memory[place : place + third]):.0f} MiB" for place in (0, third, 2 * third)])
    assert process.returncode == 130
    assert "Traceback" not in complaints
    assert "1 interruptions" in told
    found = lines(out)
    assert found[-1]["seconds"] > 55 * minutes
    assert found[-1]["frame"] > 0.9 * 25 * 60 * minutes  # numbers go on over what was dropped
    assert max(memory[2 * third :]) < max(memory[third : 2 * third]) + 4
