"""MobileNetV2: Efficient-3DCNNs, and torchvision's 2D one."""

from __future__ import annotations

from collections.abc import Iterator

from two_stream.pretrained.layouts.base import Layout, Pair, ndim

_BLOCKS = [
    (layer, block) for layer, blocks in enumerate((1, 2, 3, 4, 3, 3, 1), start=1) for block in range(blocks)
]
"""Layer and block of features.1 … features.17."""
_ENDS: tuple[Pair, ...] = (
    ("features.0.", "backbone.stem."),
    ("features.18.", "backbone.last."),
    ("classifier.1.", "classifier."),
)


def _blocks() -> Iterator[tuple[str, str]]:
    """Their prefix and ours of each inverted residual."""
    for place, (layer, block) in enumerate(_BLOCKS, start=1):
        yield f"features.{place}.conv.", f"backbone.layer{layer}.{block}.conv."


def _nested() -> Iterator[Pair]:
    """Torchvision nests convolution, norm and activation; ours stand in one row, three to a unit."""
    for theirs, ours in _blocks():
        units = 1 if theirs == "features.1.conv." else 2  # the first block does not widen
        for unit in range(units):
            for place in range(2):
                yield f"{theirs}{unit}.{place}.", f"{ours}{3 * unit + place}."
        for place in range(2):
            yield f"{theirs}{units + place}.", f"{ours}{3 * units + place}."


LAYOUTS = (
    Layout(
        "mobilenetv2_3d (Efficient-3DCNNs)",
        lambda s: ndim(s, "features.0.0.weight") == 5 and "features.18.0.weight" in s,
        (*_ENDS, *_blocks()),
    ),
    Layout(
        "2D MobileNetV2 (torchvision)",
        lambda s: ndim(s, "features.0.0.weight") == 4 and "features.18.0.weight" in s,
        (*_ENDS, *_nested()),
        flat=True,
    ),
)
