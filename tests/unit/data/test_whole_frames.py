"""Rectangles and whole frames: boxes counted by hand, pixels as OpenCV gives them, the settings that ask for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import pytest

from two_stream.config.load import dump, validate_settings
from two_stream.config.schema import AugmentOptions, DataOptions, EvaluateOptions, Experiment
from two_stream.data.catalog import Mirror
from two_stream.data.clips.dataset import ClipDataset, ClipItem, ClipsBeside, Companion
from two_stream.data.clips.transforms import (
    center_box,
    corner_box,
    crop_sizes,
    draw_view,
    evaluation_views,
    largest_box,
    multiscale_box,
)
from two_stream.data.clips.views import ViewDataset
from two_stream.data.sources.files import ClipSource
from two_stream.errors import SettingsError
from two_stream.runtime.device import rng
from two_stream.types import Frames, InputSpec, Modality, VideoRecord, VideoViews, size_text
from two_stream.video.frames import Region, fit_frame

STORED = (50, 70)
"""of the frames below, neither resized nor cut"""


class Stored(ClipSource):
    """Frames of noise; resized and cut as every source does."""

    def read(
        self, video_id: str, numbers: Sequence[int], resize: tuple[int, int], region: Region | None = None
    ) -> Frames:
        frames = stored(self.modality, max(numbers))
        return np.stack([fit_frame(frames[number - 1], resize, region) for number in numbers])


def stored(modality: str, count: int) -> Frames:
    channels = 3 if modality == "rgb" else 2
    return np.random.default_rng(0).integers(0, 256, (count, *STORED, channels)).astype(np.uint8)


def spec_of(resize: tuple[int, int], crop: Any, modality: Modality = "rgb") -> InputSpec:
    half = (0.5,) * (3 if modality == "rgb" else 2)
    return InputSpec(modality, 4, 1, resize, crop, (0.0, 1.0), half, half)


def shrunk(modality: str, count: int, size: tuple[int, int]) -> Frames:
    """Whole stored frames at (height, width), by OpenCV alone."""
    return np.stack([cv2.resize(frame, size[::-1]) for frame in stored(modality, count)])


@pytest.mark.parametrize(
    ("given", "size", "kept"),
    [(48, (48, 48), 48), ([48, 64], (48, 64), (48, 64)), ([48, 48], (48, 48), 48)],
)
def test_a_crop_is_read_and_written_as_given(given: Any, size: tuple[int, int], kept: Any) -> None:
    read = validate_settings(Experiment, {"model": {"input": {"crop": given}}}, "file")
    assert read.model.input.crop == kept
    assert spec_of((48, 64), read.model.input.crop).size == size
    written = dump(read)
    assert ("crop: 48\n" in written) == (kept == 48)
    assert size_text(kept) == ("48²" if kept == 48 else "48×64")


@pytest.mark.parametrize("given", ["wide", [48], [48, 0], [48, 64, 3], 0])
def test_what_is_no_size_is_one_line(given: Any) -> None:
    with pytest.raises(
        SettingsError, match=r"`model.input.crop`: .* is not a size; .* as \[144, 192\]"
    ) as caught:
        validate_settings(Experiment, {"model": {"input": {"crop": given}}}, "file")
    assert "\n" not in str(caught.value)


def test_a_crop_fits_the_frame_side_by_side() -> None:
    validate_settings(Experiment, {"model": {"input": {"resize": [48, 64], "crop": [40, 64]}}}, "file")
    with pytest.raises(SettingsError, match=r"`crop` \(64, 40\) is larger than the resized frame \(48, 64\)"):
        validate_settings(Experiment, {"model": {"input": {"resize": [48, 64], "crop": [64, 40]}}}, "file")


def test_rectangles_by_hand() -> None:
    """A frame of 128×170 and an input of 96×112: the largest box of its shape is as high as the frame."""
    frame, size = (128, 170), (96, 112)
    assert largest_box(frame, size) == (128, pytest.approx(128 * 7 / 6))
    assert largest_box((128, 100), size) == (pytest.approx(100 * 6 / 7), 100)
    assert largest_box(frame, (112, 112)) == (128, 128)
    # 0.76 of 128 is 97.28 and of 149.33 is 113.49, both within 2 pixels of the input and snapped to it
    assert crop_sizes(frame, size, (1.0, 0.76)) == [(128, 149), (128, 112), (96, 149), (96, 112)]
    assert center_box(frame, size) == (16, 29, 112, 141)
    assert corner_box(frame, size, "bottom_right") == (32, 58, 128, 170)
    assert multiscale_box(frame, size, (96, 112), 3) == (32, 58, 128, 170)
    # published places: quarters of 32 and 58 free pixels, four times 8 and four times 14
    assert multiscale_box(frame, size, (96, 112), 3, "paper") == (32, 56, 128, 168)


@pytest.mark.parametrize("crops", ["center", "three", "ten"])
def test_evaluation_crops_of_rectangles_are_slices_of_the_frame_and_of_its_mirror(crops: str) -> None:
    resize, (height, width) = (30, 41), (20, 33)
    frame = np.arange(30 * 41).reshape(resize)
    y, x, bottom, right = 5, 4, 10, 8
    places = {
        "center": [(y, x)],
        "three": [(y, 0), (y, x), (y, right)],
        "ten": [(y, x), (0, 0), (0, right), (bottom, 0), (bottom, right)],
    }[crops]
    wanted = [frame[top : top + height, left : left + width] for top, left in places]
    if crops == "ten":
        mirror = frame[:, ::-1]
        wanted += [mirror[top : top + height, left : left + width] for top, left in places]
    views = evaluation_views(crops, resize, (height, width))
    cut = [frame[view.box[0] : view.box[2], view.box[1] : view.box[3]] for view in views]
    for view, found, expected in zip(views, cut, wanted, strict=True):
        np.testing.assert_array_equal(found[:, ::-1] if view.flip else found, expected)


@pytest.mark.parametrize(
    "crop", ["multiscale_random", "corner", "short_side", "random", "multiscale", "resized"]
)
def test_drawn_boxes_have_the_shape_of_the_input(crop: str) -> None:
    spec = spec_of((128, 170), (96, 64))
    options = AugmentOptions.model_validate({"crop": crop, "scales": (1.0, 0.75), "ratio": (0.9, 1.1)})
    boxes = [draw_view(options, spec, rng(seed)).box for seed in range(300)]
    assert all(0 <= y0 < y1 <= 128 and 0 <= x0 < x1 <= 170 for y0, x0, y1, x1 in boxes)
    sides = {(y1 - y0, x1 - x0) for y0, x0, y1, x1 in boxes}
    expected = {
        "multiscale_random": {(128, 85), (96, 64)},  # 128 × 2/3 = 85.3
        "corner": {(128, 85), (96, 64)},
        "random": {(96, 64)},
        "multiscale": {(128, 85), (128, 64), (96, 85), (96, 64)},
    }
    if crop in expected:
        assert sides == expected[crop]
        return
    stretched = [width / height * 96 / 64 for height, width in sides]
    slack = 0.12 if crop == "resized" else 0.02
    assert all(1 - slack < one < 1 + slack for one in stretched)
    if crop == "short_side":
        assert (min(h for h, _ in sides), max(h for h, _ in sides)) == (pytest.approx(103, abs=1), 128)


@pytest.mark.parametrize("modality", ["rgb", "flow"])
@pytest.mark.parametrize(("resize", "crop"), [((40, 60), 32), ((24, 36), (24, 36)), (STORED, (30, 40))])
def test_whole_frames_are_resized_once_and_mirrored(
    modality: Modality, resize: tuple[int, int], crop: Any
) -> None:
    """`full` shows what OpenCV makes of the stored frame, then its mirror, on which flow x turns its sign."""
    spec = spec_of(resize, crop, modality)
    source, records = Stored(modality), [VideoRecord("v", 9, 0)]
    clip = shrunk(modality, 9, spec.size)
    mirror = clip[:, :, ::-1].copy()
    if modality == "flow":
        mirror[..., 0] = 255 - mirror[..., 0]
    evaluate = EvaluateOptions(views="multi", crops="full")
    item = ViewDataset(source, records, spec, evaluate)[0]
    assert isinstance(item, VideoViews)
    assert item.num_views == 4  # 9 frames hold two clips of 4, from the first frame and from the fifth
    for index, (frames, start) in enumerate([(clip, 0), (clip, 4), (mirror, 0), (mirror, 4)]):
        np.testing.assert_array_equal(item.view(index).numpy(), frames[start : start + 4])
    alone = ViewDataset(source, records, spec, evaluate, mirror=Mirror(allowed=False))[0]
    assert isinstance(alone, VideoViews)
    assert alone.num_views == 2


@pytest.mark.parametrize("crop", [32, (30, 40)])
def test_centred_views_are_whole_after_training_on_whole_frames(crop: Any) -> None:
    """Validation's clip, a training clip, and the centred view of an evaluation, bit for bit; others stay crops."""
    spec = spec_of((40, 60), crop)
    source, records = Stored("rgb"), [VideoRecord("v", 4, 0)]
    wanted = shrunk("rgb", 4, spec.size)
    centred = ClipDataset(source, records, spec)
    cropped = centred[0]
    assert isinstance(cropped, ClipItem)
    y, x = (40 - spec.size[0]) // 2, (60 - spec.size[1]) // 2
    resized = shrunk("rgb", 4, (40, 60))[:, y : y + spec.size[0], x : x + spec.size[1]]
    np.testing.assert_array_equal(cropped.clip.permute(1, 2, 3, 0).numpy(), resized)
    full = DataOptions(augment=AugmentOptions(crop="full"))
    centred = ClipDataset(source, records, spec, full)
    for flip, dataset in (
        (0, centred),
        (
            0,
            ClipDataset(
                source, records, spec, DataOptions(augment=AugmentOptions(crop="full", flip=0.0)), epoch=0
            ),
        ),
        (
            1,
            ClipDataset(
                source, records, spec, DataOptions(augment=AugmentOptions(crop="full", flip=1.0)), epoch=0
            ),
        ),
    ):
        item = dataset[0]
        assert isinstance(item, ClipItem)
        found = item.clip.permute(1, 2, 3, 0).numpy()
        np.testing.assert_array_equal(found, wanted[:, :, ::-1] if flip else wanted)
    for crops, whole in (("center", True), ("three", False)):
        views = ViewDataset(source, records, spec, EvaluateOptions(crops=crops), full)[0]
        assert isinstance(views, VideoViews)
        same = np.array_equal(views.view(0).numpy(), wanted)
        assert same == whole


def test_a_teacher_beside_sees_the_whole_frame_too() -> None:
    spec, other = spec_of((40, 60), 32), spec_of((36, 48), (28, 44), "flow")
    records = [VideoRecord("v", 5, 0)]
    clips = ClipDataset(
        Stored("rgb"), records, spec, DataOptions(augment=AugmentOptions(crop="full", flip=0.0)), epoch=0
    )
    beside = Companion(Stored("flow"), other, {"v": VideoRecord("v", 5, 0)}, "standard")
    item = ClipsBeside(clips, [beside])[0]
    assert isinstance(item, ClipItem)
    first = clips.planned(0)[1][0] - 1
    wanted = shrunk("flow", 5, (28, 44))[first : first + 4]
    np.testing.assert_array_equal(item.beside[0].permute(1, 2, 3, 0).numpy(), wanted)
