"""Options of pruning, quantization and distillation, one class per `kind`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from two_stream.config.base import Fraction, NonNegative, Options, Positive, PositiveInt


class NoCompression(Options):
    """An ordinary training run."""

    kind: Literal["none"] = "none"


_WEIGHTS_ONLY = ("rule", "initial", "begin", "end", "frequency")
_CHANNELS_ONLY = ("importance", "target_macs", "round_to")


class Prune(Options):
    """Remove the least important weights or channels, and train the remaining network."""

    kind: Literal["prune"] = "prune"
    source: Path | None = None
    """run folder of the network to prune"""
    what: Literal["weights", "channels"] = "weights"
    """weights: single weights are set to 0 and stay 0, and layers keep their sizes; channels: channels are removed, so
    the network is smaller and faster"""
    amount: NonNegative = 0.5
    """fraction to remove (with `rule: sensitivity`, the threshold in standard deviations)"""
    scope: Literal["layer", "global"] = "layer"
    """layer: remove the same fraction of every layer; global: rank all layers together"""
    rule: Literal["level", "sensitivity"] = "level"
    """for weights; level: remove the fraction `amount`; sensitivity: remove weights with a magnitude of at most
    `amount` standard deviations"""
    importance: Literal["l1", "l2", "bn", "random"] = "l1"
    """for channels: ranking criterion, computed over all layers that share a channel; bn: the scale of BatchNorm"""
    layers: str = ""
    """regular expression of layer names (`backbone.layer4`, `conv2$`); empty: every convolution and linear layer"""
    skip_first: bool = False
    """do not prune the layers that receive the clip"""
    skip_classifier: bool = True
    """do not prune the classifier"""
    by_layer: dict[str, Fraction] = Field(default_factory=dict)
    """fraction to remove from each listed layer, instead of `amount`; other layers are not pruned (set by
    `--levels FILE`)"""
    initial: Fraction = 0.0
    """gradual pruning: fraction removed at the start"""
    begin: Annotated[int, Field(ge=0)] = 0
    """gradual pruning: first epoch, counted from 0"""
    end: PositiveInt | None = None
    """gradual pruning: number of epochs within which `amount` is reached, on the cubic schedule of Zhu and Gupta;
    none: prune in one step"""
    frequency: PositiveInt = 1
    """gradual pruning: number of epochs between steps"""
    target_macs: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """for channels: fraction of the multiply-adds to keep; it determines how many channels are removed, instead of
    `amount`"""
    round_to: PositiveInt = 1
    """for channels: remaining widths are multiples of this number; 8 suits most processors"""

    @model_validator(mode="after")
    def _consistent(self) -> Prune:
        usual, other = Prune.model_fields, _WEIGHTS_ONLY if self.what == "channels" else _CHANNELS_ONLY
        for name in other:
            if getattr(self, name) != usual[name].default:
                raise ValueError(
                    f"`{name}` applies only to `what: {'channels' if self.what == 'weights' else 'weights'}`, "
                    f"but `what` is {self.what}; remove one of them"
                )
        if self.rule == "level" and not 0.0 < self.amount < 1.0:
            raise ValueError(f"`amount` is {self.amount:g}: expected a fraction above 0 and below 1")
        if self.rule == "sensitivity" and (self.scope == "global" or self.end is not None or self.by_layer):
            raise ValueError(
                "`rule: sensitivity` applies a threshold to each layer in one step; remove `scope: global`, `end` and "
                "`by_layer`"
            )
        if self.by_layer and (self.scope == "global" or self.target_macs is not None):
            raise ValueError(
                "`by_layer` sets the fraction of each layer; remove `scope: global` and `target_macs`"
            )
        if self.end is not None and self.end < self.begin + 2 * self.frequency:
            raise ValueError(
                f"`end` is {self.end}: a gradual schedule needs two steps; expected at least `begin` + 2 · `frequency` "
                f"({self.begin + 2 * self.frequency}); remove `end` to prune in one step"
            )
        return self

    @property
    def unused(self) -> set[str]:
        """Names of the settings that have no effect with the values of the other settings."""
        found = {*(_WEIGHTS_ONLY if self.what == "channels" else _CHANNELS_ONLY)}
        found |= {"amount"} if self.by_layer or self.target_macs is not None else set()
        return found | ({"initial", "begin", "frequency"} if self.end is None else set())


class Quantize(Options):
    """Make convolutions and linear layers compute in int8."""

    kind: Literal["quantize"] = "quantize"
    source: Path | None = None
    """run folder of the network to quantize"""
    method: Literal["static", "qat"] = "static"
    """static: measure the ranges of activations on clips of the training part; qat: train with rounded values"""
    clips: PositiveInt = 64
    """static: number of clips of the training part on which ranges are measured"""
    observer: Literal["histogram", "minmax", "moving_average"] = "histogram"
    """how `static` computes a range. `histogram`: the range with the smallest error. `minmax`: from the smallest to the
    largest value. `moving_average`: moving average of the ranges of the batches"""
    per_channel: bool = True
    """use one scale per output channel of a weight tensor; false: one scale per tensor"""
    keep: tuple[str, ...] = ()
    """parts to keep in float: stages (`stem`), layers (`layer1.0.conv1`), `classifier`, or patterns with *"""
    engine: Literal["auto", "onednn", "qnnpack"] = "auto"
    """int8 kernels of torch; auto: onednn, or qnnpack on ARM"""
    range_decay: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.99
    """decay of the moving average of ranges; the initial bias of the average is corrected"""
    ranges_until: Fraction = 0.5
    """qat: fraction of the training after which ranges of activations are frozen"""
    statistics_until: Fraction = 0.5
    """qat: fraction of the training after which BatchNorm's statistics are frozen"""


class Distill(Options):
    """Train the network on the outputs of one or several teachers.

    The loss of a clip is `student_weight` times the ordinary loss plus the other losses times their weights.
    """

    kind: Literal["distill"] = "distill"
    teachers: tuple[Path, ...] = ()
    """run folders of the networks to learn from"""
    temperature: Positive = 4.0
    """divisor of the logits for soft targets"""
    student_weight: NonNegative = 0.3
    """weight of the ordinary loss"""
    distill_weight: NonNegative = 0.7
    """weight of the loss on soft targets: temperature² times the divergence from the teachers' probabilities"""
    fuse: Literal["probabilities", "logits"] = "probabilities"
    """which outputs of several teachers are averaged"""
    teacher_weights: tuple[NonNegative, ...] = ()
    """weight of each teacher in the average; if empty, equal weights"""
    feature_weight: NonNegative = 0.0
    """weight of feature transfer (FitNets, arXiv 1412.6550): mean squared difference between a teacher's tokens and the
    student's tokens. A linear layer, which is not saved, projects the student's tokens to the teacher's width"""
    attention_weight: NonNegative = 0.0
    """weight of attention transfer (arXiv 1612.03928): half the squared distance between maps of squared activations,
    which are normalised to length 1"""
    vector_weight: NonNegative = 0.0
    """weight of the MARS loss (CVPR 2019): mean squared difference between the inputs of the two classifiers, which
    must have the same width; MARS uses 50"""

    @model_validator(mode="after")
    def _consistent(self) -> Distill:
        weights = (self.distill_weight, self.feature_weight, self.attention_weight, self.vector_weight)
        if not any(weights):
            raise ValueError(
                "all losses that use the teachers have weight 0; set `distill_weight` or another weight above 0"
            )
        given, teachers = len(self.teacher_weights), len(self.teachers)
        if given and (given != teachers or not any(self.teacher_weights)):
            raise ValueError(
                f"`teacher_weights` has {given} numbers for {teachers} teachers: expected one number per teacher, not "
                "all 0"
            )
        return self


CompressOptions = Annotated[NoCompression | Prune | Quantize | Distill, Field(discriminator="kind")]
