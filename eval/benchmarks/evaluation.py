"""Ten-crop multi-clip evaluation end to end, from frame folders to video scores, and its peak memory.

    python eval/benchmarks/evaluation.py [--quick] [--compile] [--rounds 3] [--threads 2] [--videos DIR]

The baseline is what evaluation scripts do today: one video at a time, every frame decoded, resized and turned into a
PIL image, each of the ten crops cut from it, made a float tensor and normalised, all stacked, and one fp32 forward pass
over the views of the video in torch's default layout. Ours reads the same folders. The sides take turns. Memory is that
of a process of its own per length of video, with its loader process. A last row compares `predict FOLDER` with
`evaluate` of the same video files, 24 of --videos or made ones; only `predict` counts their frames. Its unit is the CPU
time of all processes, since the wall time of two processes depends on other programs. So is that of the row on `xray`,
whose baseline is one reading and as many forward passes as there are changes.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import torch
import yaml
from common import Row, argument_parser, best_of, finish, interleaved, prepare
from PIL import Image
from torchvision.transforms.functional import to_tensor

from two_stream import create_model, sample_clips
from two_stream.config.backbones import ResNet3d
from two_stream.config.heads import AverageHead
from two_stream.config.model import InputOptions, ModelOptions
from two_stream.config.schema import DataOptions, EvaluateOptions, Experiment
from two_stream.data.catalog import Record, load_record
from two_stream.data.clips.views import view_loader
from two_stream.evaluation.runs.run import Run, score_each
from two_stream.evaluation.runs.xray import score_changes
from two_stream.evaluation.scoring.network import prepare_for_inference, resolve_evaluation
from two_stream.evaluation.scoring.score import VideoScores, score_videos
from two_stream.recognizer import Recognizer
from two_stream.types import RunPaths, VideoRecord
from two_stream.video.decoding.reader import open_video
from two_stream.video.sources import video_files

NAME = "late_temporal/rgb_resneXt3D64f101_bert10_FRMB"
CLASSES = 51
CPU = torch.device("cpu")
HEIGHT, WIDTH = 256, 340
LENGTHS = (100, 1000)
"""frames of the videos whose peak memory is compared"""


def write_frames(root: Path, name: str, frames: int, seed: int) -> VideoRecord:
    """Write a moving texture as JPEG frames, as large and as detailed as those of a real video."""
    rng = np.random.default_rng(seed)
    noise = cv2.resize(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8), (2 * WIDTH, 2 * HEIGHT))
    grain = rng.integers(0, 24, (2 * HEIGHT, 2 * WIDTH, 3), dtype=np.uint8)
    picture = cv2.add(noise, grain)
    folder = root / name
    folder.mkdir(parents=True)
    for number in range(frames):
        y, x = (number * (seed + 1)) % HEIGHT, (number * 3) % WIDTH
        cut = picture[y : y + HEIGHT, x : x + WIDTH]
        cv2.imwrite(str(folder / f"img_{number + 1:05d}.jpg"), cut, [cv2.IMWRITE_JPEG_QUALITY, 95])
    return VideoRecord(name, frames, seed % CLASSES)


def record_of(root: Path) -> Record:
    """Return a data set record of the folders under a root."""
    classes = [f"class {index}" for index in range(CLASSES)]
    settings = {"name": "bench", "classes": classes, "frames": {"rgb": str(root)}}
    (root / "dataset.yaml").write_text(yaml.safe_dump(settings))
    return load_record(root / "dataset.yaml")


def network() -> Recognizer:
    """Return ResNeXt-101 64f BERT FRMB with BatchNorm statistics of its own, as if trained."""
    torch.manual_seed(0)
    model = create_model(NAME, CLASSES).eval()
    settle(model)
    return model


def settle(model: Recognizer) -> None:
    """Give every BatchNorm the statistics of noise, so that clips that differ have logits that differ."""
    norms = [part for part in model.modules() if isinstance(part, torch.nn.BatchNorm3d)]
    for norm in norms:
        norm.momentum = None
    model.train()
    generator = torch.Generator().manual_seed(1)
    spec = model.spec
    small = torch.randint(
        0, 256, (4, spec.channels, spec.clip_length, 8, 8), generator=generator, dtype=torch.uint8
    )
    side = min(spec.crop, 64)
    with torch.no_grad():
        model(torch.nn.functional.interpolate(small.float(), size=(spec.clip_length, side, side)))
    model.eval()


def plain(model: Recognizer, root: Path, videos: list[VideoRecord]) -> VideoScores:
    """Score as evaluation scripts do: one video at a time."""
    spec = model.spec
    (height, width), crop = spec.resize, spec.crop
    mean = torch.tensor(spec.mean).view(-1, 1, 1)
    y, x = (height - crop) // 2, (width - crop) // 2
    corners = [(y, x), (0, 0), (0, width - crop), (height - crop, 0), (height - crop, width - crop)]
    rows = []
    for video in videos:
        views = []
        for clip in sample_clips("multi", video.num_frames, spec.clip_length):
            images = []
            for number in clip:
                bgr = cv2.imread(str(root / video.id / f"img_{number:05d}.jpg"))
                resized = cv2.resize(bgr, (width, height))
                images.append(Image.fromarray(cv2.cvtColor(resized, cv2.COLOR_BGR2RGB)))
            mirrored = [image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for image in images]
            for source in (images, mirrored):
                for top, left in corners:
                    box = (left, top, left + crop, top + crop)
                    frames = [to_tensor(image.crop(box)) * 255.0 - mean for image in source]
                    views.append(torch.stack(frames, dim=1))
        with torch.no_grad():
            logits = model.forward_normalised(torch.stack(views))
        rows.append(logits.double().mean(dim=0).numpy())
    labels = np.asarray([video.label for video in videos])
    return VideoScores([video.id for video in videos], labels, np.stack(rows), None, np.zeros(0, np.int64))


def ours(
    model: Recognizer,
    record: Record,
    videos: list[VideoRecord],
    asked: EvaluateOptions,
    data: DataOptions | None = None,
) -> Callable[[], VideoScores]:
    """Return the evaluation of a data set's part with these options, the network made ready."""
    options = resolve_evaluation(model, asked, CPU, exact=False)
    prepared = prepare_for_inference(model, options)

    def run() -> VideoScores:
        loader = view_loader(data or DataOptions(workers=1), options, model.spec, videos, record)
        return score_videos(
            prepared,
            loader,
            device=CPU,
            precision=options.precision,
            batch_views=options.batch_views or 1,
        )

    return run


def speed(given: argparse.Namespace) -> tuple[list[Row], dict[str, Any]]:
    """Compare the sides on a few videos."""
    compiled, rounds = given.compile, min(2, given.rounds) if given.quick else given.rounds
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        lengths = (9, 8) if given.smoke else (70, 64) if given.quick else (150, 130, 90)
        videos = [write_frames(root, f"video{place}", n, place) for place, n in enumerate(lengths)]
        record = record_of(root)
        model = smallest_network() if given.smoke else network()
        fast = copy.deepcopy(model).channels_last()
        found: dict[str, VideoScores] = {}
        base = EvaluateOptions(compile=compiled, precision="fp32")
        sides = {
            "plain": lambda: plain(model, root, videos),
            "fp32": ours(fast, record, videos, base),
            "bf16": ours(fast, record, videos, base.model_copy(update={"precision": "bf16"})),
        }

        def kept(name: str) -> Callable[[], object]:
            return lambda: found.update({name: sides[name]()})

        # the best turn counts, so the first one may warm the memory up; only compiling needs a turn of its own
        times = interleaved({name: kept(name) for name in sides}, rounds=rounds, warm=1 if compiled else 0)
    rows, facts = [], {}
    views = sum(10 * len(sample_clips("multi", n, model.spec.clip_length)) for n in lengths)
    before = views / best_of(times["plain"])
    for name, target, bound in (("bf16", 4.0, 0.02), ("fp32", 1.5, 1e-4)):
        gap = difference(found[name], found["plain"])
        same = bool((found[name].logits.argmax(1) == found["plain"].logits.argmax(1)).all())
        facts[name] = {"largest_relative_difference": gap, "top1_equal": same}
        after = views / best_of(times[name])
        agree = gap <= bound and same
        rows.append(
            Row(
                f"ten-crop multi-clip evaluation, ResNeXt-101 BERT FRMB, {name}",
                "one video at a time, fp32",
                before,
                after,
                after / before,
                target,
                note=f"logits within {gap:.1e}, top-1 {'equal' if same else 'different'}"
                + (", compiled" if compiled else ""),
                unit="views/s",
                problem="" if agree else f"logits differ by {gap:.1e} (bound {bound:g}), top-1 equal: {same}",
            )
        )
    return rows, facts | {"videos": lengths, "views": views, "seconds": times}


def folder(given: argparse.Namespace) -> list[Row]:
    """Compare `predict FOLDER` and `xray` with `evaluate` of the same video files."""
    small = given.quick or given.smoke
    model = smallest_network().channels_last() if given.smoke else small_network()
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        if given.videos is None:
            for number in range(3 if small else 12):
                write_video(root / f"video{number}.mp4", 20 + 5 * number, 1)
        files = video_files(given.videos or root)[0]
        files = files[:: max(1, len(files) // 24)][: 6 if small else 24]
        records = []
        for number, file in enumerate(files):
            link = root / "linked" / f"v{number:02d}{file.suffix}"
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(file.resolve())
            with open_video(file) as video:
                records.append(VideoRecord(link.stem, video.num_frames, number % CLASSES))
        settings = {
            "name": "bench",
            "classes": [str(k) for k in range(CLASSES)],
            "videos": str(root / "linked"),
        }
        (root / "dataset.yaml").write_text(yaml.safe_dump(settings))
        data = DataOptions(dataset=str(root / "dataset.yaml"), source="videos", workers=1)
        options = EvaluateOptions(crops="center", precision="fp32")
        experiment = Experiment(data=data, evaluate=options)

        class Scored(Run):
            """A run without a folder."""

            model_sha256 = ""

            def videos(self, part: str) -> list[VideoRecord]:  # noqa: ARG002
                return records

        run = Scored(experiment, model, settings["classes"], RunPaths(root), "best", {})
        evaluate = ours(model, load_record(root / "dataset.yaml"), records, options, data)
        found: dict[str, Any] = {}
        paths = sorted((root / "linked").iterdir())
        sides = {
            "evaluate": lambda: found.update(evaluate=evaluate().logits),
            "predict": lambda: found.update(predict=[one[0].logits for one in score_each([run], paths)]),
            "xray": lambda: found.update(xray=score_changes([run])[0]),
            "read": lambda: sum(1 for _ in view_loader(data, options, model.spec, records, run.record)),
        }
        times: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(given.rounds + 1):  # the first turn fills caches
            for name, side in sides.items():
                begin = sum(os.times()[:4])
                side()
                times[name].append(sum(os.times()[:4]) - begin)
        frames = sum(record.num_frames for record in records)
    before, after = (len(records) / best_of(times[name][1:]) for name in ("evaluate", "predict"))
    gap = float(
        np.abs(np.stack(found["predict"]) - found["evaluate"]).max() / np.abs(found["evaluate"]).max()
    )
    whole, reading, xray = (best_of(times[name][1:]) for name in ("evaluate", "read", "xray"))
    passes = len(found["xray"])
    expected = passes * (whole - reading) + reading
    natural = np.abs(found["xray"]["natural"].logits - found["evaluate"]).max()
    natural = float(natural / np.abs(found["evaluate"]).max())
    return [
        Row(
            f"predict FOLDER, {len(records)} videos of {frames:,} frames",
            "evaluate of the same files",
            before,
            after,
            after / before,
            0.8,
            note=f"ResNet3D-18 ×0.5, 16×112²; logits within {gap:.1e}",
            unit="videos per CPU second",
            problem="" if gap <= 1e-4 else f"logits differ by {gap:.1e}",
        ),
        Row(
            f"xray, the same videos under {passes - 1} changes",
            f"one reading and {passes} forward passes",
            expected,
            xray,
            xray / expected,
            1.05,
            at_most=True,
            note=f"natural logits within {natural:.1e} of those of evaluate",
            unit="CPU seconds",
            problem="" if natural <= 1e-4 else f"logits differ by {natural:.1e}",
        ),
    ]


def write_video(path: Path, frames: int, step: int) -> None:
    """Write an H.264 video of a moving texture."""
    rng = np.random.default_rng(frames)
    picture = cv2.resize(rng.integers(0, 256, (20, 60, 3), dtype=np.uint8), (640, 240))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for number in range(frames):
            cut = np.ascontiguousarray(picture[:, step * number : step * number + 320])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(cut, format="rgb24")))
        container.mux(stream.encode())


def difference(found: VideoScores, expected: VideoScores) -> float:
    """Return the largest difference of a video's logits relative to its largest one."""
    gaps = np.abs(found.logits - expected.logits).max(axis=1) / np.abs(expected.logits).max(axis=1)
    return float(gaps.max())


def small_network() -> Recognizer:
    """Return a network whose own memory hides little of what reading takes."""
    torch.manual_seed(0)
    options = ModelOptions(
        backbone=ResNet3d(depth=18, width=0.5),
        head=AverageHead(),
        input=InputOptions(clip_length=16, resize=(128, 170), crop=112),
    )
    return create_model(options, CLASSES).eval().channels_last()


def smallest_network() -> Recognizer:
    """Return a network for `--smoke`, with statistics of its own."""
    torch.manual_seed(0)
    options = ModelOptions(
        backbone=ResNet3d(depth=10, width=0.25),
        head=AverageHead(),
        input=InputOptions(clip_length=8, resize=(48, 64), crop=32),
    )
    model = create_model(options, CLASSES)
    settle(model)
    return model


def peak(given: argparse.Namespace) -> int:
    """Score one video in this process and return the most memory that it and its loader took, in MiB."""
    root, frames, views, quick = given.peak_in, given.frames, given.views, given.quick
    if given.smoke:
        model = smallest_network().channels_last()
    else:
        model = network().channels_last() if views == "multi" and not quick else small_network()
    precision = "fp32" if quick else "auto"
    options = EvaluateOptions(views=views, num_clips=max(1, frames // 50), precision=precision)
    run = ours(model, load_record(root / "dataset.yaml"), [VideoRecord(f"long{frames}", frames, 0)], options)
    run()
    return (_own_peak() + resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) // 1024


def _own_peak() -> int:
    """Return the peak of this process in KiB; what `getrusage` says of it begins with that of the one it came from."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    found = [int(line.split()[1]) for line in lines if line.startswith("VmHWM")]
    return found[0] if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def memory(given: argparse.Namespace) -> list[Row]:
    """Compare the peak memory of a long and a short video."""
    rows, quick = [], given.quick
    lengths = (20, 40) if given.smoke else LENGTHS
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for frames in lengths:
            write_frames(root, f"long{frames}", frames, 1)
        record_of(root)
        for views in ("multi",) if quick else ("multi", "uniform", "sliding"):
            line = [sys.executable, __file__, "--peak-in", str(root), "--views", views]
            line += ["--threads", str(given.threads), *(["--quick"] if quick else [])]
            line += ["--smoke"] if given.smoke else []
            made = [
                subprocess.run(
                    [*line, "--frames", str(frames)], check=True, capture_output=True, text=True
                ).stdout
                for frames in lengths
            ]
            short, long = (float(json.loads(text.splitlines()[-1])) for text in made)
            rows.append(
                Row(
                    f"peak memory of ten-crop evaluation, {views}, {lengths[1]:,} frames",
                    f"{lengths[0]} frames",
                    short,
                    long,
                    long / short,
                    1.2,
                    unit="MiB",
                    at_most=True,
                    note="a small network" if quick or views != "multi" else "ResNeXt-101 BERT FRMB",
                )
            )
    return rows


def main(argv: list[str] | None = None) -> int:
    """Measure, print and write."""
    parser = argument_parser(__doc__, rounds=3)
    parser.add_argument("--compile", action="store_true", help="compile our network")
    parser.add_argument("--videos", type=Path, help="folder of videos for `predict FOLDER`")
    parser.add_argument("--folder-only", action="store_true", help="only compare `predict FOLDER` and `xray`")
    parser.add_argument("--peak-in", type=Path, help="internal: measure one video in this folder")
    parser.add_argument("--frames", type=int, default=100, help="internal: its frames")
    parser.add_argument("--views", default="multi", help="internal: its views")
    given = parser.parse_args(argv)
    prepare(given)
    if given.peak_in is not None:
        print(json.dumps(peak(given)))
        return 0
    os.environ.setdefault("OMP_NUM_THREADS", str(given.threads))
    if given.folder_only:
        return finish("evaluation_folder", folder(given), given)
    rows, facts = speed(given)
    rows += memory(given)
    rows += folder(given)
    return finish("evaluation", rows, given, **facts)


if __name__ == "__main__":
    sys.exit(main())
