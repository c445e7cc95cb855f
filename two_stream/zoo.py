"""Named models: a table of records. A name is looked up, never parsed."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from pydantic import BaseModel

from two_stream.config.load import validate
from two_stream.config.model import (
    AverageHead,
    BertHead,
    ConcatHead,
    InputOptions,
    LstmHead,
    MobileNetV2,
    ModelOptions,
    NonLocalHead,
    ResNet3d,
    ResNeXt3d,
)
from two_stream.errors import SettingsError

LATE_TEMPORAL = (
    "Kalfaoglu et al., Late Temporal Modeling in 3D CNN Architectures with BERT (arXiv 2008.01232)"
)
EFFICIENT = "Köpüklü et al., Resource Efficient 3D Convolutional Neural Networks (arXiv 1904.02422)"
RESNETS = (
    "Hara et al., Can Spatiotemporal 3D CNNs Retrace the History of 2D CNNs and ImageNet? (arXiv 1711.09577)"
)

SOURCES = {
    "late_temporal": "LateTemporalModeling3DCNN",
    "efficient3d": "Efficient-3DCNNs",
    "3dresnets": "3D-ResNets-PyTorch",
    "compressed": "compressed-video-classification",
}
"""The code base in which the networks of a namespace were published."""


@dataclass(frozen=True)
class ModelRecord:
    """One named model."""

    name: str
    """`namespace/name`"""
    options: ModelOptions
    summary: str
    paper: str
    alias: str | None = None
    """second name without namespace"""

    @property
    def source(self) -> str:
        """The code base in which it was published."""
        return SOURCES[self.name.split("/", maxsplit=1)[0]]


def _late_temporal() -> list[ModelRecord]:
    """The ResNeXt-101 networks of the paper. Dropout sits where the published code has it."""
    backbone = ResNeXt3d(depth=101)
    bert = BertHead()
    table: list[tuple[str, str, dict[str, Any]]] = [
        ("rgb_resneXt3D64f101", "average pooling", {"head": AverageHead()}),
        (
            "flow_resneXt3D64f101",
            "average pooling",
            {"modality": "flow", "head": AverageHead(), "dropout": 0.7},
        ),
        ("rgb_resneXt3D64f101_adamw", "average pooling", {"head": AverageHead()}),
        ("rgb_resneXt3D64f101_FRMB_adamw", "average pooling", {"reduction": "frmb", "head": AverageHead()}),
        ("rgb_resneXt3D64f101_bert10_FRAB", "BERT", {"reduction": "frab", "head": bert}),
        ("rgb_resneXt3D64f101_bert10_FRMB", "BERT", {"reduction": "frmb", "head": bert}),
        (
            "flow_resneXt3D64f101_bert10_FRAB",
            "BERT",
            {"modality": "flow", "reduction": "frab", "head": bert},
        ),
        (
            "flow_resneXt3D64f101_bert10_FRMB",
            "BERT",
            {"modality": "flow", "reduction": "frmb", "head": bert},
        ),
        ("rgb_resneXt3D64f101_FRMB_lstm", "LSTM", {"reduction": "frmb", "head": LstmHead()}),
        (
            "rgb_resneXt3D64f101_concatenation",
            "concatenation and a linear layer",
            {"reduction": "frmb", "head": ConcatHead(features=1550, dropout=0.8), "dropout": 0.0},
        ),
        (
            "rgb_resneXt3D64f101_FRMB_NLB_concatenation",
            "non-local block, concatenation and a linear layer",
            {"reduction": "frmb", "head": NonLocalHead(features=1000, dropout=0.8), "dropout": 0.0},
        ),
    ]
    return [
        ModelRecord(
            name=f"late_temporal/{name}",
            options=ModelOptions(backbone=backbone, **options),
            summary=f"ResNeXt-101, 64 frames, {head}",
            paper=LATE_TEMPORAL,
            alias=name,
        )
        for name, head, options in table
    ]


def _classic(namespace: str, name: str, backbone: Any, summary: str, **options: Any) -> ModelRecord:
    """A network with global average pooling, as those code bases have it."""
    paper = RESNETS if namespace == "3dresnets" else EFFICIENT
    made = ModelOptions(backbone=backbone, head=AverageHead(), **options)
    return ModelRecord(f"{namespace}/{name}", made, f"{summary}, average pooling", paper)


def _efficient3d(namespace: str) -> list[ModelRecord]:
    """Efficient-3DCNNs, and the compression project built on it, which shares its networks."""
    sixteen = InputOptions(clip_length=16)
    records = [
        _classic(
            namespace, f"mobilenetv2_{width}x", MobileNetV2(width=width), f"MobileNetV2 {width}×", dropout=0.2
        )
        for width in (0.2, 0.45, 0.7, 1.0)
    ]
    for shortcut in ("A", "B"):
        records += [
            _classic(
                namespace,
                f"resnet{depth}_{shortcut}",
                ResNet3d(depth=depth, shortcut=shortcut),
                f"ResNet-{depth}, shortcut {shortcut}",
                dropout=0.0,
            )
            for depth in (10, 18, 34, 50, 101, 152, 200)
        ]
        records += [
            _classic(
                namespace,
                f"resnext{depth}_{shortcut}",
                ResNeXt3d(depth=depth, shortcut=shortcut),
                f"ResNeXt-{depth}, shortcut {shortcut}",
                dropout=0.0,
                input=sixteen,
            )
            for depth in (50, 101)
        ]
    return records


def _3dresnets() -> list[ModelRecord]:
    """3D-ResNets as released in 2020: values 0..1, divided by a standard deviation too."""
    usual = InputOptions(
        clip_length=16, value_range=(0.0, 1.0), mean=(0.4345, 0.4051, 0.3775), std=(0.2768, 0.2713, 0.2737)
    )
    table: list[tuple[str, Any, str]] = [
        (f"resnet{depth}", ResNet3d(depth=depth), f"ResNet-{depth}")
        for depth in (10, 18, 34, 50, 101, 152, 200)
    ]
    table += [
        ("resnet18_A", ResNet3d(depth=18, shortcut="A"), "ResNet-18, shortcut A"),
        ("resnet18_widen0.5", ResNet3d(depth=18, width=0.5), "ResNet-18, half as wide"),
        (
            "resnet18_ct1_s2_nopool",
            ResNet3d(depth=18, stem_kernel=3, stem_stride=2, stem_pool=False),
            "ResNet-18, stem of 3 frames with stride 2, no pooling",
        ),
    ]
    table += [
        (f"resnext{depth}", ResNeXt3d(depth=depth, stem_channels=128), f"ResNeXt-{depth}")
        for depth in (50, 101)
    ]
    return [
        _classic("3dresnets", name, backbone, summary, dropout=0.0, input=usual)
        for name, backbone, summary in table
    ]


_RECORDS = {
    record.name: record
    for record in [
        *_late_temporal(),
        *_efficient3d("efficient3d"),
        *_3dresnets(),
        *_efficient3d("compressed"),
    ]
}
_ALIASES = {record.alias: record for record in _RECORDS.values() if record.alias}


def records(pattern: str = "*") -> list[ModelRecord]:
    """Return the records one of whose names matches a shell pattern, in the order of the table."""
    return [
        record
        for record in _RECORDS.values()
        if fnmatchcase(record.name, pattern) or (record.alias and fnmatchcase(record.alias, pattern))
    ]


def list_models(pattern: str = "*") -> list[str]:
    """Return the names `create_model` knows that match a shell pattern, for example `"*bert*"`."""
    names = [*_ALIASES, *_RECORDS]
    return [name for name in names if fnmatchcase(name, pattern)]


def find(name: str) -> ModelRecord:
    """Return a record by either of its names.

    Raises:
        SettingsError: No such name; tells the nearest ones.
    """
    record = _RECORDS.get(name) or _ALIASES.get(name)
    if record is not None:
        return record
    by_lower = {known.lower(): known for known in list_models()}
    close = difflib.get_close_matches(name.lower(), list(by_lower), n=3, cutoff=0.5)
    hint = (
        f"did you mean {' or '.join(by_lower[known] for known in close)}?"
        if close
        else "see `two-stream models`"
    )
    raise SettingsError(f"unknown model {name!r}; {hint}")


def resolve(name_or_options: str | ModelOptions, **changes: Any) -> ModelOptions:
    """Return the options of a named model, or the given ones, with some fields changed.

    Raises:
        SettingsError: Unknown name, key or value.
    """
    named = isinstance(name_or_options, str)
    options = find(name_or_options).options if isinstance(name_or_options, str) else name_or_options
    if not changes:
        return options
    source = f"model {name_or_options}" if named else "model options"
    base = options.model_dump()
    if changes.get("modality", options.modality) != options.modality:
        base["input"].update(_other_modality(base["input"]))
    return validate(ModelOptions, _merge(base, changes), source)


def _other_modality(input_: dict[str, Any]) -> dict[str, Any]:
    """Normalisation after a change of modality: flow takes the first two numbers of RGB, as 3D-ResNets does."""
    return {
        name: values[:2] if values is not None and len(values) == 3 else None
        for name, values in ((name, input_[name]) for name in ("mean", "std"))
    }


def _merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Lay changes over settings; a part of another kind replaces the old one whole."""
    merged = dict(base)
    for key, value in changes.items():
        if isinstance(value, BaseModel):
            value = value.model_dump()  # a whole part was given: nothing of the old one stays
        elif isinstance(value, dict) and isinstance(base.get(key), dict):
            same = value.get("kind", base[key].get("kind")) == base[key].get("kind")
            value = _merge(base[key], value) if same else value
        merged[key] = value
    return merged
