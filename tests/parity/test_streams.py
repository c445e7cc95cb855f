"""co3d's continual networks: their clip, step and stream outputs, delay, receptive field and multiply-adds.

The numbers come from `shared/fixtures` (see its README): weights are those of the clip network, filled by key; outputs
are of a stream of white noise.
"""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from two_stream import create_model, load_weights
from two_stream.profiling.costs import multiply_adds
from two_stream.recognizer import Recognizer
from two_stream.streaming import StreamRecognizer, convert, multiply_adds_per_prediction

pytestmark = pytest.mark.parity

SMALL = [
    *(f"cox3d_{size}_small" for size in ("xs", "s", "m", "l")),
    "cox3d_xs_small_clipse",
    "cox3d_s_small_clipse",
    "cox3d_xs_small_replicate",
    *(f"{name}_8x8_r50_{window}small" for name in ("coslow", "coi3d") for window in ("", "64_")),
]
QUICK = {
    "cox3d_xs_small",
    "cox3d_s_small",
    "cox3d_xs_small_clipse",
    "cox3d_xs_small_replicate",
    "coi3d_8x8_r50_small",
}
LARGE = [*(f"cox3d_{size}" for size in ("xs", "s", "m", "l")), "coslow_8x8_r50", "coi3d_8x8_r50"]
LIMIT = 1e-5


def load(
    shared: Path, deterministic: ModuleType, name: str, tmp_path: Path
) -> tuple[dict[str, Any], Recognizer]:
    """Read a fixture and load its weights, as published, into the clip network that its name says."""
    path = shared / "fixtures" / "families" / "models" / f"co3d__{name}.json.gz"
    fixture = json.loads(gzip.decompress(path.read_bytes()))
    clip_name = re.sub(r"(_64)?(_small)?(_clipse|_replicate)?$", "", name).removeprefix("co")
    side = fixture["stream_shape"][-1]
    size = {"clip_length": fixture["temporal_window_size"], "crop": side, "resize": (side, side)}
    model = create_model(f"co3d/{clip_name}", fixture["num_classes"], input=size)
    filled = deterministic.state_dict(fixture["state_dict"], fixture["weight_seed"])
    torch.save({key: torch.from_numpy(value) for key, value in filled.items()}, tmp_path / "weights.pth")
    load_weights(model, tmp_path / "weights.pth")
    # the fixtures' frames are numbers of mean 0 already
    model.input_scale.fill_(1)
    model.input_shift.fill_(0)
    return fixture, model.eval()


def converted(fixture: dict[str, Any], model: Recognizer) -> StreamRecognizer:
    settings = fixture["constructor_kwargs"]
    return convert(model, squeeze=settings.get("se_scope", "frame"), start=settings["temporal_fill"])


@torch.inference_mode()
def over_the_stream(model: Recognizer, stream_BCTHW: torch.Tensor) -> torch.Tensor:
    """Return the logits of every window of the clip network's tokens over the whole stream."""
    (tokens,) = model.features_of_normalised(stream_BCTHW)
    count = model.backbone.num_tokens(model.spec.clip_length)[0]
    windows = [tokens[:, place : place + count] for place in range(tokens.shape[1] - count + 1)]
    return torch.stack([model._classified([window]) for window in windows], 1)


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in (*SMALL, *LARGE)],
)
def test_continual_networks(name, shared, deterministic, tmp_path, parity):
    fixture, model = load(shared, deterministic, name, tmp_path)
    stream = converted(fixture, model)
    facts = {"delay": stream.delay, "receptive_field": stream.receptive_field}
    facts |= {"padding": stream.padding, "temporal_stride": stream.stride}
    assert facts == {key: fixture[key] for key in facts}
    frames = torch.from_numpy(deterministic.clip(fixture["stream_shape"], fixture["input_seed"]))
    spread = float(np.std(fixture["logits_regular_clip"]))

    def check(what: str, found: torch.Tensor, *, first: int | None = None) -> None:
        if fixture[what] is not None:
            wanted = torch.tensor(fixture[what], dtype=found.dtype)[:first]
            difference = float((found[0, :first] - wanted).abs().max())
            parity(f"{name} {what}", difference / spread, LIMIT)

    steps = [stream.step(frame) for frame in frames.split(1, 2)]
    assert [t for t, found in enumerate(steps) if found.shape[1]] == fixture["forward_step_output_indices"]
    each = torch.cat(steps, 1)
    check("forward_step_outputs", each)
    check("forward_steps_stream", each)
    # theirs drops an odd last frame where our clip network, as published, keeps it
    before_the_end = each.shape[1] if name.startswith("coi3d") else None
    check("forward_steps_stream_pad_end", torch.cat((each, stream.finish()), 1), first=before_the_end)
    check("forward_stream", over_the_stream(model, frames), first=before_the_end)
    clip = frames[:, :, : model.spec.clip_length]
    check("forward_clip", model(clip)[None].detach())
    check("forward_steps_clip_pad_end", torch.cat((stream.step(clip), stream.finish()), 1))


@pytest.mark.parametrize(
    "name",
    [
        name if name in ("cox3d_m", "coi3d_8x8_r50") else pytest.param(name, marks=pytest.mark.slow)
        for name in (*LARGE, *SMALL)
    ],
)
def test_multiply_adds(name, shared):
    path = shared / "fixtures" / "families" / "models" / f"co3d__{name}.json.gz"
    fixture = json.loads(gzip.decompress(path.read_bytes()))
    clip_name = re.sub(r"(_64)?(_small)?(_clipse|_replicate)?$", "", name).removeprefix("co")
    side = fixture["stream_shape"][-1]
    size = {"clip_length": fixture["temporal_window_size"], "crop": side, "resize": (side, side)}
    with torch.device("meta"):
        model = create_model(f"co3d/{clip_name}", fixture["num_classes"], input=size)
    squeeze = fixture["constructor_kwargs"].get("se_scope", "frame")
    step = fixture["temporal_stride"]
    found = multiply_adds_per_prediction(model, squeeze=squeeze) / 1e9
    found += (
        (step - 1) * model.classifier.weight.numel() / 1e9
    )  # theirs counts the classifier for every frame
    assert multiply_adds(model) / 1e9 == pytest.approx(fixture["gmacs_clip"], rel=1e-5)
    assert found / step == pytest.approx(fixture["gmacs_per_frame"], abs=1e-6)
    assert found / step < 0.8 * fixture["gmacs_per_frame_executed_by_library"]


def test_every_continual_network_is_compared(shared):
    files = (shared / "fixtures" / "families" / "models").glob("co3d__co*.json.gz")
    assert {f.name.removeprefix("co3d__").removesuffix(".json.gz") for f in files} == {*SMALL, *LARGE}
