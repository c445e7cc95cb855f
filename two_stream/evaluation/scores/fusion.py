"""Late fusion: two or more score tables of the same videos become one.

Fixed rules need no data. Weights may be given, or fitted on the score files of the *holdout* part only: a table of the
test part is refused as fitting data, and so is one made by another model than the one that is fused.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, log_expit, log_softmax, softmax
from scipy.stats import rankdata

from two_stream.errors import ScoreError
from two_stream.evaluation.scores.files import join, name_of
from two_stream.evaluation.scores.metrics import main_value
from two_stream.types import ScoreTable

Rule = Literal["l2", "logits", "probabilities", "rank", "learned"]
RULES: tuple[str, ...] = get_args(Rule)

_RIDGE = 1e-3
"""Pull on the learned weights; keeps them finite where the holdout is separated perfectly."""
_ALL_COMBINATIONS = 4
"""Streams up to which every combination of weights is tried."""
_ROUNDS = 20
"""Rounds of the greedy selection of more streams."""
_ROUND = 12
"""Decimals at which two accuracies count as equal when a weight is chosen."""


@dataclass(frozen=True)
class Curve:
    """Top-1, or mAP of a multi-label set, over the share of the first of two streams."""

    rule: str
    names: tuple[str, str]
    shares: list[float]
    """share w of the first stream; the second has 1 - w"""
    accuracies: list[float]
    chosen: float
    """share with the best accuracy; of several, the middle of the run nearest to 0.5"""
    accuracy: float
    """accuracy at `chosen`, on the data it was chosen on"""
    videos: int
    part: str
    metric: str = "top-1"


def fuse(
    tables: Sequence[ScoreTable],
    rule: str = "l2",
    weights: Sequence[float] | None = None,
    *,
    fit: Sequence[ScoreTable] | None = None,
) -> ScoreTable:
    """Fuse two or more score tables of the same videos, joined by id.

    Rules, with s_m the logits of stream m and w_m its weight (1 where none is given):
        l2: sum of w_m · s_m / ‖s_m‖₂ (the paper's, with equal weights).
        logits: sum of w_m · s_m.
        probabilities: log of the mean of softmax(s_m), weighted; of a multi-label set the logit of the mean of
            sigmoid(s_m).
        rank: sum of w_m · Borda points: K - 1 for a stream's best class, 0 for its worst, ties shared.
        learned: sum of w_m · s_m with w_m ≥ 0 minimising the cross-entropy on `fit` (logistic stacking); their common
            scale is the inverse of a temperature.

    Args:
        tables: Two or more tables.
        rule: One of `RULES`.
        weights: One weight per table, not negative, not all zero; not for `learned`.
        fit: One table of the holdout part per table, in any order. Needed by `learned`; with another rule its weights
            are searched there.

    Returns:
        A table in the order of the first; `meta["sources"]` lists how each stream was made. `meta["scale"]` is
        `ranking` for l2 and rank, whose scores order the classes but are no log-probabilities.

    Raises:
        ScoreError: Fewer than two tables, an unknown rule, unusable weights, tables that do not join, or fitting data
            that are not of the holdout part or of other models.
    """
    if rule not in RULES:
        raise ScoreError(f"unknown fusion rule {rule!r}; known: {', '.join(RULES)}")
    if len(tables) < 2:
        raise ScoreError(f"fusion needs two or more score tables, got {len(tables)}")
    joined = join(tables)
    fitted: dict[str, Any] = {}
    if weights is not None and (rule == "learned" or fit is not None):
        raise ScoreError("weights are either given or fitted on the holdout part; leave one of the two out")
    if rule == "learned" or fit is not None:
        used, fitted = _weights_from_holdout(joined, rule, fit)
    else:
        used = checked_weights(weights, len(joined))
    first = joined[0]
    logits = combine([table.logits for table in joined], rule, used, sigmoid=first.targets is not None)
    meta = _fused_meta(joined, rule, used, fitted)
    groups = next((table.groups for table in joined if table.groups is not None), None)
    return ScoreTable(
        first.ids, first.labels, first.class_names, logits, meta, groups=groups, targets=first.targets
    )


def combine(
    logits: Sequence[NDArray[np.float64]], rule: str, weights: Sequence[float], *, sigmoid: bool = False
) -> NDArray[np.float64]:
    """Fuse arrays `(N, K)` of matching rows by a rule other than fitting; `learned` is a weighted sum here.

    With `sigmoid` a probability is that of one class alone, as a multi-label set has them.
    """
    if rule == "probabilities" and sigmoid:
        chance, other = (
            sum(w * expit(sign * s) for w, s in zip(weights, logits)) / sum(weights) for sign in (1.0, -1.0)
        )
        tiny = np.finfo(np.float64).tiny
        return np.asarray(np.log(np.maximum(chance, tiny)) - np.log(np.maximum(other, tiny)))
    if rule == "probabilities":
        mean = sum(w * softmax(s, axis=1) for w, s in zip(weights, logits)) / sum(weights)
        return np.asarray(np.log(np.maximum(mean, np.finfo(np.float64).tiny)), dtype=np.float64)
    transform = {"l2": _unit_length, "rank": _borda}.get(rule, np.asarray)
    return np.asarray(sum(w * transform(s) for w, s in zip(weights, logits)), dtype=np.float64)


def weight_curve(first: ScoreTable, second: ScoreTable, rule: str = "l2", steps: int = 101) -> Curve:
    """Trace top-1 (mAP of a multi-label set) over the share of the first stream and choose the best share.

    Args:
        first: Scores of the holdout part.
        second: Scores of the same videos by the other stream.
        rule: Fixed rule; `learned` is traced as `logits`.
        steps: Points between 0 and 1, both included.

    Raises:
        ScoreError: The tables do not join, or are not of the holdout part.
    """
    for table in (first, second):
        _refuse_unless_holdout(table)
    rule = "logits" if rule == "learned" else rule
    one, two = join([first, second])
    shares = np.linspace(0.0, 1.0, steps)
    found = np.asarray([_judged([one, two], rule, (w, 1 - w)) for w in shares])
    best = _middle_of_best(found, shares)
    return Curve(
        rule=rule,
        names=(stream_name(one, 0), stream_name(two, 1)),
        shares=[float(w) for w in shares],
        accuracies=[float(a) for a in found],
        chosen=float(shares[best]),
        accuracy=float(found[best]),
        videos=len(one.ids),
        part=str(one.meta.get("part", "val")),
        metric="top-1" if one.targets is None else "mAP",
    )


def _judged(tables: Sequence[ScoreTable], rule: str, weights: Sequence[float]) -> float:
    """Return how good joined tables are when fused: top-1, or mAP of a multi-label set."""
    first = tables[0]
    fused = combine([table.logits for table in tables], rule, weights, sigmoid=first.targets is not None)
    return main_value(fused, first)


def stream_name(table: ScoreTable, index: int) -> str:
    """Return how tables and legends call a stream: its modality, else its place."""
    return str(table.meta.get("modality") or f"stream {index + 1}")


def fit_stacking(tables: Sequence[ScoreTable]) -> list[float]:
    """Return non-negative weights that minimise the mean cross-entropy of the weighted sum of joined tables' logits.

    The cross-entropy is binary, per class, where the tables are multi-label. Each stream is divided by its standard
    deviation first, so that the small ridge penalty treats them alike; the problem is convex. Weights are for the
    logits as given.
    """
    logits, labels, targets = [table.logits for table in tables], tables[0].labels, tables[0].targets
    scales = [float(s.std()) or 1.0 for s in logits]
    stacked = np.stack([s / scale for s, scale in zip(logits, scales)])
    rows = np.arange(len(labels))
    true = stacked[:, rows, labels]

    def loss(weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        total = np.tensordot(weights, stacked, axes=1)
        ridge = _RIDGE * float(weights @ weights)
        if targets is not None:
            value = -np.where(targets, log_expit(total), log_expit(-total)).mean() + ridge
            slope = (stacked * (expit(total) - targets)).mean(axis=(1, 2))
            return float(value), slope + 2 * _RIDGE * weights
        log_p = log_softmax(total, axis=1)
        expected = (stacked * np.exp(log_p)).sum(axis=2)
        value = -log_p[rows, labels].mean() + ridge
        return float(value), (expected - true).mean(axis=1) + 2 * _RIDGE * weights

    found = minimize(
        loss, np.ones(len(logits)), jac=True, method="L-BFGS-B", bounds=[(0.0, None)] * len(logits)
    )
    if not np.isfinite(found.x).all() or not found.x.sum() > 0:
        raise ScoreError("learned fusion: no stream helps on the holdout part; use a fixed rule such as l2")
    return [float(w / scale) for w, scale in zip(found.x, scales)]


def search_weights(tables: Sequence[ScoreTable], rule: str) -> list[float]:
    """Return the weights, summing to 1, of joined tables with the best top-1 (or mAP) under a fixed rule.

    Two streams: steps of 0.01. Three and four: steps of 0.1 over all combinations. Of equals the most even one is
    taken. More streams: greedy selection, see `_selected`.
    """
    if len(tables) == 2:
        shares = np.linspace(0.0, 1.0, 101)
        found = [_judged(tables, rule, (w, 1 - w)) for w in shares]
        share = float(shares[_middle_of_best(np.asarray(found), shares)])
        return [share, 1 - share]
    if len(tables) > _ALL_COMBINATIONS:
        return _selected(tables, rule)
    steps = 10
    grid = [point for point in itertools.product(range(steps + 1), repeat=len(tables)) if sum(point) == steps]
    scored = [(round(_judged(tables, rule, point), _ROUND), -max(point), point) for point in grid]
    return [share / steps for share in max(scored)[2]]


def _selected(tables: Sequence[ScoreTable], rule: str) -> list[float]:
    """Return weights by ensemble selection with replacement (Caruana et al. 2004).

    Of all streams once, each round adds one more unit of the stream that helps most (of equals the one with the
    least weight, then the first); the best round counts, of equals the earliest, which is the most even.
    """
    counts = [1] * len(tables)
    best = (round(_judged(tables, rule, counts), _ROUND), list(counts))
    for _ in range(_ROUNDS):
        tried = []
        for place in range(len(tables)):
            more = [count + (index == place) for index, count in enumerate(counts)]
            tried.append((round(_judged(tables, rule, more), _ROUND), -counts[place], -place))
        found = max(tried)
        counts[-found[2]] += 1
        if found[0] > best[0]:
            best = (found[0], list(counts))
    return [count / sum(best[1]) for count in best[1]]


def _middle_of_best(found: NDArray[np.float64], shares: NDArray[np.float64]) -> int:
    """Return the middle of a run of best values; of several runs, the one whose middle is nearest to 0.5."""
    best = np.flatnonzero(np.round(found, _ROUND) == np.round(found.max(), _ROUND))
    runs = np.split(best, np.flatnonzero(np.diff(best) > 1) + 1)
    middles = [int(run[len(run) // 2]) for run in runs]
    return min(middles, key=lambda index: abs(float(shares[index]) - 0.5))


def _unit_length(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    norms = np.linalg.norm(scores, axis=1, keepdims=True)
    return np.asarray(np.divide(scores, norms, out=np.zeros_like(scores), where=norms > 0), dtype=np.float64)


def _borda(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(rankdata(scores, method="average", axis=1) - 1.0, dtype=np.float64)


def checked_weights(weights: Sequence[float] | None, count: int) -> list[float]:
    """Return one weight per stream, equal ones where none are given.

    Raises:
        ScoreError: Too few or too many, a negative or infinite one, or all are 0.
    """
    if weights is None:
        return [1.0] * count
    values = [float(w) for w in weights]
    if len(values) != count:
        raise ScoreError(f"{len(values)} weights for {count} score tables; give one each")
    if not all(np.isfinite(w) and w >= 0 for w in values) or sum(values) <= 0:
        raise ScoreError(f"weights {values}: expected finite values of 0 or more, not all 0")
    return values


def _weights_from_holdout(
    tables: Sequence[ScoreTable], rule: str, fit: Sequence[ScoreTable] | None
) -> tuple[list[float], dict[str, Any]]:
    if not fit:
        raise ScoreError(
            f"fusion rule {rule!r} is fitted on the holdout part: give its score files"
            " (made by `two-stream evaluate RUN --part val`)"
        )
    for table in fit:
        _refuse_unless_holdout(table)
    matched = join(match_fit(tables, fit))
    shared = sorted(set(tables[0].ids) & set(matched[0].ids))
    if shared:
        raise ScoreError(
            f"{name_of(matched[0])}: video {shared[0]!r} is both fitted on and fused; use the holdout part"
        )
    if matched[0].class_names != tables[0].class_names:
        raise ScoreError(f"{name_of(matched[0])}: class names differ from {name_of(tables[0])}")
    weights = fit_stacking(matched) if rule == "learned" else search_weights(matched, rule)
    facts: dict[str, Any] = {
        "fitted_on": [name_of(table) for table in matched],
        "fitted_part": "val",
        "fitted_videos": len(matched[0].ids),
    }
    if rule == "learned":
        facts["temperature"] = 1.0 / sum(weights)
    return weights, facts


def match_fit(tables: Sequence[ScoreTable], fit: Sequence[ScoreTable]) -> list[ScoreTable]:
    """Return the fitting table of each table, found by model hash, else by stream, else by place.

    Raises:
        ScoreError: A table has no counterpart.
    """
    if len(fit) != len(tables):
        raise ScoreError(f"{len(fit)} holdout score files for {len(tables)} streams; give one each")
    for key in ("model_sha256", "modality"):
        ours = [table.meta.get(key) for table in tables]
        theirs = {table.meta.get(key): table for table in fit}
        known = None not in ours and None not in theirs and len(set(ours)) == len(ours)
        if known and set(ours) == set(theirs):
            return [theirs[value] for value in ours]
        if known and key == "model_sha256":
            stray = next((table for value, table in theirs.items() if value not in ours), fit[0])
            raise ScoreError(
                f"{name_of(stray)}: made by another model than any fused; evaluate the same runs on val"
            )
    return list(fit)


def _refuse_unless_holdout(table: ScoreTable) -> None:
    part = table.meta.get("part")
    if part != "val" or table.meta.get("selection") == "paper":
        found = (
            "the test part" if part == "test" or table.meta.get("selection") == "paper" else f"part {part!r}"
        )
        raise ScoreError(
            f"{name_of(table)}: scores of {found} cannot be used to fit a fusion;"
            " expected the holdout part (`two-stream evaluate RUN --part val`)"
        )


def _fused_meta(
    tables: Sequence[ScoreTable], rule: str, weights: list[float], fitted: dict[str, Any]
) -> dict[str, Any]:
    scale = {"l2": "ranking", "rank": "ranking", "probabilities": "log-probabilities"}.get(rule, "logits")
    meta: dict[str, Any] = {
        "kind": "fused",
        "rule": rule,
        "weights": weights,
        "scale": scale,
        "modality": " + ".join(stream_name(table, index) for index, table in enumerate(tables)),
        **fitted,
    }
    for key in (
        "dataset",
        "split",
        "part",
        "views",
        "crops",
        "aggregate",
        "protocol",
        "seed",
        "code_version",
    ):
        values = list(dict.fromkeys(str(table.meta[key]) for table in tables if key in table.meta))
        if len(values) == 1:
            meta[key] = next(table.meta[key] for table in tables if key in table.meta)
        elif values:
            meta[key] = " / ".join(values)
    selections = {str(table.meta["selection"]) for table in tables if "selection" in table.meta}
    if selections:
        meta["selection"] = "paper" if "paper" in selections else " / ".join(sorted(selections))
    meta["sources"] = [dict(table.meta) for table in tables]
    return meta
