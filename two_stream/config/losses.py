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
    """balanced: larger weights for rare classes (mean 1 over the training clips); or one number per class"""
    beta: Fraction = 1.0
    """balance by the effective number of clips `(1 - beta^n) / (1 - beta)` (arXiv 1901.05555); 1: by the number of
    clips n"""


class Focal(Options):
    """Focal loss (arXiv 1708.02002): correctly classified clips have a small weight; multi-label data use a sigmoid."""

    kind: Literal["focal"] = "focal"
    gamma: NonNegative = 2.0
    """exponent; 0 is the cross entropy"""
    alpha: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """multi-label: weight of the classes of a video; other classes have the weight `1 - alpha`; none: all weights are
    1"""
    weights: ClassWeights = "none"
    """balanced: larger weights for rare classes (mean 1 over the training clips); or one number per class"""
    beta: Fraction = 1.0
    """balance by the effective number of clips `(1 - beta^n) / (1 - beta)` (arXiv 1901.05555); 1: by the number of
    clips n"""


class BinaryCrossEntropy(Options):
    """Binary cross entropy of one sigmoid per class, averaged over the classes; a video may have several classes."""

    kind: Literal["bce"] = "bce"
    pos_weight: ClassWeights = "none"
    """weight of the positive videos of a class; balanced: number of videos without the class / number of videos with
    it"""


LossOptions = Annotated[AutoLoss | CrossEntropy | Focal | BinaryCrossEntropy, Field(discriminator="kind")]
