"""Logistic regression on standardised vectors, its strength chosen by cross-validation over source videos.

The estimator is scikit-learn's (multinomial, L2 on the weights, none on the biases). What is done around it: vectors of
one video share its weight, source videos stay whole, and where there are fewer vectors than dimensions the problem is
turned into their span. That is exact: a penalised solution has no part outside of it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from two_stream.config.optimization import Logistic
from two_stream.errors import TrainingError
from two_stream.training.linear_probe.passes import Vectors, scales

Floats = NDArray[np.float64]
_MOST_STEPS = 10_000
_COARSE, _FINE = 1e-6, 1e-8
"""largest gradient left, for a fold and for the result"""
ABSENT = -10.0
"""bias of a class without a training video: below the mean of the others' logits, which is 0 (`|w|²` is least there)"""


@dataclass(frozen=True)
class Chosen:
    """The outcome of a cross-validation."""

    c: float
    table: list[dict[str, float]]
    """per C: `c`, held-out `loss` and `top1`, weighted as in the fit; empty where there was nothing to choose"""
    folds: int
    """parts that there were in fact"""


def sample_weights(vectors: Vectors, balanced: bool) -> Floats:
    """Return a weight per row, `(N,)`: their sum is the number of videos, and a video's rows share its own.

    Balanced, the rows of each class have the same sum, as scikit-learn's `class_weight="balanced"` has it.
    """
    weights: Floats = 1.0 / np.bincount(vectors.videos)[vectors.videos].astype(np.float64)
    if not balanced:
        return weights
    mass = np.bincount(vectors.labels, weights)
    balance: Floats = weights.sum() / (np.count_nonzero(mass) * mass[vectors.labels])
    return weights * balance


def choose(
    vectors: Vectors,
    groups: Sequence[str],
    options: Logistic,
    *,
    seed: int = 0,
    stopped: Callable[[], bool] = lambda: False,
) -> Chosen | None:
    """Choose the C of the lowest held-out log loss, of equals the smaller; None when `stopped` turned true.

    The loss is the mean over the rows of all folds and repeats with the weights of the fit. Rows whose class no
    training side of their fold has are left out: what C does cannot show on them. One C, or one source video, leaves
    nothing to compare; then it is the middle one.

    Args:
        vectors: The training part.
        groups: Source of each video, by `Vectors.videos`; empty: a source of its own.
        options: What to compare.
        seed: Of the folds.
        stopped: Whether to leave early.
    """
    cs = sorted(options.cs)
    parts, folds = _divided(vectors, groups, options, seed)
    if len(cs) == 1 or parts < 2:
        return Chosen(cs[len(cs) // 2], [], 1)
    sums = np.zeros((len(cs), 3))
    for test in folds:
        sums += _held_out(vectors, options.balanced, test, cs, stopped)
        if stopped():
            return None
    table = [
        {"c": c, "loss": float(loss / total), "top1": float(right / total)}
        for c, (loss, right, total) in zip(cs, sums, strict=True)
    ]
    best = min(table, key=lambda row: row["loss"])
    return Chosen(best["c"], table, parts)


def held_out_logits(
    vectors: Vectors, groups: Sequence[str], options: Logistic, c: float, num_classes: int, *, seed: int = 0
) -> tuple[NDArray[np.int64], Floats]:
    """Return the logits of every training video by the folds that did not see it or its source.

    They are the mean over the rows of a video and over the repeats.

    Args:
        vectors: The training part.
        groups: As for `choose`.
        options: Folds, repeats and balance.
        c: What `choose` found: its folds are these, so the best C of several looks a little better here than it is.
        num_classes: K.
        seed: Of the folds.

    Returns:
        The numbers of the videos, ascending, and logits `(videos, K)`.

    Raises:
        TrainingError: There are no two sources to divide.
    """
    parts, folds = _divided(vectors, groups, options, seed)
    if parts < 2:
        raise TrainingError(
            "`train.selection: folds` divides the sources of the training list, and there is one; set "
            "`train.selection: holdout`, or correct `group` in dataset.yaml"
        )
    shown = np.unique(vectors.videos)
    sums, counts = np.zeros((len(shown), num_classes)), np.zeros(len(shown))
    for test in folds:
        learned = Vectors(vectors.rows[~test], vectors.labels[~test], vectors.videos[~test])
        if len(np.unique(learned.labels)) < 2:
            continue
        weight, bias = fit_regression(learned, c, options.balanced, num_classes)
        place = np.searchsorted(shown, vectors.videos[test])
        np.add.at(sums, place, vectors.rows[test] @ weight.T + bias)
        np.add.at(counts, place, 1.0)
    scored = counts > 0
    return shown[scored], sums[scored] / counts[scored, None]


def fit_regression(vectors: Vectors, c: float, balanced: bool, num_classes: int) -> tuple[Floats, Floats]:
    """Return weight `(K, D)` and bias `(K,)` on vectors as they come: their standardisation is folded in.

    A class without a row gets weight 0 and the bias `ABSENT`.

    Raises:
        TrainingError: All rows have one class.
    """
    classes = np.unique(vectors.labels)
    if len(classes) < 2:
        raise TrainingError(
            "the training part has videos of one class only, so there is nothing to tell apart; check the split list "
            "and `data.holdout`"
        )
    space = _Space.of(vectors.rows)
    estimator = _estimator(_FINE, warm=False)
    with _quiet():
        estimator.set_params(C=c).fit(space.inside, vectors.labels, sample_weights(vectors, balanced))
    inner, inner_bias = _logit_rows(estimator)
    weight, bias = np.zeros((num_classes, len(space.mean))), np.full(num_classes, ABSENT)
    weight[classes] = space.outwards(inner) / space.scale
    bias[classes] = inner_bias - weight[classes] @ space.mean
    return weight, bias


@dataclass(frozen=True)
class _Space:
    """Rows standardised and turned into as many dimensions as there are rows, where those are fewer."""

    mean: Floats
    scale: Floats
    inside: Floats
    """the rows in it"""
    basis: Floats | None
    """`(D, N)`, orthonormal columns; None: the dimensions are the vectors' own"""

    @classmethod
    def of(cls, z_ND: Floats) -> _Space:
        mean, deviation = z_ND.mean(0), z_ND.std(0)
        scale = scales(deviation, mean)
        x = (z_ND - mean) / scale
        if len(x) >= x.shape[1]:
            return cls(mean, scale, x, None)
        basis, triangle = np.linalg.qr(x.T)
        return cls(mean, scale, np.ascontiguousarray(triangle.T), basis)

    def of_others(self, z_ND: Floats) -> Floats:
        x = (z_ND - self.mean) / self.scale
        return x if self.basis is None else x @ self.basis

    def outwards(self, weight: Floats) -> Floats:
        return weight if self.basis is None else weight @ self.basis.T


def _divided(
    vectors: Vectors, groups: Sequence[str], options: Logistic, seed: int
) -> tuple[int, Iterator[NDArray[np.bool_]]]:
    """Return the parts that a cross-validation can have, and which rows each of its folds holds out."""
    shown = np.unique(vectors.videos)
    sources = np.array([groups[video] or f"\0{video}" for video in shown])
    labels = vectors.labels[[int(np.argmax(vectors.videos == video)) for video in shown]]
    parts = min(options.folds, len(np.unique(sources)), int(np.bincount(labels).max()))
    folds = _folds(labels, sources, parts, options.repeats, seed) if parts > 1 else iter(())
    return parts, (np.isin(vectors.videos, shown[held_out]) for held_out in folds)


def _folds(
    labels: NDArray[np.int64], sources: NDArray[np.str_], parts: int, repeats: int, seed: int
) -> Iterator[NDArray[np.int64]]:
    """Yield the places of the videos that are held out, repeat by repeat and part by part."""
    from sklearn.model_selection import StratifiedGroupKFold

    for repeat in range(repeats):
        divided = StratifiedGroupKFold(parts, shuffle=True, random_state=seed + repeat)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a class with fewer videos than parts is no mistake
            for _, held_out in divided.split(labels[:, None], labels, sources):
                yield held_out


def _held_out(
    vectors: Vectors,
    balanced: bool,
    test: NDArray[np.bool_],
    cs: Sequence[float],
    stopped: Callable[[], bool],
) -> Floats:
    """Return, per C, the weighted sums of loss and of rows that are right, and the weight, of one fold's test side."""
    sums = np.zeros((len(cs), 3))
    learned = Vectors(vectors.rows[~test], vectors.labels[~test], vectors.videos[~test])
    known = np.unique(learned.labels)
    scored = test & np.isin(vectors.labels, known)
    if len(known) < 2 or not scored.any():
        return sums
    space, weights = _Space.of(learned.rows), sample_weights(learned, balanced)
    others, wanted = space.of_others(vectors.rows[scored]), np.searchsorted(known, vectors.labels[scored])
    estimator = _estimator(_COARSE, warm=True)  # from the last, stronger C on
    for place, c in enumerate(cs):
        if stopped():
            break
        with _quiet():
            estimator.set_params(C=c).fit(space.inside, learned.labels, weights)
        weight, bias = _logit_rows(estimator)
        logits = others @ weight.T + bias
        top = logits.max(1, keepdims=True)
        loss = (top + np.log(np.exp(logits - top).sum(1, keepdims=True)))[:, 0]
        loss -= logits[np.arange(len(wanted)), wanted]
        right = logits.argmax(1) == wanted
        mass = sample_weights(vectors, balanced)[scored]
        sums[place] = mass @ loss, mass @ right, mass.sum()
    return sums


def _estimator(tolerance: float, *, warm: bool) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(tol=tolerance, max_iter=_MOST_STEPS, warm_start=warm)


def _logit_rows(estimator: Any) -> tuple[Floats, Floats]:
    """Return a row per class; of two classes scikit-learn has the one difference, which both share."""
    weight, bias = estimator.coef_, estimator.intercept_
    if len(weight) == 1:
        return np.concatenate((-weight, weight)) / 2, np.concatenate((-bias, bias)) / 2
    return weight, bias


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep scikit-learn from saying that the last digits of a tolerance are out of float64's reach."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield
