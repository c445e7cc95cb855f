"""May score files be compared? And what the statistics need of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from two_stream.config.load import dump
from two_stream.errors import ScoreError
from two_stream.evaluation.runs.lookup import history
from two_stream.evaluation.scores.files import newest_scores, read_scores
from two_stream.evaluation.scores.metrics import main_value
from two_stream.studies.statistics.panel import seeds_by_split
from two_stream.studies.statistics.results import RunRow
from two_stream.studies.statistics.scored import ScoredRun, varied
from two_stream.studies.statistics.summary import VariantRuns
from two_stream.types import ScoreTable

DATA_KEYS = ("dataset", "part")
PROTOCOL_KEYS = (
    *("views", "num_clips", "step", "crops", "aggregate", "sampling", "frame_order", "selection"),
)
"""What of a score file's meta must agree before two accuracies may stand side by side."""


def differences(variants: Mapping[str, Sequence[ScoredRun]]) -> list[str]:
    """Return what keeps variants from being compared, one line each that names the difference and the files."""
    every = [item for members in variants.values() for item in members]
    found = []
    for key in (*DATA_KEYS, *PROTOCOL_KEYS):
        values: dict[str, ScoredRun] = {}
        for item in every:
            values.setdefault(stated_fact(item.table.meta, key), item)
        if len(values) > 1:
            told = ", ".join(f"{value} ({item.file})" for value, item in values.items())
            found.append(f"different {_WORDS.get(key, key)}: {told}")
    splits = {name: _splits(members) for name, members in variants.items()}
    if len({tuple(numbers) for numbers in splits.values()}) > 1:
        told = ", ".join(
            f"{name} {' and '.join(map(str, numbers))} ({variants[name][0].file})"
            for name, numbers in splits.items()
        )
        found.append(f"different splits: {told}")
    return found


_WORDS = {
    "dataset": "data sets",
    "part": "parts",
    "views": "views",
    "num_clips": "numbers of clips",
    "step": "steps between clips",
    "crops": "crops",
    "aggregate": "aggregation over views",
    "sampling": "frame choice",
    "frame_order": "frame order",
    "selection": "selection of the checkpoint",
}


def protocol_key(item: ScoredRun) -> str:
    """Return the same text for score files of one board, splits left aside."""
    return json.dumps(
        [stated_fact(item.table.meta, key) for key in (*DATA_KEYS, *PROTOCOL_KEYS, "precision")]
    )


def stated_fact(meta: Mapping[str, Any], key: str) -> str:
    """Return a fact of a score file; a fusion that does not say it itself has that of its streams."""
    if key in meta or not meta.get("sources"):
        return str(meta.get(key))
    return " / ".join(dict.fromkeys(stated_fact(source, key) for source in meta["sources"]))


def check_comparable(variants: Mapping[str, Sequence[ScoredRun]], *, anyway: bool = False) -> list[str]:
    """Return notes on differences that `anyway` lets pass.

    Raises:
        ScoreError: Data set, part, splits or protocol differ and `anyway` is false. One line names the difference and
            the files.
    """
    found = differences(variants)
    if found and not anyway:
        raise ScoreError(
            f"{'; '.join(found)}; such accuracies cannot be compared: evaluate the runs alike, "
            "or compare them all the same with --anyway"
        )
    return [f"Compared all the same, in spite of {line}." for line in found]


def as_variants(groups: Mapping[str, Sequence[ScoredRun]], *, fit: bool = False) -> list[VariantRuns]:
    """Return what the statistics need of each variant.

    Args:
        groups: From `grouped`.
        fit: Also read the newest holdout scores of each run.

    Raises:
        ScoreError: With `fit`, a run that has no scores of the holdout part, or a file without a run.
    """
    made = []
    for name, members in groups.items():
        histories = {
            f"split {item.cell[0]}, seed {item.cell[1]}": history(item.run)
            for item in members
            if item.run is not None
        }
        experiment = members[0].experiment
        made.append(
            VariantRuns(
                name=name,
                levels={"variant": name},
                changes=_changes(groups, name),
                tables={item.cell: item.table for item in members},
                histories={cell: rows for cell, rows in histories.items() if rows},
                settings=dump(experiment) if experiment is not None else "",
                holdout={item.cell: _holdout(item) for item in members} if fit else {},
            )
        )
    return made


def run_rows(groups: Mapping[str, Sequence[ScoredRun]]) -> list[RunRow]:
    """Return the list of runs as a report shows it."""
    return [
        RunRow(
            variant=name,
            split=item.cell[0],
            seed=item.cell[1],
            state="done",
            run=str(item.run.root) if item.run is not None else "",
            accuracy=main_value(item.table.logits, item.table),
            scores=item.file,
            model_sha256=str(item.table.meta.get("model_sha256") or ""),
        )
        for name, members in groups.items()
        for item in members
    ]


def _changes(groups: Mapping[str, Sequence[ScoredRun]], name: str) -> dict[str, Any]:
    """Return the settings of a variant in which the variants differ."""
    settings = {
        other: varied(members[0].experiment)
        for other, members in groups.items()
        if members[0].experiment is not None
    }
    if name not in settings or len(settings) < 2:
        return {}
    return {
        key: value
        for key, value in settings[name].items()
        if any(other.get(key) != value for other in settings.values())
    }


def _holdout(item: ScoredRun) -> ScoreTable:
    if item.run is None:
        raise ScoreError(
            f"{item.file}: not in a run folder, so its holdout scores are unknown; leave --fit out"
        )
    return read_scores(newest_scores(item.run.root, "val"))


def _splits(members: Sequence[ScoredRun]) -> list[int]:
    return sorted(seeds_by_split([item.cell for item in members]))
