"""Layouts of EfficientNet-Lite in efficientnet_lite_pytorch, for timm's `tf_efficientnet_lite0` to `lite2`.

The published blocks are numbered consecutively, `_blocks.0.` to `_blocks.15.` or `_blocks.20.`. In timm, the blocks
form seven stages.
"""

from __future__ import annotations

from collections.abc import Iterator

from two_stream.pretrained.layouts.base import Layout, Pair, State

_BLOCK = {
    "_expand_conv.": "conv_pw.",
    "_bn0.": "bn1.",
    "_depthwise_conv.": "conv_dw.",
    "_bn1.": "bn2.",
    "_project_conv.": "conv_pwl.",
    "_bn2.": "bn3.",
}
_FIRST_BLOCK = {
    "_depthwise_conv.": "conv_dw.",
    "_bn1.": "bn1.",
    "_project_conv.": "conv_pw.",
    "_bn2.": "bn2.",
}
"""The first stage has no expansion, so timm numbers its norms from the depthwise convolution on."""
_DEPTHS = {"Lite0": (1, 2, 2, 3, 3, 4, 1), "Lite1 and Lite2": (1, 3, 3, 4, 4, 5, 1)}
"""Blocks of each stage (Tan and Le, arXiv 1905.11946; Lite does not scale the first and last stage)."""
_TIMM: dict[str, str] = {
    "backbone.stem.0.": "conv_stem.",
    "backbone.stem.1.": "bn1.",
    **{f"backbone.stage{stage}.": f"blocks.{stage - 1}." for stage in range(1, 8)},
    "backbone.last.0.": "conv_head.",
    "backbone.last.1.": "bn2.",
    "classifier.": "classifier.",
}
"""Our prefixes and those of timm's network, whose names the backbone loads."""


def _pairs(depths: tuple[int, ...]) -> Iterator[Pair]:
    yield "_conv_stem.", "backbone.stem.0."
    yield "_bn0.", "backbone.stem.1."
    place = 0
    for stage, count in enumerate(depths, start=1):
        for block in range(count):
            for theirs, ours in (_FIRST_BLOCK if stage == 1 else _BLOCK).items():
                yield f"_blocks.{place}.{theirs}", f"backbone.stage{stage}.{block}.{ours}"
            place += 1
    yield "_conv_head.", "backbone.last.0."
    yield "_bn1.", "backbone.last.1."
    yield "_fc.", "classifier."


def _layout(name: str, depths: tuple[int, ...]) -> Layout:
    last, beyond = (f"_blocks.{number}._depthwise_conv.weight" for number in (sum(depths) - 1, sum(depths)))
    return Layout(
        f"EfficientNet-{name} (efficientnet_lite_pytorch)",
        # plain EfficientNet has squeeze-and-excitation, Lite has not
        lambda s: last in s and beyond not in s and "_blocks.0._se_reduce.weight" not in s,
        tuple(_pairs(depths)),
    )


LAYOUTS = tuple(_layout(name, depths) for name, depths in _DEPTHS.items())


def rename_to_timm(state: State) -> State:
    """Rename tensors to the names of timm's network; tensors of other layouts are returned unchanged."""
    layout = next((layout for layout in LAYOUTS if layout.recognise(state)), None)
    if layout is None:
        return state
    renamed = {layout.translate(key) or key: tensor for key, tensor in state.items()}
    return {_timm_name(key): tensor for key, tensor in renamed.items()}


def _timm_name(key: str) -> str:
    prefix = next((prefix for prefix in _TIMM if key.startswith(prefix)), "")
    return _TIMM.get(prefix, "") + key[len(prefix) :]
