"""Of several video streams the best is read, and never a cover picture."""

from __future__ import annotations

from pathlib import Path

import av
import pytest

from tests.helpers.videos import FRAMES, numbers_of, picture
from two_stream.video.decoding.reader import open_video
from two_stream.video.doctor import examine_videos
from two_stream.video.extraction.many_videos import extract
from two_stream.video.extraction.one_video import ExtractOptions
from two_stream.video.sources import Source

BACKENDS = ["pyav", "opencv"]


def make_several(path: Path, *streams: tuple[str, int, int, int], cover: int | None = None) -> Path:
    """Encode streams of (codec, height, width, frames); `cover` marks one as the default."""
    with av.open(str(path), "w") as container:
        made = []
        for number, (codec, height, width, frames) in enumerate(streams):
            stream = container.add_stream(codec, rate=25 if frames > 1 else 1)
            stream.height, stream.width = height, width
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            stream.bit_rate = 4_000_000
            if number == cover:
                stream.disposition = av.stream.Disposition.default
            made.append((stream, frames, height, width))
        for stream, frames, height, width in made:
            for number in range(frames):
                image = picture(number, height, width)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        for stream, *_ in made:
            container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [(32, 32), (480, 640)], ids=["small", "large"])
@pytest.mark.parametrize("default", [None, 0], ids=["plain", "cover is default"])
@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".mov", ".avi"])
def test_an_unflagged_cover_picture_in_front_is_left_out(tmp_path, backend, size, default, suffix):
    streams = [("mjpeg", *size, 1), ("mpeg4", 48, 64, FRAMES)]
    path = make_several(tmp_path / f"v{suffix}", *streams, cover=default)
    video = open_video(path, backend)
    assert (video.height, video.width, video.num_frames) == (48, 64, FRAMES)
    assert numbers_of(video.frames()) == list(range(FRAMES))
    assert numbers_of(video.read([20, 3])) == [20, 3]
    assert video.damage is None
    assert examine_videos([path], backend=backend, processes=0) == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_of_two_films_the_one_ffmpeg_calls_best_is_read(tmp_path, backend):
    path = make_several(tmp_path / "v.mkv", ("mpeg4", 24, 32, 4), ("mpeg4", 48, 64, FRAMES), cover=1)
    with av.open(str(path)) as container:
        assert container.streams.best("video").index == 1
    assert numbers_of(open_video(path, backend).frames()) == list(range(FRAMES))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_sample_file_where_it_is(shared, tmp_path, backend):
    path = shared / "cases/video/cover_first.mkv"
    if not path.is_file():
        pytest.skip(f"{path} is not on this machine")
    assert examine_videos([path], backend=backend, processes=0) == []
    options = ExtractOptions(flow="none", short_side=None, processes=0, backend=backend)
    (outcome,) = extract([Source("v", path)], tmp_path, options).outcomes
    assert (outcome.frames, outcome.warnings) == (24, [])


def test_a_file_of_covers_alone_is_still_read(tmp_path):
    path = make_several(tmp_path / "v.mkv", ("mjpeg", 32, 32, 1), ("mjpeg", 64, 64, 1))
    assert open_video(path).read([0]).shape[0] == open_video(path).num_frames == 1


def test_a_file_of_several_streams_is_opened_once(tmp_path, monkeypatch):
    path = make_several(tmp_path / "v.mkv", ("mjpeg", 32, 32, 1), ("mpeg4", 48, 64, FRAMES))
    opened, original = [], av.open
    monkeypatch.setattr(av, "open", lambda *args, **options: opened.append(1) or original(*args, **options))
    video = open_video(path)
    assert len(opened) == 1
    assert numbers_of(video.frames()) == list(range(FRAMES))
    assert len(opened) == 2
