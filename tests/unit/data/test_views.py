"""Views for evaluation against plain copies: same pixels, whatever the chunks; broken chunks; shares of processes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest

from two_stream.config.schema import AugmentOptions, DataOptions, EvaluateOptions
from two_stream.data.clips.views import ViewDataset, ViewLoader, assign_work, chunks_of, collate_views
from two_stream.data.sources.files import ClipSource
from two_stream.errors import DataError, SettingsError, VideoError
from two_stream.types import Frames, InputSpec, VideoRecord, VideoViews
from two_stream.video.frames import Region


class Memory(ClipSource):
    """Frames of noise, the same for the same video; remembers what was asked for."""

    def __init__(self, modality: str, broken: dict[str, int] | None = None) -> None:
        super().__init__(modality)  # type: ignore[arg-type]
        self.asked: list[tuple[str, list[int]]] = []
        self.broken = broken or {}

    def all_frames(self, video_id: str, count: int, resize: tuple[int, int]) -> Frames:
        channels = 3 if self.modality == "rgb" else 2
        noise = np.random.default_rng(len(video_id)).integers(0, 256, (count, *resize, channels))
        return noise.astype(np.uint8)

    def read(
        self, video_id: str, numbers: Sequence[int], resize: tuple[int, int], region: Region | None = None
    ) -> Frames:
        self.asked.append((video_id, list(numbers)))
        if self.broken.get(video_id) in numbers:
            raise VideoError(video_id, f"frame {self.broken[video_id]} is damaged")
        return self.all_frames(video_id, max(numbers), resize)[[number - 1 for number in numbers]]


def spec_of(modality: str, length: int, stride: int, resize: tuple[int, int], crop: int) -> InputSpec:
    channels = 3 if modality == "rgb" else 2
    half = (0.5,) * channels
    return InputSpec(modality, length, stride, resize, crop, (0.0, 1.0), half, half)  # type: ignore[arg-type]


def plain_clips(views: str, frames: int, length: int, stride: int) -> list[list[int]]:
    """0-based frames of every clip, written anew: looped when too short, else one, as many as fit, or every two."""
    span = (length - 1) * stride + 1
    if frames <= span:
        return [[(i * stride) % frames for i in range(length)]] * (3 if views == "uniform" else 1)
    slack = frames - span
    if views == "single":
        starts = [slack // 2]
    elif views == "multi":
        count = slack // (length * stride) + 1
        starts = [(slack - (count - 1) * length * stride) // 2 + n * length * stride for n in range(count)]
    elif views == "uniform":
        starts = [round(slack * n / 2) for n in range(3)]
    else:
        starts = [*range(0, slack, 2), slack]
    return [[start + i * stride for i in range(length)] for start in starts]


def plain_views(frames: Frames, clips: list[list[int]], crops: str, crop: int, signed: bool) -> Frames:
    """Every view copied out, `(V, C, T, h, w)`: crop by crop, the mirrored ones cut from mirrored frames."""
    height, width = frames.shape[1:3]
    y, x = (height - crop) // 2, (width - crop) // 2
    if crops == "ten":
        places = [(y, x), (0, 0), (0, width - crop), (height - crop, 0), (height - crop, width - crop)]
    elif crops == "three" and width >= height:
        places = [(y, 0), (y, x), (y, width - crop)]
    elif crops == "three":
        places = [(0, x), (y, x), (height - crop, x)]
    else:
        places = [(y, x)]
    mirrored = np.flip(frames, axis=2).copy()
    if signed:
        mirrored[..., 0] = 255 - mirrored[..., 0]
    found = []
    for source in (frames, mirrored) if crops == "ten" else (frames,):
        for top, left in places:
            for clip in clips:
                cut = np.stack([source[n, top : top + crop, left : left + crop] for n in clip])
                found.append(cut.transpose(3, 0, 1, 2))
    return np.stack(found)


CASES = [
    # modality, views, crops, frames, length, stride, resize, crop, protocol
    ("rgb", "multi", "ten", 31, 8, 1, (9, 13), 8, "standard"),
    ("flow", "multi", "ten", 31, 8, 1, (9, 13), 7, "standard"),
    ("flow", "multi", "ten", 31, 8, 1, (9, 13), 7, "paper"),
    ("rgb", "sliding", "three", 23, 4, 2, (8, 12), 8, "standard"),
    ("rgb", "sliding", "three", 23, 4, 2, (12, 8), 5, "standard"),
    ("rgb", "uniform", "ten", 3, 8, 1, (8, 8), 8, "standard"),
    ("flow", "uniform", "center", 40, 4, 3, (8, 9), 8, "standard"),
    ("rgb", "single", "ten", 5, 8, 2, (8, 9), 6, "standard"),
]


@pytest.mark.parametrize(
    ("modality", "views", "crops", "frames", "length", "stride", "resize", "crop", "protocol"), CASES
)
@pytest.mark.parametrize("budget", [10**9, 1])
def test_views_are_the_pixels_of_plain_copies(
    modality, views, crops, frames, length, stride, resize, crop, protocol, budget
):
    source = Memory(modality)
    spec = spec_of(modality, length, stride, resize, crop)
    options = EvaluateOptions(views=views, crops=crops, num_clips=3, step=2)
    records = [VideoRecord("video", frames, 1)]
    data = ViewDataset(
        source,
        records,
        spec,
        options,
        DataOptions(augment=AugmentOptions(protocol=protocol)),
        chunk_bytes=budget,
    )
    clips = plain_clips(views, frames, length, stride)
    whole = source.all_frames("video", frames, resize)
    expected = plain_views(whole, clips, crops, crop, modality == "flow" and protocol == "standard")
    expected = expected.reshape(-1, len(clips), *expected.shape[1:])
    count = 0
    for index in range(len(data)):
        item = data[index]
        assert isinstance(item, VideoViews)
        assert (item.id, item.label, item.total_clips, item.first) == ("video", 1, len(clips), count)
        part = expected[:, count : count + len(item.clips)]
        np.testing.assert_array_equal(item.views.numpy(), part.reshape(-1, *part.shape[2:]))
        count += len(item.clips)
    assert count == len(clips)
    for _, numbers in source.asked:
        assert len(numbers) == len(set(numbers))  # each frame once


def test_frames_cross_once_and_views_are_windows_on_them():
    spec = spec_of("rgb", 4, 1, (10, 14), 8)
    data = ViewDataset(Memory("rgb"), [VideoRecord("v", 20, 0)], spec, EvaluateOptions(crops="ten"))
    item = data[0]
    assert isinstance(item, VideoViews)
    assert item.frames.shape == (20, 10, 14, 3)
    assert item.num_views == 50
    inside = range(item.frames.data_ptr(), item.frames.data_ptr() + item.frames.numel())
    assert all(item.view(index).data_ptr() in inside for index in range(25))  # the mirrored ones are copies


@pytest.mark.parametrize(("views", "step"), [("multi", None), ("uniform", None), ("sliding", 3)])
def test_a_long_video_is_read_in_small_chunks(views, step):
    source = Memory("rgb")
    spec = spec_of("rgb", 8, 1, (4, 4), 4)
    options = EvaluateOptions(views=views, num_clips=40, step=step, crops="center")
    record = VideoRecord("long", 1000, 0)
    data = ViewDataset(source, [record], spec, options, chunk_bytes=50 * 48)
    items = [data[index] for index in range(len(data))]
    assert len(items) > 5
    assert max(len(numbers) for _, numbers in source.asked) <= 50
    firsts = [item.first for item in items if isinstance(item, VideoViews)]
    sizes = [len(item.clips) for item in items if isinstance(item, VideoViews)]
    assert firsts == [sum(sizes[:n]) for n in range(len(sizes))]
    read = sum(len(numbers) for _, numbers in source.asked)
    distinct = {n for _, numbers in source.asked for n in numbers}
    assert read <= len(distinct) + 8 * len(items)  # only what chunks share is read twice


def test_chunks_hold_what_fits_and_never_less_than_a_clip():
    clips = [[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 7], [20, 21, 22, 23]]
    assert chunks_of(clips, 12) == [range(4)]
    assert chunks_of(clips, 8) == [range(3), range(3, 4)]
    assert chunks_of(clips, 6) == [range(2), range(2, 3), range(3, 4)]
    assert chunks_of(clips, 1) == [range(n, n + 1) for n in range(4)]
    assert chunks_of([[0, 0, 0]] * 7, 1) == [range(7)]  # a looped frame counts once


def loader(broken: dict[str, int], on_error: str, workers: int = 0) -> ViewLoader:
    records = [VideoRecord("a", 12, 0), VideoRecord("bb", 16, 1), VideoRecord("ccc", 4, 2)]
    spec = spec_of("rgb", 4, 1, (4, 4), 4)
    data = ViewDataset(Memory("rgb", broken), records, spec, EvaluateOptions(crops="center"), chunk_bytes=1)
    plan = [[index] for index in range(len(data))]
    options = DataOptions(on_error=on_error, workers=workers)  # type: ignore[arg-type]
    return ViewLoader(data, plan, collate_views, options)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(("frame", "before"), [(1, 0), (6, 1), (16, 3)])
def test_a_broken_chunk_ends_its_video_and_is_named_once(frame, before, workers):
    skipping = loader({"bb": frame}, "skip", workers)
    ids = [item.id for item in skipping]
    assert ids == ["a"] * 3 + ["bb"] * before + ["ccc"]
    assert [name for name, _ in skipping.skipped] == ["bb"]
    assert f"frame {frame} is damaged" in skipping.skipped[0][1]
    with pytest.raises(DataError, match=f"'bb' cannot be read: .*frame {frame} is damaged"):
        list(loader({"bb": frame}, "raise", workers))


def test_two_broken_videos_in_a_row_are_both_named():
    skipping = loader({"a": 5, "bb": 2}, "skip")
    assert [item.id for item in skipping] == ["a", "ccc"]
    assert [name for name, _ in skipping.skipped] == ["a", "bb"]


def test_a_stride_the_paper_does_not_know_is_refused_before_anything_is_read():
    spec = spec_of("rgb", 4, 2, (4, 4), 4)
    with pytest.raises(SettingsError, match="stride 1"):
        ViewDataset(
            Memory("rgb"), [VideoRecord("a", 9, 0)], spec, EvaluateOptions(), DataOptions(sampling="paper")
        )


@pytest.mark.parametrize("world", [1, 2, 3, 9])
def test_shares_are_disjoint_whole_and_even(world):
    work = [10, 10, 150, 20, 10, 30, 10]
    shares = [assign_work(work, rank, world) for rank in range(world)]
    assert sorted(index for part in shares for index in part) == list(range(len(work)))
    assert all(a < b for part in shares for a, b in pairwise(part))
    loads = sorted(sum(work[index] for index in part) for part in shares)
    if world == 2:
        assert loads == [90, 150]
    if world == 9:
        assert loads[:2] == [0, 0]
