"""Heads on a stream: windows of tokens, an LSTM that goes on, and what cannot be had."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.helpers.models import assert_near, clip_predictions, dense_predictions, frames_of, made, small
from two_stream.errors import SettingsError
from two_stream.heads import HEADS as EVERY
from two_stream.streaming import convert

RECURRENT = {"lstm", "gru"}
HEADS: dict[str, dict[str, Any]] = {
    "average": {"kind": "average"},
    "average of pairs, wider": {"kind": "average", "window": 2, "features": 8},
    "moments": {"kind": "moments", "maximum": True, "parts": 3},
    "concat": {"kind": "concat", "features": 8},
    "bert": {"kind": "bert", "hidden": 16, "heads": 2},
    "bert of means": {"kind": "bert", "hidden": 16, "heads": 2, "class_token": False, "normalize": True},
    "hf_bert": {"kind": "hf_bert", "heads": 2},
    "transformer": {"kind": "transformer", "hidden": 16, "heads": 2, "layers": 2},
    "attentive": {"kind": "attentive", "hidden": 16, "heads": 2, "blocks": 1, "queries": 2},
    "tcn": {"kind": "tcn", "hidden": 8},
    "trn": {"kind": "trn", "hidden": 8},
    "nonlocal over time": {"kind": "nonlocal", "over": "time", "pool": "average"},
    "nonlocal over places": {"kind": "nonlocal", "over": "space_time", "features": 8},
}
HEADS |= {
    kind: {"kind": kind}
    for kind in EVERY
    if kind not in {head["kind"] for head in HEADS.values()} | RECURRENT
}
"""A new head is tested with its default options; LSTM and GRU, which keep a state, by tests of their own."""


@pytest.mark.parametrize("name", HEADS)
def test_a_window_of_tokens(name: str) -> None:
    model = small(head=HEADS[name])
    if "nonlocal" in name:
        torch.nn.init.ones_(model.head.block.norm.weight)  # type: ignore[union-attr,arg-type]
    frames = frames_of(model, 96, side=16, batch=2)
    stream = convert(model)
    found = torch.cat([*(stream.step(part) for part in frames.split(1, 2)), stream.finish()], 1)
    assert_near(found, clip_predictions(model, frames))


RUNNING: tuple[dict[str, Any], ...] = (
    *({"kind": kind, "hidden": 8, "layers": layers} for kind in sorted(RECURRENT) for layers in (1, 2)),
    *({"kind": "tcn", "hidden": 8, "layers": layers, "causal": True} for layers in (1, 3)),
)


@pytest.mark.parametrize("head", RUNNING, ids=str)
def test_a_running_head_has_seen_every_token_so_far(head: dict[str, Any]) -> None:
    model = small(head=head)
    frames = frames_of(model, 96, side=16, batch=2)
    stream = convert(model)
    found = torch.cat([*(stream.step(part) for part in frames.split(5, 2)), stream.finish()], 1)
    with torch.inference_mode():
        (tokens,) = model.forward_features(frames)
        wanted = [model._classified([tokens[:, : end + 1]]) for end in range(tokens.shape[1])]
    assert_near(found, torch.stack(wanted, 1))
    if head["kind"] in RECURRENT:
        assert stream.receptive_field is None
        return
    last = convert(small())  # averages the 4 tokens of a clip
    assert last.receptive_field is not None
    tokens = 2 ** (head["layers"] + 1) - 1
    assert stream.receptive_field == last.receptive_field + (tokens - 4) * last.stride
    stream.reset()
    assert_near(torch.cat((stream.step(frames), stream.finish()), 1), found)


def test_a_causal_tcn_starts_with_its_first_token_where_asked() -> None:
    model = small(head={"kind": "tcn", "hidden": 8, "layers": 2, "causal": True})
    still = frames_of(model, 1, side=16).expand(-1, -1, 64, -1, -1)
    with torch.inference_mode():
        (tokens,) = model.forward_features(still.repeat(1, 1, 4, 1, 1))
        settled = model._classified([tokens[:, 20:40]])  # far from both ends
    stream = convert(model, start="replicate")
    found = stream.step(still)
    torch.testing.assert_close(found, settled[:, None].expand_as(found))  # also before the layers are full


@pytest.mark.parametrize("head", RUNNING[::2], ids=str)
def test_a_running_head_of_two_rates(head: dict[str, Any]) -> None:
    backbone = {"kind": "slowfast", "width": 0.125}
    model = made("rgb_slowfast64f_50", backbone=backbone, head=head, input={"crop": 32})
    frames = frames_of(model, 160)
    stream = convert(model)
    found = torch.cat([*(stream.step(part) for part in frames.split(3, 2)), stream.finish()], 1)
    with torch.inference_mode():
        slow, fast = model.forward_features(frames)
        alpha = model.options.backbone.alpha  # type: ignore[union-attr]
        wanted = [model._classified([slow[:, :n], fast[:, : n * alpha]]) for n in range(1, slow.shape[1] + 1)]
    assert_near(found, torch.stack(wanted, 1))


@pytest.mark.parametrize(
    "head",
    [
        {"kind": "average"},
        {"kind": "lstm", "hidden": 8, "bidirectional": True},
        {"kind": "gru", "hidden": 8},
        {"kind": "tcn", "hidden": 8, "causal": True},
        {"kind": "transformer", "hidden": 16, "heads": 2},
        {"kind": "bert", "hidden": 16, "heads": 2, "interpolate": True},
    ],
    ids=str,
)
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


@pytest.mark.parametrize("kind", sorted(RECURRENT))
def test_a_head_read_backwards_is_refused(kind: str) -> None:
    with pytest.raises(SettingsError, match=f"head {kind} cannot stream with `bidirectional: true`"):
        convert(small(head={"kind": kind, "bidirectional": True}))


def test_a_head_of_fixed_length_takes_no_other_window() -> None:
    for head, more in (
        ({"kind": "bert", "hidden": 16, "heads": 2}, ", or set `head.interpolate: true`"),
        ({"kind": "trn"}, ""),
    ):
        message = (
            f"^`window` 32: head {head['kind']} is built for 4 tokens but would get 8; .* set it to 16{more}$"
        )
        with pytest.raises(SettingsError, match=message):
            convert(small(head=head), window=32)
