"""The baseline of a data set: linear classifiers on features of networks that were not trained on the data set.

The baseline fuses three linear probes: an ImageNet network on RGB frames, an ImageNet network on flow images, and flow
statistics on a grid. Each probe is a run with the settings of `baseline.yaml`. The three probes together take minutes.
A network trained on the data set should be better.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from two_stream.config.load import validate_settings
from two_stream.config.schema import Experiment
from two_stream.data.catalog import Record
from two_stream.data.splits import load_part
from two_stream.errors import CheckpointError, DataError, TwoStreamError
from two_stream.evaluation.runs.lookup import BASELINE_SCORES, baseline_folder
from two_stream.evaluation.scores.files import find_scores, read_scores, write_scores
from two_stream.evaluation.scores.fusion import fuse
from two_stream.evaluation.scores.tables import join
from two_stream.runtime.console import note, warn
from two_stream.studies.running.plan import SETTINGS, baseline_settings, merge_settings, nest_settings
from two_stream.studies.running.streams import train_and_score
from two_stream.types import Part, RunPaths, ScoreTable

STREAMS = ("rgb", "flow", "flow_statistics")
RULE = "probabilities"
"""Rule that fuses the probes.

Cross-validation calibrates their probabilities, so confident streams have more influence on the mean. With two classes,
the mean of normalised logits would only count votes.
"""


@dataclass(frozen=True)
class Baseline:
    """The scores of a data set's baseline on its test part."""

    folder: Path
    runs: list[RunPaths]
    majority: ScoreTable
    streams: list[ScoreTable]
    fused: ScoreTable | None
    """scores of the fused streams; None if there is only one stream"""
    seconds: float

    @property
    def tables(self) -> list[ScoreTable]:
        """The score tables of the majority class, the streams and the fusion, in the order of display."""
        return [self.majority, *self.streams, *([] if self.fused is None else [self.fused])]

    @property
    def best(self) -> ScoreTable:
        """The scores that a network should exceed: those of the fusion, or of the only stream."""
        return self.streams[0] if self.fused is None else self.fused


def run_baseline(
    record: Record, changes: dict[str, Any], runs: Path, command: str = "two-stream baseline"
) -> Baseline:
    """Train, score and fuse the baseline of a split. Results of an earlier call are reused.

    Args:
        record: The data set. Streams whose modality has no split lists are left out.
        changes: Dotted settings for all streams, such as `data.dataset` or `seed`.
        runs: Folder of the runs. All files are written below `baseline_folder(runs, ...)`.
        command: Command that the message after an interruption suggests.

    Raises:
        CheckpointError: The weights of the ImageNet network are not installed and the data set has no flow.
        DataError: The data set cannot be read, or has several classes per video.
    """
    if record.multi_label:
        raise DataError(
            f"{record.name}: the data set is multi-label; the baseline requires one class per video"
        )
    begin = time.perf_counter()
    folder = baseline_folder(runs, record.name, int(changes.get("data.split", 1)))
    chosen = [_experiment(stream, changes, folder) for stream in STREAMS]
    done: list[RunPaths] = []
    missing: TwoStreamError | None = None
    for experiment in chosen:
        if experiment.model.reads not in record.modalities():
            continue
        note(f"baseline: {experiment.name}")
        try:
            done.append(RunPaths(train_and_score(experiment, command=command)))
        except (CheckpointError, DataError) as error:  # no weights installed, no flow extracted
            warn(f"{error}; the baseline is computed without the stream {experiment.name}")
            missing = missing or error
    if not done:
        raise missing or DataError(
            f"{record.name}: no split list found for split {chosen[0].data.split}; create one with `two-stream prepare`"
        )
    tables = {part: _joined(done, part) for part in ("test", "val")}
    for part, streams in tables.items():
        if len(streams) > 1:
            fused = fuse(streams, RULE)
            fused.meta |= {"baseline": True, "name": "baseline"}
            write_scores(folder / BASELINE_SCORES.format(part=part), fused)
    streams = tables["test"]
    best = read_scores(folder / BASELINE_SCORES.format(part="test")) if len(streams) > 1 else None
    guesser = majority(record, chosen[0], streams[0])
    return Baseline(folder, done, guesser, streams, best, time.perf_counter() - begin)


def _experiment(stream: str, changes: dict[str, Any], folder: Path) -> Experiment:
    settings = merge_settings(baseline_settings(stream), nest_settings(changes))
    return validate_settings(Experiment, settings | {"name": stream, "runs": str(folder)}, SETTINGS)


def _joined(runs: Sequence[RunPaths], part: Part) -> list[ScoreTable]:
    return join([read_scores(find_scores(run.root, part)) for run in runs])


def majority(record: Record, experiment: Experiment, like: ScoreTable) -> ScoreTable:
    """Return scores that predict the class frequencies of the training list for every video of `like`."""
    data = experiment.data
    train = load_part(record, experiment.model.reads, data.split, "train", selection="paper")
    counts = np.bincount([video.label for video in train], minlength=record.num_classes)
    log_prior = np.log(np.maximum(counts, 0.5) / counts.sum())
    facts = {key: like.meta[key] for key in ("dataset", "split", "part", "selection")}
    return ScoreTable(
        like.ids,
        like.labels,
        like.class_names,
        np.tile(log_prior, (len(like.ids), 1)),
        {**facts, "name": "majority", "kind": "majority", "modality": "majority class"},
        groups=like.groups,
    )
