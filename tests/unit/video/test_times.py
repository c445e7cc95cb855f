"""Times come from a file's time stamps: in every decoder, container and written file."""

from __future__ import annotations

import av
import numpy as np
import pytest

from tests.helpers.videos import CODECS, FRAMES, H264, Codec, make
from two_stream.data.prepare.adapters.build import clock_of
from two_stream.evaluation.pictures.annotate import annotate
from two_stream.video.decoding.backend_pyav import frame_times
from two_stream.video.decoding.base import Clock, uneven_times
from two_stream.video.decoding.live import open_source
from two_stream.video.decoding.reader import open_video
from two_stream.video.extraction.many_videos import extract
from two_stream.video.extraction.one_video import ExtractOptions
from two_stream.video.frames import read_extraction_manifest
from two_stream.video.sources import Source

SLOW, FAST = 8, 16
STAMPS = [500 * n for n in range(SLOW)] + [500 * (SLOW - 1) + 20 * n for n in range(1, FAST + 1)]
EDGES = [stamp / 1000 for stamp in [*STAMPS, STAMPS[-1] + 20]]
VARIABLE = [
    H264,
    Codec("libx264", ".mkv", options={"bf": "2"}),
    Codec("libx264", ".ts", options={"bf": "2"}),
    Codec("libvpx", ".webm", options={"deadline": "realtime"}),
    Codec("mpeg4", ".mkv", options={"qmin": "1", "qmax": "2"}),
]


@pytest.mark.parametrize("backend", ["pyav", "opencv"])
@pytest.mark.parametrize("codec", VARIABLE, ids=str)
def test_every_decoder_tells_the_time_stamps(codec, backend, tmp_path):
    path = make(tmp_path / f"v{codec.suffix}", codec, stamps=STAMPS)
    video = open_video(path, backend)
    assert [seconds for seconds, _ in video.timed_frames()] == pytest.approx(EDGES[:-1], abs=2e-3)
    assert open_video(path, backend).times == pytest.approx(EDGES, abs=2e-3)
    assert frame_times(path) == pytest.approx(EDGES[:-1], abs=2e-3)
    assert [frame.seconds for frame in open_source(str(path), backend).numbered()] == pytest.approx(
        EDGES[:-1], abs=2e-3
    )


@pytest.mark.parametrize("codec", CODECS, ids=str)
def test_a_steady_rate_stays_one_whatever_the_first_stamp(codec, tmp_path):
    video = open_video(make(tmp_path / f"v{codec.suffix}", codec))
    assert video.times == pytest.approx(np.arange(FRAMES + 1) / 25, abs=1e-3)
    assert uneven_times(video.times) == []


def test_the_sample_file_where_it_is(shared):
    path = shared / "cases/video/variable_rate.mp4"
    if not path.is_file():
        pytest.skip(f"{path} is not on this machine")
    for backend in ("pyav", "opencv"):
        times = open_video(path, backend).times
        assert times[12:24] == pytest.approx(np.arange(5.52, 5.745, 0.02))
        assert times[-1] == pytest.approx(6.0)


def test_the_clock_goes_on_over_missing_stamps_and_ones_set_anew():
    def told(stamps, fps=None, lasts=None):
        clock = Clock(fps)
        return [clock.tick(stamp, lasts) for stamp in stamps], clock.edges()

    assert told([7.0, 7.5, 7.6]) == ([0.0, 0.5, pytest.approx(0.6)], pytest.approx([0, 0.5, 0.6, 0.7]))
    assert told([7.0, None, 7.6], 4.0)[0] == pytest.approx([0, 0.25, 0.6])
    assert told([None, None], 4.0)[1] == pytest.approx([0, 0.25, 0.5])
    assert told([None, None])[1] is None
    assert told([9.0, 9.1, 0.0, 0.1], 10.0)[0] == pytest.approx(
        [0, 0.1, 0.2, 0.3]
    )  # a second recording begins
    assert told([1.0], lasts=3.0)[1] == pytest.approx([0, 3])
    assert told([])[1] is None


def test_a_written_copy_keeps_every_time_and_the_end(tmp_path):
    path, out = make(tmp_path / "v.mp4", stamps=STAMPS), tmp_path / "out.mp4"
    annotate(path, out, [("run", 0.8)])
    assert open_video(out).times == pytest.approx(EDGES, abs=2e-3)
    with av.open(str(out)) as made:
        assert made.duration / 1e6 == pytest.approx(EDGES[-1], abs=3e-3)


def test_segments_of_frame_folders_go_by_the_time_stamps_too(tmp_path):
    path = make(tmp_path / "v.webm", VARIABLE[3], stamps=STAMPS)
    options = ExtractOptions(flow="none", short_side=None, processes=0)
    extract([Source("v", path), Source("steady", make(tmp_path / "s.mp4"))], tmp_path / "out", options)
    assert read_extraction_manifest(tmp_path / "out" / "steady")["video"]["times"] == []
    for clock in (
        clock_of(None, tmp_path / "out" / "v", FRAMES, None, None),
        clock_of(path, None, FRAMES, None, None),
    ):
        assert list(clock.between(1.4, 3.55)) == [3, 4, 5, 6, 7, 8, 9]
