"""Layouts of torchvision's video networks (R(2+1)D is in `resnet.py`)."""

from __future__ import annotations

from collections.abc import Iterator

from two_stream.pretrained.layouts.base import Layout, Pair, ndim

_SWIN = {"stage1": range(1), "stage2": range(1, 3), "stage3": range(3, 5), "stage4": range(5, 7)}
_S3D = {"stem": range(5), "layer1": range(5, 7), "layer2": range(7, 13), "layer3": range(13, 16)}


def _features(stages: dict[str, range]) -> Iterator[Pair]:
    """Yield (torchvision prefix, our prefix) of each layer; stages keep torchvision's numbers of layers."""
    for stage, layers in stages.items():
        for layer in layers:
            yield f"features.{layer}.", f"backbone.{stage}.{layer}."


LAYOUTS = (
    Layout(
        "MViT (torchvision)",
        lambda s: "pos_encoding.class_token" in s and "blocks.0.norm1.weight" in s,
        (
            ("conv_proj.", "backbone.stem.conv_proj."),
            ("pos_encoding.", "backbone.stem.pos_encoding."),
            *((f"blocks.{index}.", f"backbone.block{index + 1}.block.") for index in range(16)),
            ("norm.", "backbone.norm.norm."),
            ("head.1.", "classifier."),
        ),
    ),
    Layout(
        "Video Swin (torchvision)",
        lambda s: ndim(s, "patch_embed.proj.weight") == 5 and "features.0.0.attn.qkv.weight" in s,
        (
            ("patch_embed.", "backbone.stem."),
            *_features(_SWIN),
            ("norm.", "backbone.norm.norm."),
            ("head.", "classifier."),
        ),
    ),
    Layout(
        "S3D (torchvision)",
        lambda s: ndim(s, "features.0.0.0.weight") == 5 and ndim(s, "classifier.1.weight") == 5,
        (*_features(_S3D), ("classifier.1.", "classifier.")),
        pointwise=("classifier.1.",),
    ),
    Layout(
        "R3D, MC3 (torchvision)",
        lambda s: ndim(s, "stem.0.weight") == 5 and ndim(s, "layer1.0.conv1.0.weight") == 5,
        (
            ("stem.", "backbone.stem."),
            *((f"layer{layer}.", f"backbone.layer{layer}.") for layer in (1, 2, 3, 4)),
            ("fc.", "classifier."),
        ),
    ),
)
