"""CPU seconds and memory of many videos and many classes: the holdout, the start of a training, an epoch, and metrics.

    python eval/benchmarks/big_lists.py [--quick] [--rounds 3] [--package CHECKOUT]

The baseline of the holdout is the plain formula with a dense array of class counts per source; both must choose the
same sources. The baseline of an epoch and of metrics is the same work with 8 classes. Every turn is a process of its
own, so that its peak memory can be read. `--package` measures the package in another checkout instead of this one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import Row, argument_parser, finish, interleaved, median_of, prepare

TARGET_SECONDS, TARGET_MEMORY = 2.0, 200.0
"""of choosing a holdout among 240,000 videos of 400 classes: seconds, and MiB"""
TARGET_EPOCH, TARGET_MORE = 1.5, 600.0
"""an epoch with 10,000 classes: seconds in proportion to one with 8 classes, and MiB"""
FRAMES = 8


def records(videos: int, classes: int) -> list[Any]:
    """Return videos that are their own sources, in classes of different sizes."""
    from two_stream.types import VideoRecord

    labels = (np.random.default_rng(0).beta(1, 2, videos) * classes).astype(int)
    return [VideoRecord(f"v{n}", FRAMES, int(labels[n])) for n in range(videos)]


def plain_choice(listed: list[Any], fraction: float, seed: int) -> set[str]:
    """Choose sources as `carve_holdout` does, with one array of class counts per source."""
    from two_stream.runtime.device import derive

    names = sorted({record.label for record in listed})
    column = {label: place for place, label in enumerate(names)}
    counts: dict[str, Any] = defaultdict(lambda: np.zeros(len(names)))
    for record in listed:
        counts[record.id][column[record.label]] += 1
    total = np.sum(list(counts.values()), axis=0)
    order = sorted(counts, key=lambda group: derive("split", seed, group))
    chosen, taken = set(), np.zeros(len(names))

    def gain(group: str) -> float:
        before = (taken - fraction * total) / total
        after = before + counts[group] / total
        return float(np.sum(before**2) - np.sum(after**2))

    def leaves(group: str) -> bool:
        held = counts[group] > 0
        return bool(np.all((total - taken - counts[group])[held] > 0))

    for group in order:
        if leaves(group) and gain(group) > 1e-12:
            chosen.add(group)
            taken += counts[group]
    for place in range(len(names)):
        if taken[place]:
            continue
        holders = [g for g in order if g not in chosen and counts[g][place] and leaves(g)]
        if holders:
            group = max(holders, key=gain)
            chosen.add(group)
            taken += counts[group]
    return chosen


def probe_holdout(_folder: Path, videos: int, classes: int) -> Callable[[], str]:
    """Return the choice of a holdout, whose result is a digest of the chosen sources."""
    from two_stream.data.splits import choose_groups

    listed = records(videos, classes)
    return lambda: _digest(choose_groups(listed, 0.2, 0))


def probe_plain(_folder: Path, videos: int, classes: int) -> Callable[[], str]:
    """Return the same choice by the plain formula."""
    listed = records(videos, classes)
    return lambda: _digest(plain_choice(listed, 0.2, 0))


def _digest(chosen: set[str]) -> str:
    return hashlib.sha256(" ".join(sorted(chosen)).encode()).hexdigest()


def probe_start(folder: Path, videos: int, classes: int) -> Callable[[], str]:
    """Return what a training does with the lists before its first step: the record, both parts, the fingerprints."""
    from two_stream.config.schema import Experiment
    from two_stream.data.catalog import dataset_record
    from two_stream.training.data import training_data
    from two_stream.types import InputSpec

    experiment = Experiment.model_validate(_settings(folder, videos, classes))
    zero, one = (0.0,) * 3, (1.0,) * 3
    spec = InputSpec("rgb", FRAMES, 1, (16, 16), 16, (0.0, 1.0), zero, one)
    return lambda: training_data(experiment, dataset_record(experiment.data), spec).fingerprint


def probe_epoch(folder: Path, videos: int, classes: int) -> Callable[[], str]:
    """Return a training of one epoch."""
    from two_stream.config.schema import Experiment
    from two_stream.training.train import train

    experiment = Experiment.model_validate(_settings(folder, videos, classes))
    return lambda: str(train(experiment, overwrite=True).epochs)


def probe_metrics(_folder: Path, videos: int, classes: int) -> Callable[[], str]:
    """Return the metrics and the table of classes of a score table."""
    from two_stream.evaluation.scores.metrics import per_class, summarise
    from two_stream.types import ScoreTable

    labels = np.random.default_rng(0).integers(0, classes, videos)
    logits = np.random.default_rng(1).normal(size=(videos, classes))
    names = [f"c{number}" for number in range(classes)]
    table = ScoreTable([f"v{number}" for number in range(videos)], labels, names, logits, {})
    return lambda: f"{summarise(table).main.value} {len(per_class(table))}"


PROBES = {
    "holdout": probe_holdout,
    "plain": probe_plain,
    "start": probe_start,
    "epoch": probe_epoch,
    "metrics": probe_metrics,
}


def _settings(folder: Path, videos: int, classes: int) -> dict[str, Any]:
    backbone = {"kind": "resnet3d", "depth": 10, "width": 0.25, "temporal_stride": 4}
    size = {"clip_length": FRAMES, "resize": [16, 16], "crop": 16}
    head = {"head": {"kind": "average"}, "dropout": 0.0}
    return {
        "name": f"run_{classes}",
        "runs": str(folder / "runs"),
        "device": "cpu",
        "model": {"modality": "rgb", "backbone": backbone, **head, "input": size},
        "data": {"dataset": str(folder / f"set_{videos}_{classes}"), "workers": 0},
        "train": {"epochs": 1, "batch_size": 32, "optimizer": {"kind": "sgd", "lr": 0.01}},
    }


def write_set(folder: Path, videos: int, classes: int) -> None:
    """Write a data set whose videos all show the same few frames."""
    import cv2
    import yaml

    place = folder / f"set_{videos}_{classes}"
    (folder / "frames" / "one").mkdir(parents=True, exist_ok=True)
    for number in range(1, FRAMES + 1):
        picture = np.random.default_rng(number).integers(0, 255, (16, 16, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / "frames" / "one" / f"img_{number:05d}.jpg"), picture)
    listed = records(videos, classes)
    place.mkdir(parents=True)
    names = [f"c{number}" for number in range(classes)]
    content = {"name": "big", "frames": {"rgb": "../frames"}, "classes": names}
    (place / "dataset.yaml").write_text(yaml.safe_dump(content))
    lines = "".join(f"{one.id} {one.num_frames} {one.label}\n" for one in listed)
    (place / "train_rgb_split1.txt").write_text(lines)
    if videos < 10_000:  # those of an epoch
        for one in listed:
            link = folder / "frames" / one.id
            link.is_symlink() or link.symlink_to("one")


def run_probe(name: str, folder: Path, videos: int, classes: int) -> None:
    """Run one probe here; print its CPU seconds, its peak memory above that at the start, and its result."""
    import resource

    import two_stream.runtime.device  # noqa: F401  imports torch before the clock starts

    work = PROBES[name](folder, videos, classes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.process_time()
    result = work()
    seconds = time.process_time() - begin
    used = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    used = max(used, 0.01)  # less than a page
    print(json.dumps({"seconds": seconds, "memory": used, "result": result}))


def main(argv: list[str] | None = None) -> int:
    """Measure, print and write."""
    parser = argument_parser(__doc__, rounds=3)
    parser.add_argument("--package", type=Path, help="checkout whose package is measured")
    parser.add_argument("--probe", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    prepare(given)
    if given.probe:
        name, folder, *sizes = given.probe
        run_probe(name, Path(folder), *map(int, sizes))
        return 0
    many, classes, few, large = (3000, 20, 300, 100) if given.smoke else (240_000, 400, 1000, 10_000)
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    package = str(given.package or Path(__file__).parents[2])
    env = {**os.environ, "PYTHONPATH": package, "OMP_NUM_THREADS": str(given.threads)}

    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        for sizes in ((many, classes), (few, 8), (few, large)):
            write_set(folder, *sizes)

        def turn(key: str, videos: int, number: int) -> Callable[[], None]:
            def run() -> None:
                command = [sys.executable, __file__, "--probe", key, text, str(videos), str(number)]
                made = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
                found[f"{key} {number}"].append(json.loads(made.stdout.splitlines()[-1]))

            return run

        sides = {
            "plain": turn("plain", many, classes),
            "holdout": turn("holdout", many, classes),
            "start": turn("start", many, classes),
            "epoch 8": turn("epoch", few, 8),
            "epoch": turn("epoch", few, large),
            "metrics 8": turn("metrics", few, 8),
            "metrics": turn("metrics", few, large),
        }
        interleaved(sides, rounds=given.rounds, warm=0)

    def figure(key: str, what: str) -> float:
        return median_of([one[what] for one in found[key]])

    mine, plain = f"holdout {classes}", f"plain {classes}"
    size, sets = (
        f"{many:,} videos × {classes} classes",
        {one["result"] for key in (mine, plain) for one in found[key]},
    )
    rows = []
    for name, key, base, unit, target in (
        ("choose a holdout", mine, plain, "seconds", TARGET_SECONDS),
        ("the same, more memory", mine, plain, "memory", TARGET_MEMORY),
        ("read the lists at the start of a training", f"start {classes}", None, "seconds", None),
        ("the same, more memory", f"start {classes}", None, "memory", None),
        (
            f"epoch of {few:,} clips with {large:,} classes",
            f"epoch {large}",
            "epoch 8",
            "seconds",
            TARGET_EPOCH,
        ),
        ("the same, more memory", f"epoch {large}", "epoch 8", "memory", TARGET_MORE),
        (
            f"metrics of {few:,} videos with {large:,} classes",
            f"metrics {large}",
            "metrics 8",
            "seconds",
            None,
        ),
        ("the same, more memory", f"metrics {large}", "metrics 8", "memory", None),
    ):
        ours, other = figure(key, unit), figure(base, unit) if base else None
        against = {plain: "dense counts", None: ""}.get(base, "8 classes")
        ratio = ours
        if base and base.endswith(" 8"):
            assert other is not None
            ratio = ours if unit == "memory" else ours / other
        rows.append(
            Row(
                name,
                against,
                other,
                ours,
                ratio,
                target,
                size if key == mine else "",
                "s" if unit == "seconds" else "MiB",
                at_most=True,
            )
        )
    if len(sets) > 1:
        rows[0].problem = "the choices differ"
    return finish("big_lists", rows, given, turns=found)


if __name__ == "__main__":
    sys.exit(main())
