"""The threshold of a run: a prediction whose probability is below it is shown as "none of these"."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from math import floor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from two_stream.errors import ScoreError
from two_stream.evaluation.scores.files import read_scores
from two_stream.evaluation.scores.fusion import fused_probabilities
from two_stream.evaluation.scores.metrics import video_sources
from two_stream.evaluation.scores.tables import join, name_of
from two_stream.runtime.files import write_json
from two_stream.runtime.text import parse_json
from two_stream.types import ScoreTable

NONE = "none of these"
FILE = "threshold.json"
"""name of the file in the run folder"""


@dataclass(frozen=True)
class Threshold:
    """A threshold, and how it was chosen."""

    value: float
    """least probability of the best class for which the class is shown"""
    false_alarms: float
    """largest expected fraction of videos for which a wrong class is shown"""
    shown: float
    """fraction of the holdout videos for which a class is shown"""
    kept: float
    """fraction of the correct predictions that are shown"""
    sources: int
    """number of sources of the holdout videos"""
    scores: str
    """score file of the holdout part, relative to the run folder if it is in there"""


def choose_threshold(chances_NK: NDArray[np.float64], table: ScoreTable, rate: float) -> Threshold:
    """Choose the smallest threshold with which a wrong class is shown for at most `rate` of all videos.

    The rate holds on average over holdout parts, for videos of new sources (conformal risk control, Angelopoulos et al.
    2022, arXiv 2208.02814): (G R + 1) / (G + 1) <= rate, where R is the mean over the G sources of the fraction of a
    source's videos for which a wrong class is shown.

    Args:
        chances_NK: Probabilities of the classes.
        table: Holdout scores of the same videos, for labels and sources.
        rate: The rate, between 0 and 1.

    Raises:
        ScoreError: The data set is multi-label, or the holdout part has too few sources for this rate.
    """
    if table.targets is not None:
        raise ScoreError(
            f"{name_of(table)}: a threshold needs one class per video, but this data set is multi-label"
        )
    unit, _ = video_sources(table)
    sources = int(unit.max()) + 1
    if not 0 < rate < 1 or floor(rate * (sources + 1) + 1e-9) < 1:
        raise ScoreError(
            f"--false-alarms is {rate:g}: expected a rate below 1, and at least {1 / (sources + 1):.3g}, which is the "
            f"smallest rate that {sources} holdout sources allow"
        )
    best, right = chances_NK.max(axis=1), chances_NK.argmax(axis=1) == table.labels
    order = np.argsort(-best, kind="stable")
    loss = np.cumsum(
        np.where(right, 0.0, 1.0 / np.bincount(unit)[unit])[order]
    )  # the G R of showing this many videos
    over = np.flatnonzero((loss + 1) / (sources + 1) > rate + 1e-9)
    value = float(np.nextafter(best[order[over[0]]], 2)) if over.size else 0.0
    shown = best >= value
    kept = float(shown[right].mean()) if right.any() else 0.0
    return Threshold(value, rate, float(shown.mean()), kept, sources, name_of(table))


def write_threshold(run: Path, table: ScoreTable, rate: float) -> Threshold:
    """Choose a threshold on holdout scores of a run (see `choose_threshold`), and write it to the run folder."""
    found = choose_threshold(fused_probabilities([table.logits]), table, rate)
    path = Path(found.scores).resolve()
    inside = path.is_relative_to(run.resolve())
    scores = path.relative_to(run.resolve()).as_posix() if inside else str(path)
    write_json(run / FILE, asdict(found) | {"scores": scores, "model_sha256": table.meta.get("model_sha256")})
    return found


def read_threshold(runs: Sequence[tuple[Path, str]], rule: str, weights: Sequence[float] | None) -> float:
    """Return the threshold for the predictions of runs; 0 if a run has none.

    For several runs, the threshold is chosen on their fused holdout scores, with the smallest of their rates.

    Args:
        runs: Folder of each run, and the checksum of its weights.
        rule: Rule of the fusion.
        weights: Weights of the fusion.

    Raises:
        ScoreError: A file is damaged or was chosen for other weights, or the holdout scores of the runs are missing or
            of different videos.
    """
    paths = [run / FILE for run, _ in runs]
    if not all(path.is_file() for path in paths):
        return 0.0
    found: list[dict[str, Any]] = []
    for path, (run, model) in zip(paths, runs):
        problem = "chosen for other weights"
        with suppress(KeyError, TypeError, ValueError):
            facts = parse_json(path.read_bytes())
            found.append(
                {key: float(facts[key]) for key in ("value", "false_alarms")} | {"scores": facts["scores"]}
            )
            problem = "" if facts["model_sha256"] in (None, model) else problem
        if problem:
            again = f"two-stream evaluate {shlex.quote(str(run))} --part val --false-alarms RATE"
            raise ScoreError(f"{path}: damaged, or {problem}; write it again with `{again}`")
    if len(found) == 1:
        return float(found[0]["value"])
    tables = join([read_scores(run / one["scores"], part="val") for (run, _), one in zip(runs, found)])
    chances = fused_probabilities([table.logits for table in tables], rule, weights)
    return choose_threshold(chances, tables[0], min(one["false_alarms"] for one in found)).value


def mark_none(guesses: Sequence[tuple[str, float]], threshold: float) -> list[tuple[str, float]]:
    """Put "none of these" before the best classes if the probability of the best one is below the threshold."""
    if not guesses or guesses[0][1] >= threshold:
        return list(guesses)
    return [(f"{NONE} (below {100 * threshold:.0f} %)", guesses[0][1]), *guesses]
