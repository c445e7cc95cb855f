"""Backbones, heads and how they are joined. A new part adds its options class and its name in the union."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from two_stream.config.base import Fraction, Options, Positive, PositiveInt

TemporalStride = Literal[1, 2, 4, 8, 16]


class ResNet3d(Options):
    """3D ResNet (kenshohara): every convolution is k×k×k."""

    kind: Literal["resnet3d"] = "resnet3d"
    depth: Literal[10, 18, 34, 50, 101, 152, 200] = 18
    shortcut: Literal["A", "B"] = "B"
    """A: zero-padded identity; B: 1×1×1 convolution where the shape changes"""
    width: Annotated[float, Field(gt=0.0, le=4.0)] = 1.0
    """width multiplier"""
    temporal_stride: TemporalStride = 16
    """frames per token; less than 16 leaves the last stages at full rate: more tokens for the head, same weights"""
    stem_kernel: Literal[1, 3, 5, 7] = 7
    """length in time of the first convolution"""
    stem_stride: Literal[1, 2] = 1
    """step in time of the first convolution, on top of `temporal_stride`"""
    stem_pool: bool = True
    """max pooling after the first convolution"""


class ResNeXt3d(Options):
    """3D ResNeXt (kenshohara, MARS): grouped bottlenecks. Depth 101 with 64 frames is the paper's."""

    kind: Literal["resnext3d"] = "resnext3d"
    depth: Literal[50, 101] = 101
    cardinality: PositiveInt = 32
    """groups of each 3×3×3 convolution"""
    shortcut: Literal["A", "B"] = "B"
    """A: zero-padded identity; B: 1×1×1 convolution where the shape changes"""
    width: Annotated[float, Field(gt=0.0, le=4.0)] = 1.0
    """width multiplier of the layers"""
    stem_channels: PositiveInt = 64
    """width of the first convolution; the 2020 release of 3D-ResNets has 128"""
    temporal_stride: TemporalStride = 16
    """frames per token; less than 16 leaves the last stages at full rate: more tokens for the head, same weights"""


class MobileNetV2(Options):
    """3D MobileNetV2 (Efficient-3DCNNs): inverted residuals; the small default."""

    kind: Literal["mobilenetv2_3d"] = "mobilenetv2_3d"
    width: Annotated[float, Field(gt=0.0, le=4.0)] = 1.0
    """width multiplier"""
    temporal_stride: TemporalStride = 16
    """frames per token; less than 16 leaves the last stages at full rate: more tokens for the head, same weights"""


class SlowFast(Options):
    """SlowFast ResNet: a slow pathway with many channels and a fast one with many frames."""

    kind: Literal["slowfast"] = "slowfast"
    depth: Literal[50, 101] = 50
    fusion: Literal["late", "early"] = "late"
    """late: a head per pathway, their vectors joined; early: the fast map is averaged to the slow one's rate and
    both enter one head"""
    fast_stride: PositiveInt = 2
    """frames of the clip per frame of the fast pathway; 1 for clips read with a stride of 2"""
    alpha: PositiveInt = 4
    """frames of the fast pathway per frame of the slow one"""
    fusion_kernel: Literal[1, 3, 5, 7] = 7
    """length in time of the convolutions from the fast to the slow pathway"""
    width: Annotated[float, Field(ge=0.125, le=4.0)] = 1.0
    """width multiplier"""


class I3d(Options):
    """Inception-I3D (Carreira and Zisserman): inception modules with TensorFlow's SAME padding."""

    kind: Literal["i3d"] = "i3d"
    width: Annotated[float, Field(gt=0.0, le=4.0)] = 1.0
    """width multiplier"""
    temporal_stride: Literal[1, 2, 4, 8] = 8
    """frames per token; less than 8 leaves the last stages at full rate: more tokens for the head, same weights"""


class R2Plus1d(Options):
    """R(2+1)D (Tran et al.): convolutions over space, then over time. Depth 34 is the paper's (IG-65M)."""

    kind: Literal["r2plus1d"] = "r2plus1d"
    depth: Literal[18, 34, 50] = 34
    shortcut: Literal["A", "B"] = "B"
    """A: zero-padded identity; B: 1×1×1 convolution where the shape changes"""
    width: Annotated[float, Field(gt=0.0, le=4.0)] = 1.0
    """width multiplier"""
    temporal_stride: TemporalStride = 8
    """frames per token; less than the most (8, or 16 with `stem_pool`) leaves the last stages at full rate: more
    tokens for the head, same weights"""
    midplanes: Literal["pair", "block"] = "pair"
    """what the channels between space and time are counted from: the convolution that the pair stands for (IG-65M,
    3D-ResNets), or the first one of the block for all of it (torchvision)"""
    norm_eps: Positive = 1e-3
    """BatchNorm's epsilon: 1e-3 for IG-65M's weights, 1e-5 for torchvision's and 3D-ResNets'"""
    stem_middle: PositiveInt | None = 45
    """channels between space and time in the stem; none counts them as in the blocks (3D-ResNets)"""
    stem_kernel: Literal[1, 3, 5, 7] = 3
    """length in time of the stem; 3D-ResNets has 7"""
    stem_pool: bool = False
    """max pooling after the stem, as 3D-ResNets has"""

    @model_validator(mode="after")
    def _reachable(self) -> R2Plus1d:
        if self.temporal_stride == 16 and not self.stem_pool:
            raise ValueError("temporal_stride 16 needs stem_pool; without it 8 is the most")
        return self


class AverageHead(Options):
    """Mean over time."""

    kind: Literal["average"] = "average"
    window: PositiveInt = 1
    """tokens averaged at a time, one run after the other; 2 is how Kinetics I3D pools"""


class ConcatHead(Options):
    """Tokens side by side, optionally through one linear layer."""

    kind: Literal["concat"] = "concat"
    features: PositiveInt | None = 1550
    """width of the linear layer; none leaves the concatenation as it is"""
    dropout: Fraction = 0.0
    """dropout before the linear layer; the published models have it here, at 0.8, and none before the classifier"""


class LstmHead(Options):
    """LSTM over the tokens; its last step."""

    kind: Literal["lstm"] = "lstm"
    hidden: PositiveInt = 450
    layers: PositiveInt = 2
    bidirectional: bool = False


class NonLocalHead(Options):
    """Embedded-Gaussian non-local block, then concatenation and a linear layer, or the mean."""

    kind: Literal["nonlocal"] = "nonlocal"
    over: Literal["space_time", "time"] = "space_time"
    """space_time: every place of the feature map attends to every other before pooling (published); time: tokens"""
    inner: PositiveInt | None = None
    """width inside the block; none is the width of the features (published)"""
    pool: Literal["concat", "average"] = "concat"
    features: PositiveInt | None = 1000
    """width of the linear layer after concatenation; none leaves it out"""
    dropout: Fraction = 0.0
    """dropout before the linear layer; the published model has it here, at 0.8, and none before the classifier"""


class BertHead(Options):
    """The paper's BERT: class token, learned positions, masked tokens in training."""

    kind: Literal["bert"] = "bert"
    layers: PositiveInt = 1
    heads: PositiveInt = 8
    hidden: PositiveInt | None = None
    """width of the encoder; none is the width of the tokens, another adds a linear layer before it"""
    feed_forward: PositiveInt = 4
    """width of the feed-forward layer, in multiples of the hidden width"""
    dropout: Fraction = 0.1
    keep: Annotated[float, Field(gt=0.0, le=1.0)] = 0.8
    """probability with which a time token is kept in training; the class token always is"""
    class_token: bool = True
    """false: the mean of the outputs instead of the class token's"""
    normalize: bool = False
    """scale each token to unit length first, as the published I3D variants do"""


class HfBertHead(Options):
    """BERT encoder of the transformers library (post-norm) over a class token and the tokens."""

    kind: Literal["hf_bert"] = "hf_bert"
    layers: PositiveInt = 1
    heads: PositiveInt = 8
    feed_forward: PositiveInt = 4
    """width of the feed-forward layer, in multiples of the token width"""
    dropout: Fraction = 0.1
    keep: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """probability with which a time token is kept in training"""


BackboneOptions = Annotated[
    ResNet3d | ResNeXt3d | MobileNetV2 | SlowFast | I3d | R2Plus1d, Field(discriminator="kind")
]
HeadOptions = Annotated[
    AverageHead | ConcatHead | LstmHead | NonLocalHead | BertHead | HfBertHead, Field(discriminator="kind")
]


class InputOptions(Options):
    """Departures from the backbone's usual input; what is left out keeps the backbone's own value."""

    clip_length: PositiveInt | None = None
    """frames per clip"""
    stride: PositiveInt | None = None
    """step between neighbouring frames"""
    resize: tuple[PositiveInt, PositiveInt] | None = None
    """height and width a frame is resized to"""
    crop: PositiveInt | None = None
    """side of the square crop"""
    value_range: tuple[float, float] | None = None
    """what pixel values 0 and 255 become before mean and std"""
    mean: tuple[float, ...] | None = None
    std: tuple[Positive, ...] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> InputOptions:
        if self.resize is not None and self.crop is not None and self.crop > min(self.resize):
            raise ValueError(f"crop {self.crop} is larger than the resized frame {self.resize}")
        return self


class ModelOptions(Options):
    """A recognizer: backbone, reduction, temporal head, classifier."""

    modality: Literal["rgb", "flow"] = "rgb"
    """rgb: 3 channels; flow: 2 channels (x, y)"""
    backbone: BackboneOptions = MobileNetV2()
    """the 3D network below the head"""
    reduction: Literal["none", "frab", "frmb"] = "none"
    """frab: append a block that narrows the features; frmb: replace the last block by one"""
    reduced_channels: PositiveInt = 512
    """width after frab or frmb"""
    head: HeadOptions = BertHead()
    """how time is summed up"""
    dropout: Fraction = 0.8
    """dropout before the classifier"""
    input: InputOptions = InputOptions()
    """input of the network where it differs from the backbone's usual one"""
