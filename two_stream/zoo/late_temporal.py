"""The 27 networks of LateTemporalModeling3DCNN. Dropout is applied where the published code applies it."""

from __future__ import annotations

from typing import Any

from two_stream.config.backbones import I3d, R2Plus1d, ResNeXt3d, SlowFast
from two_stream.config.heads import AverageHead, BertHead, ConcatHead, LstmHead, NonLocalHead
from two_stream.config.model import InputOptions, ModelOptions
from two_stream.zoo.record import ModelRecord

PAPER = "Kalfaoglu et al., Late Temporal Modeling in 3D CNN Architectures with BERT (arXiv 2008.01232)"

Row = tuple[str, str, dict[str, Any]]
"""Name, head, options."""

_AVERAGE: dict[str, Any] = {"head": AverageHead()}
_FRAB: dict[str, Any] = {"reduction": "frab", "head": BertHead()}
_FRMB: dict[str, Any] = {"reduction": "frmb", "head": BertHead()}


def _resnext() -> list[Row]:
    flow: dict[str, Any] = {"modality": "flow"}
    concat = ConcatHead(features=1550, dropout=0.8)
    nonlocal_ = NonLocalHead(features=1000, dropout=0.8)
    return [
        ("rgb_resneXt3D64f101", "average pooling", _AVERAGE),
        ("flow_resneXt3D64f101", "average pooling", flow | _AVERAGE | {"dropout": 0.7}),
        ("rgb_resneXt3D64f101_adamw", "average pooling", _AVERAGE),
        ("rgb_resneXt3D64f101_FRMB_adamw", "FRMB, average pooling", _AVERAGE | {"reduction": "frmb"}),
        ("rgb_resneXt3D64f101_bert10_FRAB", "FRAB, BERT", _FRAB),
        ("rgb_resneXt3D64f101_bert10_FRMB", "FRMB, BERT", _FRMB),
        ("flow_resneXt3D64f101_bert10_FRAB", "FRAB, BERT", flow | _FRAB),
        ("flow_resneXt3D64f101_bert10_FRMB", "FRMB, BERT", flow | _FRMB),
        ("rgb_resneXt3D64f101_FRMB_lstm", "FRMB, LSTM", {"reduction": "frmb", "head": LstmHead()}),
        (
            "rgb_resneXt3D64f101_concatenation",
            "FRMB, concatenation and a linear layer",
            {"reduction": "frmb", "head": concat, "dropout": 0.0},
        ),
        (
            "rgb_resneXt3D64f101_FRMB_NLB_concatenation",
            "FRMB, non-local block, concatenation and a linear layer",
            {"reduction": "frmb", "head": nonlocal_, "dropout": 0.0},
        ),
    ]


def _slowfast() -> list[Row]:
    early = {"backbone": SlowFast(fusion="early")}
    return [
        ("rgb_slowfast64f_50", "average pooling", _AVERAGE),
        ("rgb_slowfast64f_50_bert10_FRAB_late", "FRAB, a BERT per pathway", _FRAB),
        ("rgb_slowfast64f_50_bert10_FRAB_early", "FRAB, BERT over joined pathways", _FRAB | early),
        ("rgb_slowfast64f_50_bert10_FRMB_early", "FRMB, BERT over joined pathways", _FRMB | early),
        ("rgb_slowfast64f_50_bert10_FRMB_late", "FRMB, a BERT per pathway", _FRMB),
    ]


def _i3d() -> list[Row]:
    bert = BertHead(normalize=True)
    rows: list[Row] = []
    for modality, dropout in (("rgb", 0.8), ("flow", 0.7)):
        shared: dict[str, Any] = {"modality": modality}
        reduced = shared | {"head": bert}
        name = f"{modality}_I3D64f"
        rows += [
            (name, "average pooling", shared | _AVERAGE | {"dropout": dropout}),
            (f"{name}_bert2", "BERT", reduced),
            (f"{name}_bert2_FRMB", "FRMB, BERT", reduced | {"reduction": "frmb"}),
            (f"{name}_bert2_FRAB", "FRAB, BERT", reduced | {"reduction": "frab"}),
        ]
    return rows


def _r2plus1d() -> list[Row]:
    bert: dict[str, Any] = {"head": BertHead()}
    return [
        ("rgb_r2plus1d_32f_34", "32 frames, average pooling", _AVERAGE),
        ("rgb_r2plus1d_32f_34_bert10", "32 frames, BERT", bert),
        ("rgb_r2plus1d_64f_34_bert10", "64 frames, BERT", bert | {"input": InputOptions(clip_length=64)}),
    ]


def _records(backbone: Any, what: str, rows: list[Row]) -> list[ModelRecord]:
    return [
        ModelRecord(
            name=f"late_temporal/{name}",
            options=ModelOptions(**{"backbone": backbone} | options),
            summary=f"{what}, {head}",
            paper=PAPER,
            alias=name,
        )
        for name, head, options in rows
    ]


RECORDS = (
    *_records(ResNeXt3d(depth=101), "ResNeXt-101, 64 frames", _resnext()),
    *_records(SlowFast(), "SlowFast-50 8×8, 64 frames", _slowfast()),
    *_records(I3d(), "Inception-I3D, 64 frames", _i3d()),
    *_records(R2Plus1d(depth=34), "R(2+1)D-34", _r2plus1d()),
)
