"""A clip network on a stream predicts what it predicts of the same clips cut out of the whole."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from two_stream import create_model
from two_stream.commands.stream import StreamFlags, _check_input, _picked
from two_stream.errors import SettingsError
from two_stream.streaming.live.networks import SlidingRecognizer


@pytest.mark.parametrize("stride", [None, 1, 3, 8, 11])
@pytest.mark.parametrize("chunks", [[1] * 40, [40], [7, 1, 13, 19], [25, 15]])
def test_its_predictions_are_those_of_the_clips(stride: int | None, chunks: list[int]) -> None:
    torch.manual_seed(0)
    model = create_model(
        "efficient3d/mobilenetv2_0.2x",
        num_classes=3,
        head={"kind": "lstm"},
        input={"clip_length": 8, "crop": 32, "resize": (32, 32)},
    ).eval()
    network = SlidingRecognizer(model, stride)
    assert (network.delay, network.receptive_field, network.stride) == (7, 8, stride or 4)
    stream = torch.randint(0, 256, (1, 3, 40, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        found = torch.cat([network.step(chunk) for chunk in stream.split(chunks, dim=2)], dim=1)
        starts = range(0, 33, network.stride)
        wanted = torch.stack([model(stream[:, :, first : first + 8]) for first in starts], dim=1)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
        network.reset()
        assert network.step(stream[:, :, :7]).shape == (1, 0, 3)
        torch.testing.assert_close(network.step(stream[:, :, 7:8]), wanted[:, :1], rtol=0, atol=1e-5)


def test_no_step_is_refused() -> None:
    model = create_model("efficient3d/mobilenetv2_0.2x", num_classes=2)
    with pytest.raises(SettingsError, match="the step of sliding clips is 0 frames"):
        SlidingRecognizer(model, 0)


def test_a_stream_takes_segments_of_one_frame_and_of_several(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(**input_: Any) -> Any:
        with torch.device("meta"):
            model = create_model(
                "efficient3d/mobilenetv2_0.2x",
                num_classes=3,
                modality="flow",
                input={"clip_length": 8, **input_},
            )
        return SimpleNamespace(model=model, paths=SimpleNamespace(root=Path("runs/one")))

    flags = StreamFlags("0")
    _check_input(flags, run())
    assert capsys.readouterr().err == ""
    _check_input(flags, run(segments=8, stride=4))
    assert "segments are 4 source frames apart and a clip spans 29 frames" in " ".join(
        capsys.readouterr().err.split()
    )
    pairs = run(segments=4, stride=1)
    _check_input(flags, pairs)
    assert "segments are 4 source frames apart and a clip spans 14 frames" in " ".join(
        capsys.readouterr().err.split()
    )
    assert _picked(flags, pairs.model.spec) == (0, 1, 4, 5, 8, 9, 12, 13)
    assert _picked(StreamFlags("0", every=6), pairs.model.spec) == (0, 1, 6, 7, 12, 13, 18, 19)
    with pytest.raises(
        SettingsError, match="have 2 frames in each of 4 segments, which requires sliding clips"
    ):
        _check_input(StreamFlags("0", mode="continual"), pairs)
    with pytest.raises(
        SettingsError, match="its input is 5 stacked flow fields, which a stream does not provide"
    ):
        _check_input(flags, run(stack=5))


def test_sliding_clips_of_picked_frames() -> None:
    class Sum(torch.nn.Module):
        spec = SimpleNamespace(clip_length=4)
        num_classes = 1

        def forward(self, clip: torch.Tensor) -> torch.Tensor:
            places = torch.tensor([1.0, 10.0, 100.0, 1000.0])
            return (clip[:, 0, :, 0, 0].float() * places).sum(1, keepdim=True)

    frames = torch.arange(12, dtype=torch.uint8).view(1, 1, 12, 1, 1)
    sliding = SlidingRecognizer(Sum(), 2, picked=(0, 1, 4, 5))  # type: ignore[arg-type]
    found = torch.cat([sliding.step(part) for part in frames.split(5, dim=2)], dim=1)[0, :, 0]
    assert sliding.delay == 5
    clips = [(start, start + 1, start + 4, start + 5) for start in range(0, 7, 2)]
    assert found.tolist() == [a + 10 * b + 100 * c + 1000 * d for a, b, c, d in clips]
