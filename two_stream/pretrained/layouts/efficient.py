"""Layouts of Efficient-3DCNNs (MobileNet, ShuffleNet, SqueezeNet, C3D) and of MobileNetV2 in torchvision."""

from __future__ import annotations

from collections.abc import Iterator

from two_stream.pretrained.layouts.base import Layout, Pair, ndim

_CLASSIFIER: Pair = ("classifier.1.", "classifier.")


def _numbered(theirs: str, blocks: tuple[int, ...], first: int = 0) -> Iterator[Pair]:
    """Yield (published prefix, our prefix) of blocks; published blocks are numbered consecutively, ours per layer."""
    place = first
    for layer, count in enumerate(blocks, start=1):
        for block in range(count):
            yield f"{theirs}{place}.", f"backbone.layer{layer}.{block}."
            place += 1


def _shufflenet_v2() -> Iterator[Pair]:
    yield "conv1.", "backbone.stem."
    yield "conv_last.", "backbone.last."
    for theirs, ours in _numbered("features.", (4, 8, 4)):
        for branch in (1, 2):
            yield f"{theirs}banch{branch}.", f"{ours}branch{branch}."  # spelt so in the published code
    yield _CLASSIFIER


def _squeezenet(layers: tuple[tuple[int, ...], ...]) -> tuple[Pair, ...]:
    """Return (published prefix, our prefix) of the parts of a SqueezeNet.

    `layers` contains the published numbers of the fire modules in each of our layers. Fire modules start at index 0 in
    our first layer, and at index 1 in the other layers, after pooling.
    """
    pairs: list[Pair] = [
        ("features.0.", "backbone.stem.0."),
        ("features.1.", "backbone.stem.1."),
        _CLASSIFIER,
    ]
    for layer, numbers in enumerate(layers, start=1):
        for place, number in enumerate(numbers, start=0 if layer == 1 else 1):
            pairs.append((f"features.{number}.", f"backbone.layer{layer}.{place}."))
    return tuple(pairs)


_MOBILENET: tuple[Pair, ...] = (
    ("features.0.", "backbone.stem."),
    ("features.18.", "backbone.last."),
    ("classifier.1.", "classifier."),
)


def _residuals() -> Iterator[tuple[str, str]]:
    """Yield (published prefix, our prefix) of each inverted residual."""
    for theirs, ours in _numbered("features.", (1, 2, 3, 4, 3, 3, 1), first=1):
        yield f"{theirs}conv.", f"{ours}conv."


def _nested() -> Iterator[Pair]:
    """Yield (torchvision prefix, our prefix) of each layer in an inverted residual."""
    for theirs, ours in _residuals():
        units = 1 if theirs == "features.1.conv." else 2  # the first block has no expansion
        for unit in range(units):
            for place in range(2):
                yield f"{theirs}{unit}.{place}.", f"{ours}{3 * unit + place}."
        for place in range(2):
            yield f"{theirs}{units + place}.", f"{ours}{3 * units + place}."


LAYOUTS = (
    Layout(
        "mobilenet_3d (Efficient-3DCNNs)",
        lambda s: ndim(s, "features.0.0.weight") == 5 and "features.13.conv2.weight" in s,
        (("features.0.", "backbone.stem."), *_numbered("features.", (1, 2, 2, 6, 2), first=1), _CLASSIFIER),
    ),
    Layout(
        "shufflenet_3d (Efficient-3DCNNs)",
        lambda s: ndim(s, "conv1.0.weight") == 5 and "layer1.0.conv3.weight" in s,
        (
            ("conv1.", "backbone.stem."),
            *((f"layer{layer}.", f"backbone.layer{layer}.") for layer in (1, 2, 3)),
            _CLASSIFIER,
        ),
    ),
    Layout(
        "shufflenetv2_3d (Efficient-3DCNNs)",
        lambda s: ndim(s, "conv1.0.weight") == 5 and "features.0.banch1.0.weight" in s,
        tuple(_shufflenet_v2()),
    ),
    Layout(
        "squeezenet_3d 1.0 (Efficient-3DCNNs)",
        lambda s: ndim(s, "features.0.weight") == 5 and "features.12.squeeze.weight" in s,
        _squeezenet(((4, 5), (7, 8), (10, 11, 12), (14,))),
        pointwise=("classifier.1.",),
    ),
    Layout(
        "squeezenet_3d 1.1 (Efficient-3DCNNs)",
        lambda s: ndim(s, "features.0.weight") == 5 and "features.13.squeeze.weight" in s,
        _squeezenet(((4, 5), (7, 8), (10, 11), (13, 14))),
        pointwise=("classifier.1.",),
    ),
    Layout(
        "c3d (Efficient-3DCNNs)",
        lambda s: ndim(s, "group5.3.weight") == 5 and ndim(s, "fc1.0.weight") == 2,
        (
            *((f"group{number}.", f"backbone.group{number}.") for number in range(1, 6)),
            ("fc1.0.", "backbone.fc6.0."),
            ("fc2.0.", "backbone.fc7.0."),
            ("fc.0.", "classifier."),
        ),
        flattened=("fc1.0.", "fc2.0."),
    ),
    Layout(
        "mobilenetv2_3d (Efficient-3DCNNs)",
        lambda s: ndim(s, "features.0.0.weight") == 5 and "features.18.0.weight" in s,
        (*_MOBILENET, *_residuals()),
    ),
    Layout(
        "2D MobileNetV2 (torchvision)",
        lambda s: ndim(s, "features.0.0.weight") == 4 and "features.18.0.weight" in s,
        (*_MOBILENET, *_nested()),
        flat=True,
    ),
)
