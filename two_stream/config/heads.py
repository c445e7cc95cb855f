"""Options of the temporal heads: one class per kind. A new head adds its class here and its name in the union."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from two_stream.config.base import Fraction, Options, PositiveInt


class AverageHead(Options):
    """Mean over time."""

    kind: Literal["average"] = "average"
    window: PositiveInt = 1
    """length of the averaged windows of tokens; Kinetics I3D uses 2"""
    features: PositiveInt | None = None
    """width of a linear layer (no bias) with ReLU after the mean, as in X3D; none: no layer"""


class MomentsHead(Options):
    """Statistics of the tokens over time, without weights: the mean and optional others."""

    kind: Literal["moments"] = "moments"
    spread: bool = True
    """add the standard deviation over time"""
    differences: Annotated[int, Field(ge=0)] = 4
    """split the clip into this many equal parts and add the mean of the last minus that of the first; 0 is off"""
    maximum: bool = False
    """add the largest value over time"""
    parts: Annotated[int, Field(ge=0)] = 0
    """split the clip into this many equal parts and add the mean of each; 0 is off"""

    @model_validator(mode="after")
    def _divided(self) -> MomentsHead:
        for name in ("differences", "parts"):
            if getattr(self, name) == 1:
                raise ValueError(f"{name} is 1, which is the complete clip: expected 2 or more, or 0 for off")
        return self


class ConcatHead(Options):
    """Concatenated tokens, optionally with a linear layer."""

    kind: Literal["concat"] = "concat"
    features: PositiveInt | None = 1550
    """width of the linear layer; none: no layer"""
    dropout: Fraction = 0.0
    """dropout before the linear layer; the published models use 0.8 here and none before the classifier"""


class LstmHead(Options):
    """Last output of an LSTM over the tokens."""

    kind: Literal["lstm"] = "lstm"
    hidden: PositiveInt = 450
    layers: PositiveInt = 2
    bidirectional: bool = False


class NonLocalHead(Options):
    """Embedded-Gaussian non-local block, then concatenation and a linear layer, or the mean."""

    kind: Literal["nonlocal"] = "nonlocal"
    over: Literal["space_time", "time"] = "space_time"
    """space_time: attention between all positions of the map before pooling (published); time: between tokens"""
    inner: PositiveInt | None = None
    """width inside the block; none: the width of the features (published)"""
    pool: Literal["concat", "average"] = "concat"
    features: PositiveInt | None = 1000
    """width of the linear layer after concatenation; none: no layer"""
    dropout: Fraction = 0.0
    """dropout before the linear layer; the published model uses 0.8 here and none before the classifier"""


class BertHead(Options):
    """BERT as in the paper: class token, learned positions, masked tokens in training."""

    kind: Literal["bert"] = "bert"
    layers: PositiveInt = 1
    heads: PositiveInt = 8
    hidden: PositiveInt | None = None
    """width of the encoder; none: the width of the tokens; another width adds a linear layer before it"""
    feed_forward: PositiveInt = 4
    """width of the feed-forward layer, in multiples of the hidden width"""
    dropout: Fraction = 0.1
    keep: Annotated[float, Field(gt=0.0, le=1.0)] = 0.8
    """probability of keeping a time token in training; the class token is always kept"""
    class_token: bool = True
    """false: use the mean of the outputs instead of a class token"""
    normalize: bool = False
    """normalise each token to unit length first, as the published I3D variants do"""


class HfBertHead(Options):
    """BERT encoder of the transformers library (post-norm) over a class token and the tokens."""

    kind: Literal["hf_bert"] = "hf_bert"
    layers: PositiveInt = 1
    heads: PositiveInt = 8
    feed_forward: PositiveInt = 4
    """width of the feed-forward layer, in multiples of the token width"""
    dropout: Fraction = 0.1
    keep: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """probability of keeping a time token in training"""


HeadOptions = Annotated[
    AverageHead | MomentsHead | ConcatHead | LstmHead | NonLocalHead | BertHead | HfBertHead,
    Field(discriminator="kind"),
]
