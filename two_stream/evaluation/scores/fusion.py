"""Late fusion of two or more score tables of the same videos.

Fixed rules require no fitting. Weights can be set, or fitted on score files of the *holdout* part. Tables of the test
part or of other models are rejected for fitting.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from two_stream.errors import ScoreError
from two_stream.evaluation.scores.metrics import main_value, probabilities
from two_stream.evaluation.scores.tables import join, name_of, with_classes
from two_stream.types import ScoreTable

Rule = Literal["l2", "logits", "probabilities", "rank", "learned"]
RULES: tuple[str, ...] = get_args(Rule)

_RIDGE = 1e-3
"""ridge penalty of learned weights; it keeps the weights finite if the streams separate the holdout perfectly"""
_ALL_COMBINATIONS = 4
"""largest number of streams for which all combinations of weights are tried"""
_ROUNDS = 20
"""number of rounds of the greedy selection for more streams"""
_ROUND = 12
"""number of decimals to which accuracies are rounded when weights are chosen"""


@dataclass(frozen=True)
class Curve:
    """Top-1 accuracy (or mAP for a multi-label data set) of two fused streams, over the weight of the first stream."""

    rule: str
    names: tuple[str, str]
    shares: list[float]
    """weights w of the first stream; the second stream has weight 1 - w"""
    accuracies: list[float]
    chosen: float
    """weight with the best accuracy; if a range of weights is equally good, the middle of the range (if there
    are several ranges, the middle nearest to 0.5)"""
    accuracy: float
    """accuracy with the weight `chosen`, on the same data"""
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

    In the following rules, s_m are the logits of stream m and w_m is its weight (default: 1).

    `l2` is the sum of w_m · s_m / ‖s_m‖₂. With equal weights, this is the rule of the paper.

    `logits` is the sum of w_m · s_m.

    `probabilities` is the log of the weighted mean of softmax(s_m). For a multi-label data set, it is the logit of the
    weighted mean of sigmoid(s_m).

    `rank` is the sum of w_m times Borda points. A stream gives K - 1 points to its best class and 0 to its worst class.
    Classes with equal scores get the mean of their points.

    `learned` is the sum of w_m · s_m, with weights w_m ≥ 0 that minimise the cross-entropy on `fit` (logistic
    stacking). The sum of the learned weights acts as an inverse temperature.

    Args:
        tables: Two or more tables.
        rule: One of `RULES`.
        weights: One non-negative weight for each table, not all 0. Not allowed for `learned`.
        fit: For each table, a table of the same model on the holdout part, in any order. `learned` requires `fit`; with
            other rules, `fit` is used to search the weights.

    Returns:
        A table in the order of the first table. `meta["sources"]` contains the metadata of each stream. `meta["scale"]`
        is `ranking` for the rules `l2` and `rank`, whose scores are not log-probabilities.

    Raises:
        ScoreError: There are fewer than two tables, the rule is unknown, the weights are invalid, the tables do not
            join, or `fit` is from another part or from other models.
    """
    if rule not in RULES:
        raise ScoreError(f"unknown fusion rule {rule!r}; expected one of: {', '.join(RULES)}")
    if len(tables) < 2:
        raise ScoreError(f"fusion requires two or more score tables, found {len(tables)}")
    joined = join(tables)
    fitted: dict[str, Any] = {}
    if weights is not None and (rule == "learned" or fit is not None):
        raise ScoreError(
            "weights cannot be both set and fitted on the holdout part; omit either the weights or "
            "the holdout files"
        )
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
    """Fuse arrays `(N, K)` of the same videos by a fixed rule; `learned` is computed as `logits`.

    If `sigmoid` is true, classes have independent probabilities, as in a multi-label data set.
    """
    transform = {"l2": _unit_length, "rank": _borda}.get(rule, np.asarray)
    if rule != "probabilities":
        return np.asarray(sum(w * transform(s) for w, s in zip(weights, logits)), dtype=np.float64)
    from scipy.special import expit, softmax  # slow to import

    if sigmoid:
        chance, other = (
            sum(w * expit(sign * s) for w, s in zip(weights, logits)) / sum(weights) for sign in (1.0, -1.0)
        )
        tiny = np.finfo(np.float64).tiny
        return np.asarray(np.log(np.maximum(chance, tiny)) - np.log(np.maximum(other, tiny)))
    mean = sum(w * softmax(s, axis=1) for w, s in zip(weights, logits)) / sum(weights)
    return np.asarray(np.log(np.maximum(mean, np.finfo(np.float64).tiny)), dtype=np.float64)


def fused_probabilities(
    logits: Sequence[NDArray[np.float64]],
    rule: str = "l2",
    weights: Sequence[float] | None = None,
    *,
    sigmoid: bool = False,
) -> NDArray[np.float64]:
    """Return class probabilities `(N, K)` from the logits `(N, K)` of one or more streams.

    With the rule `l2`, the sum of normalised logits is so short that its softmax would be almost uniform. The sum is
    therefore multiplied by the mean L2 norm of the streams' logits and divided by the sum of the weights. For a
    multi-label data set (`sigmoid`), the probabilities of the classes are independent.
    """
    if len(logits) == 1:
        return probabilities(logits[0], multi_label=sigmoid)
    if rule not in RULES or rule == "learned":
        expected = ", ".join(name for name in RULES if name != "learned")
        raise ScoreError(f"unknown fusion rule {rule!r} for predictions; expected one of: {expected}")
    used = checked_weights(weights, len(logits))
    fused = combine(logits, rule, used, sigmoid=sigmoid)
    if rule == "l2":
        fused = (
            fused
            * np.mean([np.linalg.norm(one, axis=1, keepdims=True) for one in logits], axis=0)
            / sum(used)
        )
    elif rule == "logits":
        fused = fused / sum(used)
    elif rule == "rank":
        points = fused - fused.min(axis=1, keepdims=True)
        total = points.sum(axis=1, keepdims=True)
        return np.asarray(
            np.divide(points, total, out=np.full(points.shape, 1 / points.shape[1]), where=total > 0)
        )
    return probabilities(fused, multi_label=sigmoid)


def weight_curve(first: ScoreTable, second: ScoreTable, rule: str = "l2", steps: int = 101) -> Curve:
    """Compute top-1 accuracy (or mAP) over the weight of the first of two streams, and choose the best weight.

    `first` and `second` must be scores of the holdout part. The rule `learned` is treated as `logits`. `steps` is the
    number of weights from 0 to 1.

    Raises:
        ScoreError: The tables do not join or are not of the holdout part.
    """
    for table in (first, second):
        _check_holdout(table)
    rule = "logits" if rule == "learned" else rule
    one, two = join([first, second])
    shares, found, best = _trace([one, two], rule, steps)
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


def _trace(
    tables: Sequence[ScoreTable], rule: str, steps: int = 101
) -> tuple[NDArray[np.float64], NDArray[np.float64], int]:
    """Return the weights of the first of two streams, the metric for each weight, and the index of the best weight."""
    shares = np.linspace(0.0, 1.0, steps)
    found = np.asarray([_metric(tables, rule, (w, 1 - w)) for w in shares])
    return shares, found, _middle_of_best(found, shares)


def _middle_of_best(found: NDArray[np.float64], shares: NDArray[np.float64]) -> int:
    """Return the index of the best weight, selected as described in `Curve.chosen`."""
    best = np.flatnonzero(np.round(found, _ROUND) == np.round(found.max(), _ROUND))
    runs = np.split(best, np.flatnonzero(np.diff(best) > 1) + 1)
    middles = [int(run[len(run) // 2]) for run in runs]
    return min(middles, key=lambda index: abs(float(shares[index]) - 0.5))


def _metric(tables: Sequence[ScoreTable], rule: str, weights: Sequence[float]) -> float:
    """Return the top-1 accuracy (or mAP) of the fusion of joined tables."""
    first = tables[0]
    fused = combine([table.logits for table in tables], rule, weights, sigmoid=first.targets is not None)
    return main_value(fused, first)


def stream_name(table: ScoreTable, index: int) -> str:
    """Return the name of a stream in tables and legends: its modality, or else its name or number."""
    return str(table.meta.get("modality") or table.meta.get("name") or f"stream {index + 1}")


def fit_stacking(tables: Sequence[ScoreTable]) -> list[float]:
    """Return non-negative weights that minimise the cross-entropy of the weighted sum of the tables' logits.

    The tables must be joined. For multi-label tables, the binary cross-entropy is averaged over the classes. Logits are
    divided by the standard deviation of their stream, so that the ridge penalty affects all streams equally. The
    returned weights are for the original logits. The optimization problem is convex.
    """
    from scipy.optimize import minimize  # slow to import, and only needed for learned weights
    from scipy.special import expit, log_expit, log_softmax  # slow to import

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
        raise ScoreError(
            "learned fusion: no stream predicts the holdout part better than chance, so there are no "
            "weights; use a fixed rule such as l2"
        )
    return [float(w / scale) for w, scale in zip(found.x, scales)]


def search_weights(tables: Sequence[ScoreTable], rule: str) -> list[float]:
    """Return the weights (with sum 1) for which a fixed rule has the best top-1 accuracy (or mAP) on joined tables.

    For two streams, all weights in steps of 0.01 are tried. For three or four streams, all combinations in steps of 0.1
    are tried; if several are best, the combination with the smallest maximum is used. For more streams, the weights are
    selected greedily (see `_selected`).
    """
    if len(tables) == 2:
        shares, _, best = _trace(tables, rule)
        return [float(shares[best]), 1 - float(shares[best])]
    if len(tables) > _ALL_COMBINATIONS:
        return _selected(tables, rule)
    steps = 10
    grid = [point for point in itertools.product(range(steps + 1), repeat=len(tables)) if sum(point) == steps]
    scored = [(round(_metric(tables, rule, point), _ROUND), -max(point), point) for point in grid]
    return [share / steps for share in max(scored)[2]]


def _selected(tables: Sequence[ScoreTable], rule: str) -> list[float]:
    """Return the weights of an ensemble selection with replacement (Caruana et al. 2004).

    At the start, each stream is selected once. Each round adds the stream that improves the metric most; ties are
    broken by the smaller weight, then by the order. The result is that of the best round, or of the earliest one if
    several are best.
    """
    counts = [1] * len(tables)
    best = (round(_metric(tables, rule, counts), _ROUND), list(counts))
    for _ in range(_ROUNDS):
        tried = []
        for place in range(len(tables)):
            more = [count + (index == place) for index, count in enumerate(counts)]
            tried.append((round(_metric(tables, rule, more), _ROUND), -counts[place], -place))
        found = max(tried)
        counts[-found[2]] += 1
        if found[0] > best[0]:
            best = (found[0], list(counts))
    return [count / sum(best[1]) for count in best[1]]


def _unit_length(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    norms = np.linalg.norm(scores, axis=1, keepdims=True)
    return np.asarray(np.divide(scores, norms, out=np.zeros_like(scores), where=norms > 0), dtype=np.float64)


def _borda(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy.stats import rankdata  # slow to import, and only needed for ranks

    return np.asarray(rankdata(scores, method="average", axis=1) - 1.0, dtype=np.float64)


def checked_weights(weights: Sequence[float] | None, count: int) -> list[float]:
    """Check weights and return one for each stream; if `weights` is None, all are 1.

    Raises:
        ScoreError: The number of weights is wrong, a weight is negative or infinite, or all are 0.
    """
    if weights is None:
        return [1.0] * count
    values = [float(w) for w in weights]
    if len(values) != count:
        raise ScoreError(
            f"{len(values)} weights for {count} score tables; expected one weight for each table"
        )
    if not all(np.isfinite(w) and w >= 0 for w in values) or sum(values) <= 0:
        raise ScoreError(f"weights {values}: expected finite values of 0 or more, not all 0")
    return values


def _weights_from_holdout(
    tables: Sequence[ScoreTable], rule: str, fit: Sequence[ScoreTable] | None
) -> tuple[list[float], dict[str, Any]]:
    if not fit:
        raise ScoreError(
            f"fusion rule {rule!r} is fitted on the holdout part, but no holdout scores are given; use score "
            "files of the holdout part"
            " (written by `two-stream evaluate RUN --part val`)"
        )
    for table in fit:
        _check_holdout(table)
    matched = [with_classes(tables[0], table) for table in join(match_fit(tables, fit))]
    shared = sorted(set(tables[0].ids) & set(matched[0].ids))
    if shared:
        raise ScoreError(
            f"{name_of(matched[0])}: video {shared[0]!r} is used both for fitting and for fusing; fit on the "
            "holdout part"
        )
    if matched[0].class_names != tables[0].class_names:
        raise ScoreError(
            f"{name_of(matched[0])}: class names differ from those in {name_of(tables[0])}; use "
            "score files with the same classes"
        )
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
    """Return the holdout table that matches each table by model hash, else by modality, else by position.

    Raises:
        ScoreError: A table has no match.
    """
    if len(fit) != len(tables):
        raise ScoreError(
            f"{len(fit)} holdout score files for {len(tables)} streams; expected one file for each stream"
        )
    for key in ("model_sha256", "modality"):
        ours = [table.meta.get(key) for table in tables]
        theirs = {table.meta.get(key): table for table in fit}
        known = None not in ours and None not in theirs and len(set(ours)) == len(ours)
        if known and set(ours) == set(theirs):
            return [theirs[value] for value in ours]
        if known and key == "model_sha256":
            stray = next((table for value, table in theirs.items() if value not in ours), fit[0])
            raise ScoreError(
                f"{name_of(stray)}: these holdout scores are not from any of the fused models; compute holdout scores "
                "of the fused runs with `two-stream evaluate RUN --part val`"
            )
    return list(fit)


def _check_holdout(table: ScoreTable) -> None:
    part, selection = table.meta.get("part"), table.meta.get("selection")
    if part != "val" or selection == "paper":
        found = "the test part" if part == "test" or selection == "paper" else f"part {part!r}"
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
    keys = ("dataset", "split", "part", "views", "crops", "aggregate", "protocol", "seed", "code_version")
    for key in (*keys, "training_list", "training_videos", "common"):
        own = {str(table.meta[key]): table.meta[key] for table in tables if key in table.meta}
        if own:
            meta[key] = " / ".join(own) if len(own) > 1 else next(iter(own.values()))
    selections = {str(table.meta["selection"]) for table in tables if "selection" in table.meta}
    if selections:
        meta["selection"] = "paper" if "paper" in selections else " / ".join(sorted(selections))
    meta["sources"] = [dict(table.meta) for table in tables]
    return meta
