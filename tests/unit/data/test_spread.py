"""Segments against mmaction2's numbers for every duration, and stacks of flow fields against the frames' own values."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from two_stream.config.backbones import ResNet3d
from two_stream.config.model import InputOptions, ModelOptions
from two_stream.config.schema import AugmentOptions, DataOptions, EvaluateOptions, Experiment
from two_stream.data.catalog import Record
from two_stream.data.clips.dataset import ClipDataset, ClipItem, make_source, same_clip, same_moment
from two_stream.data.clips.sampling import (
    allowed_starts,
    drawn_starts,
    sample_clips,
    sampled_parts,
    segment_clips,
    uniform_parts,
)
from two_stream.data.clips.transforms import mirror_frames
from two_stream.data.clips.views import ViewDataset, evaluation_clips
from two_stream.data.sources.files import read_clip, stacked_numbers
from two_stream.errors import SettingsError
from two_stream.recognizer import create_model, input_spec
from two_stream.types import InputSpec, VideoRecord, VideoViews

FrameValue = Callable[[int, int, int], int]
SPEC = InputSpec("rgb", 3, 1, (12, 16), 8, (0.0, 1.0), (0.5,) * 3, (0.5,) * 3, segments=3)
FLOW = replace(SPEC, modality="flow", clip_length=2, segments=2, stack=3, mean=(0.5,) * 6, std=(0.5,) * 6)


@pytest.fixture(scope="module")
def published(shared: Path) -> dict[str, Any]:
    path = shared / "fixtures" / "sampling" / "segments.json.gz"
    if not path.is_file():
        pytest.skip(f"{path} holds mmaction2's numbers and is not on this machine")
    loaded: dict[str, Any] = json.loads(gzip.decompress(path.read_bytes()))
    return loaded


def flat(clips: list[list[int]]) -> list[int]:
    """All frame numbers, from 0 as mmaction2 counts them."""
    return [number - 1 for clip in clips for number in clip]


def covered(starts: list[range], frames: int, stride: int, duration: int) -> tuple[list[int], list[int]]:
    """Lowest and highest frame at every place of a clip."""
    places = [[(start + n * stride) % duration for start in part] for part in starts for n in range(frames)]
    return [min(place) for place in places], [max(place) for place in places]


def contains(found: tuple[list[int], list[int]], case: dict[str, Any], row: int) -> bool:
    lows, highs = zip(found[0], case["train_low"][row]), zip(found[1], case["train_high"][row])
    return all(ours <= theirs for ours, theirs in lows) and all(ours >= theirs for ours, theirs in highs)


def test_the_fixture_holds_what_the_tests_sweep(published: dict[str, Any]) -> None:
    assert published["durations"] == [*range(1, 131), 200, 300, 500, 1000]
    assert [len(published[name]) for name in ("sample_frames", "uniform_sample")] == [6, 5]


def test_a_clip_of_segments_equals_sample_frames(published: dict[str, Any]) -> None:
    checked = 0
    for case in published["sample_frames"]:
        parts, stride = (case["num_clips"], case["clip_len"]), case["frame_interval"]
        protocol = "segments-twice" if case["twice_sample"] else "segments-single"
        for row, duration in enumerate(published["durations"]):
            made = segment_clips(protocol, duration, parts, stride=stride)
            assert flat(made) == case["test"][row], (case["num_clips"], duration)
            if case["train_low"]:
                found = covered(allowed_starts(duration, *parts, stride), parts[1], stride, duration)
                assert contains(found, case, row), (case["num_clips"], duration)
                checked += 1
    assert checked == 5 * 134


def test_clips_that_share_segments_equal_uniform_sample(published: dict[str, Any]) -> None:
    checked = 0
    for case in published["uniform_sample"]:
        length, clips = case["clip_len"], case["num_clips"]
        for row, duration in enumerate(published["durations"]):
            made = sample_clips("segments-uniform", duration, length, num_clips=clips)
            assert flat(made) == case["test"][row], (length, duration)
            if case["train_low"]:
                found = covered(allowed_starts(duration, length, 1, 1), 1, 1, duration)
                assert contains(found, case, row), (length, duration)
                checked += 1
    assert checked == 3 * 134


@pytest.mark.parametrize(("duration", "parts", "stride"), [(41, (16, 1), 1), (5, (8, 1), 1), (70, (4, 3), 5)])
def test_draws_reach_the_ends_of_both_samplers_and_nothing_else(
    duration: int, parts: tuple[int, int], stride: int
) -> None:
    rng = np.random.default_rng(0)
    drawn = np.array([drawn_starts(duration, *parts, stride, rng) for _ in range(3000)])
    allowed = allowed_starts(duration, *parts, stride)
    both = zip(sampled_parts(duration, *parts, stride), uniform_parts(duration, *parts, stride))
    for place, (one, other) in enumerate(both):
        assert set(drawn[:, place]) == {*one, *other} <= set(allowed[place])


def test_a_training_clip_shows_the_whole_video() -> None:
    rng = np.random.default_rng(0)
    clips = [sample_clips("segments-train", 41, 16, rng=rng)[0] for _ in range(300)]
    assert {number for clip in clips for number in clip} == set(range(1, 42))
    assert all(clip == sorted(clip) for clip in clips)
    assert (
        min(clip[-1] - clip[0] for clip in clips) >= 28
    )  # mmaction2's parts of two frames leave 9 at the end


@given(st.integers(1, 200), st.integers(1, 16), st.integers(1, 4), st.integers(1, 5), st.integers(1, 4))
@settings(max_examples=200, deadline=None)
def test_clips_of_segments_stay_inside_the_video(
    duration: int, segments: int, frames: int, stride: int, clips: int
) -> None:
    rng = np.random.default_rng(duration)
    for protocol, count in (
        ("segments-train", 1),
        ("segments-single", 1),
        ("segments-twice", 2),
        ("segments-uniform", clips),
    ):
        made = segment_clips(protocol, duration, (segments, frames), stride=stride, num_clips=clips, rng=rng)
        assert [len(clip) for clip in made] == [segments * frames] * count
        assert all(1 <= number <= duration for clip in made for number in clip)
        if protocol != "segments-train" and duration > (frames - 1) * stride:
            assert all(clip[::frames] == sorted(clip[::frames]) for clip in made)


def test_given_offsets_are_taken_where_they_may_lie() -> None:
    assert sample_clips("segments-train", 12, 3, offset=[1, 5, 11]) == [[2, 6, 12]]
    with pytest.raises(SettingsError, match="offset is 9: expected 0 to 4"):
        sample_clips("segments-train", 12, 3, offset=[9, 5, 11])
    with pytest.raises(SettingsError, match="needs `offset` or `rng`"):
        sample_clips("segments-train", 12, 3)


@pytest.mark.parametrize(
    ("views", "expected"),
    [
        ("single", [[2, 4, 6]]),
        ("multi", [[2, 4, 6]]),
        ("twice", [[2, 4, 6], [1, 3, 5]]),
        ("uniform", [[1, 3, 4], [2, 4, 5]]),
        ("sliding", [[1, 2, 3], [3, 4, 5], [4, 5, 6]]),
    ],
)
@pytest.mark.parametrize("sampling", ["standard", "segments"])
def test_views_of_a_network_of_segments(sampling: str, views: Any, expected: list[list[int]]) -> None:
    evaluate = EvaluateOptions(views=views, num_clips=2, step=2)
    assert evaluation_clips(evaluate, SPEC, 6, sampling) == expected


def test_views_that_a_network_does_not_have_are_refused() -> None:
    with pytest.raises(
        SettingsError, match=r"`views: twice` requires a network whose clips consist of segments"
    ):
        evaluation_clips(EvaluateOptions(views="twice"), replace(SPEC, segments=0), 6)
    with pytest.raises(SettingsError, match="2 frames in each of 3 segments are not supported"):
        evaluation_clips(EvaluateOptions(views="sliding"), replace(SPEC, clip_length=6), 6)


def test_only_the_frames_of_the_segments_are_decoded(
    tiny: Record, frame_value: FrameValue, monkeypatch: pytest.MonkeyPatch
) -> None:
    from two_stream.video import frames

    decoded: list[str] = []
    whole = frames.read_picture

    def counted(path: Path, *more: Any) -> Any:
        decoded.append(path.name)
        return whole(path, *more)

    monkeypatch.setattr(frames, "read_picture", counted)
    record = VideoRecord("v_jump_g00_c00", 6, 0)
    data = DataOptions(source="frames")
    clips = ClipDataset(make_source(tiny, "rgb", data), [record], SPEC, DataOptions(sampling="segments"))
    item = clips[0]
    assert isinstance(item, ClipItem)
    assert decoded == ["img_00002.jpg", "img_00004.jpg", "img_00006.jpg"]
    assert item.clip[0, :, 4, 4].tolist() == pytest.approx([frame_value(0, n, 0) for n in (2, 4, 6)], abs=2)
    decoded.clear()
    middle = AugmentOptions(clip="center", crop="center", flip=0.0)
    trained = ClipDataset(
        make_source(tiny, "rgb", data), [record], SPEC, DataOptions(augment=middle), epoch=0
    )[0]
    assert isinstance(trained, ClipItem)
    assert torch.equal(trained.clip, item.clip)
    assert len(decoded) == 3
    decoded.clear()
    twice = EvaluateOptions(views="twice", crops="ten")
    assert isinstance(ViewDataset(make_source(tiny, "rgb", data), [record], SPEC, twice)[0], VideoViews)
    assert len(decoded) == 6


def test_a_stack_holds_the_fields_from_its_number_on_and_ends_with_the_video(
    tiny: Record, frame_value: FrameValue
) -> None:
    assert [stacked_numbers(n, 3, 5) for n in (1, 3, 4, 5)] == [[1, 2, 3], [3, 4, 5], [3, 4, 5], [3, 4, 5]]
    assert stacked_numbers(2, 3, 2) == [1, 2, 2]
    source = make_source(tiny, "flow", DataOptions(source="frames"))
    clip = read_clip(source, VideoRecord("v_jump_g00_c00", 5, 0), [2, 5], FLOW)
    assert clip.shape == (2, 12, 16, 6)
    expected = [
        [frame_value(0, n, axis) for n in fields for axis in (0, 1)] for fields in ((2, 3, 4), (3, 4, 5))
    ]
    assert clip[:, 4, 4].tolist() == [pytest.approx(values, abs=2) for values in expected]


def test_a_mirrored_stack_turns_every_x_round(tiny: Record) -> None:
    source = make_source(tiny, "flow", DataOptions(source="frames"))
    record = VideoRecord("v_jump_g00_c00", 5, 0)
    frames = read_clip(source, record, [1, 3], FLOW)
    expected = frames[:, :, ::-1].copy()
    for channel in (0, 2, 4):
        expected[..., channel] = 255 - expected[..., channel]
    assert np.array_equal(mirror_frames(frames, "flow", "standard"), expected)
    assert np.array_equal(mirror_frames(frames, "flow", "paper"), frames[:, :, ::-1])
    views = ViewDataset(source, [record], FLOW, EvaluateOptions(views="single", crops="ten"))[0]
    assert isinstance(views, VideoViews)
    plain, turned = views.view(0), views.view(5)
    assert plain.shape == (2, 8, 8, 6)
    again = turned.flip(2)
    assert torch.equal(again[..., ::2], 255 - plain[..., ::2])
    assert torch.equal(again[..., 1::2], plain[..., 1::2])


def test_other_networks_see_the_same_segments_or_the_whole_video() -> None:
    student = replace(SPEC, clip_length=4, segments=4)
    assert same_clip(student, student)
    assert not same_clip(student, replace(student, segments=0))
    assert same_moment([2, 5, 8, 11], student, replace(student, modality="flow"), 10) == [2, 5, 8, 10]
    assert same_moment([4, 5, 6, 7], replace(student, segments=0), student, 12) == [2, 5, 8, 11]
    assert same_moment([2, 5, 8, 11], student, replace(student, segments=0), 12) == [5, 6, 7, 8]


def model(**input_: Any) -> ModelOptions:
    flow = input_.get("stack", 1) > 1
    return ModelOptions(
        modality="flow" if flow else "rgb",
        backbone=ResNet3d(depth=10, width=0.125),
        input=InputOptions(clip_length=8, **input_),
    )


def test_the_input_says_segments_and_channels() -> None:
    assert input_spec(model()).segments == 0
    assert input_spec(model(segments="frames")).segments == 8
    stacked = input_spec(model(segments=4, stack=5))
    assert (stacked.segments, stacked.channels) == (4, 10)
    assert stacked.mean == (127.5,) * 10
    assert input_spec(model(stack=2, mean=(1.0, 2.0))).mean == (1.0, 2.0, 1.0, 2.0)
    assert input_spec(model(stack=2, mean=(1.0, 2.0, 3.0, 4.0))).mean == (1.0, 2.0, 3.0, 4.0)
    with pytest.raises(
        SettingsError, match=r"`input\.mean` has 3 numbers; expected 4, one per channel of flow"
    ):
        input_spec(model(stack=2, mean=(1.0, 2.0, 3.0)))
    with pytest.raises(
        SettingsError, match=r"`input\.clip_length` 8 is not a multiple of `input.segments` 3"
    ):
        input_spec(model(segments=3))
    with pytest.raises(ValidationError, match=r"`input\.stack` is 2, but only flow is stacked"):
        ModelOptions(input=InputOptions(stack=2))


def test_a_stacked_network_weighs_every_field() -> None:
    torch.manual_seed(0)
    network = create_model(model(stack=5), num_classes=3).eval()
    clip = torch.randint(0, 256, (1, 10, 8, 112, 112), dtype=torch.uint8)
    before = network(clip)
    for channel in range(10):
        other = clip.clone()
        other[:, channel] = 255 - other[:, channel]
        assert not torch.equal(network(other), before)


def test_data_of_segments_makes_a_network_of_segments() -> None:
    made = Experiment(data=DataOptions(sampling="segments"), model=model())
    assert input_spec(made.model).segments == 8
    assert Experiment.model_validate(made.model_dump()) == made
    given_ = Experiment(data=DataOptions(sampling="segments"), model=model(segments=4))
    assert input_spec(given_.model).segments == 4
    assert input_spec(Experiment(model=model()).model).segments == 0


@pytest.mark.parametrize(
    ("settings_", "line"),
    [
        (
            {"data": {"sampling": "paper"}, "segments": 4},
            "`data.sampling: paper` has no segments, but .* is 4",
        ),
        ({"data": {"sampling": "co3d"}, "segments": 4}, "`data.sampling: co3d` has no segments"),
        (
            {"data": {"sampling": "segments", "augment": {"clip": "begin"}}},
            "`augment.clip: begin` is not supported",
        ),
        (
            {"data": {"augment": {"clip": "begin"}}, "segments": 4},
            "`data.augment.clip: begin` is not supported",
        ),
        ({"evaluate": {"views": "twice"}}, "`evaluate.views: twice` needs segments"),
    ],
)
def test_what_contradicts_segments_is_one_line(settings_: dict[str, Any], line: str) -> None:
    input_ = {"clip_length": 8, "segments": settings_.pop("segments", None)}
    with pytest.raises(ValidationError, match=line):
        Experiment.model_validate({"model": {"input": input_}, **settings_})
