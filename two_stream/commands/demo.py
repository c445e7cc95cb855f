"""`two-stream demo`: the whole pipeline on a small generated data set."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from two_stream.commands.baseline import print_baseline
from two_stream.commands.flags import parse
from two_stream.config.load import dump, read_yaml, validate_settings
from two_stream.config.schema import Experiment
from two_stream.errors import SettingsError
from two_stream.runtime.console import note, say
from two_stream.runtime.files import write_text

if TYPE_CHECKING:
    from two_stream.types import Modality, Part

SUMMARY = "Generate a small data set, train both streams, evaluate, fuse and report (a few minutes)."
EXAMPLES = ("demo", "demo --out demo2 --seed 2")
STREAMS: tuple[Modality, ...] = ("rgb", "flow")
PARTS: tuple[Part, ...] = ("test", "val")


@dataclass(frozen=True)
class Options:
    """Flags of `two-stream demo`."""

    out: Path = Path("demo")
    """folder for data, runs and report; the same command continues an interrupted demo"""
    seed: int = 1
    """random seed of the data set and of training"""
    groups: int | None = None
    """number of source scenes, which is the number of videos per class; if omitted, the default of the demo"""
    epochs: int | None = None
    """number of training epochs; if omitted, the default of the demo"""


def main(args: list[str]) -> int:
    """Run the demo and return its exit code."""
    options = parse(Options, args, "two-stream demo", SUMMARY, EXAMPLES)
    from two_stream.commands import fuse, report

    start = time.monotonic()
    _check_folder(options)
    _data(options)
    _baseline(options)
    runs = [_stream(options, modality) for modality in STREAMS]
    note("4/4 fusing and reporting")
    fuse.main([*map(str, runs), "--out", str(options.out / "fused.npz")])
    say("")
    report.main([*map(str, runs), "--out", str(options.out / "report.html"), "--title", "Two-Stream demo"])
    minutes, seconds = divmod(round(time.monotonic() - start), 60)
    note(f"demo finished in {minutes} min {seconds} s; open {options.out / 'report.html'} in a browser")
    return 0


def demo_experiment(options: Options, modality: Modality) -> Experiment:
    """Return the settings of one stream: `demo.yaml` with the modality, the paths and the flags."""
    path = Path(__file__).with_name("demo.yaml")
    settings = read_yaml(path)
    settings.update(name=modality, seed=options.seed, runs=str(options.out / "runs"))
    settings["model"]["modality"] = modality
    settings["data"].update(dataset=str(options.out / "data" / "dataset.yaml"))
    if options.epochs is not None:
        settings["train"]["epochs"] = options.epochs
    return validate_settings(Experiment, settings, path)


def _check_folder(options: Options) -> None:
    """Reject a folder that contains a demo with different settings."""
    for modality in STREAMS:
        path = options.out / f"{modality}.yaml"
        if path.is_file() and path.read_text(encoding="utf-8") != dump(demo_experiment(options, modality)):
            raise SettingsError(
                f"{options.out}: contains a demo with different settings; remove the folder, or use another --out"
            )


def _data(options: Options) -> None:
    """Write the videos, their frames and TV-L1 flow; existing files are kept."""
    from two_stream.data.demo import DemoOptions, write_demo_frames

    note("1/4 writing the videos, their frames and TV-L1 flow")
    chosen = DemoOptions(seed=options.seed)
    if options.groups is not None:
        chosen = replace(chosen, groups=options.groups)
    write_demo_frames(options.out / "data", chosen)


def _baseline(options: Options) -> None:
    """Run the baseline, which is part of the report."""
    from two_stream.data.catalog import load_record
    from two_stream.studies.baseline import run_baseline

    note("2/4 running the baseline: a classifier on fixed features")
    dataset = options.out / "data" / "dataset.yaml"
    changes = {"data.dataset": str(dataset), "device": "cpu", "seed": options.seed}
    print_baseline(run_baseline(load_record(dataset), changes, options.out / "runs", "`two-stream demo`"))


def _stream(options: Options, modality: Modality) -> Path:
    """Train one stream, score its test and holdout parts, and return its run folder."""
    from two_stream.studies.running.streams import train_and_score

    experiment = demo_experiment(options, modality)
    write_text(options.out / f"{modality}.yaml", dump(experiment))
    note(f"3/4 training the {modality} stream, then scoring ten crops of every clip")
    return train_and_score(experiment, PARTS, "`two-stream demo`")
