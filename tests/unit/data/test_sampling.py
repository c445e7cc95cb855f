"""Frame choice: the published numbers for every duration, and what the mended protocols promise."""

from __future__ import annotations

import gzip
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from two_stream.config.schema import DataOptions
from two_stream.data.clips.sampling import (
    clip_span,
    evaluation_protocol,
    paper_train_offsets,
    sample_clips,
    train_offsets,
    training_protocol,
)
from two_stream.errors import SettingsError


@pytest.fixture(scope="module")
def reference(shared: Path) -> dict[str, Any]:
    with gzip.open(shared / "fixtures" / "late_temporal" / "sampling.json.gz", "rt") as file:
        loaded: dict[str, Any] = json.load(file)
    return loaded


def flat(clips: list[list[int]]) -> list[int]:
    return [number for clip in clips for number in clip]


def test_fixture_holds_what_the_tests_sweep(reference: dict[str, Any]) -> None:
    assert reference["lengths"] == [16, 32, 64]
    assert reference["durations"] == [*range(1, 201), 300, 500, 1000]
    for section in ("single_clip", "multi_clip"):
        assert {len(by) for by in reference[section].values()} == {203}


@pytest.mark.parametrize("length", [16, 32, 64])
@pytest.mark.parametrize("protocol", ["single_clip", "multi_clip"])
def test_paper_test_clips_equal_the_reference(reference: dict[str, Any], protocol: str, length: int) -> None:
    name = "paper-single" if protocol == "single_clip" else "paper-multi"
    for duration, expected in reference[protocol][str(length)].items():
        clips = sample_clips(name, int(duration), length)
        assert flat(clips) == expected, (duration, length)
        assert {len(clip) for clip in clips} == {length}


@pytest.mark.parametrize("length", [16, 32, 64])
@pytest.mark.parametrize("segments", [1, 3])
def test_paper_validation_equals_the_reference(reference: dict[str, Any], segments: int, length: int) -> None:
    for duration, expected in reference["val"][str(segments)][str(length)].items():
        clips = sample_clips("paper-val", int(duration), length, num_clips=segments)
        assert flat(clips) == expected, (duration, length, segments)


@pytest.mark.parametrize("length", [16, 32, 64])
@pytest.mark.parametrize("segments", [1, 3])
def test_paper_training_offsets_equal_the_reference(
    reference: dict[str, Any], segments: int, length: int
) -> None:
    for duration, expected in reference["train"][str(segments)][str(length)].items():
        ranges = paper_train_offsets(int(duration), length, segments)
        measured = [[r[0], r[-1], r.step if len(r) > 1 else 1] for r in ranges]
        assert measured == expected, (duration, length, segments)


def test_paper_training_frames_follow_the_offset_and_wrap() -> None:
    assert sample_clips("paper-train", 20, 16, offset=3) == [list(range(4, 20))]
    assert sample_clips("paper-train", 5, 4, num_clips=1, offset=0) == [[1, 2, 3, 4]]
    assert sample_clips("paper-train", 3, 4, num_clips=3, offset=[0, 2, 4]) == [
        [1, 2, 3, 1],
        [3, 1, 2, 3],
        [2, 3, 1, 2],
    ]


def test_paper_training_draws_cover_the_range_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    starts = {sample_clips("paper-train", 20, 16, rng=rng)[0][0] for _ in range(200)}
    assert starts == {1, 2, 3, 4}  # 5 would read the last frame


def test_training_reaches_the_first_and_the_last_frame() -> None:
    rng = np.random.default_rng(0)
    clips = [sample_clips("train", 20, 16, rng=rng)[0] for _ in range(200)]
    assert {clip[0] for clip in clips} == {1, 2, 3, 4, 5}
    assert max(clip[-1] for clip in clips) == 20


def test_training_loops_a_short_video_from_any_frame() -> None:
    rng = np.random.default_rng(0)
    clips = [sample_clips("train", 5, 8, rng=rng)[0] for _ in range(100)]
    assert {clip[0] for clip in clips} == {1, 2, 3, 4, 5}
    assert sample_clips("train", 5, 8, offset=3) == [[4, 5, 1, 2, 3, 4, 5, 1]]
    assert train_offsets(8, 8) == range(1)


@pytest.mark.parametrize(
    ("protocol", "options", "expected"),
    [
        ("single", {}, [[4, 5, 6, 7]]),
        ("multi", {}, [[2, 3, 4, 5], [6, 7, 8, 9]]),
        ("uniform", {"num_clips": 3}, [[1, 2, 3, 4], [4, 5, 6, 7], [7, 8, 9, 10]]),
        ("uniform", {"num_clips": 1}, [[4, 5, 6, 7]]),
        ("sliding", {"step": 4}, [[1, 2, 3, 4], [5, 6, 7, 8], [7, 8, 9, 10]]),
        ("sliding", {}, [[1, 2, 3, 4], [3, 4, 5, 6], [5, 6, 7, 8], [7, 8, 9, 10]]),
        ("single", {"stride": 3}, [[1, 4, 7, 10]]),
        ("multi", {"stride": 2}, [[2, 4, 6, 8]]),
    ],
)
def test_mended_protocols_on_ten_frames(
    protocol: str, options: dict[str, Any], expected: list[list[int]]
) -> None:
    assert sample_clips(protocol, 10, 4, **options) == expected


def test_multi_starts_a_second_clip_as_soon_as_it_fits() -> None:
    assert len(sample_clips("multi", 31, 16)) == 1
    assert flat(sample_clips("multi", 32, 16)) == list(range(1, 33))
    assert len(sample_clips("paper-multi", 34, 16)) == 1


@given(
    st.sampled_from(["single", "multi", "uniform", "sliding"]),
    st.integers(1, 150),
    st.integers(1, 40),
    st.integers(1, 4),
)
@settings(max_examples=300, deadline=None)
def test_mended_clips_stay_inside_and_are_centred(
    protocol: str, frames: int, length: int, stride: int
) -> None:
    clips = sample_clips(protocol, frames, length, stride=stride)
    slack = frames - clip_span(length, stride)
    for clip in clips:
        assert len(clip) == length
        assert 1 <= min(clip) <= max(clip) <= frames
        if slack >= 0:
            assert clip == list(range(clip[0], clip[0] + clip_span(length, stride), stride))
        else:
            assert [(b - a) % frames for a, b in pairwise(clip)] == [stride % frames] * (length - 1)
    if slack >= 0:
        before, after = clips[0][0] - 1, frames - clips[-1][-1]
        assert abs(before - after) <= 1
        if protocol in ("sliding",) or (protocol == "uniform" and slack):
            assert before == after == 0
        if protocol == "multi":
            assert before + after < length * stride


@pytest.mark.parametrize(
    ("arguments", "options", "word"),
    [
        (("middle", 10, 4), {}, "middle"),
        (("single", 0, 4), {}, "num_frames"),
        (("single", 10, 0), {}, "clip_length"),
        (("train", 10, 4), {}, "rng"),
        (("train", 10, 4), {"offset": 7}, "offset is 7"),
        (("paper-single", 10, 4), {"stride": 2}, "stride"),
        (("uniform", 10, 4), {"num_clips": 0}, "num_clips"),
        (("sliding", 10, 4), {"step": 0}, "step"),
    ],
)
def test_wrong_requests_are_named(
    arguments: tuple[str, int, int], options: dict[str, Any], word: str
) -> None:
    with pytest.raises(SettingsError, match=word):
        sample_clips(*arguments, **options)


def test_training_and_evaluation_name_the_familys_protocol() -> None:
    assert training_protocol("standard", "center") == "single"
    assert training_protocol("3dresnets", "center") == "3dresnets-center"
    assert evaluation_protocol("co3d", "single", 10) == ("co3d-center", 1)
    assert evaluation_protocol("efficient3d", "sliding", 10) == ("efficient3d-windows", 0)
    assert evaluation_protocol("co3d", "sliding", 10) == ("sliding", 10)
    assert sample_clips("efficient3d-windows", 1, 4, num_clips=0) == [[1, 1, 1, 1]]


def test_the_random_co3d_start_is_a_real_number_within_the_video() -> None:
    rng = np.random.default_rng(0)
    clips = [sample_clips("co3d-random", 40, 4, stride=5, rng=rng)[0] for _ in range(200)]
    assert {clip[0] for clip in clips} == set(range(1, 21))
    assert {clip[-1] - clip[0] for clip in clips} == {19}
    with pytest.raises(SettingsError, match="at least 2"):
        sample_clips("3dresnets-even", 40, 4, num_clips=1)


def test_a_clip_of_a_familys_choice_is_refused_where_it_has_none() -> None:
    for sampling, clip in (("paper", "center"), ("co3d", "begin")):
        with pytest.raises(
            ValueError, match=f"`augment.clip: {clip}` is not supported by `sampling: {sampling}`"
        ):
            DataOptions.model_validate({"sampling": sampling, "augment": {"clip": clip}})
    DataOptions.model_validate({"sampling": "3dresnets", "augment": {"clip": "begin"}})
