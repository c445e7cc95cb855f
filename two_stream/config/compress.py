"""How a run is made from another one: pruned, quantised or distilled; told apart by `kind`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from two_stream.config.base import Fraction, NonNegative, Options, PositiveInt


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


class Distill(Options):
    """The network learns from what one or several trained ones say."""

    kind: Literal["distill"] = "distill"
    teachers: tuple[Path, ...] = ()
    """run folders of the networks to learn from"""


CompressOptions = Annotated[NoCompression | Prune | Quantize | Distill, Field(discriminator="kind")]
