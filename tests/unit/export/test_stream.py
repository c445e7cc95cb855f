"""Exported step networks: the same logits as the stream's, step after step, from states that the card describes."""

from pathlib import Path

import pytest
import torch

from tests.helpers.models import settle
from two_stream.cli import main as cli
from two_stream.config.backbones import ResNet3d
from two_stream.config.heads import AverageHead
from two_stream.config.model import InputOptions, ModelOptions
from two_stream.config.schema import Experiment
from two_stream.errors import CheckpointError, ExportError
from two_stream.export import Timing, export_stream, load, load_stream, plain_copy
from two_stream.export.verifying import noise_clips
from two_stream.export.writing import BareModel
from two_stream.recognizer import create_model
from two_stream.types import RunPaths

WEIGHT = [[1.0, -2.0, 0.5], [0.3, 0.1, -0.7], [0.0, 0.2, 0.1], [-1.0, 0.4, 0.9]]


class Counting(torch.nn.Module):
    """A stand-in step network: the last three frames' means, a step counter, and a state whose batch comes second."""

    frames_per_step = 2
    warm_up = 1

    def __init__(self, *, fresh: bool = True) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(WEIGHT))
        self.fresh = fresh

    def state_names(self):
        return ["steps", "means", "slow"]

    def initial_states(self, batch, height, width):
        means = torch.full((batch, 3), -1.0)
        if not self.fresh:
            means[:, 0] = 2.0
        return [torch.zeros(1, dtype=torch.int64), means, torch.zeros(1, batch, 4)]

    def forward(self, frames, *states):
        steps, means, slow = states
        new = torch.cat((means, frames.float().mean((1, 3, 4)) / 255), dim=1)[:, -3:]
        logits = torch.nn.functional.linear(new, self.weight)
        slow = 0.9 * slow + 0.1 * logits[None]
        return logits + slow[0] + 0.01 * steps, steps + 1, new, slow


@pytest.fixture(scope="module")
def bare():
    options = ModelOptions(
        backbone=ResNet3d(depth=10, width=0.25, temporal_stride=4),
        head=AverageHead(),
        input=InputOptions(clip_length=8, resize=(36, 48), crop=32),
    )
    torch.manual_seed(0)
    model = create_model(options, num_classes=4)
    settle(model)
    names = ["a", "b", "c", "d"]
    return BareModel(Experiment(name="r", model=options), model, names, RunPaths(Path()), "", {})


@pytest.mark.parametrize("to", ["onnx", "pt2"])
def test_steps_of_any_number_of_streams_are_the_modules(bare, to, tmp_path):
    if to == "onnx":
        pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    module = Counting().eval()
    file, card = export_stream(bare, module, Timing(3, 3), to, tmp_path / f"stream.{to}")
    assert [(s.name, s.shape, s.dtype, s.initial) for s in card.stream.states] == [
        ("steps", (1,), "int64", 0.0),
        ("means", ("batch", 3), "float32", -1.0),
        ("slow", (1, "batch", 4), "float32", 0.0),
    ]
    assert (card.stream.frames_per_step, card.stream.warm_up, card.stream.delay) == (2, 1, 3)
    assert [port.name for port in card.inputs] == ["frames", "steps", "means", "slow"]
    assert [port.name for port in card.outputs] == ["logits", "next_steps", "next_means", "next_slow"]
    stream = load_stream(file)
    for batch in (1, 4):
        states, wanted_states = stream.initial_states(batch), module.initial_states(batch, 32, 32)
        for number in range(4):
            frames = torch.randint(0, 256, (batch, 3, 2, 32, 32), dtype=torch.uint8)
            logits, states = stream.step(frames, states)
            with torch.no_grad():
                wanted, *wanted_states = module(frames, *wanted_states)
            torch.testing.assert_close(logits, wanted, rtol=1e-5, atol=1e-5)
            assert int(states[0]) == number + 1


def test_a_state_that_does_not_begin_with_one_value_is_refused(bare, tmp_path):
    with pytest.raises(ExportError, match="state 'means' of the stream has different initial values"):
        export_stream(bare, Counting(fresh=False).eval(), Timing(3, 3), "pt2", tmp_path / "stream.pt2")
    assert list(tmp_path.iterdir()) == []


class Forgetful(Counting):
    """Right on the first step, wrong later: as a file would be whose states are not handed on."""

    def forward(self, frames, *states):
        logits, steps, new, slow = super().forward(frames, *states)
        return logits, steps, new, slow if torch.compiler.is_exporting() else slow + 1.0


def test_states_that_are_not_handed_on_are_noticed(bare, tmp_path):
    with pytest.raises(ExportError, match="the logits of the exported network differ"):
        export_stream(bare, Forgetful().eval(), Timing(3, 3), "pt2", tmp_path / "stream.pt2")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_convolutional_stream_gives_the_clip_networks_predictions(bare, tmp_path):
    """Through ONNX Runtime, step by step: prediction j is the stream's own, and that is the clip network's."""
    pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    from two_stream.streaming import StepNetwork, convert

    stream = convert(plain_copy(bare))
    step = StepNetwork(stream)
    file, card = export_stream(
        bare, step, Timing(stream.delay, stream.receptive_field), "onnx", tmp_path / "s.onnx"
    )
    assert card.stream.delay == stream.delay
    exported = load_stream(file)
    count = step.warm_up + 5
    long = bare.model.spec.__class__(**{**vars(bare.model.spec), "clip_length": count * step.frames_per_step})
    frames = noise_clips(long, 2, seed=9)
    wanted = stream.step(frames)
    states, found = exported.initial_states(2), []
    for part in torch.split(frames, step.frames_per_step, dim=2):
        logits, states = exported.step(part, states)
        found.append(logits)
    found = torch.stack(found[step.warm_up :], dim=1)
    assert found.shape == (2, 5, 4)
    torch.testing.assert_close(found, wanted[:, :5], rtol=0, atol=1e-4 * float(wanted.abs().max()))


def test_a_stream_is_no_clip_network_and_the_other_way_round(bare, pt2_file, tmp_path, capsys, world):
    file, _ = export_stream(bare, Counting().eval(), Timing(3, 3), "pt2", tmp_path / "stream.pt2")
    with pytest.raises(CheckpointError, match="contains a streaming network, expected a clip network"):
        load(file)
    with pytest.raises(CheckpointError, match="contains a clip network, expected a streaming network"):
        load_stream(pt2_file)
    video = str(world / "videos" / "left" / "v_g1.mp4")
    assert cli(["predict", video, "--rgb", str(file)]) == 2
    assert "expected a clip network" in capsys.readouterr().err


def test_the_command_writes_a_stream(bare, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("two_stream.export.writing.named_model", lambda *_: bare)
    out = tmp_path / "s.pt2"
    assert cli(["export", "r", "--stream", "--to", "pt2", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "a step takes 4 frames" in shown
    assert load_stream(out).stream.frames_per_step == 4
