"""The table of a scored run: logits, labels, sources, and how they were made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from two_stream.config.schema import Experiment
from two_stream.data.catalog import Record, mirror_of
from two_stream.errors import ScoreError
from two_stream.evaluation.runs.facts import scoring_facts
from two_stream.evaluation.scoring.score import VideoScores
from two_stream.runtime import distributed
from two_stream.runtime.console import warn
from two_stream.types import Part, ScoreTable, VideoRecord

if TYPE_CHECKING:
    from two_stream.evaluation.runs.any_run import AnyRun


def score_table(
    run: AnyRun[Any],
    experiment: Experiment,
    part: Part,
    records: Sequence[VideoRecord],
    scores: VideoScores,
    *,
    reasons: dict[str, str],
    facts: dict[str, Any],
) -> ScoreTable:
    """Put the scores of a run into a table that says how they were made.

    Args:
        run: Which network.
        experiment: Settings as they were carried out.
        part: Part of the data set.
        records: Its videos.
        scores: Of those that could be read.
        reasons: Why the others could not, by id.
        facts: What to say beside the usual, or in its place.

    Raises:
        ScoreError: No video could be read.
    """
    scored = set(scores.ids)
    if not distributed.is_main():  # its share of the videos; the rest are another's, not unreadable
        records = [record for record in records if record.id in scored or record.id in reasons]
    skipped = [record.id for record in records if record.id not in scored]
    if skipped:
        first = f"{skipped[0]} ({reasons.get(skipped[0], 'unreadable')})"
        warn(f"{len(skipped)} of {len(records)} videos could not be read and are not scored: {first}, …")
    if not scored and distributed.is_main():
        raise ScoreError(
            f"{run.source}: none of the {len(records)} videos could be read; see `two-stream check`"
        )
    groups = {record.id: record.group for record in records}
    return ScoreTable(
        ids=scores.ids,
        labels=scores.labels,
        class_names=run.class_names,
        logits=scores.logits,
        meta={
            **_meta(run, experiment, part, skipped, reasons),
            **facts,
            "views_per_video": float(scores.counts.mean()) if len(scores.counts) else None,
        },
        view_logits=scores.view_logits,
        view_counts=scores.counts if scores.view_logits is not None else None,
        groups=[groups[name] for name in scores.ids] if any(groups.values()) else None,
        targets=_targets(run.record, records, scores.ids) if run.record.multi_label else None,
    )


def _targets(record: Record, records: Sequence[VideoRecord], ids: Sequence[str]) -> NDArray[np.bool_]:
    """Return every class of each scored video, `(N, K)`."""
    labels = {video.id: video.all_labels for video in records}
    targets_NK = np.zeros((len(ids), record.num_classes), np.bool_)
    for row, name in enumerate(ids):
        targets_NK[row, list(labels[name])] = True
    return targets_NK


def _meta(
    run: AnyRun[Any], experiment: Experiment, part: Part, skipped: list[str], reasons: dict[str, str]
) -> dict[str, Any]:
    return {
        "run": str(run.paths.root),
        "name": experiment.name,
        "checkpoint": run.checkpoint,
        "epoch": run.meta.get("epoch"),
        "model_sha256": run.model_sha256,
        "dataset": run.record.name,
        "split": experiment.data.split,
        "part": part,
        "selection": experiment.train.selection,
        "skipped": skipped,
        "skipped_reasons": {name: reasons[name] for name in skipped if name in reasons},
        **scoring_facts(experiment, run.model, mirror_of(run.record, experiment.data.augment.protocol)),
    }
