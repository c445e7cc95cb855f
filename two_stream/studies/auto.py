"""The recipe for a prepared data set, and the choice between its trained networks and the baseline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import two_stream
from two_stream.config.load import read_yaml, validate_settings
from two_stream.config.schema import Experiment
from two_stream.errors import SettingsError
from two_stream.evaluation.runs.lookup import history, settings_of
from two_stream.evaluation.scores.files import find_scores, keep_common_videos, read_scores
from two_stream.evaluation.scores.fusion import combine, fuse
from two_stream.evaluation.scores.metrics import main_value
from two_stream.runtime.device import pick_device
from two_stream.studies.baseline import RULE
from two_stream.studies.running.variants import merge_settings, nest_settings
from two_stream.types import Modality, RunPaths, ScoreTable

RECIPES = "own_videos_{modality}{machine}.yaml"
_OVERHEAD = 1.3
"""factor on the duration of a pass, for reading, cross-validation and the start of the run"""
_FEWEST_EPOCHS = 5
"""smallest number of epochs of a trained network; with fewer, the baseline is better"""


def recipe(modality: Modality, settings_root: Path, device: str) -> Path:
    """Return the experiment file for the machine: on a GPU it trains the network, elsewhere the last layer only.

    Raises:
        SettingsError: The file is neither under the settings nor in the package's checkout.
    """
    name = RECIPES.format(modality=modality, machine="" if pick_device(device).type == "cpu" else "_gpu")
    places = [settings_root, Path(two_stream.__file__).parents[1] / "settings"]
    found = next(
        (place / "experiments" / name for place in places if (place / "experiments" / name).is_file()), None
    )
    if found is None:
        raise SettingsError(
            f"{places[0] / 'experiments' / name}: no such recipe; use a checkout's settings folder as --settings-root"
        )
    return found


def recipe_experiment(path: Path, changes: dict[str, Any], name: str, runs: Path) -> Experiment:
    """Return a recipe's settings for a data set."""
    settings = merge_settings(read_yaml(path), nest_settings(changes))
    return validate_settings(Experiment, settings | {"name": name, "runs": str(runs)}, path)


def pass_seconds(experiment: Experiment, baseline: RunPaths, videos: int) -> float:
    """Return the seconds that a recipe's network needs for one view of each video; 0 if they are unknown.

    The speed of the machine is taken from a finished baseline run of the same modality.
    """
    rows = history(baseline)
    pace = rows[-1].get("clips_per_second", 0.0) if rows else 0.0
    seen = settings_of(baseline)
    if not pace or seen is None:
        return 0.0
    images = (one.model.input.clip_length or 16 for one in (experiment, seen))
    return _OVERHEAD * videos / pace * next(images) / next(images)


def fit_to_time(experiment: Experiment, one_pass: float, seconds: float) -> Experiment | None:
    """Return a recipe reduced to the seconds left for its stream; None if that is not possible.

    `one_pass` is the result of `pass_seconds`.
    """
    if experiment.train.optimizer.kind != "logistic":
        # a training step costs about three forward passes; the test part is scored once
        epochs = experiment.train.epochs
        if (1 + 3 * epochs) * one_pass > seconds:
            epochs = int((seconds / one_pass - 1) / 3)
        train = experiment.train.model_copy(update={"epochs": epochs})
        return experiment.model_copy(update={"train": train}) if epochs >= _FEWEST_EPOCHS else None
    if 2 * one_pass <= seconds:
        return experiment
    if one_pass > seconds:
        return None
    solver = experiment.train.optimizer.model_copy(update={"views": 0})
    return experiment.model_copy(
        update={
            "train": experiment.train.model_copy(update={"optimizer": solver}),
            "evaluate": experiment.evaluate.model_copy(update={"crops": "center"}),
        }
    )


@dataclass(frozen=True)
class Candidate:
    """A possible answer: a run, or several fused runs."""

    name: str
    runs: list[RunPaths]
    test: ScoreTable
    rule: str
    weights: list[float]
    validated: float
    """top-1 on training videos that the networks were not trained on (held out by the folds or the holdout)"""
    videos: int
    """number of videos that `validated` is computed on"""


def candidate(name: str, runs: Sequence[RunPaths], rule: str) -> Candidate:
    """Fuse the test scores of runs, and validate the fusion on the validation videos that all runs have.

    The rule `learned` fits the weights on the validation scores; other rules weigh the runs equally.
    """
    tests, vals = ([read_scores(find_scores(run.root, part)) for run in runs] for part in ("test", "val"))
    vals = keep_common_videos(vals)
    if len(runs) == 1:
        test, weights, rule = tests[0], [1.0], "logits"
    else:
        test = fuse(tests, rule, fit=vals if rule == "learned" else None)
        weights = [float(weight) for weight in test.meta["weights"]]
    fused = combine([table.logits for table in vals], rule, weights)
    return Candidate(name, list(runs), test, rule, weights, main_value(fused, vals[0]), len(vals[0].ids))


def candidates(baseline: Sequence[RunPaths], networks: Sequence[RunPaths]) -> list[Candidate]:
    """Return the candidates: the baseline, the networks, and all of them fused."""
    found = [candidate("baseline", baseline, RULE)]
    if networks:
        found.append(candidate("networks", networks, "learned"))
        found.append(candidate("networks and baseline", [*networks, *baseline], "learned"))
    return found


def best_candidate(found: Sequence[Candidate]) -> Candidate:
    """Return the candidate with the highest validation accuracy (ties: the one with the fewest runs)."""
    return max(found, key=lambda one: (round(one.validated, 9), -len(one.runs)))
