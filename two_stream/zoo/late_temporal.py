"""The 27 networks of LateTemporalModeling3DCNN. Dropout sits where the published code has it."""

from __future__ import annotations

from typing import Any

from two_stream.config.model import (
    AverageHead,
    BertHead,
    ConcatHead,
    LstmHead,
    ModelOptions,
    NonLocalHead,
    ResNeXt3d,
    SlowFast,
)
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
)
