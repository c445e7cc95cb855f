"""Crops and flips: the published boxes and pixels, and what the mended ones promise."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from two_stream.config.schema import AugmentOptions
from two_stream.data.clips.transforms import (
    View,
    center_box,
    crop_sizes,
    draw_view,
    evaluation_views,
    mirror_frames,
    multiscale_box,
    resize_frames,
)
from two_stream.errors import SettingsError
from two_stream.types import InputSpec, Modality


def apply_view(
    frames: np.ndarray, view: View, size: tuple[int, int], modality: Any, protocol: str
) -> np.ndarray:
    """Crop, resize and mirror."""
    y0, x0, y1, x1 = view.box
    cut = resize_frames(frames[:, y0:y1, x0:x1], size)
    return np.ascontiguousarray(mirror_frames(cut, modality, protocol) if view.flip else cut)


SCALES = (1.0, 0.875, 0.75, 0.66)
CASES = {"340x256->224": ((256, 340), (224, 224)), "170x128->112": ((128, 170), (112, 112))}


def spec(modality: Modality = "rgb", resize: tuple[int, int] = (128, 170), crop: int = 112) -> InputSpec:
    channels = 3 if modality == "rgb" else 2
    return InputSpec(modality, 16, 1, resize, crop, (0, 255), (0.0,) * channels, (1.0,) * channels)


@pytest.fixture(scope="module")
def reference(shared: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((shared / "fixtures/late_temporal/transforms.json").read_text())
    return loaded


@pytest.mark.parametrize("case", CASES)
def test_multiscale_sizes_and_paper_boxes_equal_the_reference(reference: dict[str, Any], case: str) -> None:
    expected = reference["multi_scale_crop"]["cases"][case]
    resize, crop = CASES[case]
    sizes = crop_sizes(resize, crop, SCALES)
    assert [list(size) for size in sizes] == expected["crop_sizes_hw"]
    boxes = [[list(multiscale_box(resize, crop, s, p, "paper")) for p in range(13)] for s in sizes]
    assert boxes == expected["effective_boxes_y0x0y1x1"]
    starts = [box[:2] for box in boxes[-1]]  # the smallest crop is never cut
    assert starts == expected["offsets_yx"]
    cut = sum(b[2] - b[0] < s[0] or b[3] - b[1] < s[1] for s, row in zip(sizes, boxes) for b in row)
    assert cut == expected["truncated_boxes"]


def probe_clip(resize: tuple[int, int], channels: int) -> np.ndarray:
    """The reference's four frames; channel k of the stack belongs to frame k // channels."""
    y, x = np.mgrid[: resize[0], : resize[1]]
    stack = [(3 * y + 5 * x + 17 * k + (y * x) // 7) % 256 for k in range(4 * channels)]
    return np.stack(stack).reshape(4, channels, *resize).transpose(0, 2, 3, 1).astype(np.uint8)


@pytest.mark.parametrize("modality", ["rgb", "flow"])
@pytest.mark.parametrize("case", CASES)
def test_paper_probes_equal_the_reference_pixels(
    reference: dict[str, Any], case: str, modality: Modality
) -> None:
    resize, crop = CASES[case]
    probes = reference["multi_scale_crop"]["cases"][case][f"probes_{modality}"]
    assert len(probes) == 12
    clip = probe_clip(resize, 3 if modality == "rgb" else 2)
    sizes = crop_sizes(resize, crop, SCALES)
    for probe in probes:
        rng = random.Random(probe["seed"])
        size, place = rng.randint(0, len(sizes) - 1), rng.randint(0, 12)
        flip = rng.random() < 0.5
        assert (size, place, flip) == (probe["size_index"], probe["offset_index"], probe["flip"])
        box = multiscale_box(resize, crop, sizes[size], place, "paper")
        assert list(box) == probe["box"]
        out = apply_view(clip, View(box, flip), crop, modality, "paper")
        assert out.shape == (4, *crop, clip.shape[-1])
        assert out.mean() == pytest.approx(probe["mean"], abs=1e-6)
        first, last = out[0, :, :, 0], out[-1, :, :, -1]
        assert [first[0, 0], last[0, -1], first[-1, 0], last[-1, -1]] == probe["corner"]


@pytest.mark.parametrize(
    ("scale", "resize", "crop"), [("1.0", (256, 340), (224, 224)), ("0.5", (128, 170), (112, 112))]
)
def test_ten_crops_equal_the_reference(
    reference: dict[str, Any], scale: str, resize: tuple[int, int], crop: tuple[int, int]
) -> None:
    order = reference["ten_crop"][scale]["order"]
    views = evaluation_views("ten", resize, crop)
    assert [[*view.box, view.flip] for view in views] == [entry["src"] for entry in order]
    frame = np.random.default_rng(0).integers(0, 256, (1, *resize, 3), np.uint8)
    for view, entry in zip(views, order):
        y0, x0, y1, x1 = entry["in_flipped_frame"]
        whole = frame[:, :, ::-1] if view.flip else frame
        assert (apply_view(frame, view, crop, "rgb", "standard") == whole[:, y0:y1, x0:x1]).all()
    assert evaluation_views("center", resize, crop) == views[:1]


def test_center_boxes_equal_the_reference(reference: dict[str, Any]) -> None:
    for case, box in reference["center_crop"].items():
        assert list(center_box(*CASES[case])) == box


def test_mirrored_crops_of_an_odd_width_are_those_of_the_mirrored_frame() -> None:
    frame = np.arange(5 * 8, dtype=np.uint8).reshape(1, 5, 8, 1).repeat(3, axis=-1)
    views = evaluation_views("ten", (5, 8), (3, 3))
    for plain, flipped in zip(views[:5], views[5:]):
        y0, x0, y1, x1 = plain.box
        expected = frame[:, :, ::-1][:, y0:y1, x0:x1]
        assert (apply_view(frame, flipped, (3, 3), "rgb", "standard") == expected).all()


def test_three_crops_lie_along_the_longer_side() -> None:
    assert [v.box for v in evaluation_views("three", (4, 10), (4, 4))] == [
        (0, 0, 4, 4),
        (0, 3, 4, 7),
        (0, 6, 4, 10),
    ]
    assert [v.box[0] for v in evaluation_views("three", (10, 4), (4, 4))] == [0, 3, 6]
    with pytest.raises(SettingsError, match="five"):
        evaluation_views("five", (10, 10), (4, 4))


@pytest.mark.parametrize(
    ("resize", "crop"),
    [((128, 170), (112, 112)), ((256, 340), (224, 224)), ((61, 83), (47, 47)), ((128, 170), (96, 112))],
)
def test_standard_boxes_lie_inside_and_reach_every_corner(
    resize: tuple[int, int], crop: tuple[int, int]
) -> None:
    for size in crop_sizes(resize, crop, SCALES):
        boxes = [multiscale_box(resize, crop, size, place) for place in range(13)]
        for y0, x0, y1, x1 in boxes:
            assert (y1 - y0, x1 - x0) == size
            assert y0 >= 0
            assert x0 >= 0
            assert y1 <= resize[0]
            assert x1 <= resize[1]
        y, x = resize[0] - size[0], resize[1] - size[1]
        assert {box[:2] for box in boxes} >= {(0, 0), (0, x), (y, 0), (y, x), (y // 2, x // 2)}


def test_flip_negates_flow_x_unless_paper() -> None:
    clip = np.zeros((2, 1, 3, 2), np.uint8)
    clip[..., 0] = [0, 100, 255]
    clip[..., 1] = [1, 2, 3]
    standard = mirror_frames(clip, "flow", "standard")
    assert standard[0, 0, :, 0].tolist() == [0, 155, 255]
    assert standard[0, 0, :, 1].tolist() == [3, 2, 1]
    paper = mirror_frames(clip, "flow", "paper")
    assert paper[0, 0, :, 0].tolist() == [255, 100, 0]
    rgb = np.repeat(clip[..., :1], 3, axis=-1)
    assert mirror_frames(rgb, "rgb", "standard")[0, 0, :, 0].tolist() == [255, 100, 0]
    assert clip[0, 0, :, 0].tolist() == [0, 100, 255]  # the input is left alone


def test_apply_view_treats_all_frames_alike_and_keeps_dtype() -> None:
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 256, (40, 50, 2), np.uint8)
    out = apply_view(np.stack([frame] * 3), View((3, 4, 33, 30), True), (16, 16), "flow", "standard")
    assert out.dtype == np.uint8
    assert out.flags.c_contiguous
    assert (out[0] == out[1]).all()
    assert (out[0] == out[2]).all()


def test_draws_follow_the_options_and_the_generator() -> None:
    options = AugmentOptions()
    draws = [draw_view(options, spec(), np.random.default_rng(i)) for i in range(300)]
    assert draws == [draw_view(options, spec(), np.random.default_rng(i)) for i in range(300)]
    assert 100 < sum(view.flip for view in draws) < 200
    shapes = {(v.box[2] - v.box[0], v.box[3] - v.box[1]) for v in draws}
    assert shapes == set(crop_sizes((128, 170), (112, 112), SCALES))
    middle = draw_view(AugmentOptions(crop="center", flip=0.0), spec(), np.random.default_rng(0))
    assert middle == View((8, 29, 120, 141))
    places = {
        draw_view(AugmentOptions(crop="random"), spec(resize=(5, 6), crop=4), np.random.default_rng(i)).box
        for i in range(200)
    }
    assert {box[:2] for box in places} == {(y, x) for y in range(2) for x in range(3)}


def test_resize_frames_is_opencv_bilinear() -> None:
    clip = np.zeros((1, 2, 2, 2), np.uint8)
    clip[0, :, 1, 0] = 100
    out = resize_frames(clip, (2, 4))
    assert out.shape == (1, 2, 4, 2)
    assert out[0, 0, :, 0].tolist() == [0, 25, 75, 100]
    assert resize_frames(clip, (2, 2)) is clip
