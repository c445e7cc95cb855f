"""Options of the temporal heads: one class per kind.

To add a head, add its options class here and to the union `HeadOptions`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from two_stream.config.base import Fraction, Options, PositiveInt


class AverageHead(Options):
    """Mean over time."""

    kind: Literal["average"] = "average"
    window: PositiveInt = 1
    """number of adjacent tokens that are averaged first; Kinetics I3D uses 2"""
    features: PositiveInt | None = None
    """width of a linear layer (no bias) with ReLU after the mean, as in X3D; none: no layer"""


class MomentsHead(Options):
    """Statistics of the tokens over time: the mean, and optional further statistics. The head has no weights."""

    kind: Literal["moments"] = "moments"
    spread: bool = True
    """append the standard deviation over time to the output"""
    differences: Annotated[int, Field(ge=0)] = 4
    """divide the clip into this number of parts, and append the mean of the last part minus the mean of the first
    part; 0 is off"""
    maximum: bool = False
    """append the largest value over time to the output"""
    parts: Annotated[int, Field(ge=0)] = 0
    """divide the clip into this number of equal parts, and append the mean of each part; 0 is off"""

    @model_validator(mode="after")
    def _divided(self) -> MomentsHead:
        for name in ("differences", "parts"):
            if getattr(self, name) == 1:
                raise ValueError(
                    f"`{name}` is 1, which is the complete clip; expected 2 or more parts, or 0 for none"
                )
        return self


class ConcatHead(Options):
    """Concatenated tokens, optionally with a linear layer."""

    kind: Literal["concat"] = "concat"
    features: PositiveInt | None = 1550
    """width of the linear layer; none: no layer"""
    dropout: Fraction = 0.0
    """dropout before the linear layer; the published models use 0.8 here and no dropout before the classifier"""


class LstmHead(Options):
    """Last output of an LSTM over the tokens."""

    kind: Literal["lstm"] = "lstm"
    hidden: PositiveInt = 450
    layers: PositiveInt = 2
    bidirectional: bool = False


class GruHead(Options):
    """Last output of a GRU over the tokens."""

    kind: Literal["gru"] = "gru"
    hidden: PositiveInt = 450
    layers: PositiveInt = 2
    bidirectional: bool = False


class TcnHead(Options):
    """Dilated residual convolutions over the tokens, followed by the mean, or by the last step if causal."""

    kind: Literal["tcn"] = "tcn"
    hidden: PositiveInt = 256
    """number of channels"""
    layers: Annotated[int, Field(ge=1, le=16)] = 4
    """number of layers; the dilation of layer i is 2^i, counted from 0"""
    dropout: Fraction = 0.5
    """dropout at the end of each layer"""
    causal: bool = False
    """each step uses only tokens up to its own; the output is that of the last step"""


class TrnHead(Options):
    """Multi-scale temporal relations: an MLP for each number of frames, applied to ordered subsets of the tokens."""

    kind: Literal["trn"] = "trn"
    hidden: PositiveInt = 256
    """width of the MLPs"""
    subsets: PositiveInt = 3
    """largest number of subsets of each size; in training, they are drawn at random"""
    largest: Annotated[int, Field(ge=2)] | None = None
    """largest number of tokens in a subset; none: all tokens (published)"""


class NonLocalHead(Options):
    """Embedded-Gaussian non-local block, followed by concatenation and a linear layer, or by the mean."""

    kind: Literal["nonlocal"] = "nonlocal"
    over: Literal["space_time", "time"] = "space_time"
    """space_time: attention between all positions of the feature map (published); time: attention between tokens"""
    inner: PositiveInt | None = None
    """width inside the block; none: the width of the features (published)"""
    pool: Literal["concat", "average"] = "concat"
    features: PositiveInt | None = 1000
    """width of the linear layer after concatenation; none: no layer"""
    dropout: Fraction = 0.0
    """dropout before the linear layer; the published model uses 0.8 here and no dropout before the classifier"""


class BertHead(Options):
    """BERT as in the paper, with a class token, learned positions, and tokens that are masked at random in training."""

    kind: Literal["bert"] = "bert"
    layers: PositiveInt = 1
    heads: PositiveInt = 8
    hidden: PositiveInt | None = None
    """width of the encoder; none: the width of the tokens; another width adds a linear layer before the encoder"""
    feed_forward: PositiveInt = 4
    """width of the feed-forward layer, in multiples of the hidden width"""
    dropout: Fraction = 0.1
    keep: Annotated[float, Field(gt=0.0, le=1.0)] = 0.8
    """probability of keeping a time token in training; the class token is always kept"""
    class_token: bool = True
    """use the output of a class token; false: use the mean of all outputs"""
    normalize: bool = False
    """normalise each token to unit length before the encoder, as the published I3D variants do"""
    interpolate: bool = False
    """accept clips of other lengths, with positions interpolated linearly between the learned ones"""


class HfBertHead(Options):
    """BERT encoder of the library `transformers` (post-norm), applied to a class token and the tokens."""

    kind: Literal["hf_bert"] = "hf_bert"
    layers: PositiveInt = 1
    heads: PositiveInt = 8
    feed_forward: PositiveInt = 4
    """width of the feed-forward layer, in multiples of the token width"""
    dropout: Fraction = 0.1
    keep: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """probability of keeping a time token in training"""


class TransformerHead(Options):
    """Pre-norm transformer encoder with rotary positions, for clips of any length."""

    kind: Literal["transformer"] = "transformer"
    layers: PositiveInt = 1
    heads: PositiveInt = 8
    hidden: PositiveInt | None = None
    """width of the encoder; none: the width of the tokens; another width adds a linear layer before the encoder"""
    feed_forward: PositiveInt = 4
    """width of the feed-forward layer, in multiples of the hidden width"""
    dropout: Fraction = 0.1
    class_token: bool = True
    """use the output of a class token; false: use the mean of all outputs"""


class AttentiveHead(Options):
    """Attentive pooling of V-JEPA: learned queries attend to the tokens. Without positions, the order has no effect."""

    kind: Literal["attentive"] = "attentive"
    queries: PositiveInt = 1
    """number of learned queries, whose outputs are concatenated"""
    blocks: Annotated[int, Field(ge=0)] = 0
    """number of self-attention blocks before the queries; V-JEPA has 0, V-JEPA 2 has 3"""
    heads: PositiveInt = 8
    hidden: PositiveInt | None = None
    """width of the attention; none: the width of the tokens; another width adds a linear layer before it"""
    feed_forward: PositiveInt = 4
    """width of the feed-forward layers, in multiples of the hidden width"""
    dropout: Fraction = 0.0


HeadOptions = Annotated[
    AverageHead
    | MomentsHead
    | ConcatHead
    | LstmHead
    | GruHead
    | TcnHead
    | TrnHead
    | NonLocalHead
    | BertHead
    | HfBertHead
    | TransformerHead
    | AttentiveHead,
    Field(discriminator="kind"),
]
