"""Logistic regression on standardised vectors; cross-validation over source videos chooses the penalty.

The estimator is scikit-learn's (multinomial, L2 penalty on the weights, none on the biases). Vectors of one video share
its weight, and a source video is never divided. With fewer vectors than dimensions the problem is solved in their span,
which is exact: a penalised solution has no component outside it.
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

Floats = NDArray[np.float64]
_MOST_STEPS = 10_000
_COARSE, _FINE = 1e-6, 1e-8
"""tolerance of the gradient, for a fold and for the result"""
ABSENT = -10.0
"""bias of a class without a training video; far below the other logits, whose mean is 0"""
CONSTANT = 1e-6
"""deviation relative to the mean below which a channel counts as constant (rounding of float32)"""


@dataclass(frozen=True)
class Vectors:
    """Input of the classifier for the training part, one row per clip."""

    rows: NDArray[np.float64]
    """`(N, D)`"""
    labels: NDArray[np.int64]
    """`(N,)`; mirrored clips have different labels if the data set's mirror exchanges classes"""
    videos: NDArray[np.int64]
    """`(N,)`: indices in `TrainingData.records`"""


def channel_scales(deviation: NDArray[np.float64], mean: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the divisor of each channel: its deviation, or 1 if it is constant."""
    return np.where(deviation <= CONSTANT * np.abs(mean), 1.0, deviation)


@dataclass(frozen=True)
class Chosen:
    """Result of a cross-validation."""

    c: float
    table: list[dict[str, float]]
    """per C: `c`, held-out `loss` and `top1`, weighted as in the fit; empty if there was nothing to choose"""
    folds: int
    """actual number of parts of the cross-validation"""


def sample_weights(vectors: Vectors, balanced: bool) -> Floats:
    """Return a weight per row, `(N,)`, that sums to 1 over the rows of each video.

    If balanced, each class has the same sum, as with scikit-learn's `class_weight="balanced"`.
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
    """Return the C with the lowest held-out log loss (the smaller of equals); None if `stopped` became true.

    The loss is the mean over the rows of all folds and repeats, weighted as in the fit, without rows whose class the
    fold's training side lacks. With a single C or source video the middle C is returned.

    Args:
        vectors: The training part.
        groups: Source of each video, indexed by `Vectors.videos`; an empty one is a source of its own.
        options: Values of C, folds, repeats and balance.
        seed: Random seed of the folds.
        stopped: Function that returns whether to stop early.
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
    """Return the logits of every training video from folds without its source, averaged over its rows and repeats.

    Args:
        vectors: The training part.
        groups: As for `choose`.
        options: Folds, repeats and balance.
        c: From `choose`, which used the same folds, so the result is slightly optimistic.
        num_classes: K.
        seed: Random seed of the folds.

    Returns:
        The indices of the videos, ascending, and logits `(videos, K)`.

    Raises:
        TrainingError: There is only one source.
    """
    parts, folds = _divided(vectors, groups, options, seed)
    if parts < 2:
        raise TrainingError(
            "`train.selection: folds` needs two source videos in the training list, which has one; set "
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
    """Return weight `(K, D)` and bias `(K,)` for unstandardised vectors; a class without rows gets 0 and `ABSENT`.

    Raises:
        TrainingError: All rows have one class.
    """
    classes = np.unique(vectors.labels)
    if len(classes) < 2:
        raise TrainingError(
            "the training part has videos of one class only; check the split list and `data.holdout`"
        )
    space = _Space.of(vectors.rows)
    estimator = _estimator(_FINE, warm=False)
    with _without_warning():
        estimator.set_params(C=c).fit(space.inside, vectors.labels, sample_weights(vectors, balanced))
    inner, inner_bias = _logit_rows(estimator)
    weight, bias = np.zeros((num_classes, len(space.mean))), np.full(num_classes, ABSENT)
    weight[classes] = space.outwards(inner) / space.scale
    bias[classes] = inner_bias - weight[classes] @ space.mean
    return weight, bias


@dataclass(frozen=True)
class _Space:
    """Standardised rows, projected onto their span if there are fewer rows than dimensions."""

    mean: Floats
    scale: Floats
    inside: Floats
    """the rows in this space"""
    basis: Floats | None
    """`(D, N)`, orthonormal columns; None without projection"""

    @classmethod
    def of(cls, z_ND: Floats) -> _Space:
        mean, deviation = z_ND.mean(0), z_ND.std(0)
        scale = channel_scales(deviation, mean)
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
    """Return the number of parts (at most one per source), and the rows that each fold holds out."""
    shown = np.unique(vectors.videos)
    sources = np.array([groups[video] or f"\0{video}" for video in shown])
    labels = vectors.labels[[int(np.argmax(vectors.videos == video)) for video in shown]]
    parts = min(options.folds, len(np.unique(sources)), int(np.bincount(labels).max()))
    folds = _folds(labels, sources, parts, options.repeats, seed) if parts > 1 else iter(())
    return parts, (np.isin(vectors.videos, shown[held_out]) for held_out in folds)


def _folds(
    labels: NDArray[np.int64], sources: NDArray[np.str_], parts: int, repeats: int, seed: int
) -> Iterator[NDArray[np.int64]]:
    """Yield the indices of the held-out videos, repeat by repeat and part by part."""
    from sklearn.model_selection import StratifiedGroupKFold

    for repeat in range(repeats):
        divided = StratifiedGroupKFold(parts, shuffle=True, random_state=seed + repeat)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a class may have fewer videos than parts
            for _, held_out in divided.split(labels[:, None], labels, sources):
                yield held_out


def _held_out(
    vectors: Vectors,
    balanced: bool,
    test: NDArray[np.bool_],
    cs: Sequence[float],
    stopped: Callable[[], bool],
) -> Floats:
    """Return, for each C, three sums over a fold's held-out rows: weighted losses, weighted hits, and weights."""
    sums = np.zeros((len(cs), 3))
    learned = Vectors(vectors.rows[~test], vectors.labels[~test], vectors.videos[~test])
    known = np.unique(learned.labels)
    scored = test & np.isin(vectors.labels, known)
    if len(known) < 2 or not scored.any():
        return sums
    space, weights = _Space.of(learned.rows), sample_weights(learned, balanced)
    others, wanted = space.of_others(vectors.rows[scored]), np.searchsorted(known, vectors.labels[scored])
    estimator = _estimator(_COARSE, warm=True)  # starts from the solution of the previous C
    for place, c in enumerate(cs):
        if stopped():
            break
        with _without_warning():
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
    """Return weights and biases with one row per class; for two classes scikit-learn stores only their difference."""
    weight, bias = estimator.coef_, estimator.intercept_
    if len(weight) == 1:
        return np.concatenate((-weight, weight)) / 2, np.concatenate((-bias, bias)) / 2
    return weight, bias


@contextmanager
def _without_warning() -> Iterator[None]:
    """Ignore scikit-learn's warning that float64 cannot reach the tolerance."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield
