"""Key maps of checkpoints written by other code, as tables: a pattern of their name and ours.

A layout is recognised by its keys and shapes. Names that no pattern of its table covers are reported as unexpected.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

State = Mapping[str, torch.Tensor]
Rename = tuple[str, str | Callable[[re.Match[str]], str]]


@dataclass(frozen=True)
class Layout:
    """One way of naming weights."""

    name: str
    recognise: Callable[[State], bool]
    renames: tuple[Rename, ...]
    flat: bool = False
    """2D weights, to be inflated"""

    def translate(self, key: str) -> str | None:
        """Return our name of a key, or none where the table has no entry."""
        for pattern, ours in self.renames:
            if re.match(pattern, key):
                return re.sub(pattern, ours, key, count=1)
        return None


def _ndim(state: State, key: str) -> int:
    return state[key].ndim if key in state else 0


_BERT_BLOCK = r"^bert\.transformer_blocks\.(\d+)\."
_LATE_TEMPORAL: tuple[Rename, ...] = (
    (r"^features\.([01])\.", r"backbone.stem.\1."),
    (r"^features\.([4-7])\.", lambda m: f"backbone.layer{int(m[1]) - 3}."),
    (r"^mapper\.", "backbone.reduction."),
    (r"^bert\.clsToken$", "heads.0.class_token"),
    (r"^bert\.embedding\.learnedPosition\.pe$", "heads.0.positions"),
    (_BERT_BLOCK + r"attention\.linear_layers\.0\.", r"heads.0.blocks.\1.attention.query."),
    (_BERT_BLOCK + r"attention\.linear_layers\.1\.", r"heads.0.blocks.\1.attention.key."),
    (_BERT_BLOCK + r"attention\.linear_layers\.2\.", r"heads.0.blocks.\1.attention.value."),
    (_BERT_BLOCK + r"attention\.output_linear\.", r"heads.0.blocks.\1.attention.output."),
    (_BERT_BLOCK + r"feed_forward\.w_1\.", r"heads.0.blocks.\1.feed_forward.0."),
    (_BERT_BLOCK + r"feed_forward\.w_2\.", r"heads.0.blocks.\1.feed_forward.3."),
    (_BERT_BLOCK + r"input_sublayer\.norm\.a_2$", r"heads.0.blocks.\1.norm1.weight"),
    (_BERT_BLOCK + r"input_sublayer\.norm\.b_2$", r"heads.0.blocks.\1.norm1.bias"),
    (_BERT_BLOCK + r"output_sublayer\.norm\.a_2$", r"heads.0.blocks.\1.norm2.weight"),
    (_BERT_BLOCK + r"output_sublayer\.norm\.b_2$", r"heads.0.blocks.\1.norm2.bias"),
    (r"^NLB\.(theta|phi|g)\.", r"heads.0.block.\1."),
    (r"^NLB\.W_z\.0\.", "heads.0.block.out."),
    (r"^NLB\.W_z\.1\.", "heads.0.block.norm."),
    (r"^lstm\.", "heads.0.lstm."),
    (r"^linear\.", "heads.0.join.linear."),
    (r"^fc_action\.", "classifier."),
)

_RESNET: tuple[Rename, ...] = (
    (r"^conv1\.", "backbone.stem.0."),
    (r"^bn1\.", "backbone.stem.1."),
    (r"^layer([1-4])\.", r"backbone.layer\1."),
    (r"^fc\.", "classifier."),
)

_MOBILENET_BLOCKS = [
    (layer, block) for layer, blocks in enumerate((1, 2, 3, 4, 3, 3, 1), start=1) for block in range(blocks)
]
"""Layer and block of features.1 … features.17."""


def _mobilenet_block(match: re.Match[str]) -> str:
    layer, block = _MOBILENET_BLOCKS[int(match[1]) - 1]
    return f"backbone.layer{layer}.{block}.conv."


_MOBILENET_ENDS: tuple[Rename, ...] = (
    (r"^features\.0\.", "backbone.stem."),
    (r"^features\.18\.", "backbone.last."),
    (r"^classifier\.1\.", "classifier."),
)
_MOBILENET_3D: tuple[Rename, ...] = (
    *_MOBILENET_ENDS,
    (r"^features\.(1?\d)\.conv\.", _mobilenet_block),
)


def _nested_unit(match: re.Match[str]) -> str:
    """Torchvision nests convolution, norm and activation; ours stand in one row, three to a unit."""
    return f"{_mobilenet_block(match)}{3 * int(match[2]) + int(match[3])}."


_MOBILENET_2D: tuple[Rename, ...] = (
    *_MOBILENET_ENDS,
    (r"^features\.(1?\d)\.conv\.(\d)\.(\d)\.", _nested_unit),
    (r"^features\.(1)\.conv\.([12])\.", lambda m: f"{_mobilenet_block(m)}{int(m[2]) + 2}."),
    (r"^features\.(1?\d)\.conv\.([23])\.", lambda m: f"{_mobilenet_block(m)}{int(m[2]) + 4}."),
)

LAYOUTS = (
    Layout(
        "two_stream",
        lambda s: "classifier.weight" in s and any(key.startswith("backbone.") for key in s),
        ((r"^(backbone|heads|classifier)\.", r"\1."),),
    ),
    Layout(
        "late_temporal (LateTemporalModeling3DCNN)",
        lambda s: "fc_action.weight" in s and _ndim(s, "features.0.weight") == 5,
        _LATE_TEMPORAL,
    ),
    Layout(
        "resnet3d (3D-ResNets, MARS, Efficient-3DCNNs)",
        lambda s: _ndim(s, "conv1.weight") == 5 and "layer1.0.conv1.weight" in s,
        _RESNET,
    ),
    Layout(
        "mobilenetv2_3d (Efficient-3DCNNs)", lambda s: _ndim(s, "features.0.0.weight") == 5, _MOBILENET_3D
    ),
    Layout(
        "2D ResNet (torchvision, timm)",
        lambda s: _ndim(s, "conv1.weight") == 4 and "layer1.0.conv1.weight" in s,
        _RESNET,
        flat=True,
    ),
    Layout(
        "2D MobileNetV2 (torchvision)",
        lambda s: _ndim(s, "features.0.0.weight") == 4 and "features.18.0.weight" in s,
        _MOBILENET_2D,
        flat=True,
    ),
)


def recognise(state: State) -> Layout | None:
    """Return the layout of a state dict, or none."""
    return next((layout for layout in LAYOUTS if layout.recognise(state)), None)
