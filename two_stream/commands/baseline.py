"""`two-stream baseline DATASET`: what a network must beat."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from two_stream.commands.flags import parse

if TYPE_CHECKING:
    from two_stream.data.catalog import Record
    from two_stream.studies.baseline import Baseline

SUMMARY = "Linear classifiers on features that nobody trained: the accuracy that a trained network must beat."


@dataclass(frozen=True)
class DataFlags:
    """Which data set, and how it is read."""

    dataset: tyro.conf.Positional[str]
    """name of a data set under the settings folder, or path of a dataset.yaml"""
    split: int = 1
    """split of the data set"""
    settings_root: Path = Path("settings")
    """folder that holds the named data sets"""
    source: Literal["auto", "frames", "videos"] = "auto"
    """frames: as `two-stream extract` wrote them; videos: the files, flow computed while reading; auto: frames where
    they exist"""
    runs: Path = Path("runs")
    """folder of the runs"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps"""
    seed: int = 0
    """seed of the holdout and of the folds of the cross-validation"""


@dataclass(frozen=True)
class BaselineFlags(DataFlags):
    """Flags of `two-stream baseline`."""

    json: bool = False
    """print the numbers as JSON instead of a table"""


def main(args: list[str]) -> int:
    """Run the command and return its exit code."""
    flags = parse(BaselineFlags, args, "two-stream baseline", SUMMARY)
    from two_stream.studies.baseline import run_baseline

    record, changes = read_data(flags)
    show(run_baseline(record, changes, flags.runs), as_json=flags.json)
    return 0


def read_data(flags: DataFlags) -> tuple[Record, dict[str, Any]]:
    """Return the data set and the settings that say how it is read.

    Raises:
        DataError: No such data set or split, or neither frames nor videos exist.
    """
    from two_stream.data.catalog import load_record
    from two_stream.errors import DataError

    record = load_record(flags.dataset, flags.settings_root)
    if not 1 <= flags.split <= record.num_splits:
        raise DataError(f"{record.name}: no split {flags.split}; it has 1 to {record.num_splits}")
    source = flags.source
    if source == "auto":
        try:
            record.frames_root("rgb" if "rgb" in record.modalities() else "flow")
            source = "frames"
        except DataError:
            record.videos_root()
            source = "videos"
    changes = {
        "data.dataset": flags.dataset,
        "data.settings_root": str(flags.settings_root),
        "data.split": flags.split,
        "data.source": source,
        "device": flags.device,
        "seed": flags.seed,
    }
    return record, changes


def show(baseline: Baseline, *, as_json: bool = False) -> None:
    """Print the baseline's table and where its scores are."""
    from two_stream.evaluation.scores import words
    from two_stream.runtime.console import console, say, table

    found = words.lines(baseline.tables)
    protocol = words.protocol_line(baseline.best.meta, found[-1].summary)
    if as_json:
        streams = [{"name": line.name, **line.summary.to_json()} for line in found]
        console.print_json(data={"streams": streams, "protocol": protocol, "folder": str(baseline.folder)})
        return
    console.print(table("baseline: accuracy in %", words.columns(found), words.rows(found)))
    say(protocol)
    say(f"A network must beat this. Runs and scores: {baseline.folder} ({baseline.seconds:.0f} s)")
