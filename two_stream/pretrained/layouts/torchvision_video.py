"""Layouts of torchvision's video networks (R(2+1)D is in `resnet.py`)."""

from __future__ import annotations

from two_stream.pretrained.layouts.base import Layout, Pair, ndim


def _pairs(classifier: str, *parts: str) -> tuple[Pair, ...]:
    """Return the pairs of parts that keep torchvision's names, and of the classifier."""
    return (*((f"{part}.", f"backbone.{part}.") for part in parts), (f"{classifier}.", "classifier."))


_NORM = ("norm.", "backbone.norm.norm.")
LAYOUTS = (
    Layout(
        "MViT (torchvision)",
        lambda s: "pos_encoding.class_token" in s and "blocks.0.norm1.weight" in s,
        (
            *((f"{part}.", f"backbone.stem.{part}.") for part in ("conv_proj", "pos_encoding")),
            *((f"blocks.{index}.", f"backbone.blocks.{index}.block.") for index in range(16)),
            *(_NORM, *_pairs("head.1")),
        ),
    ),
    Layout(
        "Video Swin (torchvision)",
        lambda s: ndim(s, "patch_embed.proj.weight") == 5 and "features.0.0.attn.qkv.weight" in s,
        (*_pairs("head", "patch_embed", "features"), _NORM),
    ),
    Layout(
        "S3D (torchvision)",
        lambda s: ndim(s, "features.0.0.0.weight") == 5 and ndim(s, "classifier.1.weight") == 5,
        _pairs("classifier.1", "features"),
        pointwise=("classifier.1.",),
    ),
    Layout(
        "R3D, MC3 (torchvision)",
        lambda s: ndim(s, "stem.0.weight") == 5 and ndim(s, "layer1.0.conv1.0.weight") == 5,
        _pairs("fc", "stem", "layer1", "layer2", "layer3", "layer4"),
    ),
)
