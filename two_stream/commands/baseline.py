"""`two-stream baseline DATASET`: the accuracy of linear classifiers on untrained features."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from two_stream.commands.flags import parse
from two_stream.commands.output import print_json, print_table
from two_stream.errors import DataError
from two_stream.runtime.console import say
from two_stream.runtime.text import duration

if TYPE_CHECKING:
    from two_stream.data.catalog import Record
    from two_stream.studies.baseline import Baseline

SUMMARY = "Train linear classifiers on fixed features: the accuracy that a trained network should exceed."
EXAMPLES = ("baseline demo/data/dataset.yaml", "baseline hmdb51 --split 2 --source videos")


@dataclass(frozen=True)
class DataFlags:
    """Flags of `two-stream baseline` and `auto` that select the data set."""

    dataset: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="DATASET")]]
    """name of a data set in the settings folder, or path of a dataset.yaml"""
    split: int = 1
    """split of the data set"""
    settings_root: Path = Path("settings")
    """folder of the named data sets"""
    source: Literal["auto", "frames", "videos"] = "auto"
    """frames: frame folders from `two-stream extract`; videos: video files, whose flow is computed while reading; auto:
    frame folders if they exist, otherwise video files"""
    runs: Path = Path("runs")
    """folder to write the runs to"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps"""
    seed: int = 0
    """random seed of the holdout split and of the cross-validation folds"""


@dataclass(frozen=True)
class _BaselineFlags(DataFlags):
    json: bool = False
    """print JSON instead of a table"""


def main(args: list[str]) -> int:
    """Run the command and return its exit code."""
    flags = parse(_BaselineFlags, args, "two-stream baseline", SUMMARY, EXAMPLES)
    from two_stream.studies.baseline import run_baseline

    record, changes = read_data(flags)
    print_baseline(run_baseline(record, changes, flags.runs), as_json=flags.json)
    return 0


def read_data(flags: DataFlags) -> tuple[Record, dict[str, Any]]:
    """Return the data set, and the settings for reading it.

    Raises:
        DataError: There is no such data set or split, or neither frames nor videos exist.
    """
    from two_stream.data.catalog import load_record

    record = load_record(flags.dataset, flags.settings_root)
    if not 1 <= flags.split <= record.num_splits:
        raise DataError(
            f"{record.name}: no split {flags.split}; expected a split from 1 to {record.num_splits}"
        )
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


def print_baseline(baseline: Baseline, *, as_json: bool = False) -> None:
    """Print the accuracies of the baseline and the folder of its scores."""
    from two_stream.evaluation.scores import words

    found = words.lines(baseline.tables)
    protocol = words.protocol_line(baseline.best.meta, found[-1].summary)
    if as_json:
        streams = [{"name": line.name, **line.summary.to_json()} for line in found]
        print_json({"streams": streams, "protocol": protocol, "folder": str(baseline.folder)})
        return
    print_table("baseline: accuracy in %", words.columns(found), words.rows(found))
    say(protocol)
    say(
        f"A network should exceed this accuracy. Runs and scores: {baseline.folder} ({duration(baseline.seconds)})"
    )
