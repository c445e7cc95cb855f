"""Result files of Efficient-3DCNNs and 3D-ResNets (`val.json`): writing them from score tables and evaluating them.

The format `{"results": {video: [{"label": …, "score": …}, …]}}` contains the best classes of each video by mean softmax
over its clips. With `--inference_no_average`, 3D-ResNets writes a list for each clip: `[{"segment": [first, end],
"result": […]}, …]`. The original code loses the last video of a file and fails if a class does not occur. Two-stream
writes every video; a video of the ground truth without a result counts as a mistake and is reported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from two_stream.errors import DataError, ScoreError, SettingsError
from two_stream.evaluation.scores.metrics import probabilities
from two_stream.runtime.text import parse_json
from two_stream.types import ScoreTable

Guesses = list[tuple[str, float]]
"""pairs `(class, score)`, the best class first"""


@dataclass(frozen=True)
class EvaluatedFile:
    """Accuracies of a result file."""

    videos: int
    """number of videos that the ground truth lists"""
    unseen: tuple[str, ...]
    """videos of the ground truth without a result"""
    unlisted: tuple[str, ...]
    """videos with a result that the ground truth does not list; they are not counted"""
    top: dict[int, float]
    """for each k, the fraction of counted videos with a true class among the k best classes"""
    counted: int
    """number of counted videos: all videos of the ground truth, or only those with a result"""


def results_of(table: ScoreTable, count: int = 5) -> dict[str, Any]:
    """Return the content of a result file for a table, with the `count` best classes of each video.

    Scores are the softmax of the table's logits (the sigmoid for a multi-label table). If the table was scored with
    `aggregate: probabilities`, the scores are the mean softmax over clips, as published.
    """
    shares = probabilities(table.logits, multi_label=table.targets is not None)
    named = zip(table.ids, shares)
    return {"results": {video: best_classes(row, table.class_names, count) for video, row in named}}


def best_classes(
    probabilities_K: NDArray[np.float64], names: Sequence[str], count: int
) -> list[dict[str, Any]]:
    """Return the best classes in the format of result files, `[{"label": …, "score": …}, …]`."""
    order = np.argsort(-probabilities_K, kind="stable")[:count]
    return [{"label": names[index], "score": float(probabilities_K[index])} for index in order]


def read_results(path: Path) -> dict[str, Guesses]:
    """Read a result file. Scores of clips are averaged; a class that a clip does not list has score 0 in this clip.

    Raises:
        ScoreError: The file is missing, not JSON or in a different format.
    """
    found = _read(path, ScoreError)
    results = found.get("results") if isinstance(found, dict) else None
    if not isinstance(results, dict):
        raise ScoreError(f'{path}: expected {{"results": {{video: [{{"label", "score"}}, …]}}}}')
    return {str(video): _guesses(entries, f"{path}: results.{video}") for video, entries in results.items()}


def _guesses(entries: Any, where: str) -> Guesses:
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ScoreError(f"{where}: expected a list of objects with `label` and `score`")
    per_clip = [entry["result"] for entry in entries if "segment" in entry and "result" in entry]
    if per_clip and len(per_clip) < len(entries):
        raise ScoreError(
            f"{where}: entries with `segment` (clips) and entries with `label` (classes) are mixed; "
            "expected only one kind"
        )
    sums: dict[str, float] = {}
    for clip in per_clip or [entries]:
        for entry in clip:
            try:
                label, score = str(entry["label"]), float(entry["score"])
            except (KeyError, TypeError, ValueError):
                raise ScoreError(f"{where}: {entry!r}: expected `label` and a number `score`") from None
            sums[label] = sums.get(label, 0.0) + score
    clips = max(1, len(per_clip))
    return sorted(((label, total / clips) for label, total in sums.items()), key=lambda guess: -guess[1])


def read_truth(path: Path, subset: str | None = "validation") -> dict[str, tuple[str, ...]]:
    """Return the classes of the videos of a subset (None: of all videos) in an annotation file of the two codebases.

    The format is `{"labels": […], "database": {video: {"subset": …, "annotations": {"label": …}}}}`. The Kinetics files
    of Efficient-3DCNNs have a database for each subset. If `annotations` is a list, as in ActivityNet, a video has
    several classes.

    Raises:
        DataError: The file is missing, not JSON or in a different format, or contains no video of the subset.
    """
    found = _read(path, DataError)
    database = found.get("database") if isinstance(found, dict) else None
    if not isinstance(database, dict):
        raise DataError(f'{path}: expected {{"labels": […], "database": {{video: {{"subset", …}}}}}}')
    nested = [one for one in database.values() if isinstance(one, dict) and "subset" not in one]
    if subset is None and len(nested) == len(database):
        database = {video: entry for one in nested for video, entry in one.items()}
    elif subset is not None and isinstance(database.get(subset), dict) and "subset" not in database[subset]:
        database = database[subset]
    truth = {}
    for video, entry in database.items():
        if not isinstance(entry, dict) or "subset" not in entry:
            raise DataError(
                f"{path}: database.{video}: `subset` is missing; expected a subset for every video"
            )
        if subset in (None, entry["subset"]):
            truth[str(video)] = _labels(entry.get("annotations"), f"{path}: database.{video}")
    if not truth:
        raise DataError(f"{path}: no video of subset {subset!r}; use another --subset")
    return truth


def _labels(annotations: Any, where: str) -> tuple[str, ...]:
    several = annotations if isinstance(annotations, list) else [annotations]
    try:
        return tuple(dict.fromkeys(str(one["label"]) for one in several))
    except (KeyError, TypeError):
        raise DataError(f"{where}: expected `annotations` with a `label`") from None


def evaluate_results(
    results: Mapping[str, Guesses],
    truth: Mapping[str, Sequence[str]],
    top: Sequence[int] = (1, 5),
    *,
    ignore_unseen: bool = False,
) -> EvaluatedFile:
    """Return hit@k of a result file: the fraction of videos with a true class among the k best classes.

    Videos of the ground truth without a result count as mistakes; if `ignore_unseen` is true, they are left out (as
    with `--ignore` of 3D-ResNets).

    Raises:
        SettingsError: A k is below 1.
        ScoreError: No listed video has a result, usually because video names differ.
    """
    if not top or min(top) < 1:
        raise SettingsError(f"--top is {' '.join(map(str, top))}; expected numbers of 1 or more")
    seen = [video for video in truth if video in results]
    if not seen:
        some = f"such as {next(iter(results))!r}" if results else "none"
        raise ScoreError(
            "no video of the ground truth has a result: the ground truth lists videos such as "
            f"{next(iter(truth))!r}, the result file {some}; use the same video names in both"
        )
    counted = seen if ignore_unseen else list(truth)
    hits = dict.fromkeys(top, 0)
    for video in counted:
        guesses = [label for label, _ in results.get(video, [])]
        for k in top:
            hits[k] += any(label in truth[video] for label in guesses[:k])
    unseen = tuple(video for video in truth if video not in results)
    unlisted = tuple(video for video in results if video not in truth)
    shares = {k: found / len(counted) for k, found in hits.items()}
    return EvaluatedFile(len(truth), unseen, unlisted, shares, len(counted))


def _read(path: Path, error: type[DataError] | type[ScoreError]) -> Any:
    try:
        return parse_json(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise error(f"{path}: no such file; check the path") from None
    except (OSError, ValueError) as failure:
        raise error(f"{path}: not a JSON file ({failure}); expected JSON") from None
