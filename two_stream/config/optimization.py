"""Optimizers and learning-rate schedules, told apart by `kind`."""

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
    """the paper's SGD uses 0.9"""
    nesterov: bool = False
    weight_decay: NonNegative = 1e-3
    decay_all: bool = False
    """decay norms, biases and positions too, as the published code does"""

    @model_validator(mode="after")
    def _consistent(self) -> Sgd:
        if self.nesterov and (self.momentum == 0.0 or self.dampening != 0.0):
            raise ValueError("nesterov needs momentum > 0 and dampening = 0")
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
    """decay norms, biases and positions too, as the published code does"""


class Logistic(Options):
    """No steps but the optimum: logistic regression on what a frozen network gives, strength by cross-validation."""

    kind: Literal["logistic"] = "logistic"
    cs: Annotated[tuple[Positive, ...], Field(min_length=1)] = (
        1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0,
    )  # fmt: skip
    """weights of the loss against the penalty `|w|² / 2`, of which cross-validation picks one; the inputs are
    standardised, so they mean the same for every network"""
    folds: Annotated[int, Field(ge=2)] = 5
    """parts of the cross-validation; source videos stay whole, so there are as many as sources at most"""
    repeats: PositiveInt = 3
    """cross-validations with other folds each, whose losses are averaged"""
    balanced: bool = True
    """every class weighs as much as any other; false: every video does"""
    views: Annotated[int, Field(ge=0)] | None = None
    """augmented clips of each training video to learn from beside its centred one, all together as heavy as one video;
    none: those that `data.features` holds, without it none"""


class Constant(Options):
    """The same rate throughout."""

    kind: Literal["constant"] = "constant"


class Plateau(Options):
    """Lower the rate when the validation loss stops falling (the paper's)."""

    kind: Literal["plateau"] = "plateau"
    factor: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    patience: Annotated[int, Field(ge=0)] = 5
    """epochs without a better validation loss"""
    min_lr: NonNegative = 0.0


class MultiStep(Options):
    """Lower the rate at given epochs."""

    kind: Literal["multistep"] = "multistep"
    milestones: tuple[PositiveInt, ...] = (15, 25)
    """epochs after which the rate falls"""
    gamma: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1


class Cosine(Options):
    """Linear warm-up, then half a cosine down to `min_lr`, per optimizer step."""

    kind: Literal["cosine"] = "cosine"
    warmup_epochs: NonNegative = 0.0
    min_lr: NonNegative = 0.0


OptimizerOptions = Annotated[Sgd | AdamW | Logistic, Field(discriminator="kind")]
ScheduleOptions = Annotated[Constant | Plateau | MultiStep | Cosine, Field(discriminator="kind")]
