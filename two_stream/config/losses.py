"""Training losses, distinguished by `kind`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from two_stream.config.base import Fraction, NonNegative, Options, Positive

ClassWeights = Literal["none", "balanced"] | tuple[Positive, ...]


class AutoLoss(Options):
    """Cross entropy, or binary cross entropy for a multi-label data set."""

    kind: Literal["auto"] = "auto"


class CrossEntropy(Options):
    """Cross entropy of the softmax: one class per video."""

    kind: Literal["cross_entropy"] = "cross_entropy"
    weights: ClassWeights = "none"
    """balanced: larger for rare classes (mean 1 over the training clips); or a number per class"""
    beta: Fraction = 1.0
    """balance by the effective number of clips `(1 - beta^n) / (1 - beta)` (arXiv 1901.05555); 1: by their number n"""


class Focal(Options):
    """Focal loss (arXiv 1708.02002): correctly classified clips weigh little; with a sigmoid for multi-label data."""

    kind: Literal["focal"] = "focal"
    gamma: NonNegative = 2.0
    """exponent; 0 is the cross entropy"""
    alpha: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """multi-label: weight of a video's classes; the others have `1 - alpha`; none: 1 for all"""
    weights: ClassWeights = "none"
    """balanced: larger for rare classes (mean 1 over the training clips); or a number per class"""
    beta: Fraction = 1.0
    """balance by the effective number of clips `(1 - beta^n) / (1 - beta)` (arXiv 1901.05555); 1: by their number n"""


class BinaryCrossEntropy(Options):
    """Binary cross entropy of a sigmoid per class, mean over the classes: several classes per video, or one."""

    kind: Literal["bce"] = "bce"
    pos_weight: ClassWeights = "none"
    """weight of the positive videos of a class; balanced: videos without the class per video with it"""


LossOptions = Annotated[AutoLoss | CrossEntropy | Focal | BinaryCrossEntropy, Field(discriminator="kind")]
