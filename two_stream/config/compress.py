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
    """weight of feature transfer (FitNets, 1412.6550): mean square between a teacher's tokens and the student's, brought
    to the teacher's width by a linear layer that is not kept"""
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
