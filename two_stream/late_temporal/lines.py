"""What the published evaluators print, word for word where it is a result, and our own table below it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from two_stream.evaluation.scores import words
from two_stream.evaluation.scores.metrics import confusion_matrix
from two_stream.runtime.console import console, say, table
from two_stream.types import ScoreTable


def published_lines(made: ScoreTable, places: Sequence[str], seconds: float, how: tuple[str, str]) -> None:
    """Print the lines that the published evaluators print.

    Args:
        made: The scores.
        places: Where the checkpoints lie.
        seconds: Mean time of a video; the published lines give each video's too.
        how: Views (`multi` or `single`) and crops.
    """
    order = np.argsort(-made.logits, axis=1, kind="stable")
    count = len(made.ids)
    for row, (label, found) in enumerate(zip(made.labels.tolist(), order[:, 0].tolist(), strict=True), 1):
        say(f"Sample {row}/{count}: GT: {label}, Prediction: {found}")
    seen = np.union1d(made.labels, order[:, 0])
    say(str(confusion_matrix(made.logits, made.labels)[np.ix_(seen, seen)]))
    hits = order[:, :3] == made.labels[:, None]
    say(f"Accuracy with mean calculation is {hits[:, 0].mean():.4f}")
    say(f"top3 accuracy {hits.any(1).mean():.4f}")
    for place in places:
        say(place)
    say(f"Mean Estimated Time {seconds:.4f}")
    say("multiple clips" if how[0] == "multi" else "one clips")
    say("10 crops" if how[1] == "ten" else "single crop")


def our_table(made: Sequence[ScoreTable], paths: Sequence[Path]) -> None:
    """Print our own table: intervals, protocol, how the checkpoint was picked, where the scores are."""
    found = words.lines(made)
    console.print(table("accuracy in %", words.COLUMNS, words.rows(found)))
    say(words.protocol_line(made[-1].meta, found[-1].summary))
    if made[-1].meta.get("selection") == "paper":
        say(words.PAPER_WARNING)
    for path in paths:
        say(f"scores: {path}")
