"""Cutting and resizing at once gives the pixels of doing it step by step."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from two_stream.errors import VideoError
from two_stream.video.frames import Region, fit_frame, jpeg_reduction, jpeg_size, read_frames

RNG = np.random.default_rng(0)
STORED = [(256, 340), (128, 170), (240, 320), (100, 90), (512, 680), (512, 340), (384, 510)]
BOXES = [(0, 0, 128, 128), (5, 9, 117, 121), (44, 85, 128, 169), (16, 58, 112, 170), (3, 3, 4, 5)]


def step_by_step(picture: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    y0, x0, y1, x1 = box
    part = np.ascontiguousarray(cv2.resize(picture, (170, 128))[y0:y1, x0:x1])
    return part if part.shape[:2] == (112, 112) else cv2.resize(part, (112, 112))


@pytest.mark.parametrize("channels", [2, 3])
@pytest.mark.parametrize("stored", STORED, ids=str)
def test_a_region_has_the_pixels_of_resizing_cutting_and_resizing(
    stored: tuple[int, int], channels: int
) -> None:
    picture = RNG.integers(0, 256, (*stored, channels), np.uint8)
    out = np.zeros((2, 112, 112, channels), np.uint8)
    for box in BOXES:
        expected = step_by_step(picture, box)
        region = Region(box, (112, 112))
        np.testing.assert_array_equal(fit_frame(picture, (128, 170), region), expected)
        fit_frame(picture, (128, 170), region, out[1])
        np.testing.assert_array_equal(out[1], expected)
    assert not out[0].any()
    whole = fit_frame(picture, (128, 170))
    np.testing.assert_array_equal(whole, cv2.resize(picture, (170, 128)))
    np.testing.assert_array_equal(fit_frame(picture, None), picture)


def test_one_interpolation_covers_the_same_place() -> None:
    ramp = np.repeat(np.linspace(0, 250, 340)[None, :, None], 256, 0).repeat(3, 2).astype(np.uint8)
    ramp[..., 1] = np.linspace(0, 250, 256).astype(np.uint8)[:, None]
    for box in ((0, 0, 84, 84), (44, 86, 128, 170), (10, 30, 122, 142)):
        twice = fit_frame(ramp, (128, 170), Region(box, (112, 112))).astype(int)
        once = fit_frame(ramp, (128, 170), Region(box, (112, 112), direct=True))
        assert np.abs(twice - once).max() <= 2
    fine = RNG.integers(0, 256, (256, 340, 3), np.uint8)
    region = Region((0, 0, 84, 84), (112, 112), direct=True)
    np.testing.assert_array_equal(
        fit_frame(fine, (128, 170), region), cv2.resize(fine[:168, :168], (112, 112))
    )
    small = RNG.integers(0, 256, (128, 170, 3), np.uint8)
    np.testing.assert_array_equal(
        fit_frame(small, (128, 170), region), cv2.resize(np.ascontiguousarray(small[:84, :84]), (112, 112))
    )


def test_how_far_a_jpeg_may_shrink() -> None:
    assert jpeg_reduction((256, 340), (128, 170)) == 2
    assert jpeg_reduction((255, 340), (128, 170)) == 1
    assert jpeg_reduction((1080, 1920), (128, 170)) == 8
    assert jpeg_reduction((520, 700), (128, 170)) == 4
    assert jpeg_reduction((100, 100), (128, 170)) == 1


def test_scaled_decoding_is_near_and_never_smaller_than_asked_for(tmp_path: Path) -> None:
    smooth = cv2.resize(
        RNG.integers(0, 256, (12, 16, 3), np.uint8), (340, 256), interpolation=cv2.INTER_CUBIC
    )
    cv2.imwrite(str(tmp_path / "img_00001.jpg"), smooth)
    cv2.imwrite(str(tmp_path / "img_00002.jpg"), smooth[:200])
    for axis in "xy":
        cv2.imwrite(str(tmp_path / f"flow_{axis}_00001.jpg"), smooth[..., 0])
    for modality in ("rgb", "flow"):
        exact = read_frames(tmp_path, [1], modality, resize=(128, 170)).astype(int)
        scaled = read_frames(tmp_path, [1], modality, resize=(128, 170), scaled_decoding=True)
        gap = np.abs(exact - scaled)
        assert 0 < gap.mean() < 2
    below = [read_frames(tmp_path, [2], "rgb", resize=(128, 170), scaled_decoding=on) for on in (False, True)]
    np.testing.assert_array_equal(*below)  # 200 rows are less than twice 128


def test_the_size_in_a_jpeg_header() -> None:
    picture = RNG.integers(0, 256, (37, 53, 3), np.uint8)
    for options in ([], [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]):
        content = cv2.imencode(".jpg", picture, options)[1].tobytes()
        assert jpeg_size(content) == (37, 53)
        assert jpeg_size(content[:100]) is None
    assert jpeg_size(cv2.imencode(".png", picture)[1].tobytes()) is None
    assert jpeg_size(b"") is None


def test_frames_of_different_sizes_are_refused_only_where_none_is_resized(tmp_path: Path) -> None:
    for number, side in ((1, 20), (2, 30)):
        cv2.imwrite(str(tmp_path / f"img_{number:05d}.jpg"), np.zeros((side, side, 3), np.uint8))
    assert read_frames(tmp_path, [1, 2], "rgb", resize=(8, 8)).shape == (2, 8, 8, 3)
    with pytest.raises(VideoError, match=r"img_00002\.jpg: is 30×30, other frames of the folder 20×20"):
        read_frames(tmp_path, [1, 2], "rgb")
