"""What a stream's network sees of a picture is what `predict` shows a clip network, pixel for pixel."""

from __future__ import annotations

import itertools
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from two_stream import create_model
from two_stream.evaluation.scoring.video import VideoInput, read_clip
from two_stream.streaming.live.networks import Prepare
from two_stream.video.decoding.reader import open_video


@pytest.mark.parametrize("modality", ["rgb", "flow"])
@pytest.mark.parametrize("reading", [VideoInput(), VideoInput(short_side=None), VideoInput(size=(90, 120))])
def test_the_pixels_are_those_of_a_centred_crop(shared, modality, reading: VideoInput) -> None:
    video = sorted((shared / "data" / "fight2" / "fight").glob("*.mp4"))[0]
    spec = create_model("efficient3d/squeezenet_1.0", num_classes=2, modality=modality).spec
    spec = replace(spec, clip_length=4)
    prepare = Prepare(spec, reading)
    with open_video(video) as opened:
        pictures = list(opened.read(range(5)))
        resized = read_clip(opened, [1, 2, 3, 4], spec, reading)
    top, left = (resized.shape[1] - spec.crop) // 2, (resized.shape[2] - spec.crop) // 2
    wanted = resized[:, top : top + spec.crop, left : left + spec.crop]
    if modality == "rgb":
        found = [prepare(None, picture) for picture in pictures[:4]]
    else:
        found = [prepare(before, after) for before, after in itertools.pairwise(pictures)]
    np.testing.assert_array_equal(torch.stack(found).permute(0, 2, 3, 1).numpy(), wanted)


def test_flow_goes_on_where_the_source_changes_its_size() -> None:
    spec = create_model("efficient3d/squeezenet_1.0", num_classes=2, modality="flow").spec
    texture = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8), (0, 0), 3)
    larger = cv2.resize(texture, (240, 180))
    found = Prepare(spec, VideoInput())(texture, larger)
    still = Prepare(spec, VideoInput())(larger, larger)
    assert (found.float() - still.float()).abs().mean() < 2  # of 255 steps: the picture stood still
