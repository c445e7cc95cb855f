"""Training losses, told apart by `kind`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from two_stream.config.base import Fraction, NonNegative, Options, Positive

ClassWeights = Literal["none", "balanced"] | tuple[Positive, ...]


class AutoLoss(Options):
    """Cross entropy; where the data set is multi-label, binary cross entropy."""

    kind: Literal["auto"] = "auto"


class CrossEntropy(Options):
    """Cross entropy of the softmax: one class per video."""

    kind: Literal["cross_entropy"] = "cross_entropy"
    weights: ClassWeights = "none"
    """balanced: rare classes weigh more (mean 1 over the training clips); or a number per class"""
    beta: Fraction = 1.0
    """balanced by the effective number of clips `(1 - beta^n) / (1 - beta)` (1901.05555); 1: by their number n"""


class Focal(Options):
    """Focal loss (1708.02002): clips that are right count little; a sigmoid's where a video has several classes."""

    kind: Literal["focal"] = "focal"
    gamma: NonNegative = 2.0
    """how little; 0 is the cross entropy"""
    alpha: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """multi-label: weight of the classes a video has, the others have `1 - alpha`; none: 1 for all"""
    weights: ClassWeights = "none"
    """balanced: rare classes weigh more (mean 1 over the training clips); or a number per class"""
    beta: Fraction = 1.0
    """balanced by the effective number of clips `(1 - beta^n) / (1 - beta)` (1901.05555); 1: by their number n"""


class BinaryCrossEntropy(Options):
    """Binary cross entropy of a sigmoid per class, mean over the classes: several classes per video, or one."""

    kind: Literal["bce"] = "bce"
    pos_weight: ClassWeights = "none"
    """weight of a class where a video has it; balanced: videos without the class per video with it"""


LossOptions = Annotated[AutoLoss | CrossEntropy | Focal | BinaryCrossEntropy, Field(discriminator="kind")]
