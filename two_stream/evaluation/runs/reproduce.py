"""Scores a part again under the protocol of a stored score file, and compares the two."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from two_stream.config.load import validate_settings
from two_stream.config.schema import EvaluateOptions
from two_stream.errors import ScoreError
from two_stream.evaluation.runs.publish import HASHED, hash_names
from two_stream.evaluation.runs.run import HELD_OUT, Run, evaluate_run
from two_stream.evaluation.scores.files import read_scores
from two_stream.evaluation.scores.metrics import summarise
from two_stream.evaluation.scores.statistics import Interval
from two_stream.runtime.device import set_deterministic, set_threads
from two_stream.runtime.text import plural
from two_stream.types import ScoreTable

EQUAL, WITHIN, DIFFERENT = "equal bit for bit", "within the interval", "different"
_VIEWS = ("views", "num_clips", "step", "crops", "aggregate")
_OPTIONS = {key: key for key in (*_VIEWS, "precision", "batch_views")}
_OPTIONS |= {"fold": "folded", "compile": "compiled"}
"""evaluation options, and their keys in the metadata of score files"""
_FRAMES = ("sampling", "frame_order", "clip_length", "stride", "fps", "resize", "crop")
_PROTOCOL = (*_VIEWS, *_FRAMES, "source", "flow_algorithm", "views_per_video")
"""facts on the protocol and the frames: if they differ, the two results cannot be compared"""
_FACTS = (*_OPTIONS.values(), "decoder", "device", "threads", "processes", "code_version")


@dataclass(frozen=True)
class Reproduction:
    """Result of scoring again."""

    verdict: str
    why: list[str]
    """reasons if the verdict is `different`"""
    scores: str
    """the stored score file"""
    metric: str = "top-1"
    then: Interval | None = None
    """the stored value with its interval"""
    now: float | None = None
    videos: int = 0
    """number of videos that both results contain"""
    changed: int = 0
    """number of these videos whose prediction differs"""
    largest: float = 0.0
    """largest absolute difference between two scores"""
    facts: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    """what differs in how the scores were computed: values then and now"""

    def __str__(self) -> str:
        """Return the result on one line."""
        if self.then is None:
            return f"{self.verdict}: {'; '.join(self.why)}"
        values = f"{self.metric} {100 * self.then.value:.1f} % then, {100 * (self.now or 0):.1f} % now"
        if self.verdict == EQUAL:
            return f"{self.verdict}: all scores of {plural(self.videos, 'video')}; {values}"
        told = f"{self.changed} of {plural(self.videos, 'prediction')} differ, largest difference {self.largest:.2g}"
        return f"{self.verdict}: {'; '.join([*self.why, f'{told}; {values}'])}"


def read_stored(path: Path) -> ScoreTable:
    """Read a score file that can be reproduced.

    Raises:
        ScoreError: It is not of one run, or not of a protocol that `two-stream evaluate` has.
    """
    stored = read_scores(path)
    missing = [
        key for key in ("part", "views", "crops", "aggregate", "precision") if stored.meta.get(key) is None
    ]
    if missing or stored.meta.get("kind") == "fused" or path.name == HELD_OUT:
        raise ScoreError(
            f"{path}: cannot be reproduced, because it is not a score file that `two-stream evaluate` wrote for one "
            "run; choose another one with --scores"
        )
    return stored


def reproduce(
    run: Run, stored: ScoreTable, changes: Mapping[str, Any], workers: int | None = None
) -> Reproduction:
    """Score the part of a stored score file again, and compare; nothing is written.

    Args:
        run: The run.
        stored: Read with `read_stored`.
        changes: Evaluation options that differ from the stored ones, such as `{"precision": "bf16"}`.
        workers: Number of loader processes; by default as in the run's settings.
    """
    meta = stored.meta
    if meta["part"] == "val" and run.experiment.train.selection == "folds":
        raise ScoreError(
            f"{meta['file']}: scores of `train.selection: folds` cannot be reproduced; choose a test file"
        )
    given = {key: meta[name] for key, name in _OPTIONS.items() if meta.get(name) is not None}
    given |= {"keep_views": False, **changes}
    options = validate_settings(
        EvaluateOptions, run.experiment.evaluate.model_dump() | given, str(meta["file"])
    )
    set_threads(int(meta.get("threads") or 0))
    set_deterministic(run.experiment.deterministic, run.model.device)
    uncached = meta.get("source") != "features"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "again.npz")
        table, _ = evaluate_run(run, options, meta["part"], workers=workers, out=out, uncached=uncached)
    return compare_again(stored, hash_names(table) if meta.get("ids") == HASHED else table)


def compare_again(stored: ScoreTable, again: ScoreTable) -> Reproduction:
    """Compare stored scores with those of another evaluation of the same part."""
    why = _reasons(stored, again)
    places = {name: place for place, name in enumerate(again.ids)}
    common = [place for place, name in enumerate(stored.ids) if name in places]
    before, after = stored.logits[common], again.logits[[places[stored.ids[place]] for place in common]]
    same_shape = before.shape == after.shape and len(common) > 0
    equal = not why and np.array_equal(before, after)
    changed = int((before.argmax(axis=1) != after.argmax(axis=1)).sum()) if same_shape else 0
    summary, now = summarise(stored), summarise(again).main.value
    then = summary.main
    metric = "mAP" if summary.map is not None else "top-1"
    if not why and not equal:
        if not np.isfinite(after).all():
            why.append("scores are not finite now")
        elif not then.known and changed:
            why.append(f"the stored {metric} has no interval, because there are too few sources")
        elif then.known and not then.low <= now <= then.high:
            why.append(
                f"{metric} is now outside of the interval {100 * then.low:.1f} to {100 * then.high:.1f} %"
            )
    return Reproduction(
        EQUAL if equal else DIFFERENT if why else WITHIN,
        why,
        str(stored.meta["file"]),
        metric,
        then,
        now,
        len(common),
        changed,
        float(np.abs(before - after).max()) if same_shape else 0.0,
        _changed_facts(stored.meta, again.meta),
    )


def _reasons(stored: ScoreTable, again: ScoreTable) -> list[str]:
    """Return why two results are not of the same network on the same data; empty if they are."""
    why = []
    if stored.meta.get("model_sha256") != again.meta.get("model_sha256"):
        why.append("the weights are not those of the score file")
    if stored.class_names != again.class_names:
        why.append("the classes differ")
    gone, new = set(stored.ids) - set(again.ids), set(again.ids) - set(stored.ids)
    if gone or new:
        why.append(f"the videos differ ({len(gone)} are missing now, {len(new)} are new)")
    labels = dict(zip(again.ids, _labels(again)))
    other = sum(labels.get(name, own) != own for name, own in zip(stored.ids, _labels(stored)))
    if other:
        why.append(f"the labels of {plural(other, 'video')} differ")
    known = [key for key in _PROTOCOL if key in stored.meta]
    pairs = ((key.replace("_", " "), stored.meta[key], again.meta.get(key)) for key in known)
    return why + [f"{key}: {then} then, {now} now" for key, then, now in pairs if then != now]


def _labels(table: ScoreTable) -> list[Any]:
    return list(table.labels if table.targets is None else map(tuple, table.targets.tolist()))


def _changed_facts(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    def facts(meta: Mapping[str, Any]) -> dict[str, Any]:
        own = {key.replace("_", " "): meta.get(key) for key in _FACTS}
        own |= {"weights": str(meta.get("model_sha256"))[:12]}
        own |= {"stored features": str((meta.get("features") or {}).get("content_sha256"))[:12]}
        known = meta.get("environment") or {}
        return own | {key: value for key, value in known.items() if key != "two-stream"}

    then, now = facts(before), facts(after)
    return {key: (then.get(key), now.get(key)) for key in {**then, **now} if then.get(key) != now.get(key)}
