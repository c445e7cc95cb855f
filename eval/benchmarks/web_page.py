"""Time of a clip (or a step of a stream) on a web page in Chromium, and in ONNX Runtime for Python.

    python eval/benchmarks/web_page.py [--quick] [--runtime FOLDER]

The networks have random weights: the demo's RGB network, MobileNetV2 with a BERT head, and the stream of X3D-S (CoX3D).
Each is exported as a page, served on this machine and opened in a headless Chromium. Both sides use one thread and get
the same pixels, and their logits are compared. The note of a row says how large the page is, and how many seconds pass
from opening the page to the first prediction on a video of 72 frames, or for a stream, until the network is loaded.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from common import Row, argument_parser, finish, median_of, prepare, ratio_of

from two_stream import zoo
from two_stream.config.load import load_experiment
from two_stream.config.schema import Experiment, ModelOptions
from two_stream.export import Timing, export_run, export_stream, load, load_stream, plain_copy
from two_stream.export.verifying import noise_clips
from two_stream.export.web import WebPage, export_web
from two_stream.export.writing import BareModel
from two_stream.recognizer import create_model
from two_stream.streaming import StepNetwork, convert
from two_stream.types import RunPaths

if TYPE_CHECKING:
    from tests.helpers.browser import Browser

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "two_stream" / "commands" / "demo.yaml"
AGREE = 1e-3
"""largest difference of logits, relative to the largest logit"""


def networks() -> dict[str, tuple[ModelOptions, int, bool]]:
    """Return the options, the number of classes, and whether the stream is exported."""
    bert = zoo.resolve("efficient3d/mobilenetv2_1.0x", head={"kind": "bert", "hidden": 256})
    return {
        "demo's RGB network": (load_experiment(DEMO).model, 8, False),
        "MobileNetV2 with BERT, 16×112²": (bert, 101, False),
        "stream of X3D-S (CoX3D)": (zoo.resolve("co3d/x3d_s"), 400, True),
    }


def write_page(options: ModelOptions, classes: int, stream: bool, out: Path, runtime: str) -> WebPage:
    """Export a network with random weights."""
    torch.manual_seed(0)
    model = create_model(options, classes).eval()
    names = [f"class {label}" for label in range(classes)]
    run = BareModel(Experiment(name=out.name, model=model.options), model, names, RunPaths(Path()), "", {})
    if not stream:
        return export_web(run, out, partial(export_run, run, "onnx"), runtime)
    step = convert(plain_copy(run))
    timing = Timing(step.delay, step.receptive_field)
    return export_web(run, out, partial(export_stream, run, StepNetwork(step), timing, "onnx"), runtime)


def in_python(page: WebPage, clip: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Return how Python computes the logits of a clip, or of the next step of a stream."""
    file = page.folder / "model.onnx"
    if page.card.stream is None:
        return partial(load(file).model, clip)
    stream = load_stream(file)
    states = list(stream.initial_states())

    def step() -> torch.Tensor:
        logits, states[:] = stream.step(clip, states)
        return logits

    return step


def wait_for(tab: Browser, value: str) -> None:
    """Wait until a value of the page is true, for a minute at most."""
    end = time.monotonic() + 60
    while not tab.evaluate(f"Boolean({value})"):
        told = tab.evaluate("document.getElementById('state').textContent")
        assert time.monotonic() < end, f"{value} is not true: {told}; {tab.complaints()}"
        time.sleep(0.02)


def measure(tab: Browser, address: str, name: str, page: WebPage, rounds: int) -> Row:
    """Return the row of one page."""
    begin = time.monotonic()
    tab.open(f"{address}/{page.folder.name}/")
    wait_for(tab, "twoStream.ready")
    if page.card.stream is None:
        tab.evaluate(
            "(async () => twoStream.openFile(new File([await (await fetch('/video.mp4')).blob()], 'video.mp4')))(); 0"
        )
        wait_for(tab, "twoStream.result")
    first = f"{'ready' if page.card.stream else 'first prediction'} after {time.monotonic() - begin:.1f} s"
    tab.evaluate("document.getElementById('stop').click()")
    shape = page.card.inputs[0].shape[1:]
    clip = noise_clips(page.card.input_spec(), 1)[:, :, : int(shape[1])].contiguous()
    tab.evaluate(
        f"window.clip = Uint8Array.from('{clip.numpy().tobytes().hex()}'.match(/../g), (x) => parseInt(x, 16)); 0"
    )
    script = f"twoStream.call('run', {{ clip, shape: {[1, *shape]} }})"

    python, times = in_python(page, clip), {"Python": [], "page": []}
    tab.evaluate("twoStream.call('restart').then(() => 0)")
    # the first turns allocate memory, and their logits of a stream have no meaning
    before = 1 + (page.card.stream.warm_up if page.card.stream else 0)
    for turn in range(before + rounds):
        start = time.perf_counter()
        wanted = python()[0]
        seconds = time.perf_counter() - start
        ours = tab.evaluate(script)
        if turn >= before:
            times["Python"].append(seconds)
            times["page"].append(ours["ms"] / 1000)
    error = float((wanted - torch.tensor(ours["logits"])).abs().max() / wanted.abs().max())
    return Row(
        name,
        "ONNX Runtime for Python",
        1000 * median_of(times["Python"]),
        1000 * median_of(times["page"]),
        ratio_of(times, "Python", "page"),
        unit="ms",
        note=f"page of {page.size / 1e6:.1f} MB; {first}; logits within {error:.0e}",
        problem="" if error < AGREE else f"the logits differ by {error:.0e}",
    )


def main(argv: list[str] | None = None) -> int:
    """Measure, print and write."""
    parser = argument_parser(__doc__, rounds=15, threads=1)
    parser.add_argument("--runtime", default="npm", help="folder of the package onnxruntime-web")
    given = parser.parse_args(argv)
    prepare(given)
    sys.path.insert(0, str(ROOT))
    from tests.helpers.browser import browser, find_chromium
    from tests.helpers.videos import make, picture

    program = find_chromium()
    if program is None:
        print("no Chromium on this machine: nothing is measured")
        return finish("web_page", [], given)
    chosen = networks()
    chosen = dict(list(chosen.items())[:1]) if given.quick else chosen
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make(folder / "video.mp4", frames=[picture(number // 3) for number in range(72)])
        handler = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=place))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        pages = {
            name: write_page(*options, folder / f"page{number}", given.runtime)
            for number, (name, options) in enumerate(chosen.items())
        }
        with browser(program, folder / "profile") as tab:
            address = f"http://127.0.0.1:{server.server_port}"
            rows = [measure(tab, address, name, page, given.rounds) for name, page in pages.items()]
        server.shutdown()
    return finish("web_page", rows, given)


if __name__ == "__main__":
    sys.exit(main())
