"""Web pages of exported networks, in a headless Chromium: frames, pixels and scores are those of Python."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from tests.conftest import MadeOnce
from tests.helpers.browser import CONTRAST, NAMES, Browser, browser, find_chromium
from tests.helpers.runs import made_run
from tests.helpers.videos import Codec, make
from two_stream.cli import main as cli
from two_stream.data.clips.sampling import clips_for, sample_clips
from two_stream.data.clips.transforms import resize_frames
from two_stream.errors import ExportError
from two_stream.evaluation.runs.run import load_run, predict
from two_stream.evaluation.scoring.video import VideoInput, picture_at
from two_stream.export import load, load_stream
from two_stream.export.web import find_runtime
from two_stream.types import InputSpec
from two_stream.video.decoding.reader import open_video
from two_stream.video.rate import shown_numbers

pytestmark = pytest.mark.integration
MODELS: dict[str, dict[str, Any]] = {
    "clip": {},
    "bert": {"head": {"kind": "bert", "heads": 4, "hidden": 64}},
    "fps": {"input": {"clip_length": 8, "crop": 32, "resize": (36, 48), "stride": 1, "fps": 10.0}},
    "stream": {
        "backbone": {"kind": "x3d", "depth": 0.5, "width": 0.7},
        "input": {"clip_length": 4, "crop": 32, "resize": (36, 48), "stride": 2},
    },
}
LOSSLESS = Codec("libx264", ".mp4", "yuv444p", {"qp": "0", "bf": "2", "g": "12"})
VP9 = Codec("libvpx-vp9", ".webm", "yuv420p", {"g": "12", "crf": "10"})
FED = "twoStream.fed = []; twoStream.onrun = (last) => twoStream.fed.push(last)"
OPEN = """(async () => {
  twoStream.fed = [];
  const file = new File([await (await fetch('/%s')).blob()], '%s');
  await twoStream.openFile(file);
  return document.getElementById('state').textContent;
})()"""
BYTES = """(() => { let text = ''; const data = new Uint8Array(%s);
  for (let at = 0; at < data.length; at += 8192) text += String.fromCharCode(...data.subarray(at, at + 8192));
  return btoa(text); })()"""


@pytest.fixture(scope="module")
def pages(made_once: MadeOnce) -> Path:
    """A folder with the runs, their pages (`NAME/web`), and videos."""
    pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    try:
        runtime = next(iter(find_runtime("npm").values()))
    except ExportError as error:
        pytest.skip(f"ONNX Runtime Web is not available: {error}")

    def fill(folder: Path) -> None:
        for name, options in MODELS.items():
            run = made_run(folder / name, **options)
            flags = ["--stream"] if name == "stream" else []
            assert cli(["export", str(run), "--to", "web", "--runtime", str(runtime.parent), *flags]) == 0

    return made_once("web-pages", fill)


@pytest.fixture(scope="module")
def address(pages: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(pages)))
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def pictures(count: int, height: int = 48, width: int = 64) -> list[np.ndarray]:
    """Smooth coloured frames that change from one to the next."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 9 + 0.3 * t) + np.cos(y / 7 - 0.5 * t) for t in range(count)]
    return [
        np.stack([128 + 55 * wave, 128 + 40 * np.roll(wave, t), 90 + 30 * wave + t], -1).clip(0, 255).astype(np.uint8)
        for t, wave in enumerate(waves)
    ]


@pytest.fixture(scope="module")
def tab(pages: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = find_chromium()
    if program is None:
        pytest.skip(f"no Chromium: none of {', '.join(NAMES)} is on the path (Debian: apt-get install chromium)")
    folder = tmp_path_factory.mktemp("camera")
    camera = folder / "camera.mjpeg"
    with av.open(str(camera), "w", format="mjpeg") as container:
        stream = container.add_stream("mjpeg", rate=30, options={"qmin": "1", "qmax": "2"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        for picture in pictures(30):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    flags = ("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream")
    with browser(program, folder / "profile", *flags, f"--use-file-for-fake-video-capture={camera}") as made:
        yield made


def ready(tab: Browser, page: str) -> None:
    tab.open(page)
    until(tab, "twoStream.ready === true")
    tab.evaluate(FED)


def until(tab: Browser, condition: str, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not tab.evaluate(f"Boolean({condition})"):
        told = tab.evaluate("document.getElementById('state').textContent")
        assert time.monotonic() < deadline, f"{condition}: {told}; {tab.complaints()}"
        time.sleep(0.05)


def pixels(tab: Browser, script: str, shape: list[int]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(tab.evaluate(BYTES % script)), np.uint8).reshape(shape)


def fed(tab: Browser) -> list[tuple[list[int], torch.Tensor, list[float]]]:
    """Return frame numbers, clip and logits of every call of the network."""
    found = []
    for place, (shape, numbers, logits) in enumerate(tab.evaluate("twoStream.fed.map(one => [one.shape, one.numbers, one.logits])")):
        found.append((numbers, torch.from_numpy(pixels(tab, f"twoStream.fed[{place}].clip", shape).copy()), logits))
    return found


def in_python(pages: Path, name: str, calls: list[tuple[list[int], torch.Tensor, list[float]]]) -> list[torch.Tensor]:
    """Return the logits that Python computes from the frames that the page read."""
    file = pages / name / "web" / "model.onnx"
    if name != "stream":
        network = load(file).model
        return [network(clip)[0] for _, clip, _ in calls]
    step = load_stream(file)
    states, found = step.initial_states(), []
    for _, clip, _ in calls:
        logits, states = step.step(clip, states)
        found.append(logits[0])
    return found


def largest_difference(wanted: list[torch.Tensor], calls: list[tuple[list[int], torch.Tensor, list[float]]]) -> float:
    return max(float((one - torch.tensor(logits)).abs().max()) for one, (_, _, logits) in zip(wanted, calls, strict=True))


def test_dev(tab: Browser, pages: Path, address: str) -> None:
    for name in MODELS:
        ready(tab, f"{address}/{name}/web/")
        print(name, tab.evaluate("document.getElementById('facts').innerText"), tab.complaints())
        for codec in (LOSSLESS, VP9):
            video = make(pages / f"{name}{codec.suffix}", codec, pictures(47))
            begin = time.time()
            print(tab.evaluate(OPEN % (video.name, video.name)), time.time() - begin, tab.complaints())
            calls = fed(tab)
            print(len(calls), calls and calls[0][0], calls and largest_difference(in_python(pages, name, calls), calls))
            print(tab.evaluate("twoStream.result"), tab.evaluate("document.getElementById('facts').innerText"))
            if name != "stream":
                print(predict(pages / name, video))
