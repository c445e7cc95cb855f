"""Trains and scores one stream; steps that an earlier call finished are skipped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from two_stream.config.schema import Experiment
from two_stream.errors import ScoreError
from two_stream.evaluation.runs.run import evaluate_run
from two_stream.evaluation.scores.files import newest_scores, read_scores
from two_stream.pretrained import WEIGHTS
from two_stream.runtime.console import note, results_as_notes
from two_stream.runtime.files import complete_folder, sha256
from two_stream.training.run_folder import check_run, has_checkpoint, load_newest
from two_stream.training.train import train
from two_stream.types import Part, RunPaths


def train_and_score(
    experiment: Experiment, parts: Sequence[Part] = ("test", "val"), command: str = "the same command"
) -> Path:
    """Train a run, score parts of its data set and return its folder. Steps that an earlier call finished are skipped.

    After an interruption, the message suggests `command` to resume.

    Raises:
        KeyboardInterrupt: A signal stopped the training; its progress has been saved.
        TwoStreamError: The training or the evaluation failed.
    """
    if experiment.compress.kind != "none":
        from two_stream import compression  # noqa: F401 - registers the training extensions
    paths = check_run(experiment, resume=True, overwrite=False)
    begun = paths.experiment.is_file()
    with results_as_notes():
        if not _is_finished(paths) and train(experiment, resume=begun).interrupted is not None:
            note(f"the run is saved; resume with {command}")
            raise KeyboardInterrupt
        for part in parts:
            if not _is_scored(paths, part):
                evaluate_run(paths.root, part=part)
    return paths.root


def _is_finished(paths: RunPaths) -> bool:
    return has_checkpoint(paths) and bool(load_newest(paths)[1]["progress"]["finished"])


def _is_scored(paths: RunPaths, part: Part) -> bool:
    """Return whether the newest scores of a part were computed with the run's best weights."""
    try:
        found = read_scores(newest_scores(paths.root, part))
    except ScoreError:
        return False
    weights = complete_folder(paths.best) / WEIGHTS
    return weights.is_file() and found.meta.get("model_sha256") == sha256(weights)
