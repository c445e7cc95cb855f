"""Layouts of the heads, ResNeXt-101 and I3D of LateTemporalModeling3DCNN, and of I3D of pytorch-i3d (piergiaj)."""

from __future__ import annotations

from two_stream.pretrained.layouts.base import Layout, Pair, ndim

_LAYERS = 12
"""Number of encoder layers in the tables; the published networks have one."""


def bert_pairs(theirs: str = "bert.", ours: str = "heads.0.") -> tuple[Pair, ...]:
    """Return (published prefix, our prefix) of the parts of a BERT head."""
    pairs = [
        (f"{theirs}clsToken", f"{ours}class_token"),
        (f"{theirs}embedding.learnedPosition.pe", f"{ours}positions"),
        (f"{theirs}embedding.linear.", f"{ours}embed."),
    ]
    for layer in range(_LAYERS):
        block, mine = f"{theirs}transformer_blocks.{layer}.", f"{ours}blocks.{layer}."
        pairs += [
            (f"{block}attention.linear_layers.{place}.", f"{mine}attention.{name}.")
            for place, name in enumerate(("query", "key", "value"))
        ]
        pairs += [
            (f"{block}attention.output_linear.", f"{mine}attention.output."),
            (f"{block}feed_forward.w_1.", f"{mine}feed_forward.0."),
            (f"{block}feed_forward.w_2.", f"{mine}feed_forward.3."),
        ]
        for place, name in ((1, "input"), (2, "output")):
            pairs += [
                (f"{block}{name}_sublayer.norm.a_2", f"{mine}norm{place}.weight"),
                (f"{block}{name}_sublayer.norm.b_2", f"{mine}norm{place}.bias"),
            ]
    return tuple(pairs)


CLASSIFIER_PAIRS: tuple[Pair, ...] = (("fc_action.", "classifier."),)
HEAD_PAIRS: tuple[Pair, ...] = (
    *bert_pairs(),
    *((f"NLB.{name}.", f"heads.0.block.{name}.") for name in ("theta", "phi", "g")),
    ("NLB.W_z.0.", "heads.0.block.out."),
    ("NLB.W_z.1.", "heads.0.block.norm."),
    ("lstm.", "heads.0.lstm."),
    ("linear.", "heads.0.join.linear."),
    *CLASSIFIER_PAIRS,
)
"""Prefixes of all temporal heads of networks with one pathway, and of the classifier."""
HEAD_POINTWISE = ("NLB.theta.", "NLB.phi.", "NLB.g.", "NLB.W_z.0.")

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
    Layout(
        "late_temporal (LateTemporalModeling3DCNN)",
        lambda s: "fc_action.weight" in s and ndim(s, "features.0.weight") == 5,
        (
            ("features.0.", "backbone.stem.0."),
            ("features.1.", "backbone.stem.1."),
            *((f"features.{layer + 3}.", f"backbone.layer{layer}.") for layer in (1, 2, 3, 4)),
            ("mapper.", "backbone.reduction."),
            *HEAD_PAIRS,
        ),
        pointwise=HEAD_POINTWISE,
    ),
)
