"""How a run is made from another one: pruned, quantised or distilled; told apart by `kind`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from two_stream.config.base import Fraction, NonNegative, Options, Positive, PositiveInt


class NoCompression(Options):
    """An ordinary training."""

    kind: Literal["none"] = "none"


class Prune(Options):
    """Weights or channels that matter least are taken out, and the rest trained on."""

    kind: Literal["prune"] = "prune"
    source: Path | None = None
    """run folder of the network that is pruned"""
    what: Literal["weights", "channels"] = "weights"
    """weights: single weights are set to 0 and stay 0, the layers keep their sizes; channels: whole channels go, so
    that the network is smaller and faster everywhere"""
    amount: NonNegative = 0.5
    """share that is taken out (with `rule: sensitivity`: the threshold in standard deviations)"""
    scope: Literal["layer", "global"] = "layer"
    """layer: the same share of every layer; global: the least important of all layers together"""
    rule: Literal["level", "sensitivity"] = "level"
    """weights: level takes out the share `amount`; sensitivity what is not above `amount` standard deviations"""
    importance: Literal["l1", "l2", "bn", "random"] = "l1"
    """channels: what they are ranked by, over all layers that share a channel; bn: BatchNorm's scale"""
    layers: str = ""
    """regular expression of layer names (`backbone.layer4`, `conv2$`); empty: every convolution and linear layer"""
    skip_first: bool = False
    """leave the layers that see the clip itself alone"""
    skip_classifier: bool = True
    """leave the classifier alone"""
    by_layer: dict[str, Fraction] = Field(default_factory=dict)
    """share by layer, in place of `amount`; other layers are left alone (`--levels FILE` fills it in)"""
    initial: Fraction = 0.0
    """gradual: share at the begin"""
    begin: Annotated[int, Field(ge=0)] = 0
    """gradual: first epoch, counted from 0"""
    end: PositiveInt | None = None
    """gradual: epoch by which `amount` is reached, by the cubic schedule of Zhu and Gupta; none: all at once"""
    frequency: PositiveInt = 1
    """gradual: epochs from step to step"""
    target_macs: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """channels: take out as many as leave this share of the multiply-adds, in place of `amount`"""
    round_to: PositiveInt = 1
    """channels: widths that are left are multiples of this; 8 suits most processors"""

    @model_validator(mode="after")
    def _consistent(self) -> Prune:
        usual = Prune.model_fields
        other: tuple[str, ...] = ("rule", "initial", "begin", "end", "frequency")
        if self.what == "weights":
            other = ("importance", "target_macs", "round_to")
        for name in other:
            if getattr(self, name) != usual[name].default:
                raise ValueError(
                    f"`{name}` is for `what: {'channels' if self.what == 'weights' else 'weights'}`, "
                    f"and this prunes {self.what}; leave one of them out"
                )
        if self.rule == "level" and not 0.0 < self.amount < 1.0:
            raise ValueError(f"`amount` is {self.amount:g}: expected a share above 0 and below 1")
        if self.rule == "sensitivity" and (self.scope == "global" or self.end is not None or self.by_layer):
            raise ValueError(
                "`rule: sensitivity` sets a threshold by layer and at once; leave `scope: global`, `end` and "
                "`by_layer` out"
            )
        if self.by_layer and (self.scope == "global" or self.target_macs is not None):
            raise ValueError(
                "`by_layer` says what each layer loses; leave `scope: global` and `target_macs` out"
            )
        if self.end is not None and self.end < self.begin + 2 * self.frequency:
            raise ValueError(
                f"`end` is {self.end}: a gradual schedule needs two steps, so at least `begin` + 2 · `frequency` "
                f"({self.begin + 2 * self.frequency}); leave it out to prune at once"
            )
        return self


class Quantize(Options):
    """Convolutions and linear layers compute in int8."""

    kind: Literal["quantize"] = "quantize"
    source: Path | None = None
    """run folder of the network that is quantised"""
    method: Literal["static", "qat"] = "static"
    """static: ranges of activations measured on clips of the training part; qat: trained on with rounded values"""
    clips: PositiveInt = 64
    """static: clips of the training part that ranges are measured on"""
    observer: Literal["histogram", "minmax", "moving_average"] = "histogram"
    """static: what a range is; histogram: the one with the least error; minmax: from the smallest to the largest
    value; moving_average: of those of the batches"""
    per_channel: bool = True
    """a scale per output channel of a weight; off: one per weight"""
    keep: tuple[str, ...] = ()
    """what stays in float: stages (`stem`), layers (`layer1.0.conv1`), `classifier`, patterns with *"""
    engine: Literal["auto", "onednn", "qnnpack"] = "auto"
    """kernels of torch that compute; auto: onednn, on ARM qnnpack"""
    range_decay: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.99
    """of the moving average of ranges; its bias towards the start is taken out"""
    ranges_until: Fraction = 0.5
    """qat: share of the training after which ranges of activations stay as they are"""
    statistics_until: Fraction = 0.5
    """qat: share of the training after which BatchNorm's statistics stay as they are"""


class Distill(Options):
    """The network learns from what one or several trained ones say.

    The loss of a clip is `student_weight` times the ordinary one, plus the others times their weights.
    """

    kind: Literal["distill"] = "distill"
    teachers: tuple[Path, ...] = ()
    """run folders of the networks to learn from"""
    temperature: Positive = 4.0
    """of soft targets: logits are divided by it"""
    student_weight: NonNegative = 0.3
    """weight of the ordinary loss"""
    distill_weight: NonNegative = 0.7
    """weight of the soft targets: temperature² times the divergence from the teachers' probabilities"""
    fuse: Literal["probabilities", "logits"] = "probabilities"
    """what is averaged over several teachers"""
    teacher_weights: tuple[NonNegative, ...] = ()
    """weight of each teacher in that average; none: equal ones"""
    feature_weight: NonNegative = 0.0
    """weight of feature transfer (FitNets, 1412.6550): mean square between a teacher's tokens and the student's,
    brought to the teacher's width by a linear layer that is not kept"""
    attention_weight: NonNegative = 0.0
    """weight of attention transfer (1612.03928): distance of the maps of squared activations, each of length 1"""
    vector_weight: NonNegative = 0.0
    """weight of MARS (CVPR 2019): mean square between the vectors before the classifier, of one width; it takes 50"""

    @model_validator(mode="after")
    def _consistent(self) -> Distill:
        weights = (self.distill_weight, self.feature_weight, self.attention_weight, self.vector_weight)
        if not any(weights):
            raise ValueError("every weight of what teachers say is 0: give `distill_weight` or another one")
        given, teachers = len(self.teacher_weights), len(self.teachers)
        if given and (given != teachers or not any(self.teacher_weights)):
            raise ValueError(
                f"`teacher_weights` has {given} numbers for {teachers} teachers: expected one each, not all 0"
            )
        return self


CompressOptions = Annotated[NoCompression | Prune | Quantize | Distill, Field(discriminator="kind")]
