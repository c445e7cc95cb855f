"""Frames of a clip in another order: the pixels stay, the time goes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from two_stream.config.schema import AugmentOptions, DataOptions, EvaluateOptions
from two_stream.data.clips.dataset import ClipDataset, ClipItem
from two_stream.data.clips.sampling import reorder_frames
from two_stream.data.clips.views import ViewDataset
from two_stream.data.sources.files import ClipSource
from two_stream.types import InputSpec, VideoRecord, VideoViews
from two_stream.video.frames import Region

SPEC = InputSpec("rgb", 6, 1, (8, 12), 8, (0.0, 255.0), (0.0,) * 3, (1.0,) * 3)
VIDEOS = [VideoRecord("a", 20, 0), VideoRecord("b", 20, 1)]


class Numbered(ClipSource):
    """Frame n of every video is n everywhere."""

    def __init__(self) -> None:
        super().__init__("rgb")

    def read(
        self, video_id: str, numbers: Sequence[int], resize: tuple[int, int], region: Region | None = None
    ) -> np.ndarray:
        size = resize if region is None else region.size
        return np.stack([np.full((*size, 3), number, np.uint8) for number in numbers])


def trained(order: str, epoch: int = 0) -> list[list[int]]:
    options = DataOptions(frame_order=order, augment=AugmentOptions(crop="center", flip=0.0))  # type: ignore[arg-type]
    data = ClipDataset(Numbered(), VIDEOS, SPEC, options, seed=3, epoch=epoch)
    items = [data[index] for index in range(2)]
    return [item.clip[0, :, 0, 0].tolist() for item in items if isinstance(item, ClipItem)]


def scored(order: str) -> list[list[int]]:
    options = DataOptions(frame_order=order)  # type: ignore[arg-type]
    data = ViewDataset(Numbered(), VIDEOS, SPEC, EvaluateOptions(crops="center"), options)
    items = [data[index] for index in range(len(data))]
    return [
        clip[0, :, 0, 0].tolist() for item in items if isinstance(item, VideoViews) for clip in item.views
    ]


def validated(order: str) -> list[list[int]]:
    data = ClipDataset(Numbered(), VIDEOS, SPEC, DataOptions(frame_order=order))  # type: ignore[arg-type]
    items = [data[index] for index in range(2)]
    return [item.clip[0, :, 0, 0].tolist() for item in items if isinstance(item, ClipItem)]


@pytest.mark.parametrize("clips", [trained, scored, validated])
def test_shuffled_and_reversed_clips_hold_the_same_frames(clips):
    natural, turned, shuffled = (clips(order) for order in ("natural", "reversed", "shuffled"))
    assert natural == [sorted(clip) for clip in natural]
    assert turned == [clip[::-1] for clip in natural]
    assert [sorted(clip) for clip in shuffled] == natural
    assert shuffled != natural
    assert shuffled == clips("shuffled")


def test_training_draws_a_new_order_in_every_epoch_and_scoring_one_per_video():
    places = [np.argsort(clip).tolist() for epoch in range(3) for clip in trained("shuffled", epoch)]
    assert len({tuple(place) for place in places}) == 6
    (first, second, *_), count = [np.argsort(clip).tolist() for clip in scored("shuffled")], len(VIDEOS)
    assert first == second  # clips of one video
    assert len({tuple(np.argsort(clip).tolist()) for clip in scored("shuffled")}) == count


def test_an_order_depends_on_its_key_alone():
    clip = list(range(1, 33))
    assert reorder_frames(clip, "shuffled", "v") == reorder_frames(clip, "shuffled", "v")
    assert reorder_frames(clip, "shuffled", "v") != reorder_frames(clip, "shuffled", "w")
    first = [reorder_frames(clip, "shuffled", number)[0] for number in range(400)]
    assert len(set(first)) == 32  # every frame may come first
