"""Every command of the README and of the site's Start and Guides pages, run in an empty folder with only the wheel."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.e2e.conftest import Installed
from tests.helpers.documents import commands_in, pages_of
from tests.helpers.videos import write_video
from two_stream.data.demo import DemoOptions, write_demo

NOT_RUN = {
    "make demo": "installs the checkout",
    "make test": "tests the checkout",
    "two-stream prepare KIND --annotations FILES --videos DIR": "official files: unit/data/test_adapters.py",
    "two-stream prepare KIND --annotations FILES --frames DIR": "official files: unit/data/test_adapters.py",
    "two-stream stream rtsp://camera/1 --rgb runs/mine_rgb --flow runs/mine_flow": "a camera: test_stream.py",
    "two-stream stream SOURCE --rgb RUN [--flow RUN]": "a camera: test_stream.py",
    "two-stream extract VIDEOS --out data/mine --ray auto": "a Ray cluster: test_ray_extract.py",
    "two-stream export runs/rgb --to aoti": "a compiler: contract/test_export.py",
    "two-stream train own_videos_rgb --train.trackers tensorboard wandb": "wandb: unit/training/test_tracking.py",
    "torchrun --nproc-per-node 2 -m two_stream train settings/experiments/own_videos_rgb_gpu.yaml"
    " --data.dataset mine --name mine_gpu": "two GPUs: test_distributed.py",
    "torchrun --nproc-per-node 2 -m two_stream evaluate runs/mine_gpu": "torchrun: test_distributed.py",
    "two-stream prepare list --train train.csv --val val.csv --videos DIR --name NAME": "unit/data/test_lists.py",
    "two-stream train runs/mine_gpu/experiment.yaml --resume --train.epochs 60": "unit/training/test_trainer.py",
    "two-stream evaluate runs/mine_rgb --part val --false-alarms 0.1": "needs nine sources: test_none_of_these.py",
    **dict.fromkeys(
        (
            "two-stream push demo/runs/rgb ada/waves-rgb --license mit",
            "two-stream predict video.mp4 --rgb hf://ada/waves-rgb",
            "two-stream evaluate hf://ada/waves-rgb --data-root demo/data",
            "two-stream reproduce hf://ada/waves-rgb --data-root demo/data",
        ),
        "the Hugging Face hub: unit/evaluation/test_hub.py",
    ),
    "two-stream ablate archive/my_heads": "a moved study: unit/studies/test_moved_study.py",
    "two-stream ablate archive/my_heads --data-root /disk/mine": "unit/studies/test_moved_study.py",
}
"""commands that need what the test does not have, and where they are tested"""
FIRST = """
two-stream demo --groups 4 --epochs 1
two-stream prepare folder VIDEOS --name mine --group-regex _(g\\d+)_
two-stream extract VIDEOS --out data/mine --flow dis
two-stream train small --data.dataset mine --name rgb --train.epochs 1
two-stream train small --data.dataset mine --name average --train.epochs 1 --model.head.kind average
two-stream evaluate runs/average
"""
"""what the pages assume to exist: the demo, and the runs `rgb` and `average`"""


def documented(repository: Path) -> list[str]:
    """Return the commands of all pages once each, in the order of the pages; the notebook is tested elsewhere."""
    pages = [page for page in pages_of(repository, "Start", "Guides") if page.stem != "notebook"]
    found = list(dict.fromkeys(command for page in pages for command in commands_in(page)))
    return sorted(
        found, key=lambda command: command.startswith("two-stream compare runs/")
    )  # of runs made on later pages


def write_scores(path: Path, seed: int) -> None:
    """Write a score file of 24 videos of three classes."""
    draw = np.random.default_rng(seed)
    rows = [
        f"v{video + 50 * ('val' in path.stem):02d},{'abc'[video % 3]},s{video // 4},"
        + ",".join(f"{one:.4f}" for one in draw.normal(size=3))
        for video in range(24)
    ]
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(["id,label,group,a,b,c", *rows]) + "\n")


def write_recordings(folder: Path, drawn: Path) -> None:
    """Write recordings of 2.7 seconds, each with two labelled bouts."""
    (folder / "recordings").mkdir()
    rows = ["video,start,end,class"]
    for first, second in (("rise", "fall"), ("fall", "rise")):
        for path in sorted((drawn / first).glob("*.mp4")):
            shutil.copy(path, folder / "recordings")
            rows += [f"{path.stem},0.0,1.2,{first}", f"{path.stem},1.4,2.6,{second}"]
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")


@pytest.mark.slow
def test_every_command_runs_in_an_empty_folder(
    installed: Installed, repository: Path, tmp_path: Path
) -> None:
    commands = documented(repository)
    assert set(NOT_RUN) <= set(commands), "these commands are on no page any more"
    drawn = write_demo(tmp_path, DemoOptions(groups=6, min_frames=40, max_frames=45)).parent / "videos"
    for name in ("rise", "fall", "swell"):
        shutil.copytree(drawn / name, installed.folder / "VIDEOS" / name)
    for name in ("new", "video"):
        shutil.copy(drawn / "rise" / "rise_g01_c01.mp4", installed.folder / f"{name}.mp4")
    write_video(installed.folder / "long.mp4", 300, step=0)
    shutil.copytree(installed.folder / "VIDEOS", installed.folder / "videos")
    write_recordings(installed.folder, drawn)
    for seed, name in enumerate(("rgb", "flow", "pose", "rgb_val", "flow_val", "results/rgb")):
        write_scores(installed.folder / f"{name}.csv", seed)
    for command in FIRST.strip().splitlines():
        installed(*shlex.split(command, posix=False)[1:])
    failed = {}
    for command in commands:
        if command in NOT_RUN or command in FIRST:
            continue
        for made in installed.folder.glob("demo/runs/rgb_*"):  # alternatives that write runs of the same name
            shutil.rmtree(made)
        words = command.replace("*.mp4", "new.mp4 video.mp4")
        try:
            installed(*shlex.split(words)[1:])
        except AssertionError as error:
            failed[command] = str(error)[-600:]
    assert not failed, "\n\n".join(f"{command}\n{text}" for command, text in failed.items())
