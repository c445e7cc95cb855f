"""The recipe for a data set, and the choice between its trained networks and the baseline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from two_stream.config.load import read_yaml, shipped, validate_settings
from two_stream.config.schema import Experiment
from two_stream.evaluation.runs.lookup import history, settings_of
from two_stream.evaluation.scores.files import find_scores, read_scores
from two_stream.evaluation.scores.fusion import combine, fuse
from two_stream.evaluation.scores.metrics import main_value
from two_stream.evaluation.scores.tables import keep_common_videos
from two_stream.runtime.device import pick_device
from two_stream.studies.baseline import RULE
from two_stream.studies.running.plan import merge_settings, nest_settings
from two_stream.types import Modality, RunPaths, ScoreTable

RECIPES = "own_videos_{modality}{machine}.yaml"
_OVERHEAD = 1.3
"""factor on the duration of a pass that allows for reading, cross-validation and the start of the run"""
_FEWEST_EPOCHS = 5
"""least number of epochs; networks trained for fewer epochs are worse than the baseline"""


def recipe(modality: Modality, settings_root: Path, device: str) -> Path:
    """Return the experiment file for a device.

    On a GPU the recipe trains the whole network, otherwise only the last layer. A file below `settings_root` replaces
    the one that comes with the package.
    """
    name = RECIPES.format(modality=modality, machine="" if pick_device(device).type == "cpu" else "_gpu")
    own = settings_root / "experiments" / name
    return own if own.is_file() else shipped("settings") / "experiments" / name


def recipe_experiment(path: Path, changes: dict[str, Any], name: str, runs: Path) -> Experiment:
    """Return the settings of a recipe with changes, such as the data set."""
    settings = merge_settings(read_yaml(path), nest_settings(changes))
    return validate_settings(Experiment, settings | {"name": name, "runs": str(runs)}, path)


def pass_seconds(experiment: Experiment, baseline: RunPaths, videos: int) -> float:
    """Estimate the seconds that a recipe's network takes for one view of each video; 0 if unknown.

    The estimate is based on the speed of a finished baseline run of the same modality.
    """
    rows = history(baseline)
    pace = rows[-1].get("clips_per_second", 0.0) if rows else 0.0
    seen = settings_of(baseline)
    if not pace or seen is None:
        return 0.0
    images = (one.model.input.clip_length or 16 for one in (experiment, seen))
    return _OVERHEAD * videos / pace * next(images) / next(images)


def fit_to_time(experiment: Experiment, one_pass: float, seconds: float) -> Experiment | None:
    """Reduce a recipe so that it takes at most the given seconds; None if that is not possible.

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
    """A run or a fusion of several runs that may be chosen as the result."""

    name: str
    runs: list[RunPaths]
    test: ScoreTable
    rule: str
    weights: list[float]
    validated: float
    """top-1 accuracy on held-out training videos (the cross-validation folds or the holdout part)"""
    videos: int
    """number of videos that the accuracy `validated` is computed on"""


def candidate(name: str, runs: Sequence[RunPaths], rule: str) -> Candidate:
    """Fuse the test scores of runs, and compute the fusion's accuracy on the validation videos that all runs share.

    The rule `learned` fits the weights on the validation scores. All other rules weight the runs equally.
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
    """Return the candidate with the highest validation accuracy. Ties are broken by the smaller number of runs."""
    return max(found, key=lambda one: (round(one.validated, 9), -len(one.runs)))
