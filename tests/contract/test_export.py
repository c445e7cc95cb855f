"""Which networks export: a few families anew, all of them with `slow`, against the page that lists them."""

import export_table as page
import pytest

from two_stream import zoo
from two_stream.heads import HEADS

pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")


def test_the_table_has_every_kind_that_the_zoo_names():
    listed = {case.backbone["kind"] for case in page.CASES}
    assert {record.options.backbone.kind for record in zoo.records()} <= listed
    architectures = {case.backbone.get("architecture") for case in page.CASES}
    named = {getattr(record.options.backbone, "architecture", None) for record in zoo.records()}
    assert named <= architectures | {None}
    reductions = {case.more.get("reduction", "none") for case in page.CASES}
    assert {record.options.reduction for record in zoo.records()} <= reductions


def test_the_page_lists_every_row_and_says_why_not():
    found = page.read_table(page.PAGE.read_text(encoding="utf-8"))
    assert set(found) == {(case.name, head) for case in page.CASES for head in page.HEADS}
    for key, row in found.items():
        for to in ("onnx", "pt2"):
            assert row[to] == page.YES or len(row[to]) > 20, (key, to)  # a reason is a sentence


@pytest.mark.parametrize(
    ("name", "head", "to"),
    [
        ("i3d", "average", "pt2"),
        ("resnet3d, shortcut A", "bert", "onnx"),
        pytest.param("timm convnext", "bert", "pt2", marks=pytest.mark.slow),
    ],
)
def test_a_few_rows_are_as_the_page_says(name, head, to):
    found = page.read_table(page.PAGE.read_text(encoding="utf-8"))
    case = next(case for case in page.CASES if case.name == name)
    assert page.exported(case, head, to) == found[name, head][to] == page.YES


@pytest.mark.parametrize("head", sorted(HEADS))
def test_every_head_exports(head):
    case = page.Case("head", {"kind": "resnet3d", "depth": 10, "width": 0.125})
    assert page.exported(case, head, "pt2") == page.YES


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("to", ["onnx", "pt2"])
def test_every_row_is_as_the_page_says(to):
    found = page.read_table(page.PAGE.read_text(encoding="utf-8"))
    made = page.sweep([], (to,), found)
    assert made == found


TO = [("motion_grid", "onnx"), ("resnet3d", "pt2"), ("beside", "pt2")]
"""Some backbones to one format here, all to both with `slow`."""
MOMENTS = {
    "motion_grid": ({"kind": "motion_grid"}, "flow"),
    "resnet3d": ({"kind": "resnet3d", "depth": 10, "width": 0.25}, "rgb"),
    "picture": ({"kind": "timm", "name": "test_resnet", "picture": True}, "flow"),
    "alone": ({"kind": "timm", "name": "test_resnet", "difference": "alone"}, "rgb"),
    "beside": ({"kind": "timm", "name": "test_resnet", "difference": "beside"}, "rgb"),
}


@pytest.mark.parametrize(
    ("name", "to"),
    [
        pytest.param(name, to, marks=() if (name, to) in TO else pytest.mark.slow)
        for name in MOMENTS
        for to in ("onnx", "pt2")
    ],
)
def test_moments_and_standardised_tokens_export(name, to):
    backbone, modality = MOMENTS[name]
    case = page.Case("moments", backbone, more={"modality": modality, "standardize": True})
    case.input["segments"] = 0  # where differences would expect 32 frames of 16
    assert page.exported(case, "moments", to) == page.YES
