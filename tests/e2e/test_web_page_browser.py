"""Web pages of exported networks, in a headless Chromium: frames, pixels and scores are those of Python."""

from __future__ import annotations

import base64
import json
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
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
from tests.helpers.videos import CODECS, Codec, make
from two_stream.cli import main as cli
from two_stream.data.clips.sampling import clips_for, sample_clips
from two_stream.data.clips.transforms import resize_frames
from two_stream.errors import ExportError
from two_stream.evaluation.runs.run import load_run, predict
from two_stream.evaluation.scoring.video import VideoInput, picture_at
from two_stream.export import load, load_stream
from two_stream.export.web import RUNTIME, VERSION, find_runtime
from two_stream.types import InputSpec
from two_stream.video.decoding.backend_pyav import frame_times
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
HOSTILE = "<img src=x onerror=alert(1)>"
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
        facts = folder / "stream" / "web" / "model.json"
        facts.write_text(facts.read_text().replace('"jump"', json.dumps(HOSTILE)))

    return made_once("web-pages", fill)


class Quiet(SimpleHTTPRequestHandler):
    """Serves files to pages of any address, as a CDN does."""

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def end_headers(self) -> None:
        self.send_header("Access-Control-Allow-Origin", "*")
        super().end_headers()


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder, and yield the address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def address(pages: Path) -> Iterator[str]:
    with served(pages) as found:
        yield found


def pictures(count: int, height: int = 48, width: int = 64) -> list[np.ndarray]:
    """Smooth coloured frames that change from one to the next."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 9 + 0.3 * t) + np.cos(y / 7 - 0.5 * t) for t in range(count)]
    return [
        np.stack([128 + 55 * wave, 128 + 40 * np.roll(wave, t), 90 + 30 * wave + t], -1)
        .clip(0, 255)
        .astype(np.uint8)
        for t, wave in enumerate(waves)
    ]


@pytest.fixture(scope="module")
def tab(pages: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = find_chromium()
    if program is None:
        pytest.skip(
            f"no Chromium: none of {', '.join(NAMES)} is on the path (Debian: apt-get install chromium)"
        )
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
    for place, (shape, numbers, logits) in enumerate(
        tab.evaluate("twoStream.fed.map(one => [one.shape, one.numbers, one.logits])")
    ):
        found.append(
            (numbers, torch.from_numpy(pixels(tab, f"twoStream.fed[{place}].clip", shape).copy()), logits)
        )
    return found


def in_python(
    pages: Path, name: str, calls: list[tuple[list[int], torch.Tensor, list[float]]]
) -> list[torch.Tensor]:
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


def largest_difference(
    wanted: list[torch.Tensor], calls: list[tuple[list[int], torch.Tensor, list[float]]]
) -> float:
    return max(
        float((one - torch.tensor(logits)).abs().max())
        for one, (_, _, logits) in zip(wanted, calls, strict=True)
    )


def check_logits(pages: Path, name: str, calls: list[tuple[list[int], torch.Tensor, list[float]]]) -> None:
    """Python's logits of the same frames are those of the page, and differ between calls."""
    wanted = in_python(pages, name, calls)
    assert largest_difference(wanted, calls) < 1e-3 * max(1.0, float(torch.stack(wanted).abs().max()))
    assert float(torch.stack(wanted).std(0).max()) > 1e-3


SIZES = [(48, 64), (51, 37), (240, 320), (333, 201), (97, 513), (24, 30), (480, 270)]
STORED: list[dict[str, Any]] = [
    {"short_side": 256, "size": None},
    {"short_side": 60, "size": None},
    {"short_side": None, "size": (40, 70)},
    {"short_side": None, "size": None},
]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_pixels_are_those_of_python(tab: Browser, address: str, height: int, width: int) -> None:
    ready(tab, f"{address}/clip/web/")
    noise = np.random.default_rng(height).integers(0, 256, (height, width, 4), dtype=np.uint8)
    text = base64.b64encode(noise.tobytes()).decode()
    tab.evaluate(f"window.picture = Uint8Array.from(atob('{text}'), (one) => one.charCodeAt(0)); 0")
    for stored in STORED:
        for resize in ((36, 48), (64, 84), (128, 171)):
            sizes = f"{width}, {height}, {json.dumps(stored)}, {json.dumps(resize)}"
            found = pixels(tab, f"twoStream.prepare(picture, {sizes})", [*resize, 3]).astype(int)
            wanted = resize_frames(picture_at(noise[..., :3].copy(), VideoInput(**stored))[None], resize)[0]
            assert np.abs(found - wanted).max() <= 1, (stored, resize)
            assert (found != wanted).mean() < 0.01, (stored, resize)


def spec_of(length: int, stride: int, segments: int = 0) -> InputSpec:
    return InputSpec("rgb", length, stride, (36, 48), 32, (0.0, 1.0), (0.5,) * 3, (0.5,) * 3, segments)


CASES = [
    *(
        (name, spec_of(8, stride), 10, None)
        for name in ("single", "multi", "uniform", "sliding")
        for stride in (1, 2, 3)
    ),
    *(("uniform", spec_of(8, 2), count, None) for count in (1, 3)),
    *(("sliding", spec_of(8, 2), 10, step) for step in (1, 5, 40)),
    *((name, spec_of(8, 1), 10, None) for name in ("paper-single", "paper-multi")),
    *(
        (f"segments-{name}", spec_of(8, 2, segments), 3, None)
        for name in ("single", "twice", "uniform")
        for segments in (8, 4, 1)
    ),
]


def test_frame_numbers_are_those_of_python(tab: Browser, address: str) -> None:
    ready(tab, f"{address}/clip/web/")
    for protocol, spec, count, step in CASES:
        clip = {
            "protocol": protocol,
            "length": 8,
            "stride": spec.stride,
            "segments": spec.segments,
            "clips": count,
            "step": step,
        }
        script = f"Array.from({{length: 130}}, (_, n) => twoStream.sampleClips({json.dumps(clip)}, n + 1))"
        wanted = [clips_for(spec, protocol, n, num_clips=count, step=step) for n in range(1, 131)]
        assert tab.evaluate(script) == wanted, clip
    assert wanted != [sample_clips("multi", n, 8) for n in range(1, 131)]


def test_a_frame_rate_shows_the_frames_that_python_shows(tab: Browser, address: str) -> None:
    ready(tab, f"{address}/clip/web/")
    gaps = np.random.default_rng(0).choice([0.0, 0.033, 0.04, 0.05, 0.2], 80)
    uneven = [round(float(time), 6) for time in np.cumsum(gaps)]
    for times in (uneven, [n / 25 for n in range(90)], [n / 30 for n in range(7)], [0.0]):
        for fps in (5.0, 10.0, 12.5, 25.0, 29.97, 60.0):
            assert tab.evaluate(f"twoStream.seenAt({times}, {fps})") == list(shown_numbers(times, fps)), (
                fps,
                times[:5],
            )


STAMPS = [0, 40, 81, 120, 200, 233, 266, 300, 420, 450, 480, 520]
FILES = {
    "constant": (LOSSLESS, None),
    "b-frames": (CODECS[0], None),
    "uneven": (CODECS[0], STAMPS),
    "av1": (next(one for one in CODECS if one.name == "libsvtav1"), None),
}


@pytest.mark.parametrize("name", FILES)
def test_frame_times_of_mp4_files_are_those_of_python(
    tab: Browser, pages: Path, address: str, name: str
) -> None:
    codec, stamps = FILES[name]
    video = make(pages / f"{name}.mp4", codec, pictures(12), stamps=stamps)
    ready(tab, f"{address}/clip/web/")
    found = tab.evaluate(
        f"(async () => (await import('./video.js')).mp4Times(await (await fetch('/{video.name}')).blob()))()"
    )
    wanted = frame_times(video)
    assert wanted is not None
    assert found == pytest.approx([time - wanted[0] for time in wanted], abs=1e-6)


@pytest.mark.parametrize(("name", "codec"), [*((name, LOSSLESS) for name in MODELS), ("clip", VP9)], ids=str)
def test_a_dropped_video_has_the_scores_of_python(
    tab: Browser, pages: Path, address: str, name: str, codec: Codec
) -> None:
    frames = 41
    video = make(pages / f"waves{codec.suffix}", codec, pictures(frames))
    ready(tab, f"{address}/{name}/web/")
    told = tab.evaluate(OPEN % (video.name, video.name))
    assert "prediction" in told, told
    calls, run = fed(tab), load_run(pages / name)
    spec = run.model.spec
    check_logits(pages, name, calls)
    with open_video(video) as opened:
        stored = list(opened.frames())
    assert len(stored) == frames
    seen = (
        list(range(1, frames + 1))
        if spec.fps is None
        else list(shown_numbers([n / 25 for n in range(frames)], spec.fps))
    )
    if name == "stream":
        assert [numbers for numbers, _, _ in calls] == [[n] for n in range(1, frames + 1, 2)]
    else:
        clips, crops = clips_for(spec, "multi", len(seen)), 10
        assert [numbers for numbers, _, _ in calls] == [clip for clip in clips for _ in range(crops)]
        wanted = dict(predict(run, video))
        found = dict(zip(run.class_names, tab.evaluate("twoStream.result")))
        mean = torch.tensor([logits for _, _, logits in calls], dtype=torch.float64).mean(0)
        assert list(found.values()) == pytest.approx(mean.softmax(0).tolist(), abs=1e-9)
        assert found == pytest.approx(wanted, abs=1e-3)
    first = calls[0][1][0].numpy().astype(int)  # the first crop is the centre
    originals = np.stack(
        [
            resize_frames(picture_at(stored[seen[n - 1] - 1], VideoInput())[None], (36, 48))[0]
            for n in calls[0][0]
        ]
    )
    error = np.abs(first - originals[:, 2:34, 8:40].transpose(3, 0, 1, 2))
    assert error.mean() < (
        0.3 if codec is LOSSLESS else 2.5
    )  # grey levels; swscale and Chromium round colours differently
    assert tab.complaints() == []


def test_predictions_of_a_stream_are_shown_after_the_warm_up(tab: Browser, pages: Path, address: str) -> None:
    warm_up = load_stream(pages / "stream" / "web" / "model.onnx").stream.warm_up
    ready(tab, f"{address}/stream/web/")
    video = make(pages / "long.mp4", LOSSLESS, pictures(2 * warm_up + 7))
    assert tab.evaluate(OPEN % (video.name, video.name)) == "long.mp4: 4 predictions"
    names = tab.evaluate("[...document.querySelectorAll('#classes span')].map(one => one.textContent)")
    assert HOSTILE in names  # as text
    assert tab.evaluate("document.querySelectorAll('img').length") == 0
    again = tab.evaluate("twoStream.result")
    tab.evaluate(OPEN % (video.name, video.name))  # a second video begins with fresh states
    assert tab.evaluate("twoStream.result") == again
    video = make(pages / "short.mp4", LOSSLESS, pictures(2 * warm_up))
    told = tab.evaluate(OPEN % (video.name, video.name))
    assert told.startswith(f"The video has {warm_up} frames for the network")


@pytest.mark.parametrize("name", ["clip", "bert", "fps", "stream"])
def test_the_camera_has_the_scores_of_python(tab: Browser, pages: Path, address: str, name: str) -> None:
    ready(tab, f"{address}/{name}/web/")
    tab.evaluate("document.getElementById('camera').click()")
    until(tab, "twoStream.fed.length >= 18 || document.getElementById('state').className === 'warn'")
    tab.evaluate("document.getElementById('stop').click()")
    calls = fed(tab)
    check_logits(pages, name, calls)
    spec = load_run(pages / name).model.spec
    for numbers, _, _ in calls:
        assert set(np.diff(numbers)) <= {spec.stride}
    starts = [numbers[0] for numbers, _, _ in calls]
    assert starts == sorted(set(starts))
    if name == "stream":
        assert starts[:5] == [1, 3, 5, 7, 9]
    assert tab.evaluate("document.getElementById('video').srcObject.active") is False
    assert tab.complaints() == []


def test_errors_are_told(tab: Browser, address: str) -> None:
    ready(tab, f"{address}/clip/web/")
    state = "document.getElementById('state').textContent"
    tab.evaluate("twoStream.openFile(new File(['no video'], 'notes.mp4'))")
    assert (
        tab.evaluate(state)
        == "notes.mp4: this browser cannot read the video; use an MP4 (H.264) or WebM file"
    )
    for name, words in (
        ("NotAllowedError", "does not allow"),
        ("NotFoundError", "No camera"),
        ("OddError", "odd words"),
    ):
        tab.evaluate(
            f"navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException('odd words', '{name}')); "
            "document.getElementById('camera').click()"
        )
        until(tab, "document.getElementById('state').className === 'warn'")
        assert words in tab.evaluate(state)
    script = tab.call("Page.addScriptToEvaluateOnNewDocument", source="delete window.WebAssembly")
    tab.open(f"{address}/clip/web/")
    until(tab, "document.getElementById('state').className === 'warn'")
    assert "WebAssembly" in tab.evaluate(state)
    tab.call("Page.removeScriptToEvaluateOnNewDocument", identifier=script["identifier"])


def test_nothing_can_be_sent_elsewhere(tab: Browser, address: str) -> None:
    """The policy of the page refuses connections to other addresses, in the thread of the network too."""
    ready(tab, f"{address}/clip/web/")
    elsewhere = address.replace("127.0.0.1", "localhost")
    send = f"fetch('{elsewhere}/clip/web/model.json').then(() => 'sent', error => error.name)"
    assert tab.evaluate(f"fetch('{address}/clip/web/model.json').then(() => 'sent')") == "sent"
    assert tab.evaluate(send) == "TypeError"
    assert any("Content Security Policy" in line for line in tab.complaints())
    script = f"""new Promise((done) => {{
      const code = `onmessage = () => {send}.then(postMessage)`;
      const file = URL.createObjectURL(new Blob([code], {{ type: 'text/javascript' }}));
      const worker = new Worker(file, {{ type: 'module' }});
      worker.onmessage = ({{ data }}) => done(data);
      worker.postMessage(0);
    }})"""
    assert tab.evaluate(script) == "TypeError"


def test_a_page_loads_the_runtime_from_a_cdn_and_checks_it(
    tab: Browser, pages: Path, address: str, tmp_path: Path
) -> None:
    web, stored = pages / "clip" / "web", tmp_path / f"onnxruntime-web@{VERSION}" / "dist"
    page = shutil.copytree(web, pages / "cdn", dirs_exist_ok=True)
    stored.mkdir(parents=True)
    for name in RUNTIME:
        shutil.move(page / name, stored / name)
    facts = json.loads((page / "model.json").read_text())
    with served(tmp_path) as cdn:
        policy = (page / "index.html").read_text().replace("connect-src 'self'", f"connect-src 'self' {cdn}")
        (page / "index.html").write_text(policy)
        for kind, (name, integrity) in zip(("module", "wasm"), RUNTIME.items()):
            url = f"{cdn}/onnxruntime-web@{VERSION}/dist/{name}"
            facts["runtime"][kind] = {"url": url, "integrity": integrity}
        (page / "model.json").write_text(json.dumps(facts))
        ready(tab, f"{address}/cdn/")
        with (stored / next(iter(RUNTIME))).open("a") as module:
            module.write("// changed")
        tab.open(f"{address}/cdn/")
        until(tab, "document.getElementById('state').className === 'warn'")
        told = tab.evaluate("document.getElementById('state').textContent")
        assert "ort.wasm.bundle.min.mjs cannot be loaded (no connection, or a changed file)" in told


def test_the_page_fits_and_is_legible(tab: Browser, pages: Path, address: str) -> None:
    ready(tab, f"{address}/clip/web/")
    video = make(pages / "waves.mp4", LOSSLESS, pictures(41))
    tab.evaluate(OPEN % (video.name, video.name))
    for width in (390, 1300):
        for scheme in ("light", "dark"):
            tab.size(width, 900, mobile=width < 500)
            tab.media(scheme=scheme)
            assert tab.evaluate("document.documentElement.scrollWidth") == width
            least, text = tab.evaluate(CONTRAST)
            assert least >= 4.5, text
    tab.open(f"{address}/clip/web/")
    until(tab, "twoStream.ready === true")
    reached = []
    for _ in range(2):
        tab.press("Tab")
        reached.append(tab.evaluate("document.activeElement.id"))
    assert reached == ["open", "camera"]
