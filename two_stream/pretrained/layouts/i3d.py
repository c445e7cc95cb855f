"""Inception-I3D: LateTemporalModeling3DCNN, and the Kinetics weights of pytorch-i3d (piergiaj)."""

from __future__ import annotations

from two_stream.pretrained.layouts.base import Layout, Pair, ndim
from two_stream.pretrained.layouts.late_temporal import HEAD_PAIRS, HEAD_POINTWISE

_PARTS = (
    ("Conv3d_1a_7x7", "stem.conv1a"),
    ("MaxPool3d_2a_3x3", ""),
    ("Conv3d_2b_1x1", "stem.conv2b"),
    ("Conv3d_2c_3x3", "stem.conv2c"),
    ("MaxPool3d_3a_3x3", ""),
    ("Mixed_3b", "mixed3.b"),
    ("Mixed_3c", "mixed3.c"),
    ("MaxPool3d_4a_3x3", ""),
    ("Mixed_4b", "mixed4.b"),
    ("Mixed_4c", "mixed4.c"),
    ("Mixed_4d", "mixed4.d"),
    ("Mixed_4e", "mixed4.e"),
    ("Mixed_4f", "mixed4.f"),
    ("MaxPool3d_5a_2x2", ""),
    ("Mixed_5b", "mixed5.b"),
    ("Mixed_5c", "mixed5.c"),
)
"""Their parts in order, and ours; pooling has no weights."""


def _parts(numbered: bool) -> tuple[Pair, ...]:
    return tuple(
        (f"features.{place}." if numbered else f"{theirs}.", f"backbone.{ours}.")
        for place, (theirs, ours) in enumerate(_PARTS)
        if ours
    )


LAYOUTS = (
    Layout(
        "late_temporal I3D (LateTemporalModeling3DCNN)",
        lambda s: "fc_action.weight" in s and ndim(s, "features.0.conv3d.weight") == 5,
        (*_parts(numbered=True), ("mapper.", "backbone.reduction."), *HEAD_PAIRS),
        pointwise=HEAD_POINTWISE,
    ),
    Layout(
        "I3D (pytorch-i3d)",
        lambda s: ndim(s, "Conv3d_1a_7x7.conv3d.weight") == 5,
        (*_parts(numbered=False), ("logits.conv3d.", "classifier.")),
        pointwise=("logits.conv3d.",),
    ),
)
