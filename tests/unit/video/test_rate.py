"""The frames of a video that is seen at another frame rate: the rule, videos in memory, and extraction."""

from __future__ import annotations

from fractions import Fraction
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.bars import FILMS, film, moments, seconds_of, slack
from two_stream.cli import main
from two_stream.errors import VideoError
from two_stream.video.decoding.memory import ArrayVideo, FolderVideo, SeenVideo, open_any
from two_stream.video.decoding.reader import open_video
from two_stream.video.extraction.many_videos import extract
from two_stream.video.extraction.one_video import ExtractOptions
from two_stream.video.frames import read_extraction_manifest, read_frames
from two_stream.video.rate import shown_numbers
from two_stream.video.sources import Source


def test_equal_rates_show_every_frame_and_half_the_rate_every_second_one():
    assert list(shown_numbers(25.0, 25.0, 100)) == list(range(1, 101))
    assert list(shown_numbers(30000 / 1001, 30000 / 1001, 2000)) == list(range(1, 2001))
    assert list(shown_numbers(50.0, 25.0, 101)) == list(range(1, 102, 2))
    assert list(shown_numbers(50.0, 25.0, 100)) == list(range(1, 100, 2)), (
        "the last position is before the end"
    )


def test_of_two_frames_at_the_same_distance_the_earlier_one_is_shown():
    assert list(shown_numbers(25.0, 50.0, 4)) == [1, 1, 2, 2, 3, 3, 4]
    assert list(shown_numbers([0.0, 0.04, 0.08, 0.12], 50.0)) == [1, 1, 2, 2, 3, 3, 4]
    assert list(shown_numbers(30.0, 20.0, 7)) == [1, 2, 4, 5, 7]  # position 1 is between frames 2 and 3
    assert list(shown_numbers([0.0, 0.039, 0.081], 25.0)) == [1, 2, 3]
    assert list(shown_numbers([0.0, 0.1, 0.1, 0.2], 10.0)) == [1, 2, 4], (
        "of frames with one time the first one"
    )
    assert list(shown_numbers([0.0, 0.1, 0.1, 0.3], 20.0)) == [1, 1, 2, 2, 2, 4, 4]
    assert list(shown_numbers([5.0], 10.0)) == [1]


def test_24_and_30_frames_per_second():
    assert list(shown_numbers(24.0, 25.0, 15)) == [*range(1, 14), 13, 14]  # 12.5 is nearest to 12.48
    assert list(shown_numbers(30.0, 24.0, 11)) == [1, 2, 3, 5, 6, 7, 8, 10, 11]
    assert list(islice(shown_numbers(30.0, 24.0), 9)) == [1, 2, 3, 5, 6, 7, 8, 10, 11]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 120), max_size=40), st.integers(1, 60), st.integers(0, 10**6))
def test_each_position_shows_the_nearest_frame(gaps, fps, start):
    times = [Fraction(start + sum(gaps[:count]), 1000) for count in range(len(gaps) + 1)]
    positions = int((times[-1] - times[0]) * fps) + 1
    wanted = []
    for position in range(positions):
        at = times[0] + Fraction(position, fps)
        wanted.append(1 + min(range(len(times)), key=lambda n: (abs(times[n] - at), n)))
    assert list(shown_numbers([float(time) for time in times], float(fps))) == wanted


@pytest.mark.parametrize("name", FILMS)
def test_a_video_shows_the_bar_where_it_is_at_that_time(tmp_path, name):
    path = film(tmp_path, name)
    with open_video(path) as video:
        seen = SeenVideo(video, 25.0)
        assert seen.num_frames == 51
        every = np.stack(list(seen.frames()))
        assert moments(every) == pytest.approx(np.arange(51) / 25, abs=slack(name))
        assert (seen.read([50, 3, 4, 3]) == every[[50, 3, 4, 3]]).all()
        assert seen.times[:-1] == pytest.approx(np.arange(51) / 25)
        assert seen.times[-1] == pytest.approx(min(2.04, video.times[-1]), abs=1e-6)
        with pytest.raises(VideoError, match="there are 51 frames at 25 per second"):
            seen.read([51])


def test_a_part_of_a_video_begins_with_its_own_first_frame(tmp_path):
    path = film(tmp_path, "variable")
    part = SeenVideo(open_any((path, 0.4, 1.21)), 10.0)
    assert moments(np.stack(list(part.frames()))) == pytest.approx(0.4 + np.arange(9) / 10, abs=0.031)
    assert part.times == pytest.approx([*np.arange(9) / 10, min(0.9, part.whole.times[-1])])


def test_frames_without_times_cannot_be_chosen_by_time():
    frames = np.zeros((4, 8, 8, 3), np.uint8)
    with pytest.raises(
        VideoError, match=r"array: has neither time stamps nor a frame rate.*`ArrayVideo\(frames, fps=…\)`"
    ):
        SeenVideo(ArrayVideo(frames), 25.0)
    assert SeenVideo(ArrayVideo(frames, fps=50.0), 25.0).numbers == [1, 3]


@pytest.mark.parametrize("name", FILMS)
def test_extraction_writes_frames_and_flow_at_a_rate(tmp_path, name, monkeypatch):
    path = film(tmp_path, name)
    options = ExtractOptions(flow="dis", short_side=None, processes=0, fps=25.0)
    (made,) = extract([Source("v", path)], tmp_path / "out", options).outcomes
    assert (made.frames, made.flow_frames, made.reason, made.warnings) == (51, 50, "", [])
    frames = read_frames(tmp_path / "out" / "v", range(1, 52), "rgb")
    assert moments(frames) == pytest.approx(np.arange(51) / 25, abs=slack(name))
    manifest = read_extraction_manifest(tmp_path / "out" / "v")
    assert (manifest["settings"]["fps"], manifest["video"]["fps"], manifest["video"]["times"]) == (
        25.0,
        25.0,
        [],
    )
    assert FolderVideo(tmp_path / "out" / "v").times == pytest.approx(np.arange(52) / 25)


def test_an_extraction_is_continued_only_at_its_own_rate(tmp_path, capsys):
    film(tmp_path, "30")
    command = [
        "extract",
        str(tmp_path / "30.mp4"),
        "--out",
        str(tmp_path / "out"),
        "--flow",
        "none",
        "--processes",
        "0",
    ]
    assert main([*command, "--fps", "12.5"]) == 0
    assert main([*command, "--fps", "12.5"]) == 0
    assert "1 skipped" in capsys.readouterr().out
    assert main(command) == 1
    assert "fps 12.5 -> None" in capsys.readouterr().out
    assert main([*command, "--overwrite"]) == 0
    assert len(list((tmp_path / "out" / "30").glob("img_*.jpg"))) == 61
    assert main(["extract", "--dataset", "x", "--fps", "25"]) == 2
    assert "--dataset extracts the frames that the lists count" in capsys.readouterr().err
    assert main([*command, "--fps", "0"]) == 2
    assert "--fps is 0: expected more than 0" in capsys.readouterr().err


def test_a_folder_has_the_times_of_its_video(tmp_path):
    options = ExtractOptions(flow="none", short_side=None, processes=0)
    for name in ("60", "variable"):
        extract([Source(name, film(tmp_path, name))], tmp_path / "out", options)
        video = FolderVideo(tmp_path / "out" / name)
        assert video.times[:-1] == pytest.approx(seconds_of(name), abs=1e-6)
        assert SeenVideo(video, 25.0).numbers == SeenVideo(open_video(tmp_path / f"{name}.mp4"), 25.0).numbers
