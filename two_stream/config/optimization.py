"""Optimizers and learning-rate schedules, distinguished by `kind`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from two_stream.config.base import Fraction, NonNegative, Options, Positive, PositiveInt


class Sgd(Options):
    """Stochastic gradient descent with momentum."""

    kind: Literal["sgd"] = "sgd"
    lr: Positive = 0.01
    """learning rate"""
    momentum: Fraction = 0.9
    dampening: Fraction = 0.0
    """dampening of the momentum; the paper uses 0.9"""
    nesterov: bool = False
    weight_decay: NonNegative = 1e-3
    decay_all: bool = False
    """apply weight decay also to norms, biases and positions, as the published code does"""

    @model_validator(mode="after")
    def _consistent(self) -> Sgd:
        if self.nesterov and (self.momentum == 0.0 or self.dampening != 0.0):
            raise ValueError("`nesterov` requires `momentum` above 0 and `dampening: 0`")
        return self


class AdamW(Options):
    """Adam with decoupled weight decay."""

    kind: Literal["adamw"] = "adamw"
    lr: Positive = 1e-5
    """learning rate"""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: Positive = 1e-8
    weight_decay: NonNegative = 1e-3
    decay_all: bool = False
    """apply weight decay also to norms, biases and positions, as the published code does"""


class Logistic(Options):
    """Logistic regression on a frozen network's features, solved exactly; cross-validation chooses the penalty."""

    kind: Literal["logistic"] = "logistic"
    cs: Annotated[tuple[Positive, ...], Field(min_length=1)] = (
        1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0,
    )  # fmt: skip
    """candidate weights of the loss relative to the penalty `|w|² / 2`, from which cross-validation selects one; the
    inputs are standardised, so that a value has the same effect for every network"""
    folds: Annotated[int, Field(ge=2)] = 5
    """number of folds of the cross-validation, at most one per source video; all clips of a source video are in one
    fold"""
    repeats: PositiveInt = 3
    """number of cross-validations with different folds; their losses are averaged"""
    balanced: bool = True
    """give equal weight to all classes; false: to all videos"""
    views: Annotated[int, Field(ge=0)] | None = None
    """number of augmented clips per training video in addition to the centred clip. All clips of a video together have
    the weight of one video. None: all clips in `data.features`, or 0 without stored features"""


class Constant(Options):
    """A constant learning rate."""

    kind: Literal["constant"] = "constant"


class Plateau(Options):
    """Reduce the rate when the validation loss stops falling (as in the paper)."""

    kind: Literal["plateau"] = "plateau"
    factor: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    patience: Annotated[int, Field(ge=0)] = 5
    """number of epochs without a better validation loss before the rate is reduced"""
    min_lr: NonNegative = 0.0


class MultiStep(Options):
    """Reduce the rate at given epochs."""

    kind: Literal["multistep"] = "multistep"
    milestones: tuple[PositiveInt, ...] = (15, 25)
    """epochs after which the rate is reduced"""
    gamma: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1


class Cosine(Options):
    """Linear warm-up, then half a cosine down to `min_lr`; the rate changes at every optimizer step."""

    kind: Literal["cosine"] = "cosine"
    warmup_epochs: NonNegative = 0.0
    min_lr: NonNegative = 0.0


OptimizerOptions = Annotated[Sgd | AdamW | Logistic, Field(discriminator="kind")]
ScheduleOptions = Annotated[Constant | Plateau | MultiStep | Cosine, Field(discriminator="kind")]
