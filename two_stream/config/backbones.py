"""Options of the backbones: one class per kind."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from two_stream.config.base import Options, Positive, PositiveInt

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
    preactivation: bool = False
    """BatchNorm and ReLU before each convolution instead of after it (He et al., arXiv 1603.05027)"""
    expansion: Literal[2, 4] = 4
    """output of a bottleneck in multiples of its inside; the wide ResNets have 2, with `width` 2"""
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
    spread: bool = False
    """the slow frames are spread from the first to the last fast one, as PySlowFast picks them, instead of every
    `alpha`-th"""
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


class MobileNet(Options):
    """3D MobileNet (Efficient-3DCNNs): separable convolutions."""

    kind: Literal["mobilenet_3d"] = "mobilenet_3d"
    width: Annotated[float, Field(gt=0.0, le=4.0)] = 1.0
    """width multiplier"""
    temporal_stride: TemporalStride = 16
    """frames per token; less than 16 leaves the last stages at full rate: more tokens for the head, same weights"""


class ShuffleNet(Options):
    """3D ShuffleNet (Efficient-3DCNNs): grouped pointwise convolutions and shuffled channels."""

    kind: Literal["shufflenet_3d"] = "shufflenet_3d"
    groups: Literal[1, 2, 3, 4, 8] = 3
    """groups of the pointwise convolutions; they decide the widths too"""
    width: Annotated[float, Field(gt=0.0, le=4.0)] = 1.0
    """width multiplier"""
    temporal_stride: TemporalStride = 16
    """frames per token; less than 16 leaves the last stages at full rate: more tokens for the head, same weights"""


class ShuffleNetV2(Options):
    """3D ShuffleNetV2 (Efficient-3DCNNs): half of the channels pass each block as they are."""

    kind: Literal["shufflenetv2_3d"] = "shufflenetv2_3d"
    width: float = 1.0
    """width multiplier: 0.25, 0.5, 1, 1.5 or 2, each with published widths of its own"""
    temporal_stride: TemporalStride = 16
    """frames per token; less than 16 leaves the last stages at full rate: more tokens for the head, same weights"""

    @field_validator("width")
    @classmethod
    def _published(cls, width: float) -> float:
        if width not in (0.25, 0.5, 1.0, 1.5, 2.0):
            raise ValueError("expected 0.25, 0.5, 1, 1.5 or 2")
        return width


class SqueezeNet(Options):
    """3D SqueezeNet (Efficient-3DCNNs): fire modules."""

    kind: Literal["squeezenet_3d"] = "squeezenet_3d"
    version: Literal["1.0", "1.1"] = "1.1"
    """1.1 has a smaller stem and pools earlier"""
    width: Annotated[float, Field(gt=0.0, le=4.0)] = 1.0
    """width multiplier"""
    temporal_stride: TemporalStride = 16
    """frames per token; less than 16 leaves the last stages at full rate: more tokens for the head, same weights"""


class Csn(Options):
    """Channel-separated network (Tran et al.): bottlenecks whose 3×3×3 convolution sees one channel at a time."""

    kind: Literal["csn"] = "csn"
    depth: Literal[26, 50, 101, 152] = 152
    mode: Literal["ip", "ir"] = "ip"
    """ip: interaction-preserved, a 1×1×1 convolution stands before the 3×3×3 one; ir: interaction-reduced, none does"""
    width: Annotated[float, Field(gt=0.0, le=4.0)] = 1.0
    """width multiplier"""
    temporal_stride: Literal[1, 2, 4, 8] = 8
    """frames per token; less than 8 leaves the last stages at full rate: more tokens for the head, same weights"""


class DenseNet(Options):
    """3D DenseNet (3D-ResNets): every layer sees the maps of all layers before it."""

    kind: Literal["densenet3d"] = "densenet3d"
    depth: Literal[121, 169, 201, 264] = 121
    growth: PositiveInt = 32
    """channels that each layer adds"""
    temporal_stride: TemporalStride = 16
    """frames per token; less than 16 leaves the last stages at full rate: more tokens for the head, same weights"""


class X3d(Options):
    """X3D: XS, S and M share the network (depth 2.2) and differ in their input; L has depth 5."""

    kind: Literal["x3d"] = "x3d"
    depth: Annotated[float, Field(gt=0.0, le=10.0)] = 2.2
    """multiplier of the blocks in each layer"""
    width: Annotated[float, Field(gt=0.0, le=8.0)] = 2.0
    """width multiplier; 2 in every published network"""


class Slow(Options):
    """ResNet with factored bottlenecks (PySlowFast): the slow pathway by itself, or I3D as an inflated ResNet."""

    kind: Literal["slow"] = "slow"
    depth: Literal[50, 101] = 50
    variant: Literal["slow", "i3d"] = "slow"
    """slow: no convolution over time before layer3; i3d: one in every or every other block, and half the rate"""
    width: Annotated[float, Field(gt=0.0, le=4.0)] = 1.0
    """width multiplier"""


class C3d(Options):
    """C3D with BatchNorm (Efficient-3DCNNs); its fully connected layers give a token for every 16 frames."""

    kind: Literal["c3d"] = "c3d"
    width: Annotated[float, Field(gt=0.0, le=4.0)] = 1.0
    """width multiplier"""
    side: PositiveInt = 4
    """height and width of the last map, which the first fully connected layer covers: 4 for a crop of 112"""
    temporal_stride: TemporalStride = 16
    """frames per token; less than 16 leaves the last stages at full rate: more tokens for the head, same weights"""


class MotionGrid(Options):
    """Mean motion in the cells of a grid, frame by frame: flow only, and nothing to learn."""

    kind: Literal["motion_grid"] = "motion_grid"
    rows: PositiveInt = 3
    """cells from top to bottom"""
    columns: PositiveInt = 4
    """cells from left to right"""
