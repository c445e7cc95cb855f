"""Frame choice and crops of Efficient-3DCNNs, 3D-ResNets-PyTorch and co3d equal the published code's."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from two_stream.data.clips.sampling import efficient_windows, sample_clips
from two_stream.data.clips.transforms import corner_box, evaluation_views, placed_box


@pytest.fixture(scope="module")
def pipelines(shared: Path) -> dict[str, Any]:
    with gzip.open(shared / "fixtures" / "families" / "pipelines.json.gz", "rt") as file:
        loaded: dict[str, Any] = json.load(file)
    return loaded


EFFICIENT = {
    f"{name}(size=16,downsample={stride})": (f"efficient3d-{kind}", stride)
    for name, kind in (
        ("LoopPadding", "loop"),
        ("TemporalBeginCrop", "begin"),
        ("TemporalCenterCrop", "center"),
        ("TemporalRandomCrop", "random"),
    )
    for stride in (1, 2)
}

RESNETS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "LoopPadding(16)": ("efficient3d-loop", 1, {}),
    "TemporalBeginCrop(16)": ("3dresnets-begin", 1, {}),
    "TemporalCenterCrop(16)": ("3dresnets-center", 1, {}),
    "TemporalRandomCrop(16)": ("3dresnets-random", 1, {}),
    "TemporalEvenCrop(16,3)": ("3dresnets-even", 1, {}),
    "TemporalEvenCrop(16,5)": ("3dresnets-even", 1, {"num_clips": 5}),
    "TemporalEvenCrop(16,10)": ("3dresnets-even", 1, {"num_clips": 10}),
    "SlidingWindow(16)": ("3dresnets-sliding", 1, {}),
    "SlidingWindow(16,8)": ("3dresnets-sliding", 1, {"step": 8}),
    "Compose[TemporalSubsampling(2),TemporalCenterCrop(16)]": ("3dresnets-center", 2, {}),
    "Compose[TemporalSubsampling(2),TemporalEvenCrop(16,3)]": ("3dresnets-even", 2, {}),
    "Compose[TemporalSubsampling(2),SlidingWindow(16,16)]": ("3dresnets-sliding", 2, {"step": 16}),
    "Compose[SlidingWindow(32,32),TemporalSubsampling(2)]": ("3dresnets-windows", 2, {}),
}


def spelled(window: list[int]) -> list[int]:
    """A contiguous window is stored as its first and last frame."""
    if window == list(range(window[0], window[0] + len(window))) and len(window) > 2:
        return [window[0], window[-1]]
    return window


def check_random(protocol: str, frames: int, stride: int, expected: dict[str, Any]) -> None:
    lowest, highest = expected["begin_index_min"], expected["begin_index_max"]
    for offset, name in ((lowest, "first"), (highest, "last")):
        assert sample_clips(protocol, frames, 16, stride=stride, offset=offset) == [expected[name]], frames
    with pytest.raises(Exception, match=f"expected 0 to {highest}"):
        sample_clips(protocol, frames, 16, stride=stride, offset=highest + 1)


@pytest.mark.parametrize("case", EFFICIENT)
def test_efficient3d_frames(pipelines: dict[str, Any], case: str) -> None:
    protocol, stride = EFFICIENT[case]
    data = pipelines["efficient3d"]["temporal"]["data"][case]
    assert [int(frames) for frames in data] == list(range(1, 131))
    for frames, expected in data.items():
        if isinstance(expected, dict):
            check_random(protocol, int(frames), stride, expected)
        else:
            assert sample_clips(protocol, int(frames), 16, stride=stride) == [expected], frames


def test_every_efficient3d_case_is_swept(pipelines: dict[str, Any]) -> None:
    assert set(EFFICIENT) == set(pipelines["efficient3d"]["temporal"]["data"])


def test_efficient3d_windows(pipelines: dict[str, Any]) -> None:
    cases = pipelines["efficient3d"]["dataset_windows"]["data"]
    for name, data in cases.items():
        samples = int(name.partition("=")[2])
        for frames, expected in data.items():
            assert [list(w) for w in efficient_windows(int(frames), 16, samples)] == expected, (name, frames)
    assert sample_clips("efficient3d-windows", 20, 16, num_clips=0)[1] == [17, 18, 19, 20] * 4


@pytest.mark.parametrize("case", RESNETS)
def test_3dresnets_frames(pipelines: dict[str, Any], case: str) -> None:
    protocol, stride, options = RESNETS[case]
    data = pipelines["3dresnets"]["temporal"]["data"][case]
    assert [int(frames) for frames in data] == list(range(1, 131))
    for frames, expected in data.items():
        if isinstance(expected, dict):
            check_random(protocol, int(frames), stride, expected)
            continue
        clips = sample_clips(protocol, int(frames), 16, stride=stride, **options)
        several = isinstance(expected[0], list)
        measured = [spelled(clip) for clip in clips] if several else clips[0]
        wanted = [spelled(clip) for clip in expected] if several else expected
        assert measured == wanted, frames


def test_every_3dresnets_case_is_swept(pipelines: dict[str, Any]) -> None:
    published = set(pipelines["3dresnets"]["temporal"]["data"])
    assert published - set(RESNETS) == {"TemporalSubsampling(2)"}  # a whole video, thinned: no clip


def test_co3d_frames(pipelines: dict[str, Any]) -> None:
    data = pipelines["co3d"]["temporal"]["data"]
    for name, by_frames in data.items():
        length, rate, clip, count = map(int, re.findall(r"\d+", name))
        for frames, expected in by_frames.items():
            clips = sample_clips("co3d-even", int(frames), length, stride=rate, num_clips=count)
            assert [number - 1 for number in clips[clip]] == expected, (name, frames)


def test_co3d_centred_starts(pipelines: dict[str, Any]) -> None:
    for name, (start, _) in pipelines["co3d"]["temporal"]["get_start_end_idx_centered"].items():
        frames, span, clip, count = map(int, re.findall(r"\d+", name))
        clips = sample_clips("co3d-center", frames, span, num_clips=count)
        assert clips[clip][0] == min(int(start), frames - 1) + 1, name


PLACES = {
    "c": "center",
    "tl": "top_left",
    "tr": "top_right",
    "bl": "bottom_left",
    "br": "bottom_right",
}


@pytest.mark.parametrize("family", ["efficient3d", "3dresnets"])
def test_corner_and_multiscale_boxes(pipelines: dict[str, Any], family: str) -> None:
    """Published boxes are (x0, y0, x1, y1); Efficient-3DCNNs' centred one is a pixel off or smaller at odd sides."""
    spatial = pipelines[family]["spatial"]
    scales = spatial.get("scales") or spatial["scales_corner"]
    seen = 0
    for case in spatial["cases"]:
        frame = (case["size"][1], case["size"][0])
        scaled = (case.get("scale112_size") or case["resize112_size"])[::-1]
        for name, (x0, y0, x1, y1) in case["crop_boxes"].items():
            kind, *rest = name.split("_")
            expected, slack = (y0, x0, y1, x1), 0
            if kind == "CornerCrop":
                box = corner_box(tuple(scaled), (112, 112), PLACES[rest[0]])
            elif kind == "MultiScaleCornerCrop":
                side = int(min(frame) * scales[int(rest[1])])
                box = corner_box(frame, (side, side), PLACES[rest[0]])
                slack = int(family == "efficient3d" and rest[0] == "c")
            else:
                side = int(min(frame) * scales[int(rest[0])])
                box = placed_box(frame, (side, side), y=float(rest[2]), x=float(rest[1]))
                slack = 1  # each edge is rounded for itself there, so a side may be a pixel off
            assert max(abs(a - b) for a, b in zip(box, expected)) <= slack, (case["size"], name)
            seen += 1
    assert seen >= 60


def test_co3d_crops(pipelines: dict[str, Any]) -> None:
    seen = 0
    for name, (top, left, height, width) in pipelines["co3d"]["crops"].items():
        frame_height, frame_width, crop = map(int, re.findall(r"\d+", name))
        views = evaluation_views("three", (frame_height, frame_width), (crop, crop))
        place = name.split()[1]
        if place in ("center_left", "center", "center_right"):
            box = views[["center_left", "center", "center_right"].index(place)].box
        else:
            box = corner_box((frame_height, frame_width), (crop, crop), place)
        assert box == (top, left, top + height, left + width), name
        seen += 1
    assert seen == 15


def test_co3d_short_side_scale_is_our_interpolation(pipelines: dict[str, Any]) -> None:
    stored = pipelines["co3d"]["short_side_scale"]["min=max=32"]
    clip = np.random.default_rng(5).random((3, 2, 48, 64), dtype=np.float32)
    scaled = [
        [cv2.resize(plane, (42, 32), interpolation=cv2.INTER_LINEAR) for plane in frames] for frames in clip
    ]
    assert list(np.shape(scaled)) == stored["shape"]
    assert float(np.sum(scaled, dtype=np.float64)) == pytest.approx(stored["sum"], rel=1e-6)
    assert list(np.array(scaled)[:, 0, 0, 0]) == pytest.approx(stored["corner"], abs=1e-6)
