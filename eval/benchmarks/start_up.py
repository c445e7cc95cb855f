"""Seconds from a command to the end of the first training step, or to the first frame that `predict` reads.

    python eval/benchmarks/start_up.py [--quick] [--rounds 5]

The demo's videos are written and extracted once (RGB only). Then `two-stream train` is started as a person starts it
and stopped after its first step. The time of importing torch alone, which no run can do without, is measured in turns
with it and shown beside it; the phases come from the process itself. `two-stream predict` is stopped when it opens the
video for scoring; the baseline imports torch, PyAV and OpenCV.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from common import Row, finish, flags, interleaved, median_of

TARGET, PREDICT_TARGET = 6.0, 1.25
"""seconds; ratio"""
STARTED = """
import sys, time
begun = time.monotonic()
marks = {}
def mark(name):
    marks[name] = time.monotonic()
from two_stream.cli import main
import two_stream.commands.train
mark("settings")
import two_stream.training.train as loop
mark("imports")
from two_stream.training.trainer import Trainer
from two_stream.training.step import Stepper
made, step = Trainer.__init__, Stepper.run
def init(self, *args, **more):
    mark("model and data")
    made(self, *args, **more)
    mark("trainer")
def run(self, *args):
    mark("first batch asked for")
    step(self, *args)
    mark("first step")
    import json
    print("PHASES", json.dumps(phases()), flush=True)
    time.sleep(600)
def phases():
    found, last = {}, begun
    for name, at in marks.items():
        found[name], last = at - last, at
    return found
Trainer.__init__, Stepper.run = init, run
sys.exit(main(sys.argv[1:]))
"""


FIRST_FRAME = """
import os, sys
from two_stream.cli import main
import av
open_file = av.open
def watched(*args, **more):
    if "two_stream.recognizer" in sys.modules:
        os._exit(0)
    return open_file(*args, **more)
av.open = watched
sys.exit(main(sys.argv[1:]) or 1)
"""


def write_run(root: Path) -> Path:
    """Write a run folder with the demo's RGB network and random weights."""
    from two_stream.commands.demo import Options, demo_experiment
    from two_stream.config.load import dump
    from two_stream.pretrained import write_model
    from two_stream.recognizer import create_model

    experiment = demo_experiment(Options(out=root), "rgb")
    model = create_model(experiment.model, 8)
    folder = root / "fresh"
    write_model(folder / "best", model, {"class_names": [str(label) for label in range(8)]})
    (folder / "experiment.yaml").write_text(dump(experiment), encoding="utf-8")
    return folder


def prepare(root: Path, groups: int) -> Path:
    """Write the demo's data and return its settings for the RGB stream."""
    from two_stream.commands.demo import Options, demo_experiment
    from two_stream.config.load import dump
    from two_stream.data.catalog import load_record
    from two_stream.data.demo import DemoOptions, write_demo
    from two_stream.video.extraction.many_videos import extract
    from two_stream.video.extraction.one_video import ExtractOptions
    from two_stream.video.sources import find_sources

    record = load_record(write_demo(root / "data", options=DemoOptions(seed=1, groups=groups)))
    sources, _ = find_sources(record.videos_root())
    extract(sources, record.frames_root("rgb"), ExtractOptions(flow="none", short_side=None))
    path = root / "rgb.yaml"
    path.write_text(dump(demo_experiment(Options(out=root), "rgb")), encoding="utf-8")
    return path


def main(argv: list[str] | None = None) -> int:
    """Measure, print and write."""
    given = flags(__doc__, argv)
    environment = dict(os.environ)
    phases: list[dict[str, float]] = []
    running: list[subprocess.Popen[str]] = []

    with tempfile.TemporaryDirectory() as folder:
        # as after an installation, modules are compiled once
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        environment["PYTHONPYCACHEPREFIX"] = str(Path(folder) / "compiled")
        settings = prepare(Path(folder), groups=5 if given.quick else 15)

        def train() -> None:
            command = [sys.executable, "-c", STARTED, "train", str(settings), "--overwrite"]
            process = subprocess.Popen(
                command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
            assert process.stdout is not None
            line = next(line for line in process.stdout if line.startswith("PHASES "))
            running.append(process)  # ended later: how long that takes is not the question
            phases.append(json.loads(line.removeprefix("PHASES ")))

        def end() -> None:
            while running:
                process = running.pop()
                process.kill()
                process.communicate()  # its loader's processes notice within seconds

        def torch_alone() -> None:
            subprocess.run([sys.executable, "-c", "import torch"], env=environment, check=True)

        def decoders() -> None:
            subprocess.run([sys.executable, "-c", "import torch, av, cv2"], env=environment, check=True)

        run, video = write_run(Path(folder)), next((Path(folder) / "data").rglob("*.mp4"))

        def predict() -> None:
            command = [sys.executable, "-c", FIRST_FRAME, "predict", str(video), "--rgb", str(run)]
            subprocess.run([*command, "--device", "cpu"], env=environment, check=True)

        times: dict[str, list[float]] = {"torch": [], "train": [], "decoders": [], "predict": []}
        warm = 0 if given.smoke else 1  # a turn that fills the disk cache
        for _ in range(warm + given.rounds):
            sides = {"torch": torch_alone, "train": train, "decoders": decoders, "predict": predict}
            for name, seconds in interleaved(sides, rounds=1, warm=0).items():
                times[name] += seconds
            end()
        times = {name: seconds[warm:] for name, seconds in times.items()}

    ours = median_of(times["train"])
    parts = {name: median_of([found[name] for found in phases[warm:]]) for name in phases[0]}
    shown = ", ".join(f"{name} {seconds:.2f}" for name, seconds in parts.items())
    row = Row(
        "start of a run to first training step",
        "`import torch` alone",
        median_of(times["torch"]),
        ours,
        ours,
        TARGET,
        note=f"ratio is seconds; demo settings; {shown} s",
        unit="s",
        at_most=True,
    )
    base, begun = (median_of(times[name]) for name in ("decoders", "predict"))
    first = Row(
        "start of `predict` to the first frame",
        "`import torch, av, cv2`",
        base,
        begun,
        begun / base,
        PREDICT_TARGET,
        note="network of the demo",
        unit="s",
        at_most=True,
    )
    return finish("start_up", [row, first], given, phases=parts, seconds=times)


if __name__ == "__main__":
    sys.exit(main())
