"""Layouts of PySlowFast (SlowFast, X3D, Slow, I3D), its Caffe2 model zoo, and SlowFast of LateTemporalModeling3DCNN."""

from __future__ import annotations

from collections.abc import Iterator

from two_stream.pretrained.layouts.base import Layout, Pair, State, ndim
from two_stream.pretrained.layouts.late_temporal import CLASSIFIER_PAIRS, HEAD_PAIRS, bert_pairs

_PATHWAYS = ("slow", "fast")
_MOST_BLOCKS = 36
_REPLACED = 2
"""Index of the block in the last layer that FRMB replaces (depth 50)."""


def _trunk(prefix: str, replaced: tuple[int, ...] = ()) -> Iterator[Pair]:
    """Yield (published prefix, our prefix) of all parts before the head.

    `replaced` lists the pathways whose last block FRMB replaces.
    """
    for place, pathway in enumerate(_PATHWAYS):
        stem = f"{prefix}s1.pathway{place}_stem."
        yield f"{stem}conv.", f"backbone.stem.{pathway}.0."
        yield f"{stem}bn.", f"backbone.stem.{pathway}.1."
        for layer in (1, 2, 3, 4):
            for block in range(_MOST_BLOCKS):
                theirs = f"{prefix}s{layer + 1}.pathway{place}_res{block}."
                ours = f"backbone.layer{layer}.{pathway}.{block}."
                if layer == 4 and block == _REPLACED and place in replaced:
                    yield theirs, ours
                else:
                    yield from _block(theirs, ours)
    for stage, ours in enumerate(("stem", "layer1", "layer2", "layer3"), start=1):
        yield f"{prefix}s{stage}_fuse.conv_f2s.", f"backbone.{ours}.lateral.0."
        yield f"{prefix}s{stage}_fuse.bn.", f"backbone.{ours}.lateral.1."


def _block(theirs: str, ours: str) -> Iterator[Pair]:
    yield f"{theirs}branch1.", f"{ours}downsample.0."
    yield f"{theirs}branch1_bn.", f"{ours}downsample.1."
    for place, letter in enumerate("abc", start=1):
        yield f"{theirs}branch2.{letter}.", f"{ours}conv{place}."
        yield f"{theirs}branch2.{letter}_bn.", f"{ours}bn{place}."


def _one_pathway() -> Iterator[Pair]:
    """Yield (published prefix, our prefix) of each block in networks with one pathway."""
    for layer in (1, 2, 3, 4):
        for block in range(_MOST_BLOCKS):
            theirs, ours = f"s{layer + 1}.pathway0_res{block}.", f"backbone.layer{layer}.{block}."
            yield from _block(theirs, ours)
            yield f"{theirs}branch2.se.", f"{ours}squeeze."


def _caffe2() -> Iterator[Pair]:
    """Yield (blob name, our name): `t_` marks the fast pathway, and `_subsample` marks the lateral connections."""
    for mark, pathway in (("", "slow"), ("t_", "fast")):
        stem = f"backbone.stem.{pathway}."
        yield f"{mark}conv1_w", f"{stem}0.weight"
        yield from _caffe2_norm(f"{mark}res_conv1_bn", f"{stem}1.")
        for layer, blocks in zip((1, 2, 3, 4), (3, 4, _MOST_BLOCKS, 3)):
            for block in range(blocks):
                theirs, ours = f"{mark}res{layer + 1}_{block}_", f"backbone.layer{layer}.{pathway}.{block}."
                yield f"{theirs}branch1_w", f"{ours}downsample.0.weight"
                yield from _caffe2_norm(f"{theirs}branch1_bn", f"{ours}downsample.1.")
                for place, letter in enumerate("abc", start=1):
                    yield f"{theirs}branch2{letter}_w", f"{ours}conv{place}.weight"
                    yield from _caffe2_norm(f"{theirs}branch2{letter}_bn", f"{ours}bn{place}.")
    for theirs, ours in (
        ("t_pool1", "stem"),
        ("t_res2_2_branch2c_bn", "layer1"),
        ("t_res3_3_branch2c_bn", "layer2"),
        ("t_res4_5_branch2c_bn", "layer3"),
        ("t_res4_22_branch2c_bn", "layer3"),
    ):
        yield f"{theirs}_subsample_w", f"backbone.{ours}.lateral.0.weight"
        yield from _caffe2_norm(f"{theirs}_subsample_bn", f"backbone.{ours}.lateral.1.")
    yield "pred_w", "classifier.weight"
    yield "pred_b", "classifier.bias"


def _caffe2_norm(theirs: str, ours: str) -> Iterator[Pair]:
    for end, name in (("s", "weight"), ("b", "bias"), ("rm", "running_mean"), ("riv", "running_var")):
        yield f"{theirs}_{end}", f"{ours}{name}"


def _is_factored(state: State, place: int) -> bool:
    """Return whether the first kernel of a pathway's last block has length 3 in time, as in SlowFast."""
    weight = state.get(f"model.s5.pathway{place}_res{_REPLACED}.branch2.a.weight")
    return weight is not None and weight.ndim == 5 and weight.shape[2] == 3


def _published(name: str, reduced: dict[str, int], appended: bool, head: tuple[Pair, ...]) -> Layout:
    """Return the layout of a SlowFast variant; `reduced` maps the name of each reduction block to its pathway."""
    mappers: list[Pair] = []
    for mapper, place in reduced.items():
        where = "reduction" if appended else "layer4"
        block = "" if appended else f"{_REPLACED}."
        mappers.append((f"{mapper}.", f"backbone.{where}.{_PATHWAYS[place]}.{block}"))
    replaced = () if appended else tuple(reduced.values())

    def recognise(state: State) -> bool:
        keys = {f"{mapper}.conv1.weight" for mapper in reduced}
        found = {key for key in state if key.startswith("mapper") and key.endswith(".conv1.weight")}
        return (
            "model.s1_fuse.bn.weight" in state
            and found == keys
            and all(_is_factored(state, place) == (place not in replaced) for place in (0, 1))
        )

    return Layout(
        f"late_temporal SlowFast{name} (LateTemporalModeling3DCNN)",
        recognise,
        (*_trunk("model.", replaced), *mappers, *head, *CLASSIFIER_PAIRS),
        unused=("model.head.projection.",) if reduced else (),
    )


_EARLY = {"mapper_slow": 0, "mapper_fast": 1}
_LATE = {"mapper": 0}
_TWO_HEADS = (*bert_pairs("bert_slow.", "heads.0."), *bert_pairs("bert_fast.", "heads.1."))

LAYOUTS = (
    Layout(
        "PySlowFast X3D",
        lambda s: ndim(s, "s1.pathway0_stem.conv_xy.weight") == 5,
        (
            ("s1.pathway0_stem.conv_xy.", "backbone.stem.0."),
            ("s1.pathway0_stem.conv.", "backbone.stem.1."),
            ("s1.pathway0_stem.bn.", "backbone.stem.2."),
            *_one_pathway(),
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
            *_one_pathway(),
            ("head.projection.", "classifier."),
        ),
    ),
    _published("", {}, True, (("model.head.projection.", "classifier."), *_TWO_HEADS)),
    _published(" FRAB late", _LATE, True, _TWO_HEADS),
    _published(" FRMB late", _LATE, False, _TWO_HEADS),
    _published(" FRAB early", _EARLY, True, HEAD_PAIRS),
    _published(" FRMB early", _EARLY, False, HEAD_PAIRS),
    Layout(
        "PySlowFast SlowFast",
        lambda s: "s1_fuse.conv_f2s.weight" in s and "s2.pathway1_res0.branch2.a.weight" in s,
        (*_trunk(""), ("head.projection.", "classifier.")),
    ),
    Layout(
        "PySlowFast SlowFast (Caffe2)",
        lambda s: "t_conv1_w" in s and "t_pool1_subsample_w" in s,
        tuple(_caffe2()),
        writable=False,
    ),
)
