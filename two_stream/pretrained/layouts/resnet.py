"""Layouts of 3D ResNet, ResNeXt, R(2+1)D and DenseNet (3D-ResNets and others), and of 2D ResNets."""

from __future__ import annotations

from collections.abc import Iterator

from two_stream.pretrained.layouts.base import Layout, Pair, ndim
from two_stream.pretrained.layouts.late_temporal import HEAD_PAIRS, HEAD_POINTWISE

_PAIRS: tuple[Pair, ...] = (
    ("conv1.", "backbone.stem.0."),
    ("bn1.", "backbone.stem.1."),
    *((f"layer{layer}.", f"backbone.layer{layer}.") for layer in (1, 2, 3, 4)),
    ("fc.", "classifier."),
)

_MOST_LAYERS = 64


_BLOCKS = [(layer, block) for layer, blocks in enumerate((3, 4, 6, 3), start=1) for block in range(blocks)]
"""Layer and block of the deepest network."""


def _split(theirs: str, ours: str, outer: str) -> Iterator[Pair]:
    """Yield (published prefix, our prefix) of a spatial and a temporal convolution and their norms.

    `theirs` is a format string for values such as `conv` and `_s`. `ours` is our prefix of both convolutions and the
    norm between them, and `outer` is our prefix of the last norm.
    """
    yield theirs.format("conv", "_s"), f"{ours}0."
    yield theirs.format("bn", "_s"), f"{ours}1."
    yield theirs.format("conv", "_t"), f"{ours}3."
    yield theirs.format("bn", "_t"), outer


def _hara(bottleneck: bool) -> Iterator[Pair]:
    yield from _split("{}1{}.", "backbone.stem.", "backbone.stem.4.")
    for layer, block in _BLOCKS:
        theirs, ours = f"layer{layer}.{block}.", f"backbone.layer{layer}.{block}."
        for place in (2,) if bottleneck else (1, 2):
            yield from _split(f"{theirs}{{}}{place}{{}}.", f"{ours}conv{place}.0.", f"{ours}conv{place}.1.")
        for place in (1, 3) if bottleneck else ():
            yield f"{theirs}conv{place}.", f"{ours}conv{place}.0."
            yield f"{theirs}bn{place}.", f"{ours}conv{place}.1."
        yield f"{theirs}downsample.", f"{ours}downsample."
    yield "fc.", "classifier."


LAYOUTS = (
    Layout(
        "late_temporal R(2+1)D (LateTemporalModeling3DCNN)",
        lambda s: "fc_action.weight" in s and ndim(s, "features.1.0.conv1.0.3.weight") == 5,
        (
            ("features.0.", "backbone.stem."),
            *((f"features.{layer}.", f"backbone.layer{layer}.") for layer in (1, 2, 3, 4)),
            ("mapper.", "backbone.reduction."),
            *HEAD_PAIRS,
        ),
        pointwise=HEAD_POINTWISE,
    ),
    Layout(
        "R(2+1)D (torchvision, IG-65M)",
        # r3d_18 and mc3_18 of torchvision have the same stem, but no pairs of convolutions in their blocks
        lambda s: (
            ndim(s, "stem.3.weight") == 5
            and (ndim(s, "layer1.0.conv1.0.3.weight") == 5 or ndim(s, "layer1.0.conv2.0.3.weight") == 5)
        ),
        (
            ("stem.", "backbone.stem."),
            *((f"layer{layer}.", f"backbone.layer{layer}.") for layer in (1, 2, 3, 4)),
            ("fc.", "classifier."),
        ),
    ),
    Layout(
        "R(2+1)D (3D-ResNets)",
        lambda s: ndim(s, "conv1_s.weight") == 5 and ndim(s, "layer1.0.conv1_s.weight") == 5,
        tuple(_hara(bottleneck=False)),
    ),
    Layout(
        "R(2+1)D with bottlenecks (3D-ResNets)",
        lambda s: ndim(s, "conv1_s.weight") == 5 and ndim(s, "layer1.0.conv1.weight") == 5,
        tuple(_hara(bottleneck=True)),
    ),
    Layout(
        "densenet3d (3D-ResNets)",
        lambda s: (
            ndim(s, "features.conv1.weight") == 5 and "features.denseblock1.denselayer1.conv1.weight" in s
        ),
        (
            ("features.conv1.", "backbone.stem.0."),
            ("features.norm1.", "backbone.stem.1."),
            *(
                (f"features.denseblock{block}.denselayer{layer}.", f"backbone.block{block}.{layer - 1}.")
                for block in range(1, 5)
                for layer in range(1, _MOST_LAYERS + 1)
            ),
            *((f"features.transition{number}.", f"backbone.transition{number}.") for number in (1, 2, 3)),
            ("features.norm5.", "backbone.last.0."),
            ("classifier.", "classifier."),
        ),
    ),
    Layout(
        "resnet3d (3D-ResNets, MARS, Efficient-3DCNNs)",
        lambda s: ndim(s, "conv1.weight") == 5 and ndim(s, "layer1.0.conv1.weight") == 5,
        _PAIRS,
    ),
    Layout(
        "2D ResNet (torchvision, timm)",
        lambda s: ndim(s, "conv1.weight") == 4 and ndim(s, "layer1.0.conv1.weight") == 4,
        _PAIRS,
        flat=True,
    ),
)
