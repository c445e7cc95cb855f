"""Options of the backbones: one class per kind.

To add a backbone, add its options class here and to the union `BackboneOptions`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from two_stream.config.base import Fraction, Options, Positive, PositiveInt

_STRIDE_HELP = (
    "number of frames per token; below {}, the last stages keep the frame rate and output more tokens, with the same "
    "weights"
)
TemporalStride = Annotated[Literal[1, 2, 4, 8, 16], Field(description=_STRIDE_HELP.format(16))]
TemporalStride8 = Annotated[Literal[1, 2, 4, 8], Field(description=_STRIDE_HELP.format(8))]
Width = Annotated[float, Field(gt=0.0, le=4.0, description="width multiplier")]
ConfigValue = bool | int | float | str | list[int]


class ResNet3d(Options):
    """3D ResNet (kenshohara) with full 3D convolutions."""

    kind: Literal["resnet3d"] = "resnet3d"
    depth: Literal[10, 18, 34, 50, 101, 152, 200] = 18
    shortcut: Literal["A", "B"] = "B"
    """A: zero-padded identity; B: 1×1×1 convolution where the shape changes"""
    width: Width = 1.0
    temporal_stride: TemporalStride = 16
    preactivation: bool = False
    """BatchNorm and ReLU before each convolution instead of after it (He et al., arXiv 1603.05027)"""
    expansion: Literal[2, 4] = 4
    """output channels of a bottleneck divided by its inner channels; wide ResNets use `expansion` 2 and `width` 2"""
    stem_kernel: Literal[1, 3, 5, 7] = 7
    """temporal kernel size of the first convolution"""
    stem_stride: Literal[1, 2] = 1
    """temporal stride of the first convolution, in addition to `temporal_stride`"""
    stem_pool: bool = True
    """max pooling after the first convolution"""


class ResNeXt3d(Options):
    """3D ResNeXt (kenshohara, MARS): grouped bottlenecks. The paper uses depth 101 and 64 frames."""

    kind: Literal["resnext3d"] = "resnext3d"
    depth: Literal[50, 101] = 101
    cardinality: PositiveInt = 32
    """number of groups of each 3×3×3 convolution"""
    shortcut: Literal["A", "B"] = "B"
    """A: zero-padded identity; B: 1×1×1 convolution where the shape changes"""
    width: Width = 1.0
    stem_channels: PositiveInt = 64
    """output channels of the first convolution; 128 in the 2020 release of 3D-ResNets"""
    temporal_stride: TemporalStride = 16


class MobileNetV2(Options):
    """3D MobileNetV2 (Efficient-3DCNNs): a small network of inverted residual blocks; the default backbone."""

    kind: Literal["mobilenetv2_3d"] = "mobilenetv2_3d"
    width: Width = 1.0
    temporal_stride: TemporalStride = 16


class SlowFast(Options):
    """SlowFast ResNet: a slow pathway with many channels and a fast pathway with many frames."""

    kind: Literal["slowfast"] = "slowfast"
    depth: Literal[50, 101] = 50
    fusion: Literal["late", "early"] = "late"
    """late: one head per pathway, whose output vectors are concatenated; early: the fast feature map is averaged to the
    slow frame rate, and one head receives the features of both pathways"""
    fast_stride: PositiveInt = 2
    """number of clip frames per frame of the fast pathway; use 1 for clips that are read with a stride of 2"""
    alpha: PositiveInt = 4
    """number of frames of the fast pathway per frame of the slow pathway"""
    spread: bool = False
    """spread the slow frames evenly from the first to the last fast frame, as PySlowFast does, instead of taking every
    `alpha`-th fast frame"""
    fusion_kernel: Literal[1, 3, 5, 7] = 7
    """temporal kernel size of the convolutions from the fast to the slow pathway"""
    width: Annotated[float, Field(ge=0.125, le=4.0)] = 1.0
    """factor on the number of channels of every layer"""


class I3d(Options):
    """Inception-I3D (Carreira and Zisserman): inception modules with TensorFlow's SAME padding."""

    kind: Literal["i3d"] = "i3d"
    width: Width = 1.0
    temporal_stride: TemporalStride8 = 8


class R2Plus1d(Options):
    """R(2+1)D (Tran et al.): convolutions over space, then over time. The paper uses depth 34 (IG-65M)."""

    kind: Literal["r2plus1d"] = "r2plus1d"
    depth: Literal[18, 34, 50] = 34
    shortcut: Literal["A", "B"] = "B"
    """A: zero-padded identity; B: 1×1×1 convolution where the shape changes"""
    width: Width = 1.0
    temporal_stride: Literal[1, 2, 4, 8, 16] = 8
    """number of frames per token; below the maximum (8, or 16 with `stem_pool`), the last stages keep the frame rate
    and output more tokens, with the same weights"""
    midplanes: Literal["pair", "block"] = "pair"
    """how the number of channels between a spatial and a temporal convolution is computed. `pair`: from the 3D
    convolution that the pair replaces (IG-65M, 3D-ResNets). `block`: once per block, from its first convolution
    (torchvision)"""
    norm_eps: Positive = 1e-3
    """epsilon of BatchNorm: 1e-3 for the weights of IG-65M, 1e-5 for the weights of torchvision and 3D-ResNets"""
    stem_middle: PositiveInt | None = 45
    """channels between the spatial and the temporal convolution of the stem; none: as in the blocks (3D-ResNets)"""
    stem_kernel: Literal[1, 3, 5, 7] = 3
    """temporal kernel size of the stem; 7 in 3D-ResNets"""
    stem_pool: bool = False
    """max pooling after the stem, as in 3D-ResNets"""

    @model_validator(mode="after")
    def _reachable(self) -> R2Plus1d:
        if self.temporal_stride == 16 and not self.stem_pool:
            raise ValueError("`temporal_stride` 16 requires `stem_pool: true`; without it, the maximum is 8")
        return self


class MobileNet(Options):
    """3D MobileNet (Efficient-3DCNNs): separable convolutions."""

    kind: Literal["mobilenet_3d"] = "mobilenet_3d"
    width: Width = 1.0
    temporal_stride: TemporalStride = 16


class ShuffleNet(Options):
    """3D ShuffleNet (Efficient-3DCNNs): grouped pointwise convolutions and shuffled channels."""

    kind: Literal["shufflenet_3d"] = "shufflenet_3d"
    groups: Literal[1, 2, 3, 4, 8] = 3
    """number of groups of the pointwise convolutions; it also determines the numbers of channels"""
    width: Width = 1.0
    temporal_stride: TemporalStride = 16


class ShuffleNetV2(Options):
    """3D ShuffleNetV2 (Efficient-3DCNNs): each block leaves half of the channels unchanged."""

    kind: Literal["shufflenetv2_3d"] = "shufflenetv2_3d"
    width: float = 1.0
    """factor on the number of channels: 0.25, 0.5, 1, 1.5 or 2, as published"""
    temporal_stride: TemporalStride = 16

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
    width: Width = 1.0
    temporal_stride: TemporalStride = 16


class Csn(Options):
    """Channel-separated network (Tran et al.): bottlenecks with depthwise 3×3×3 convolutions."""

    kind: Literal["csn"] = "csn"
    depth: Literal[26, 50, 101, 152] = 152
    mode: Literal["ip", "ir"] = "ip"
    """ip: interaction-preserved, with a 1×1×1 convolution before each 3×3×3 convolution; ir: interaction-reduced"""
    width: Width = 1.0
    temporal_stride: TemporalStride8 = 8


class DenseNet(Options):
    """3D DenseNet (3D-ResNets): each layer receives the concatenated outputs of all previous layers."""

    kind: Literal["densenet3d"] = "densenet3d"
    depth: Literal[121, 169, 201, 264] = 121
    growth: PositiveInt = 32
    """number of channels that each layer adds"""
    temporal_stride: TemporalStride = 16


class X3d(Options):
    """X3D: XS, S and M are the same network (depth 2.2) with different inputs; L has depth 5."""

    kind: Literal["x3d"] = "x3d"
    depth: Annotated[float, Field(gt=0.0, le=10.0)] = 2.2
    """factor on the number of blocks in each layer"""
    width: Annotated[float, Field(gt=0.0, le=8.0)] = 2.0
    """factor on the number of channels of every layer; 2 in every published network"""


class Slow(Options):
    """ResNet with factored bottlenecks (PySlowFast): the slow pathway only, or I3D as an inflated ResNet."""

    kind: Literal["slow"] = "slow"
    depth: Literal[50, 101] = 50
    variant: Literal["slow", "i3d"] = "slow"
    """slow: no convolution over time before layer3; i3d: convolutions over time in every block or in every second
    block, and half the frame rate"""
    width: Width = 1.0


class C3d(Options):
    """C3D with BatchNorm (Efficient-3DCNNs); the fully connected layers output one token for every 16 frames."""

    kind: Literal["c3d"] = "c3d"
    width: Width = 1.0
    side: PositiveInt = 4
    """height and width of the last feature map, the input of the first fully connected layer: 4 for a crop of 112"""
    temporal_stride: TemporalStride = 16


class MotionGrid(Options):
    """Mean motion in each cell of a grid, for every flow frame; this backbone has no weights."""

    kind: Literal["motion_grid"] = "motion_grid"
    rows: PositiveInt = 3
    """number of cells from top to bottom"""
    columns: PositiveInt = 4
    """number of cells from left to right"""


class TimmNet(Options):
    """A 2D network from timm, applied to each frame."""

    kind: Literal["timm"] = "timm"
    name: str = "resnet50"
    """name in timm, with or without the tag of its weights: resnet50, resnet50.a1_in1k, vit_small_patch16_224 …"""
    pretrained: bool = False
    """start training from timm's weights (downloaded once to the Hugging Face cache); for tf_efficientnet_lite0 to
    lite2, installed packages are searched first"""
    weights: Path | None = None
    """local file with timm's weights (safetensors or torch), used instead of a download; requires `pretrained: true`"""
    image_size: PositiveInt | None = None
    """side of the image for networks of a fixed size (ViT, Swin …); none: the input size of timm's weights"""
    temporal_stride: PositiveInt = 1
    """number of frames per token; the feature maps of these frames are averaged"""
    tsm: Annotated[float, Field(ge=0.0, le=0.5)] = 0.0
    """temporal shift: fraction of the channels shifted by one frame in each direction (published: 0.125); 0 is off"""
    difference: Literal["none", "alone", "beside"] = "none"
    """for RGB: use the difference of two adjacent frames (RGB difference of TSN). `alone`: only the difference.
    `beside`: the features of the difference and of the first of the two frames are concatenated"""
    picture: bool = False
    """for flow: convert each field to an image of x, y and magnitude, so that RGB weights fit; false: use two channels,
    and average the RGB kernels"""
    inflate: bool = False
    """make a plain convolutional network 3D: convolutions, norms and pools get a time dimension"""
    inflate_kernel: Literal[1, 3] = 3
    """temporal size of inflated kernels; 1×1 convolutions keep the temporal size 1"""
    drop_path: Fraction = 0.0
    """largest probability of dropping a residual branch (stochastic depth), for networks that support it"""

    @model_validator(mode="after")
    def _consistent(self) -> TimmNet:
        if self.tsm and self.inflate:
            raise ValueError(
                "`tsm` shifts channels between frames of a 2D network, but `inflate` makes it 3D; remove one of them"
            )
        if self.inflate and self.difference != "none":
            raise ValueError(
                "`difference` uses pairs of frames, but `inflate` uses all frames; remove one of them"
            )
        if self.weights is not None and not self.pretrained:
            raise ValueError("`weights` requires `pretrained: true`")
        return self


class HfVideo(Options):
    """Video transformer of the library `transformers`, from a folder or the Hugging Face hub, or untrained."""

    kind: Literal["hf_video"] = "hf_video"
    model: str | None = None
    """folder or Hugging Face hub name with config.json and weights, for example MCG-NJU/videomae-base"""
    architecture: Literal["videomae", "timesformer", "vivit", "vjepa2"] | None = None
    """kind of network; none: the kind and all values that `config` does not set are read from `model`; without `model`,
    the kind is videomae"""
    config: dict[str, ConfigValue] = Field(default_factory=dict)
    """changes to the network's default configuration, for example `{num_frames: 8}`"""
    pretrained: bool = False
    """start training from the weights of `model`"""

    @model_validator(mode="before")
    @classmethod
    def _known(cls, data: Any) -> Any:
        nothing = isinstance(data, dict) and data.get("model") is None and data.get("architecture") is None
        return {**data, "architecture": "videomae"} if nothing else data

    @model_validator(mode="after")
    def _has_weights(self) -> HfVideo:
        if self.pretrained and self.model is None:
            raise ValueError(
                "`pretrained` requires `model`, the folder or hub name from which the weights are read"
            )
        return self


MVIT = ("mvit_v1_b", "mvit_v2_s")
"""Networks of torchvision with a class token and position embeddings."""


class TorchvisionVideo(Options):
    """A video network of torchvision: MViT, Video Swin, S3D, R3D-18 or MC3-18 (R(2+1)D-18 is the kind r2plus1d)."""

    kind: Literal["torchvision"] = "torchvision"
    name: Literal["mvit_v1_b", "mvit_v2_s", "swin3d_t", "swin3d_s", "swin3d_b", "s3d", "r3d_18", "mc3_18"] = (
        "mvit_v2_s"
    )
    frames: PositiveInt = 16
    """number of frames of a clip for MViT, whose position embeddings have this length; an even number"""
    image_size: PositiveInt = 224
    """side of a clip for MViT, a multiple of 32"""
    class_token: bool = False
    """for MViT: return only the class token, as one time step. torchvision's classifier uses it with the average head.
    false: return the other tokens as a feature map, which every head accepts"""

    @model_validator(mode="after")
    def _fits(self) -> TorchvisionVideo:
        if self.name not in MVIT and (self.frames, self.image_size, self.class_token) != (16, 224, False):
            raise ValueError(
                f"`frames`, `image_size` and `class_token` are options of MViT, not of {self.name}; "
                "remove them, and set the size of a clip in `model.input`"
            )
        if self.frames % 2 or self.image_size % 32:
            raise ValueError("`frames` must be even, and `image_size` a multiple of 32")
        return self


BackboneOptions = Annotated[
    ResNet3d
    | ResNeXt3d
    | MobileNetV2
    | SlowFast
    | I3d
    | R2Plus1d
    | MobileNet
    | ShuffleNet
    | ShuffleNetV2
    | SqueezeNet
    | C3d
    | Csn
    | DenseNet
    | X3d
    | Slow
    | MotionGrid
    | TimmNet
    | HfVideo
    | TorchvisionVideo,
    Field(discriminator="kind"),
]
