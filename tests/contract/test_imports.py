"""Which heavy modules commands import before they read the first frame, and in a whole training."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = (
    *(
        "scipy",
        "sklearn",
        "pandas",
        "matplotlib",
        "jinja2",
        "tensorboard",
        "transformers",
        "timm",
        "torchvision",
    ),
    *("onnx", "onnxruntime", "ray", "huggingface_hub", "sympy", "torch._dynamo", "torch.distributed.fsdp"),
)
WATCHED = """
import json, sys
import av
from two_stream.cli import main
heavy, found = sys.argv[1].split(","), {}
open_file = av.open
def watched(*args, **more):
    if "torch" in sys.modules:
        found.setdefault("first", [name for name in heavy if name in sys.modules])
    return open_file(*args, **more)
av.open = watched
code = main(sys.argv[2:])
found["end"] = [name for name in heavy if name in sys.modules]
print("\\n" + json.dumps([code, found]))
"""


def imported(*args: str, folder: Path) -> dict[str, list[str]]:
    """Run a command; return the heavy modules at the first read of a video, and at the end."""
    command = [sys.executable, "-c", WATCHED, ",".join(HEAVY), *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=folder)
    code, found = json.loads(done.stdout.splitlines()[-1])
    assert code == 0, done.stderr
    return found


@pytest.mark.parametrize("command", ["predict", "evaluate", "stream"])
def test_no_heavy_module_is_imported_before_the_first_frame(
    exported_world: Path, tmp_path: Path, command: str
):
    video = str(next((exported_world / "videos").rglob("*.mp4")))
    run = str(exported_world / "rgb")
    flags = {
        "predict": [video, "--rgb", run, "--device", "cpu"],
        "evaluate": [run, "--device", "cpu", "--workers", "0", "--out", str(tmp_path / "scores.npz")],
        "stream": [video, "--rgb", run, "--device", "cpu"],
    }[command]
    found = imported(command, *flags, folder=tmp_path)
    assert found["first"] == []
    # scipy's special functions turn logits into probabilities
    assert set(found["end"]) <= {"scipy"}


def test_training_imports_neither_the_compiler_nor_other_heavy_modules(exported_world: Path, tmp_path: Path):
    settings = str(exported_world / "rgb" / "experiment.yaml")
    changed = ["--name", "again", "--runs", str(tmp_path), "--train.epochs", "1", "--data.workers", "0"]
    found = imported("train", settings, *changed, folder=tmp_path)
    # curves are drawn at the end of an epoch, and logged
    assert set(found["end"]) <= {"matplotlib", "tensorboard"}
