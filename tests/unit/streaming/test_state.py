"""What a stream keeps: the same whatever the chunks, no more after an hour, nothing after a reset."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.helpers.models import assert_near, clip_predictions, frames_of, small
from two_stream import create_model
from two_stream.config.schema import EvaluateOptions
from two_stream.errors import SettingsError
from two_stream.evaluation.scoring.network import fold_batchnorm, prepare_for_inference
from two_stream.profiling.costs import multiply_adds
from two_stream.recognizer import Recognizer
from two_stream.runtime.device import autocast
from two_stream.streaming import convert, multiply_adds_per_prediction


@pytest.mark.parametrize("chunks", [[1] * 130, [37, 37, 37, 19], [130], [3, 0, 100, 1, 26]])
def test_chunks_of_any_size_give_the_same(chunks: list[int]) -> None:
    model = small(backbone={"kind": "shufflenet_3d", "width": 0.25, "groups": 3, "temporal_stride": 8})
    frames = frames_of(model, 130)
    wanted = convert(model).step(frames)
    stream = convert(model)
    assert_near(torch.cat([stream.step(part) for part in frames.split(chunks, 2)], 1), wanted)


def test_what_is_kept_does_not_grow_and_does_not_drift() -> None:
    """Thousands of frames of the same period give the numbers of its first repetition."""
    model = small(backbone={"kind": "mobilenet_3d", "width": 0.125, "temporal_stride": 4})
    stream = convert(model)
    assert stream.receptive_field is not None
    period = frames_of(model, 4 * (stream.receptive_field // 4 + 1), side=32)
    stream.step(period)
    first, size = stream.step(period), stream.state_bytes()
    for _ in range(25):
        last = stream.step(period)
    assert_near(last, first, 1e-13)
    assert stream.state_bytes() == size
    held = [cell._kept for cell in stream.cells if getattr(cell, "_kept", None) is not None]
    assert sum(x.untyped_storage().nbytes() for x in held) <= 2 * size


def test_single_frames_keep_as_much_after_ten_times_as_many() -> None:
    model = small()
    stream, frame = convert(model), frames_of(model, 1)
    sizes = []
    for count in range(1, 801):
        stream.step(frame)
        if count in (80, 800):
            sizes.append(stream.state_bytes())
    assert sizes[0] == sizes[1] > 0


def test_reset_begins_anew() -> None:
    model = small()
    stream, frames = convert(model), frames_of(model, 120)
    first = stream.step(frames)
    assert not torch.equal(stream.step(frames)[:, : first.shape[1]], first)
    stream.reset()
    assert torch.equal(stream.step(frames), first)


def test_finish_without_frames_gives_nothing() -> None:
    assert convert(small()).finish().shape == (1, 0, 5)


def test_another_size_needs_a_reset() -> None:
    stream = convert(small())
    stream.step(frames_of(stream.model, 2))
    with pytest.raises(
        SettingsError, match=r"\(1, 64, 64\); expected \(1, 32, 32\), as before in this stream; call `reset`"
    ):
        stream.step(frames_of(stream.model, 2, side=64))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"squeeze": "video"}, "`squeeze` is 'video'; expected `frame` or `clip`"),
        ({"start": "mirror"}, "`start` is 'mirror'; expected `zeros` or `replicate`"),
        ({"window": 0}, "`window` is 0; expected a number of frames"),
    ],
)
def test_wrong_choices(options: dict, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        convert(small(), **options)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("co3d/slowfast_8x8_r50", "cannot stream with `spread: true`"),
        ("transformers/videomae_small", "every frame attends to all frames of its clip"),
    ],
)
def test_networks_without_a_stream_say_why(name: str, message: str) -> None:
    with torch.device("meta"):
        model = create_model(name, 5)
    with pytest.raises(SettingsError, match=message):
        convert(model)


def test_blocks_of_timm_without_rules_say_why() -> None:
    model = small(backbone={"kind": "timm", "name": "convnext_atto", "tsm": 0.125})
    with pytest.raises(
        SettingsError,
        match=r"this network cannot stream: \w+gamma .*: expected only layers, methods and functions",
    ):
        convert(model)


@pytest.mark.parametrize(
    ("options", "modality"),
    [({"picture": True}, "flow"), ({"difference": "alone"}, "rgb"), ({"difference": "beside"}, "rgb")],
)
def test_networks_that_see_no_single_frames_have_no_stream(options: dict[str, object], modality: str) -> None:
    model = small(backbone={"kind": "timm", "name": "test_resnet", **options}, modality=modality)
    with pytest.raises(SettingsError, match=r"backbone timm cannot stream with `(picture|difference)"):
        convert(model)


def test_a_layer_without_a_rule_is_named() -> None:
    model = small()
    model.backbone.stem.append(torch.nn.InstanceNorm3d(8))  # type: ignore[union-attr,operator]
    with pytest.raises(
        SettingsError,
        match=r"this network cannot stream: stem\.3 \(InstanceNorm3d\): streaming does not support "
        "this layer",
    ):
        convert(model)


class Overwriting(nn.Module):
    """Reads a map before and after it is overwritten in place, and adds in place to what is read again."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(8, 8, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        y = self.conv(x_BCTHW)
        before = self.conv(y)
        after = y + self.relu(y)
        after += before
        return torch.cat((after, F.relu(after, inplace=True), y), dim=1)[:, :, ::1]


def test_what_is_overwritten_in_place_is_read_as_in_the_clip_network() -> None:
    model = small()
    model.backbone.stem.append(Overwriting().double())  # type: ignore[union-attr,operator]
    model.backbone.stem.append(nn.Conv3d(24, 8, 1).double())  # type: ignore[union-attr,operator]
    frames = frames_of(model, 120)
    stream = convert(model.eval())
    found = torch.cat([*(stream.step(part) for part in frames.split(1, 2)), stream.finish()], 1)
    assert_near(found, clip_predictions(model, frames))


def test_in_bfloat16_as_the_evaluator_runs_it() -> None:
    model = small().float()
    frames = frames_of(model, 120)
    wanted = clip_predictions(model, frames)
    fast = prepare_for_inference(model, EvaluateOptions(precision="bf16", fold=True, compile=False))
    assert isinstance(fast, Recognizer)
    stream = convert(fast)
    with autocast(torch.device("cpu"), "bf16"):
        found = torch.cat([*(stream.step(part) for part in frames.split(7, 2)), stream.finish()], 1)
        same = clip_predictions(fast, frames)
    assert found.dtype == torch.float32
    assert same.dtype == torch.bfloat16
    spread = wanted.std()
    assert float((found - wanted).abs().max() / spread) < 3 * float((same - wanted).abs().max() / spread)


def test_a_folded_network_in_channels_last() -> None:
    model = small()
    frames = frames_of(model, 100)
    wanted = clip_predictions(model, frames)
    fast = fold_batchnorm(model, frames[:, :, :16])
    assert fast is not model
    stream = convert(copy.deepcopy(fast).channels_last())  # type: ignore[operator]
    assert_near(torch.cat((stream.step(frames), stream.finish()), 1), wanted)


def test_weights_are_shared_and_training_goes_on() -> None:
    model = small()
    stream, frames = convert(model), frames_of(model, 100)
    before = stream.step(frames)
    with torch.no_grad():
        model.classifier.bias += 1
    stream.reset()
    torch.testing.assert_close(stream.step(frames), before + 1)


def test_each_output_is_computed_once() -> None:
    """A long clip costs what its predictions cost: no product is computed for nothing, or twice."""
    with torch.device("meta"):
        model = create_model("co3d/slow_8x8_r50", 5, input={"crop": 64})
        long = create_model("co3d/slow_8x8_r50", 5, input={"crop": 64, "clip_length": 64})
    assert (
        multiply_adds_per_prediction(model) == multiply_adds(long) // 64 + _head(model) - _head(model) // 64
    )


def _head(model: torch.nn.Module) -> int:
    """Multiply-adds of the classifier, once per clip or prediction."""
    assert isinstance(model.classifier, torch.nn.Linear)
    return model.classifier.weight.numel()
