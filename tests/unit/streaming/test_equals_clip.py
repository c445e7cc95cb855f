"""A stream of three receptive fields gives what the clip network gives of it, from the first prediction to the last."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.helpers.models import (
    assert_near,
    clip_predictions,
    dense_predictions,
    each_frame_squeezed,
    frames_of,
    made,
    side_of,
)
from two_stream import zoo
from two_stream.backbones.x3d import SqueezeExcitation
from two_stream.errors import SettingsError
from two_stream.recognizer import Recognizer
from two_stream.streaming import convert

AVERAGE = {"kind": "average"}
"""The head of the small networks."""
NETS: dict[str, dict[str, Any]] = {
    "resnet3d B": {"kind": "resnet3d", "depth": 10, "width": 0.125, "temporal_stride": 8},
    "resnet3d A": {"kind": "resnet3d", "depth": 10, "width": 0.125, "temporal_stride": 4, "shortcut": "A"},
    "resnet3d before": {
        "kind": "resnet3d",
        "depth": 18,
        "width": 0.125,
        "temporal_stride": 4,
        "preactivation": True,
    },
    "resnet3d stem": {"kind": "resnet3d", "depth": 10, "width": 0.125, "stem_stride": 2, "stem_pool": False},
    "resnext3d": {"kind": "resnext3d", "depth": 50, "width": 0.25, "cardinality": 8, "temporal_stride": 2},
    "mobilenetv2": {"kind": "mobilenetv2_3d", "width": 0.25, "temporal_stride": 4},
    "mobilenet": {"kind": "mobilenet_3d", "width": 0.125, "temporal_stride": 4},
    "shufflenet": {"kind": "shufflenet_3d", "width": 0.25, "groups": 3, "temporal_stride": 4},
    "shufflenetv2": {"kind": "shufflenetv2_3d", "width": 0.25, "temporal_stride": 4},
    "squeezenet": {"kind": "squeezenet_3d", "width": 0.125, "temporal_stride": 4},
    "c3d": {"kind": "c3d", "width": 0.0625, "side": 1, "temporal_stride": 8},
    "csn": {"kind": "csn", "depth": 26, "width": 0.125},
    "csn ir": {"kind": "csn", "depth": 26, "mode": "ir", "width": 0.125, "temporal_stride": 2},
    "densenet": {"kind": "densenet3d", "growth": 4, "temporal_stride": 2},
    "r2plus1d": {"kind": "r2plus1d", "depth": 18, "width": 0.125},
    "r2plus1d 50": {"kind": "r2plus1d", "depth": 50, "width": 0.125, "stem_pool": True, "stem_kernel": 7},
    "i3d": {"kind": "i3d", "width": 0.125},
    "x3d": {"kind": "x3d", "depth": 1.0, "width": 1.0},
    "slow": {"kind": "slow", "width": 0.125},
    "i3d resnet": {"kind": "slow", "variant": "i3d", "width": 0.125},
    "slowfast late": {"kind": "slowfast", "width": 0.125},
    "slowfast early": {"kind": "slowfast", "width": 0.125, "fusion": "early", "alpha": 2},
    "timm": {"kind": "timm", "name": "resnet18", "temporal_stride": 2},
    "timm shifted": {"kind": "timm", "name": "resnet10t", "tsm": 0.125},
    "s3d": {"kind": "torchvision", "name": "s3d"},
    "r3d": {"kind": "torchvision", "name": "r3d_18"},
    "mc3": {"kind": "torchvision", "name": "mc3_18"},
    "timm inflated": {"kind": "timm", "name": "resnet10t", "inflate": True},
    "timm inflated, SAME padding": {"kind": "timm", "name": "tf_efficientnet_lite0", "inflate": True},
}
SIDES = {"densenet": 32, "timm inflated": 32, "s3d": 32}
"""Sides of the frames of networks that take no 16 pixels."""
IN_REACH = 3
"""Length of the streams in receptive fields."""


def distinct() -> list[str]:
    """Return the zoo's names without those of a network that another name has too."""
    seen = {}
    for record in zoo.records("*"):
        options = record.options
        seen.setdefault(
            (options.backbone.model_dump_json(), options.reduction, options.head.kind), record.name
        )
    return list(seen.values())


def predictions_of(
    model: Recognizer, side: int, chunk: int, length: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what the stream and the clip network say of the same frames, `length` or a few more."""
    stream = convert(model)
    count = -(-length // stream.stride) * stream.stride
    frames = frames_of(model, count, side=side)
    found = [stream.step(part) for part in frames.split(chunk, 2)]
    assert sum(part.shape[1] for part in found) == (count - 1 - stream.delay) // stream.stride + 1
    found.append(stream.finish())
    reference = dense_predictions if model.options.dense else clip_predictions
    return torch.cat(found, 1), reference(model, frames)


def refused(model: Recognizer) -> str | None:
    """Return why a network has no stream, or nothing."""
    try:
        convert(model)
    except SettingsError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in ("densenet", "r3d") else ()) for n in NETS]
)
def test_stream_equals_clip(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = made(
        "3dresnets/resnet10", backbone=NETS[name], head=AVERAGE, input={"clip_length": 16, "crop": 32}
    )
    monkeypatch.setattr(SqueezeExcitation, "forward", each_frame_squeezed)
    assert_near(
        *predictions_of(model, SIDES.get(name, 16), 7, IN_REACH * (convert(model).receptive_field or 0))
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", distinct())
def test_every_network_of_the_zoo_streams_or_says_why_not(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device("meta"):
        options = zoo.resolve(name)
        twin = Recognizer(options, 5)
    refusal = refused(twin)
    if refusal is not None:
        assert "cannot stream" in refusal
        assert "\n" not in refusal
        return
    if options.head.kind == "lstm":
        pytest.skip("an LSTM that goes on is no window; see test_streaming_heads")
    monkeypatch.setattr(SqueezeExcitation, "forward", each_frame_squeezed)
    model, stream = made(name), convert(twin)
    length = stream.delay + 4 * stream.stride
    assert_near(*predictions_of(model, side_of(model, 32), 64, length))
