"""Heads on a stream: windows of tokens, an LSTM that goes on, and what cannot be had."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.helpers.models import assert_near, clip_predictions, dense_predictions, frames_of, made, small
from two_stream.errors import SettingsError
from two_stream.heads import HEADS as EVERY
from two_stream.streaming import convert

HEADS: dict[str, dict[str, Any]] = {
    "average": {"kind": "average"},
    "average of pairs, wider": {"kind": "average", "window": 2, "features": 8},
    "moments": {"kind": "moments", "maximum": True, "parts": 3},
    "concat": {"kind": "concat", "features": 8},
    "bert": {"kind": "bert", "hidden": 16, "heads": 2},
    "bert of means": {"kind": "bert", "hidden": 16, "heads": 2, "class_token": False, "normalize": True},
    "hf_bert": {"kind": "hf_bert", "heads": 2},
    "nonlocal over time": {"kind": "nonlocal", "over": "time", "pool": "average"},
    "nonlocal over places": {"kind": "nonlocal", "over": "space_time", "features": 8},
}
HEADS |= {
    kind: {"kind": kind} for kind in EVERY if kind not in {head["kind"] for head in HEADS.values()} | {"lstm"}
}
"""A new head is tested with its default options; the LSTM, which keeps a state, by tests of its own."""


@pytest.mark.parametrize("name", HEADS)
def test_a_window_of_tokens(name: str) -> None:
    model = small(head=HEADS[name])
    if "nonlocal" in name:
        torch.nn.init.ones_(model.head.block.norm.weight)  # type: ignore[union-attr,arg-type]
    frames = frames_of(model, 96, side=16, batch=2)
    stream = convert(model)
    found = torch.cat([*(stream.step(part) for part in frames.split(1, 2)), stream.finish()], 1)
    assert_near(found, clip_predictions(model, frames))


@pytest.mark.parametrize("layers", [1, 2])
def test_an_lstm_has_seen_every_token_so_far(layers: int) -> None:
    model = small(head={"kind": "lstm", "hidden": 8, "layers": layers})
    frames = frames_of(model, 96, side=16, batch=2)
    stream = convert(model)
    found = torch.cat([*(stream.step(part) for part in frames.split(5, 2)), stream.finish()], 1)
    with torch.inference_mode():
        (tokens,) = model.forward_features(frames)
        wanted = [model._classified([tokens[:, : end + 1]]) for end in range(tokens.shape[1])]
    assert_near(found, torch.stack(wanted, 1))
    assert stream.receptive_field is None


def test_an_lstm_of_two_rates() -> None:
    backbone = {"kind": "slowfast", "width": 0.125}
    model = made(
        "rgb_slowfast64f_50", backbone=backbone, head={"kind": "lstm", "hidden": 8}, input={"crop": 32}
    )
    frames = frames_of(model, 160)
    stream = convert(model)
    found = torch.cat([*(stream.step(part) for part in frames.split(3, 2)), stream.finish()], 1)
    with torch.inference_mode():
        slow, fast = model.forward_features(frames)
        alpha = model.options.backbone.alpha  # type: ignore[union-attr]
        wanted = [model._classified([slow[:, :n], fast[:, : n * alpha]]) for n in range(1, slow.shape[1] + 1)]
    assert_near(found, torch.stack(wanted, 1))


@pytest.mark.parametrize("head", [{"kind": "average"}, {"kind": "lstm", "hidden": 8, "bidirectional": True}])
def test_another_window_than_the_clip(head: dict[str, Any]) -> None:
    model = small(head=head)
    frames = frames_of(model, 160)
    stream = convert(model, window=32)
    assert stream.delay == convert(small()).delay + 16
    assert_near(stream.step(frames), clip_predictions(model, frames, 32)[:, : (159 - stream.delay) // 4 + 1])


def test_dense_classification() -> None:
    model = small(dense=True)
    frames = frames_of(model, 160)
    stream = convert(model)
    assert_near(torch.cat((stream.step(frames), stream.finish()), 1), dense_predictions(model, frames))


def test_an_lstm_read_backwards_is_refused() -> None:
    with pytest.raises(SettingsError, match="head lstm cannot stream with `bidirectional: true`"):
        convert(small(head={"kind": "lstm", "bidirectional": True}))


def test_a_head_of_fixed_length_takes_no_other_window() -> None:
    with pytest.raises(SettingsError, match="`window` 32: head bert is built for 4 tokens but would get 8"):
        convert(small(head={"kind": "bert", "hidden": 16, "heads": 2}), window=32)
