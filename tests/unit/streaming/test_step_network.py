"""The network with its states outside gives what the stream gives, in torch, exported, and in ONNX Runtime."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.models import assert_near, frames_of, made, small
from two_stream.recognizer import Recognizer
from two_stream.streaming import StepNetwork, convert

NETS: dict[str, dict[str, Any]] = {
    "average": {},
    "bert": {"head": {"kind": "bert", "hidden": 16, "heads": 2}},
    "lstm": {"head": {"kind": "lstm", "hidden": 8}},
    "gru": {"head": {"kind": "gru", "hidden": 8}},
    "causal": {"head": {"kind": "tcn", "hidden": 8, "layers": 2, "causal": True}},
    "places": {"head": {"kind": "nonlocal", "features": 8}},
    "shortcut A": {
        "backbone": {"kind": "resnet3d", "depth": 10, "width": 0.125, "temporal_stride": 8, "shortcut": "A"}
    },
    "inception": {"backbone": {"kind": "i3d", "width": 0.125}},
    "shuffled": {"backbone": {"kind": "shufflenet_3d", "width": 0.25, "groups": 3, "temporal_stride": 4}},
    "shifted": {"backbone": {"kind": "timm", "name": "resnet10t", "tsm": 0.125}},
    "two rates": {"backbone": {"kind": "slowfast", "width": 0.125}},
    "two rates, lstm": {
        "backbone": {"kind": "slowfast", "width": 0.125},
        "head": {"kind": "lstm", "hidden": 8},
    },
    "two rates, causal": {
        "backbone": {"kind": "slowfast", "width": 0.125},
        "head": {"kind": "tcn", "hidden": 8, "layers": 2, "causal": True},
    },
    "joined early": {"backbone": {"kind": "slowfast", "width": 0.125, "fusion": "early"}},
    "squeezed": {"backbone": {"kind": "x3d", "depth": 1.0, "width": 1.0}},
}
VARIANTS = [
    *((name, "zeros", "frame") for name in NETS),
    *((name, "replicate", "frame") for name in ("average", "causal", "shortcut A", "two rates")),
    ("squeezed", "zeros", "clip"),
]


def network(name: str, start: Any = "zeros", squeeze: Any = "frame") -> tuple[Recognizer, StepNetwork]:
    model = small(**NETS[name])
    return model, StepNetwork(convert(model, start=start, squeeze=squeeze))


@pytest.mark.parametrize(("name", "start", "squeeze"), VARIANTS)
def test_step_network_equals_the_stream(name: str, start: Any, squeeze: Any) -> None:
    model, net = network(name, start, squeeze)
    calls = net.warm_up + 6
    frames = frames_of(model, calls * net.frames_per_step, batch=2)
    wanted = convert(model, start=start, squeeze=squeeze).step(frames)
    states = net.initial_states(2, 32, 32)
    assert len(states) == len(net.state_names()) == len(set(net.state_names()))
    found = []
    with torch.inference_mode():
        for part in frames.split(net.frames_per_step, 2):
            logits, *states = net(part, *states)
            found.append(logits)
    assert_near(torch.stack(found[net.warm_up :], 1), wanted)


def batch_is_free(net: StepNetwork) -> tuple[Any, ...]:
    """Return the dynamic shapes of the inputs: a batch of any size."""
    batch = torch.export.Dim("batch", min=1, max=64)
    names = net.state_names()
    places = [1 if name.endswith(("_hidden", "_cell")) else 0 for name in names[1:]]
    return {0: batch}, (None, *({place: batch} for place in places))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["average", "lstm", "gru", "causal"])
def test_exported_by_torch(name: str) -> None:
    model, net = network(name)
    frames, states = frames_of(model, net.frames_per_step, batch=2), net.initial_states(2, 32, 32)
    with torch.no_grad():
        program = torch.export.export(net, (frames, *states), dynamic_shapes=batch_is_free(net)).module()
        frames, states = frames_of(model, net.frames_per_step, batch=3), net.initial_states(3, 32, 32)
        for ours, exported in zip(net(frames, *states), program(frames, *states), strict=True):
            torch.testing.assert_close(exported, ours, equal_nan=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_in_onnx_runtime(name: str, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    model, net = network(name)
    model.float()
    calls = net.warm_up + 4
    frames = frames_of(model, calls * net.frames_per_step, batch=2)
    states = net.initial_states(2, 32, 32)
    first = frames[:, :, : net.frames_per_step]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            net, (first, *states), dynamo=True, dynamic_shapes=batch_is_free(net), verbose=False
        )
    program.save(tmp_path / "step.onnx")
    session = runtime.InferenceSession(tmp_path / "step.onnx", providers=["CPUExecutionProvider"])
    names, given, found = [each.name for each in session.get_inputs()], [each.numpy() for each in states], []
    for part in frames.split(net.frames_per_step, 2):
        logits, *given = session.run(None, dict(zip(names, [part.numpy(), *given], strict=True)))
        found.append(torch.from_numpy(logits))
    # float32 by itself moves the logits of these small networks by up to 5e-5 of their spread
    assert_near(torch.stack(found[net.warm_up :], 1), convert(model).step(frames), 1e-3)


def test_names_of_the_states() -> None:
    net = StepNetwork(convert(made("co3d/x3d_xs", input={"crop": 32}, backbone={"depth": 1.0})))
    names = net.state_names()
    assert names[:3] == ["steps", "stem_1", "layer1_0_conv2"]
    assert "head0" in names
