"""Fine-tuning styles: what learns equals the codebases' choice, and what is frozen costs no memory."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.helpers.models import network
from two_stream.config.backbones import MobileNetV2
from two_stream.config.heads import BertHead
from two_stream.errors import SettingsError
from two_stream.recognizer import Recognizer, create_model

RESNET = {
    "": None,
    "conv1": None,
    "layer1": "stem",
    "layer2": "layer1",
    "layer3": "layer2",
    "layer4": "layer3",
    "fc": "head",
}
DENSENET = {
    "conv1": None,
    "denseblock3": "transition2",
    "transition3": "block3",
    "denseblock4": "transition3",
    "norm5": "block4",
    "classifier": "head",
}
CASES = [
    *(("resnet18", module, until) for module, until in RESNET.items()),
    *(("densenet121", module, until) for module, until in DENSENET.items()),
]
NO_BOUNDARY = {"resnet18:bn1", "resnet18:nosuch"}
"""inside our first stage; no module at all, which the published code trains nothing for without a word"""


@pytest.fixture(scope="module")
def pipelines(shared: Path) -> dict[str, Any]:
    with gzip.open(shared / "fixtures" / "families" / "pipelines.json.gz", "rt") as file:
        loaded: dict[str, Any] = json.load(file)
    return loaded


def trainable(model: Recognizer) -> list[torch.nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


@pytest.mark.parametrize(("name", "module", "until"), CASES)
def test_ft_begin_module_trains_as_many_numbers(
    pipelines: dict[str, Any], name: str, module: str, until: str | None
) -> None:
    expected = pipelines["3dresnets"]["fine_tuning"]["counts"][f"{name}:{module}"]
    with torch.device("meta"):
        model = create_model(f"3dresnets/{name}", num_classes=101)
    if until is not None:
        model.freeze_until(until)
    left = trainable(model)
    assert {"tensors": len(left), "numel": sum(p.numel() for p in left)} == expected


def test_every_published_case_has_a_counterpart(pipelines: dict[str, Any]) -> None:
    published = set(pipelines["3dresnets"]["fine_tuning"]["counts"])
    assert published - {f"{name}:{module}" for name, module, _ in CASES} == NO_BOUNDARY


@pytest.mark.parametrize(
    ("name", "measured", "until"),
    [
        ("mobilenet_1.0x", "mobilenet", "head"),
        ("resnet18_A", "resnet18", "head"),
        ("c3d", "c3d", "group5"),  # its `fc` is found in three layers' names
    ],
)
def test_ft_portion_last_layer_trains_the_same_tensors(
    pipelines: dict[str, Any], name: str, measured: str, until: str
) -> None:
    expected = pipelines["efficient3d"]["fine_tuning"]["measured"][measured]
    with torch.device("meta"):
        model = create_model(f"efficient3d/{name}", num_classes=101)
    assert len(list(model.parameters())) == expected["param_groups"]
    model.freeze_until(until)
    assert len(trainable(model)) == len(expected["trainable_names"])


def small(head: bool = True) -> Recognizer:
    own = {"head": BertHead(hidden=32, heads=2)} if head else {}
    return network(backbone=MobileNetV2(width=0.25), input={"clip_length": 8, "crop": 32}, **own)


def saved_bytes(model: Recognizer, clips: torch.Tensor) -> int:
    """Memory that autograd keeps for the backward pass of a training step, weights left out."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    model.train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        F.cross_entropy(model(clips), torch.tensor([0, 1])).backward()
    return sum(kept.values())


def test_frozen_stages_keep_no_activations_and_stay_as_they_are() -> None:
    clips = torch.randint(0, 256, (2, 3, 8, 32, 32), dtype=torch.uint8)
    whole = saved_bytes(small(), clips)
    model = small()
    model.freeze_until("backbone")
    before = {key: value.clone() for key, value in model.backbone.state_dict().items()}
    probe = saved_bytes(model, clips)
    assert probe < whole / 20
    assert all(torch.equal(value, before[key]) for key, value in model.backbone.state_dict().items())
    assert all(p.grad is None for p in model.backbone.parameters())
    learnt = {name for name, p in model.named_parameters() if p.grad is not None}
    assert any(name.startswith("heads.") for name in learnt)
    assert "classifier.weight" in learnt
    linear = small()
    linear.freeze_until("head")
    assert saved_bytes(linear, clips) < probe
    assert {n for n, p in linear.named_parameters() if p.grad is not None} == {
        "classifier.weight",
        "classifier.bias",
    }


def test_an_unknown_stage_is_one_line_with_the_names() -> None:
    with pytest.raises(SettingsError, match=r"expected one of stem, .*head, or backbone$"):
        small().freeze_until("layer9")
