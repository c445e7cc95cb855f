"""A backbone's graph gives what the backbone gives, and shares its weights."""

from __future__ import annotations

import pytest
import torch

from two_stream import create_model
from two_stream.backbones.tracing import traced
from two_stream.errors import SettingsError

NAMES = (
    "rgb_slowfast64f_50",
    "rgb_I3D64f",
    "efficient3d/shufflenet_g3_0.5x",
    "efficient3d/shufflenetv2_0.25x",
    "3dresnets/densenet121",
    "efficient3d/resnet18_A",
    "co3d/x3d_xs",
)


@pytest.mark.parametrize("name", NAMES)
def test_the_graph_computes_the_backbone(name: str) -> None:
    torch.manual_seed(0)
    model = create_model(name, num_classes=2, input={"clip_length": 16}).eval()
    x_BCTHW = torch.randn(1, 3, 16, 48, 48)
    graph = traced(model.backbone)
    with torch.no_grad():
        wanted = [feature.tensor for feature in model.backbone(x_BCTHW)]
        found = graph(x_BCTHW)
    assert all(torch.equal(a, b) for a, b in zip(wanted, found, strict=True))
    assert set(graph.parameters()) <= set(model.backbone.parameters())


def test_a_network_without_a_graph_is_refused() -> None:
    model = create_model("timm/resnet50_tsn", num_classes=2)
    with pytest.raises(SettingsError, match="backbone timm cannot be written as a graph"):
        traced(model.backbone)
