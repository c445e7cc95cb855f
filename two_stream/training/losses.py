"""Training losses, summed over clips so that micro-batches of any size add up to the full batch.

The trainer divides every loss, including weighted losses, by the number of clips, not by the sum of their weights.
Balanced class weights have mean 1 over the training clips, so they do not change the scale of the loss.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from two_stream.config.schema import AutoLoss, BinaryCrossEntropy, ClassWeights, CrossEntropy, TrainOptions
from two_stream.errors import SettingsError

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""function of logits `(B, K)` and targets (class indices int64 `(B,)` or class probabilities `(B, K)`) that returns the
loss summed over the clips"""
_TINY = 1e-12
"""lower bound of the base of a power, because the gradient can be infinite at 0"""


@dataclass(frozen=True)
class Labels:
    """Number and frequencies of the classes in the training part."""

    num_classes: int
    multi_label: bool = False
    counts: tuple[int, ...] = ()
    """number of clips of each class; empty if unknown"""
    total: int = 0
    """number of clips"""


def build_loss(options: TrainOptions, labels: Labels) -> Loss:
    """Return the loss function for the settings and labels.

    Raises:
        SettingsError: The loss does not fit the labels, or the number of weights differs from the number of classes.
    """
    chosen = options.loss
    if isinstance(chosen, AutoLoss):
        chosen = BinaryCrossEntropy() if labels.multi_label else CrossEntropy()
    if labels.multi_label and isinstance(chosen, CrossEntropy):
        raise SettingsError(
            "`train.loss.kind: cross_entropy` requires one class per video, but the data set is multi-label; use "
            "`bce` or `focal`"
        )
    if options.label_smoothing and not isinstance(chosen, CrossEntropy):
        raise SettingsError(
            f"`train.label_smoothing: {options.label_smoothing}` requires `train.loss.kind: cross_entropy`, "
            f"but the loss is {chosen.kind}; use `cross_entropy`, or set `train.label_smoothing: 0`"
        )
    if isinstance(chosen, BinaryCrossEntropy):
        return _Binary(_weights(chosen.pos_weight, labels, "pos_weight", _odds))
    weights = _weights(chosen.weights, labels, "weights", lambda known: effective_weights(known, chosen.beta))
    if isinstance(chosen, CrossEntropy):
        return _Softmax(weights, options.label_smoothing)
    if labels.multi_label:
        return _SigmoidFocal(chosen.gamma, chosen.alpha, weights)
    if chosen.alpha is not None:
        raise SettingsError(
            "`train.loss.alpha` requires a multi-label data set, because it weights the positive classes of a "
            "video against the negative ones; to weight classes, use `train.loss.weights`"
        )
    return _SoftmaxFocal(chosen.gamma, weights)


def evaluation_loss(logits_BK: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the cross entropy summed over clips; for labels of shape `(B, K)`, the binary cross entropy."""
    return (_Binary(None) if labels.ndim == 2 else _Softmax(None, 0.0))(logits_BK, labels)


def hits(logits_BK: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return whether each clip's highest logit belongs to the clip's class, or to one of its classes: bool `(B,)`."""
    best_B = logits_BK.argmax(1)
    if labels.ndim == 1:
        return best_B == labels
    return labels.gather(1, best_B[:, None]).squeeze(1) > 0


def effective_weights(labels: Labels, beta: float) -> list[float]:
    """Return class weights: the inverse of the effective number of clips (Cui et al., arXiv 1901.05555).

    The weights are scaled to mean 1 over the training clips. A class without clips has weight 1.
    """
    numbers = [float(n) if beta == 1.0 else (1.0 - beta**n) / (1.0 - beta) for n in labels.counts]
    inverse = [1.0 / number if number else 0.0 for number in numbers]
    mean = sum(n * w for n, w in zip(labels.counts, inverse, strict=True)) / sum(labels.counts)
    return [weight / mean if weight else 1.0 for weight in inverse]


def _odds(labels: Labels) -> list[float]:
    """Return, for each class, the ratio of negative to positive clips; 1 if either number is 0."""
    return [(labels.total - n) / n if 0 < n < labels.total else 1.0 for n in labels.counts]


def _weights(
    given: ClassWeights, labels: Labels, name: str, balanced: Callable[[Labels], list[float]]
) -> torch.Tensor | None:
    if given == "none":
        return None
    if given == "balanced":
        if not sum(labels.counts):
            raise SettingsError(
                f"`train.loss.{name}: balanced` requires the labels of the training list, which are not "
                "available; list one number per class instead"
            )
        return torch.tensor(balanced(labels))
    if len(given) != labels.num_classes:
        raise SettingsError(
            f"`train.loss.{name}` has {len(given)} numbers; expected one per class ({labels.num_classes})"
        )
    return torch.tensor([float(weight) for weight in given])


def _shares(targets: torch.Tensor, logits_BK: torch.Tensor) -> torch.Tensor:
    """Return the targets as class probabilities `(B, K)` with the dtype of the logits."""
    if targets.ndim == 2:
        return targets.to(logits_BK.dtype)
    return F.one_hot(targets, logits_BK.shape[1]).to(logits_BK.dtype)


@dataclass(frozen=True)
class _Softmax:
    weights: torch.Tensor | None
    smoothing: float

    def __call__(self, logits_BK: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        weights = None if self.weights is None else self.weights.to(logits_BK)
        return F.cross_entropy(
            logits_BK, targets, weight=weights, label_smoothing=self.smoothing, reduction="sum"
        )


@dataclass(frozen=True)
class _SoftmaxFocal:
    gamma: float
    weights: torch.Tensor | None

    def __call__(self, logits_BK: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logs_BK = F.log_softmax(logits_BK, dim=1)
        wrong_BK = (-torch.expm1(logs_BK)).clamp_min(_TINY)
        loss_BK = -_shares(targets, logits_BK) * wrong_BK**self.gamma * logs_BK
        return (loss_BK if self.weights is None else loss_BK * self.weights.to(logits_BK)).sum()


@dataclass(frozen=True)
class _SigmoidFocal:
    gamma: float
    alpha: float | None
    weights: torch.Tensor | None

    def __call__(self, logits_BK: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        shares_BK = _shares(targets, logits_BK)
        entropy_BK = F.binary_cross_entropy_with_logits(logits_BK, shares_BK, reduction="none")
        own_BK = torch.sigmoid(logits_BK)
        wrong_BK = own_BK * (1.0 - shares_BK) + (1.0 - own_BK) * shares_BK
        loss_BK = entropy_BK * wrong_BK.clamp_min(_TINY) ** self.gamma
        if self.alpha is not None:
            loss_BK = loss_BK * (self.alpha * shares_BK + (1.0 - self.alpha) * (1.0 - shares_BK))
        return (loss_BK if self.weights is None else loss_BK * self.weights.to(logits_BK)).mean(1).sum()


@dataclass(frozen=True)
class _Binary:
    pos_weight: torch.Tensor | None

    def __call__(self, logits_BK: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        weight = None if self.pos_weight is None else self.pos_weight.to(logits_BK)
        shares_BK = _shares(targets, logits_BK)
        loss_BK = F.binary_cross_entropy_with_logits(
            logits_BK, shares_BK, pos_weight=weight, reduction="none"
        )
        return loss_BK.mean(1).sum()
