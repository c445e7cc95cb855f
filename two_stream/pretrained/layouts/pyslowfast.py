"""PySlowFast's single-pathway networks: X3D, Slow and I3D-R50; co3d writes the same names."""

from __future__ import annotations

from collections.abc import Iterator

from two_stream.pretrained.layouts.base import Layout, Pair, ndim

_MOST_BLOCKS = 36


def _blocks() -> Iterator[Pair]:
    for layer in (1, 2, 3, 4):
        for block in range(_MOST_BLOCKS):
            theirs = f"s{layer + 1}.pathway0_res{block}."
            ours = f"backbone.layer{layer}.{block}."
            yield f"{theirs}branch1.", f"{ours}downsample.0."
            yield f"{theirs}branch1_bn.", f"{ours}downsample.1."
            yield f"{theirs}branch2.se.", f"{ours}squeeze."
            for place, letter in enumerate("abc", start=1):
                yield f"{theirs}branch2.{letter}.", f"{ours}conv{place}."
                yield f"{theirs}branch2.{letter}_bn.", f"{ours}bn{place}."


LAYOUTS = (
    Layout(
        "PySlowFast X3D",
        lambda s: ndim(s, "s1.pathway0_stem.conv_xy.weight") == 5,
        (
            ("s1.pathway0_stem.conv_xy.", "backbone.stem.0."),
            ("s1.pathway0_stem.conv.", "backbone.stem.1."),
            ("s1.pathway0_stem.bn.", "backbone.stem.2."),
            *_blocks(),
            ("head.conv_5.", "backbone.last.0."),
            ("head.conv_5_bn.", "backbone.last.1."),
            ("head.lin_5.", "heads.0.linear."),
            ("head.projection.", "classifier."),
        ),
        pointwise=("head.lin_5.",),
    ),
    Layout(
        "PySlowFast ResNet (Slow, I3D)",
        lambda s: (
            ndim(s, "s1.pathway0_stem.conv.weight") == 5
            and ndim(s, "s1.pathway0_stem.conv_xy.weight") == 0
            and "s2.pathway1_res0.branch2.a.weight" not in s
            and "s2.pathway0_res0.branch2.a.weight" in s
        ),
        (
            ("s1.pathway0_stem.conv.", "backbone.stem.0."),
            ("s1.pathway0_stem.bn.", "backbone.stem.1."),
            *_blocks(),
            ("head.projection.", "classifier."),
        ),
    ),
)
