"""Write `files_0_1_0.tar.xz` and `files_0_1_0.json`, with public commands only; `test_golden_files.py` opens them."""

from __future__ import annotations

import json
import lzma
import os
import signal
import tarfile
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import test_golden_files as golden
from test_golden_files import command

from two_stream.cli import main

RGB = """
name: rgb
seed: 3
device: cpu
threads: 1
model:
  backbone: {kind: resnet3d, depth: 10, width: 0.016, preactivation: true, temporal_stride: 2, stem_kernel: 3,
             stem_pool: false}
  head: {kind: bert, heads: 2, hidden: 8}
  dropout: 0.1
  input: {clip_length: 4, resize: [40, 40], crop: 32}
data: {dataset: tiny, workers: 0, holdout: 0.3}
train: {epochs: 6, batch_size: 3, optimizer: {kind: adamw, lr: 0.01}, checkpoint_every: 1, log_images: false}
evaluate: {views: multi, crops: three, precision: fp32, keep_views: true}
"""
FLOW = """--name flow --model.modality flow --model.backbone.kind motion_grid --model.backbone.rows 2
--model.backbone.columns 2 --model.head.kind moments --model.head.maximum --model.head.parts 2
--model.head.differences 0 --train.freeze-until backbone --train.optimizer.kind logistic --train.optimizer.views 1"""
STUDY = """
{name: heads, question: "Which head?", base: rgb.yaml, seeds: [1, 2], measure_cost: false,
 settings: {train: {init: runs/rgb, init_part: backbone, freeze_until: backbone, epochs: 2},
            evaluate: {views: single, crops: center, precision: fp32}},
 variants: {average: {model.head: {kind: average}}, lstm: {model.head: {kind: lstm, hidden: 4, layers: 1}}}}
"""


def write_videos(root: Path) -> None:
    """Sixteen videos of a square on a plain ground: it goes to the right or down, eight sources each."""
    for number in range(16):
        label, source = number % 2, number // 2
        path = root / ("down" if label else "right") / f"v_g{source}.avi"
        path.parent.mkdir(parents=True, exist_ok=True)
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (40, 40))
        ground, square = np.random.default_rng(source).integers(40, 160, (2, 3))
        square[2 * label] = 250
        for step in range(6 + source % 3):
            frame = np.full((40, 40, 3), ground, np.uint8)
            x, y = (8, 4 * step) if label else (4 * step, 8)
            frame[y : y + 16, x : x + 16] = square
            writer.write(frame)
        writer.release()


def train_and_stop() -> None:
    """Train `stopped` with the settings of `rgb`, and press Ctrl-C after the first epoch."""

    def watch() -> None:
        while not list(Path("runs/stopped").glob("metrics.jsonl")) or not golden.losses("runs/stopped"):
            time.sleep(0.002)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=watch, daemon=True).start()
    assert main(["train", "rgb.yaml", "--name", "stopped"]) == 130, (
        "it ended before it was stopped: try again"
    )


def make() -> dict[str, Any]:
    """Write all files into the working folder and return the answers of this version."""
    write_videos(Path("videos"))
    Path("rgb.yaml").write_text(RGB)
    Path("study.yaml").write_text(STUDY)
    splits = "--splits 1 --test-fraction 0.4 --group-regex _(g[0-9])$"
    command(f"prepare folder videos --name tiny --frames data/tiny {splits} --processes 0")
    command("extract videos --out data/tiny --flow dis --short-side 0 --processes 0")
    command("train rgb.yaml")
    command(f"train rgb.yaml {FLOW}")
    for run in ("rgb", "flow"):
        command(f"evaluate runs/{run} --part val")
        command(f"evaluate runs/{run}")
    train_and_stop()
    command("fuse runs/rgb runs/flow --out fused.npz")
    command("ablate study.yaml --jobs 1")
    command("features runs/rgb --out features --train-views 2")
    command("pack tiny --out shards --resize 40 40 --processes 0")
    trained = "--train.epochs 1 --train.optimizer.kind sgd --train.optimizer.lr 0.001"
    command(f"compress prune runs/rgb --what channels --target-macs 0.9 {trained}")
    command("compress quantize runs/rgb")
    command("export runs/rgb --to onnx")
    command("export runs/rgb --to pt2")
    answers = {question: golden.asked(question) for question in golden.QUESTIONS}
    answers |= {run: golden.said_about(run) for run in golden.LOGITS} | {"report": golden.reported()}
    command(f"{golden.HEAD} --runs elsewhere")
    return answers | {"head": golden.losses("elsewhere/head")}


if __name__ == "__main__":
    here = Path(__file__).parent.resolve()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        (here / golden.ANSWERS.name).write_text(json.dumps(make(), indent=1) + "\n")
        with tarfile.open(here / golden.ARCHIVE.name, "w:xz", preset=9 | lzma.PRESET_EXTREME) as archive:
            for path in sorted(Path().rglob("*")):
                if path.suffix != ".html" and "tfevents" not in path.name and path.parts[0] != "elsewhere":
                    archive.add(path, recursive=False)
