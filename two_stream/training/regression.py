"""Logistic regression on standardised vectors; cross-validation over source videos chooses C, the inverse penalty.

The estimator is `LogisticRegression` of scikit-learn: multinomial, with an L2 penalty on the weights but not on the
biases. The vectors of one video together have the weight of one sample, and all clips of a source video are in the same
fold. If there are fewer vectors than dimensions, the problem is solved in the span of the vectors. The result is exact,
because the solution is always in the span of the vectors.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from two_stream.config.schema import Logistic
from two_stream.errors import TrainingError

Floats = NDArray[np.float64]
_MOST_STEPS = 10_000
_COARSE, _FINE = 1e-6, 1e-8
"""tolerance of the gradient for a fold and for the final fit"""
ABSENT = -10.0
"""bias of a class without training videos; far below the other logits, whose mean is 0"""
CONSTANT = 1e-6
"""a channel is constant if its standard deviation divided by its mean is at most this value (float32 rounding)"""


@dataclass(frozen=True)
class Vectors:
    """Inputs of the classifier for the training part, one row per clip."""

    rows: NDArray[np.float64]
    """vectors `(N, D)`"""
    labels: NDArray[np.int64]
    """class indices `(N,)`; a mirrored clip can have a different class from its video"""
    videos: NDArray[np.int64]
    """video of each row `(N,)`, as an index into `TrainingData.records`"""


def channel_scales(deviation: NDArray[np.float64], mean: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the divisor that standardises each channel: its standard deviation, or 1 for a constant channel."""
    return np.where(deviation <= CONSTANT * np.abs(mean), 1.0, deviation)


@dataclass(frozen=True)
class Chosen:
    """Result of a cross-validation."""

    c: float
    table: list[dict[str, float]]
    """one row for each value of C, with `c`, and `loss` and `top1` on held-out videos, weighted as in the fit. Empty
    without cross-validation"""
    folds: int
    """number of folds that were used, which can be smaller than in the settings"""


def sample_weights(vectors: Vectors, balanced: bool) -> Floats:
    """Return a weight for each row, `(N,)`; the weights of a video's rows sum to 1.

    If `balanced`, the weights are then scaled so that all classes have the same sum, as with `class_weight="balanced"`
    in scikit-learn.
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
    """Return the C with the lowest log loss on held-out videos; None if `stopped` returned true.

    The loss is the mean over the rows of all folds and repeats, weighted as in the fit. Rows whose class does not occur
    in the training part of the fold are left out. If two values of C have the same loss, the smaller one is returned.
    Without cross-validation (for example, with only one C or one source video), the middle C is returned.

    Args:
        vectors: The training part.
        groups: Source of each video, indexed by `Vectors.videos`. A video with an empty name is its own source.
        options: Settings; the values of C, the folds, the repeats and `balanced` are used.
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
    """Return held-out logits for every training video, from classifiers that were not trained on its source.

    Args:
        vectors: The training part.
        groups: Source of each video, see `choose`.
        options: Settings; the folds, the repeats and `balanced` are used.
        c: Result of `choose`. As `choose` used the same folds, the logits are slightly optimistic.
        num_classes: Number of classes K.
        seed: Random seed of the folds.

    Returns:
        The indices of the videos in ascending order, and the logits `(videos, K)`, averaged over the rows of each video
        and over the repeats.

    Raises:
        TrainingError: All videos have the same source.
    """
    parts, folds = _divided(vectors, groups, options, seed)
    if parts < 2:
        raise TrainingError(
            "`train.selection: folds` requires at least two source videos in the training list, found one; set "
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
    """Fit the classifier and return its weight `(K, D)` and bias `(K,)` for vectors that are not standardised.

    A class without rows gets weight 0 and bias `ABSENT`.

    Raises:
        TrainingError: All rows have the same class.
    """
    classes = np.unique(vectors.labels)
    if len(classes) < 2:
        raise TrainingError(
            "the training part has videos of one class only; expected at least two classes; check the split list "
            "and `data.holdout`"
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
    """Standardised rows. If there are fewer rows than dimensions, they are projected onto their span."""

    mean: Floats
    scale: Floats
    inside: Floats
    """standardised rows, projected onto their span if there are fewer rows than dimensions"""
    basis: Floats | None
    """orthonormal basis of the span of the rows, as columns `(D, N)`; None without a projection"""

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
    """Return the number of folds (at most one per source), and for each fold a mask of its held-out rows."""
    shown = np.unique(vectors.videos)
    sources = np.array([groups[video] or f"\0{video}" for video in shown])
    labels = vectors.labels[[int(np.argmax(vectors.videos == video)) for video in shown]]
    parts = min(options.folds, len(np.unique(sources)), int(np.bincount(labels).max()))
    folds = _folds(labels, sources, parts, options.repeats, seed) if parts > 1 else iter(())
    return parts, (np.isin(vectors.videos, shown[held_out]) for held_out in folds)


def _folds(
    labels: NDArray[np.int64], sources: NDArray[np.str_], parts: int, repeats: int, seed: int
) -> Iterator[NDArray[np.int64]]:
    """Yield the indices of the held-out videos for each fold of each repeat."""
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
    """Return three sums over a fold's held-out rows for each C: weighted losses, weighted hits, and weights."""
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
    """Ignore the convergence warning of scikit-learn, because float64 cannot always reach the tolerance."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield
