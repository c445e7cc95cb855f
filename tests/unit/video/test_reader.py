"""Frames by index, exactly: the number painted on each picture must be the number requested."""

from __future__ import annotations

import importlib.util
import os
import struct

import cv2
import numpy as np
import pytest

from tests.helpers.videos import CODECS, FRAMES, H264, make, make_audio, make_cut, numbers_of, picture
from two_stream.errors import SettingsError, VideoError
from two_stream.video.decoding.backend_pyav import PyavVideo
from two_stream.video.decoding.reader import BACKENDS, backend_version, open_video

ORDER = [17, 3, 3, 23, 0, 9, 10, 8, 17]


@pytest.mark.parametrize("codec", CODECS, ids=str)
def test_every_codec_gives_the_frames_asked_for(codec, tmp_path):
    video = open_video(make(tmp_path / f"clip{codec.suffix}", codec))
    assert numbers_of(video.frames()) == list(range(FRAMES))
    assert numbers_of(video.read(ORDER)) == ORDER
    assert video.num_frames == FRAMES
    assert (video.height, video.width) == (48, 64)
    assert video.damage is None
    for start in range(FRAMES):  # an index exists now: reads may begin at a key frame
        assert numbers_of(video.read([start])) == [start]


@pytest.mark.parametrize("codec", CODECS, ids=str)
def test_reads_through_the_index_equal_reads_from_the_start(codec, tmp_path):
    path = make(tmp_path / f"clip{codec.suffix}", codec)
    indexed = open_video(path)
    assert indexed.num_frames == FRAMES
    plain = np.stack(list(open_video(path).frames()))
    for start in (5, 8, 12, 15, 20):
        wanted = [start + 2, start]
        np.testing.assert_array_equal(indexed.read(wanted), plain[wanted])


class Spy(PyavVideo):
    starts: list[int]

    def _decode(self, start=0):
        self.starts.append(start)
        return super()._decode(start)


def test_a_seek_happens_only_when_it_pays_and_is_proven(tmp_path):
    video = Spy(make(tmp_path / "clip.mp4", H264))
    video.starts = []
    video.read([20])
    assert video.num_frames == FRAMES
    assert video.starts == [0, 0]
    assert numbers_of(video.read([20])) == [20]
    assert video.starts == [0, 0, 16]  # key frames every eight
    video._index.prints[20] += 1  # the index no longer agrees: the seek must be given up, not believed
    assert numbers_of(video.read([20])) == [20]
    assert video.starts == [0, 0, 16, 16, 0]


@pytest.mark.parametrize("backend", ["pyav", "opencv"])
def test_variable_frame_rate_counts_frames_not_time(tmp_path, backend):
    stamps = [0, 10, 15, 200, 210, 900, 910, 1500, 1501, 1502] + [2000 + 333 * k for k in range(14)]
    video = open_video(make(tmp_path / "vfr.mp4", H264, stamps=stamps), backend)
    assert video.num_frames == FRAMES
    assert numbers_of(video.read(ORDER)) == ORDER


@pytest.mark.parametrize("rotation", [0, 90, 180, 270, 45])
def test_rotation_is_applied_as_opencv_does(tmp_path, rotation):
    image = np.zeros((48, 64, 3), np.uint8)
    image[:16, :16] = (250, 20, 20)  # red, top left
    image[32:, 48:] = (20, 20, 250)  # blue, bottom right
    path = make(tmp_path / "turned.mp4", H264, [image] * 3, rotation=rotation)
    ours, theirs = open_video(path).read([1])[0], open_video(path, "opencv").read([1])[0]
    assert ours.shape == ((64, 48, 3) if rotation in (90, 270) else (48, 64, 3))
    np.testing.assert_allclose(ours.astype(int), theirs.astype(int), atol=2)
    red = np.argwhere((ours[..., 0] > 150) & (ours[..., 2] < 100)).mean(axis=0) / ours.shape[:2]
    # a display rotation of +90 turns counter-clockwise: top left goes to bottom left
    corner = {0: (0, 0), 90: (1, 0), 180: (1, 1), 270: (0, 1), 45: (0, 0)}[rotation]
    assert tuple(np.round(red)) == corner


def test_a_lying_header_is_not_believed(tmp_path):
    path = make(tmp_path / "clip.avi", CODECS[12])
    content = bytearray(path.read_bytes())
    at = content.find(b"strh") + 8 + 32
    assert struct.unpack_from("<I", content, at)[0] == FRAMES
    struct.pack_into("<I", content, at, 5000)
    path.write_bytes(content)
    video = open_video(path)
    assert video.header_frames == 5000
    assert video.num_frames == FRAMES
    with pytest.raises(VideoError, match=r"frame 24 was requested .* only 24 frames can be decoded"):
        video.read([3, 24])


def test_a_cut_file_gives_its_whole_frames_and_says_why_it_ends(tmp_path):
    path = make_cut(tmp_path / "clip.mp4")
    video = open_video(path)
    frames = list(video.frames())
    assert 8 <= len(frames) < FRAMES
    assert numbers_of(frames[:-1]) == list(range(len(frames) - 1))
    assert video.damage is not None
    assert video.num_frames == len(frames)
    assert numbers_of(video.read([2])) == [2]
    with pytest.raises(VideoError, match=r"only \d+ frames can be decoded \("):
        video.read([FRAMES - 1])


def test_a_change_of_size_in_the_stream_keeps_the_first_size(tmp_path):
    parts = []
    for shape in ((48, 64), (96, 128)):
        made = make(tmp_path / "part.h264", H264, [picture(k, *shape) for k in range(4)])
        parts.append(made.read_bytes())
    path = tmp_path / "both.h264"
    path.write_bytes(b"".join(parts))
    video = open_video(path)
    assert numbers_of(video.read(range(8))) == [0, 1, 2, 3, 0, 1, 2, 3]
    assert video.read([7]).shape == (1, 48, 64, 3)


def test_negative_and_no_indices(tmp_path):
    video = open_video(make(tmp_path / "clip.mp4"))
    assert video.read([]).shape == (0, 48, 64, 3)
    with pytest.raises(VideoError, match="frame -1 was requested"):
        video.read([4, -1])


def test_pictures_are_rgb(tmp_path):
    red = np.zeros((48, 64, 3), np.uint8)
    red[...] = (220, 30, 40)
    path = make(tmp_path / "red.mp4", H264, [red] * 2)
    for backend in ("pyav", "opencv"):
        frame = open_video(path, backend).read([0])[0]
        np.testing.assert_allclose(frame.reshape(-1, 3).mean(0), (220, 30, 40), atol=6)


def not_videos(folder):
    (folder / "notes.txt").write_text("hello world\n" * 40)
    (folder / "text.mp4").write_text("hello world\n" * 40)
    (folder / "empty.mp4").touch()
    (folder / "folder.mp4").mkdir()
    (folder / "list.m3u8").write_text("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/x.ts\n#EXT-X-ENDLIST\n")
    (folder / "concat.txt").write_text("ffconcat version 1.0\nfile 'real.mp4'\n")
    (folder / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    cv2.imwrite(str(folder / "still.jpg"), picture(3))
    cv2.imwrite(str(folder / "still.png"), picture(3))
    make(folder / "real.mp4")
    make_audio(folder / "sound.wav")
    os.mkfifo(folder / "pipe.mp4")
    return {
        "notes.txt": "text file",
        "text.mp4": "not a video",
        "empty.mp4": r"empty file \(0 bytes\)",
        "folder.mp4": "is a directory",
        "absent.mp4": "no such file",
        "list.m3u8": "not a video",
        "concat.txt": "not a video",
        "noise.mp4": "not a video",
        "still.jpg": "not a video, but an image",
        "still.png": "not a video, but an image",
        "sound.wav": r"no video stream \(audio only\)",
        "pipe.mp4": "expected a regular file",
    }


@pytest.mark.timeout(60)
@pytest.mark.parametrize("backend", ["pyav", "opencv"])
def test_what_is_no_video_is_refused_in_one_line(tmp_path, backend, capfd):
    for name, reason in not_videos(tmp_path).items():
        capfd.readouterr()
        with pytest.raises(VideoError, match=reason) as caught:
            open_video(tmp_path / name, backend)
        assert caught.value.path == str(tmp_path / name)
        assert "\n" not in str(caught.value)
        assert capfd.readouterr() == ("", "")  # no chatter of libav or OpenCV


def test_odd_file_names_open(tmp_path):
    made = make(tmp_path / "clip.mp4").read_bytes()
    for name in ("a:b.mp4", "frame%03d.mp4", "täst 動画.mp4", os.fsdecode(b"\xff\xe9.mp4")):
        (tmp_path / name).write_bytes(made)
        assert numbers_of(open_video(tmp_path / name).read([6])) == [6]
    with pytest.raises(VideoError, match="UTF-8"):
        open_video(tmp_path / os.fsdecode(b"\xff\xe9.mp4"), "opencv")


def test_opencv_says_plainly_that_it_cannot_decode_av1(tmp_path):
    path = make(tmp_path / "clip.mp4", CODECS[8])
    with pytest.raises(VideoError, match="OpenCV cannot decode av1; use backend pyav"):
        open_video(path, "opencv")


def test_opencv_reads_by_index(tmp_path):
    video = open_video(make(tmp_path / "clip.mp4"), "opencv")
    assert numbers_of(video.read(ORDER)) == ORDER
    assert video.num_frames == FRAMES


@pytest.mark.skipif(importlib.util.find_spec("torchcodec") is not None, reason="torchcodec is installed")
def test_an_absent_backend_says_what_to_install(tmp_path):
    path = make(tmp_path / "clip.mp4")
    with pytest.raises(SettingsError, match=r"pip install two-stream\[torchcodec\]"):
        open_video(path, "torchcodec")
    with pytest.raises(SettingsError, match=r"pip install two-stream\[torchcodec\]"):
        backend_version("torchcodec")


def test_backend_versions_name_library_and_codec():
    assert BACKENDS == ("pyav", "opencv", "torchcodec")
    assert backend_version("pyav").startswith("pyav ")
    assert "libavcodec" in backend_version("pyav")
    assert f"opencv {cv2.__version__}" in backend_version("opencv")
    with pytest.raises(SettingsError, match="unknown video backend 'decord'"):
        open_video("x.mp4", "decord")
