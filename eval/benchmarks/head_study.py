"""A study of heads on a frozen backbone: from stored features, and cell by cell from the videos.

    python eval/benchmarks/head_study.py [--quick] [--rounds 3] [--threads 2]

A *pass* is what one cell reads and computes from the videos: an epoch of training with its validation, and the
multi-clip, ten-crop evaluation of the test part. Storing the features takes the place of all passes of all cells; six
heads with three seeds then learn and are scored from them. Both sides' scores are compared.

The cells of a study are then run by a worker process, as `two-stream ablate` runs them, with one thread: one after
another, and side by side. All scores must be equal. Times include the start of the process.
"""

from __future__ import annotations

import contextlib
import io
import resource
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from common import Row, finish, flags, interleaved, median_of, ratio_of

from two_stream.config.load import validate_settings
from two_stream.config.schema import Experiment
from two_stream.data.demo import DemoOptions, write_demo_frames
from two_stream.evaluation.features.extract_features import write_features
from two_stream.evaluation.runs.run import evaluate_run
from two_stream.evaluation.scores.files import read_scores
from two_stream.studies.running.cells import group_of, job_of
from two_stream.studies.running.pool import Slot, Workers, run_jobs
from two_stream.training.train import start_model, train

HEADS: dict[str, dict[str, Any]] = {
    "average": {"kind": "average"},
    "concat": {"kind": "concat", "features": None},
    "fc": {"kind": "concat", "features": 256},
    "lstm": {"kind": "lstm", "hidden": 128, "layers": 1},
    "nonlocal": {"kind": "nonlocal", "over": "time", "features": 256},
    "bert": {"kind": "bert", "heads": 4, "hidden": 128},
}
SEEDS = (1, 2, 3)
RATES = (2e-3, 1e-3, 5e-4, 2e-4, 1e-4)

INPUT = {"clip_length": 16, "resize": [96, 128], "crop": 80}
SMALLEST = {"clip_length": 8, "resize": [36, 48], "crop": 32}
"""of `--smoke`"""


def settings(
    folder: Path, head: str, size: dict[str, Any], *, seed: int, epochs: int, lr: float = 1e-3, **data: Any
) -> Experiment:
    """Return a cell's settings, for an input of this size."""
    given = {
        "name": f"{head}{seed}{'_stored' if data else ''}",
        "runs": str(folder / "runs"),
        "seed": seed,
        "device": "cpu",
        "model": {
            "backbone": {"kind": "resnet3d", "depth": 18, "width": 0.5, "temporal_stride": 4},
            "head": HEADS[head],
            "input": size,
        },
        "data": {"dataset": str(folder / "data" / "dataset.yaml"), "workers": 0, **data},
        "train": {
            "epochs": epochs,
            "batch_size": 16,
            "optimizer": {"kind": "adamw", "lr": lr},
            "freeze_until": "backbone",
            "log_images": False,
            **_start(folder, data),
        },
        "evaluate": {"views": "multi", "crops": "ten", "precision": "fp32"},
    }
    return validate_settings(Experiment, given, "head_study")


def _start(folder: Path, data: dict[str, Any]) -> dict[str, str]:
    """Return whose backbone a cell has: with stored features that of the first cell, which they were made of."""
    return {"init": str(folder / "runs" / "average1"), "init_part": "backbone"} if data else {}


def cell(experiment: Experiment) -> np.ndarray:
    """Train and score; return the test logits."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        train(experiment, overwrite=True)
        table, _ = evaluate_run(experiment.runs / experiment.name, device="cpu")
    return table.logits


def study(experiments: list[Experiment], folder: Path, *, side_by_side: bool) -> dict[str, np.ndarray]:
    """Run the cells in a worker process; return the test logits by cell."""
    jobs = {}
    for index, experiment in enumerate(experiments):
        given = experiment.model_copy(update={"name": f"cell{index}", "runs": folder / "runs", "threads": 1})
        group = group_of(given) if side_by_side else ""
        jobs[index] = job_of(given, folder, title=str(index), key=str(index), group=group)
    with contextlib.closing(Workers()) as workers:
        outcomes = dict(filter(None, run_jobs(jobs, [Slot()], set(), workers)))
    found = {str(i): read_scores(Path(outcomes[i].scores["test"][0])).logits for i in jobs}
    shutil.rmtree(folder)
    return found


def side_by_side_row(experiments: list[Experiment], folder: Path, rounds: int) -> Row:
    """Return the times of the cells of a study one after another and side by side."""
    scores: dict[str, dict[str, np.ndarray]] = {}
    used: dict[str, list[float]] = {"alone": [], "ours": []}

    def run(name: str) -> None:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        scores[name] = study(experiments, folder / name, side_by_side=name == "ours")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used[name].append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)

    times = interleaved({name: lambda n=name: run(n) for name in ("alone", "ours")}, rounds=rounds, warm=0)
    differ = [
        cell for cell, logits in scores["alone"].items() if not np.array_equal(logits, scores["ours"][cell])
    ]
    return Row(
        f"{len(experiments)} cells side by side, {experiments[0].train.epochs} epochs each",
        "the cells one after another",
        median_of(times["alone"]),
        median_of(times["ours"]),
        ratio_of(times, "alone", "ours"),
        note=f"one process with one thread; groups of up to 16 cells of a seed; all scores equal; rounds: {rounds}; "
        f"processor time {median_of(used['alone']):.1f} s and {median_of(used['ours']):.1f} s",
        unit="s",
        problem=f"{len(differ)} cells have other scores" if differ else "",
    )


def main(argv: list[str] | None = None) -> int:
    """Measure, print and write."""
    given = flags(__doc__, argv, rounds=3)
    epochs = 1 if given.smoke else 5 if given.quick else 30
    size, seeds = (SMALLEST, SEEDS[:1]) if given.smoke else (INPUT, SEEDS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_demo_frames(
            folder / "data", DemoOptions(theme="order", groups=6 if given.quick else 15), flow=False
        )
        first = settings(folder, "average", size, seed=1, epochs=1)
        store = folder / "features"

        def stored() -> None:
            write_features(start_model(first), first, store, overwrite=True)

        times = interleaved({"pass": lambda: cell(first), "features": stored}, rounds=given.rounds)
        ours = cell(settings(folder, "average", size, seed=1, epochs=1, features=str(store)))
        error = float(np.abs(ours - cell(first)).max() / np.abs(ours).max())
        cells = interleaved(
            {
                "cells": lambda: [
                    cell(settings(folder, head, size, seed=seed, epochs=epochs, features=str(store)))
                    for head in HEADS
                    for seed in seeds
                ],
            },
            rounds=1,
            warm=0,
        )
        few = [
            settings(folder, head, size, seed=seed, epochs=epochs, features=str(store))
            for seed in seeds
            for head in HEADS
        ]
        many = [
            settings(folder, head, size, seed=seed, epochs=epochs, lr=lr, features=str(store))
            for seed in SEEDS[: 1 if given.smoke else 2]
            for lr in (RATES[:1] if given.smoke else RATES)
            for head in HEADS
        ]
        sides = [
            side_by_side_row(few, folder / "side", given.rounds),
            side_by_side_row(many, folder / "side", max(1, given.rounds // 3)),
        ]
    passes = 1 / ratio_of(times, "pass", "features")
    one, all_cells = median_of(times["pass"]), median_of(cells["cells"])
    cost = median_of(times["features"])
    problem = "" if error < 1e-4 else f"scores differ by {error:.1e}"
    rows = [
        Row(
            "features of a head study, in passes over the videos",
            "one epoch and one ten-crop evaluation",
            one,
            cost,
            passes,
            1.5,
            f"ResNet3D-18 ×0.5, {size['clip_length']}×{size['crop']}²; scores of a cell agree to {error:.0e}",
            "s",
            at_most=True,
            problem=problem,
        ),
        Row(
            f"{len(HEADS)} heads × {len(seeds)} seeds, {epochs} epochs each, features included",
            "one pass",
            one,
            cost + all_cells,
            (cost + all_cells) / one,
            note=f"{all_cells / len(HEADS) / len(seeds):.1f} s a cell; from the videos a cell of {epochs} epochs takes "
            f"up to {epochs} passes",
            unit="s",
            at_most=True,
        ),
        *sides,
    ]
    return finish("head_study", rows, given)


if __name__ == "__main__":
    sys.exit(main())
