"""The clip networks of Efficient-3DCNNs, 3D-ResNets and compressed-video-classification."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from two_stream.config.backbones import (
    C3d,
    Csn,
    DenseNet,
    MobileNet,
    MobileNetV2,
    R2Plus1d,
    ResNet3d,
    ResNeXt3d,
    ShuffleNet,
    ShuffleNetV2,
    SqueezeNet,
)
from two_stream.config.heads import AverageHead
from two_stream.config.model import InputOptions, ModelOptions
from two_stream.zoo.record import ModelRecord

EFFICIENT = "Köpüklü et al., Resource Efficient 3D Convolutional Neural Networks (arXiv 1904.02422)"
CSN = "Tran et al., Video Classification with Channel-Separated Convolutional Networks (arXiv 1904.02811)"
RESNETS = (
    "Hara et al., Can Spatiotemporal 3D CNNs Retrace the History of 2D CNNs and ImageNet? (arXiv 1711.09577)"
)

SHUFFLENETS: tuple[tuple[Literal[1, 2, 3, 4, 8], tuple[float, ...]], ...] = (
    (1, (1.0,)),
    (2, (1.0,)),
    (3, (0.25, 0.5, 1.0, 1.5, 2.0)),
    (4, (1.0,)),
    (8, (1.0,)),
)
"""Number of groups, and width multipliers: all published ones for 3 groups, 1.0 only for the others."""
VERSIONS: tuple[Literal["1.0", "1.1"], ...] = ("1.0", "1.1")


def _classic(namespace: str, name: str, backbone: Any, summary: str, **options: Any) -> ModelRecord:
    """Return the record of a network whose head is global average pooling."""
    paper = RESNETS if namespace == "3dresnets" else EFFICIENT
    made = ModelOptions(backbone=backbone, head=AverageHead(), **options)
    return ModelRecord(f"{namespace}/{name}", made, f"{summary}, average pooling", paper)


def _efficient3d(namespace: str) -> list[ModelRecord]:
    """Return the networks of Efficient-3DCNNs, or, for `compressed`, those that compressed-video-classification has."""
    sixteen = InputOptions(clip_length=16)
    records = [
        _classic(
            namespace, f"mobilenetv2_{width}x", MobileNetV2(width=width), f"MobileNetV2 {width}×", dropout=0.2
        )
        for width in (0.2, 0.45, 0.7, 1.0)
    ]
    records += _efficient_nets(namespace) if namespace == "efficient3d" else []
    for shortcut in ("A", "B"):
        records += [
            _classic(
                namespace,
                f"resnet{depth}_{shortcut}",
                ResNet3d(depth=depth, shortcut=shortcut),
                f"ResNet-{depth}, shortcut {shortcut}",
                dropout=0.0,
            )
            for depth in (10, 18, 34, 50, 101, 152, 200)
        ]
        records += [
            _classic(
                namespace,
                f"resnext{depth}_{shortcut}",
                ResNeXt3d(depth=depth, shortcut=shortcut),
                f"ResNeXt-{depth}, shortcut {shortcut}",
                dropout=0.0,
                input=sixteen,
            )
            for depth in (50, 101)
        ]
    return records


def _efficient_nets(namespace: str) -> list[ModelRecord]:
    """Return the networks that Efficient-3DCNNs has in addition to MobileNetV2 and the ResNets."""
    table: list[tuple[str, Any, str, dict[str, Any]]] = [
        (f"mobilenet_{width}x", MobileNet(width=width), f"MobileNet {width}×", {"dropout": 0.2})
        for width in (0.5, 1.0, 1.5, 2.0)
    ]
    table += [
        (
            f"shufflenet_g{groups}_{width}x",
            ShuffleNet(groups=groups, width=width),
            f"ShuffleNet {width}×, {groups} group{'s' if groups > 1 else ''}",
            {"dropout": 0.2},
        )
        for groups, widths in SHUFFLENETS
        for width in widths
    ]
    table += [
        (f"shufflenetv2_{width}x", ShuffleNetV2(width=width), f"ShuffleNetV2 {width}×", {"dropout": 0.2})
        for width in (0.25, 0.5, 1.0, 1.5, 2.0)
    ]
    table += [
        (
            f"squeezenet_{version}",
            SqueezeNet(version=version),
            f"SqueezeNet {version}",
            {"dropout": 0.5, "dense": True},
        )
        for version in VERSIONS
    ]
    table.append(("c3d", C3d(), "C3D with BatchNorm", {"dropout": 0.0}))
    return [_classic(namespace, name, backbone, summary, **more) for name, backbone, summary, more in table]


def _3dresnets() -> list[ModelRecord]:
    """Return the networks of 3D-ResNets as released in 2020, with standardised input values."""
    usual = InputOptions(
        clip_length=16, value_range=(0.0, 1.0), mean=(0.4345, 0.4051, 0.3775), std=(0.2768, 0.2713, 0.2737)
    )
    table: list[tuple[str, Any, str]] = [
        (f"resnet{depth}", ResNet3d(depth=depth), f"ResNet-{depth}")
        for depth in (10, 18, 34, 50, 101, 152, 200)
    ]
    table += [
        ("resnet18_A", ResNet3d(depth=18, shortcut="A"), "ResNet-18, shortcut A"),
        ("resnet18_widen0.5", ResNet3d(depth=18, width=0.5), "ResNet-18, half as wide"),
        (
            "resnet18_ct1_s2_nopool",
            ResNet3d(depth=18, stem_kernel=3, stem_stride=2, stem_pool=False),
            "ResNet-18, stem of 3 frames with stride 2, no pooling",
        ),
    ]
    table += [
        (f"resnext{depth}", ResNeXt3d(depth=depth, stem_channels=128), f"ResNeXt-{depth}")
        for depth in (50, 101)
    ]
    table += [
        (f"preresnet{depth}", ResNet3d(depth=depth, preactivation=True), f"pre-activation ResNet-{depth}")
        for depth in (10, 18, 34, 50, 101, 152, 200)
    ]
    table += [
        (f"wideresnet{depth}_k2", ResNet3d(depth=depth, width=2.0, expansion=2), f"wide ResNet-{depth}")
        for depth in (50, 101, 152, 200)
    ]
    table += [
        (
            f"resnet2p1d{depth}",
            R2Plus1d(
                depth=depth,
                temporal_stride=16,
                norm_eps=1e-5,
                stem_middle=None,
                stem_kernel=7,
                stem_pool=True,
            ),
            f"R(2+1)D-{depth}",
        )
        for depth in (18, 34, 50)
    ]
    table += [
        (f"densenet{depth}", DenseNet(depth=depth), f"DenseNet-{depth}") for depth in (121, 169, 201, 264)
    ]
    return [
        _classic("3dresnets", name, backbone, summary, dropout=0.0, input=usual)
        for name, backbone, summary in table
    ]


def _csn() -> list[ModelRecord]:
    """Return the channel-separated networks of compressed-video-classification."""
    modes: tuple[Literal["ip", "ir"], ...] = ("ip", "ir")
    return [
        replace(
            _classic(
                "compressed",
                f"csn{depth}_{mode}",
                Csn(depth=depth, mode=mode),
                f"{mode}-CSN-{depth}",
                dropout=0.0,
            ),
            paper=CSN,
        )
        for depth in (26, 50, 101, 152)
        for mode in modes
    ]


RECORDS = (*_csn(), *_efficient3d("efficient3d"), *_3dresnets(), *_efficient3d("compressed"))
