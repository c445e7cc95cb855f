"""A file that is cut or holed is named, whatever its container, and an intact one is not."""

from __future__ import annotations

import random
import struct

import av
import numpy as np
import pytest

from tests.helpers.videos import FRAMES, H264, Codec, make
from two_stream.video.decoding import base
from two_stream.video.decoding.integrity import find_file_damage, find_missing_frames
from two_stream.video.decoding.reader import open_video
from two_stream.video.doctor import examine_videos
from two_stream.video.extraction.many_videos import extract
from two_stream.video.extraction.one_video import ExtractOptions
from two_stream.video.sources import Source

KINDS = [
    H264,
    Codec("libx264", ".mkv", options={"bf": "2"}),
    Codec("libx264", ".ts", options={"bf": "2", "g": "8"}),
    Codec("libx264", ".m2ts", options={"bf": "2", "g": "8"}),
    Codec("libvpx", ".webm", options={"deadline": "realtime"}),
    Codec("libvpx-vp9", ".webm", options={"deadline": "realtime"}),
    Codec("mpeg4", ".avi", options={"qmin": "1", "qmax": "2"}),
    Codec("gif", ".gif", "rgb8"),
    Codec("flv", ".flv"),
    Codec("libvpx", ".ogg", options={"deadline": "realtime"}),
    Codec("wmv2", ".wmv"),
    Codec("libvpx", ".ivf", options={"deadline": "realtime"}),
    Codec("mjpeg", ".avi", "yuvj420p"),
    Codec("wrapped_avframe", ".y4m"),
    Codec("rawvideo", ".y4m", "yuv422p", label="rawvideo"),
    Codec("mpeg2video", ".mxf"),
    Codec("libx264", ".mov", options={"bf": "2"}),
]


CONCEALED = {"wmv2", "mjpeg", "wrapped_avframe", "rawvideo"}
"""zeros inside of a picture are pictures to these"""


def noise(count=FRAMES):
    """Pictures that compress badly, so that a file is its frames and little else."""
    rng = np.random.default_rng(0)
    return [
        np.kron(rng.integers(0, 255, (12, 16, 3), np.uint8), np.ones((4, 4, 1), np.uint8))
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return {str(codec): make(folder / f"{n}{codec.suffix}", codec, noise()) for n, codec in enumerate(KINDS)}


def told(path, backend="pyav"):
    """Return what check says of a file; "unreadable" where not one frame decodes."""
    return [
        f"{finding.kind}: {finding.detail}"
        for finding in examine_videos([path], backend=backend, processes=0)
    ]


@pytest.mark.parametrize("kind", [str(codec) for codec in KINDS])
def test_a_cut_file_is_named(whole, kind, tmp_path):
    content, rng = whole[kind].read_bytes(), random.Random(1)
    assert open_video(whole[kind]).num_frames == FRAMES
    assert told(whole[kind]) == []
    unnamed = []
    for _ in range(10):
        end = rng.randrange(len(content) // 10, len(content) * 19 // 20)
        path = tmp_path / whole[kind].name
        path.write_bytes(content[:end])
        if not told(path):
            unnamed.append((end, open_video(path).num_frames))
    assert not unnamed


@pytest.mark.parametrize("kind", [str(codec) for codec in KINDS if codec.name not in CONCEALED])
def test_a_block_of_zeros_or_a_lost_one_is_named(whole, kind, tmp_path):
    content, rng = whole[kind].read_bytes(), random.Random(2)
    unnamed = []
    for number in range(12):
        length = 1024
        start = rng.randrange(len(content) // 10, len(content) - length)
        path = tmp_path / whole[kind].name
        path.write_bytes(content[:start] + bytes(length if number % 2 else 0) + content[start + length :])
        if not told(path):
            unnamed.append((start, number % 2, open_video(path).num_frames))
    assert not unnamed


VARIABLE = {".mp4", ".mkv", ".ts", ".m2ts", ".webm", ".gif", ".ogg", ".ivf", ".mov"}
STAMPS = [500 * n for n in range(4)] + [1500 + 20 * n for n in range(1, 41)]


@pytest.mark.parametrize("kind", [codec for codec in KINDS if codec.suffix in VARIABLE], ids=str)
def test_an_intact_file_of_variable_rate_is_not_named(kind, tmp_path):
    stamps = [10 * (stamp // 10) for stamp in STAMPS]
    path = make(tmp_path / f"v{kind.suffix}", kind, noise(len(stamps)), stamps=stamps)
    assert told(path) == []
    assert told(path, "opencv") == []


def test_no_intact_file_of_the_shared_ones_is_named(shared):
    folder = shared / "data"
    for path in sorted((folder / "fight2").rglob("*.mp4"))[::60]:
        assert told(path) == []
    assert told(shared / "cases/video/variable_rate.mp4") == []


@pytest.mark.parametrize("name", ["cut.webm", "cut.mkv", "cut.gif"])
def test_the_sample_files_where_they_are(shared, name, tmp_path):
    path = shared / "cases/video" / name
    if not path.is_file():
        pytest.skip(f"{path} is not on this machine")
    for backend in ("pyav", "opencv"):
        assert any("the file is truncated: it ends at byte" in line for line in told(path, backend))
    (outcome,) = extract([Source("v", path)], tmp_path, ExtractOptions(flow="none", processes=0)).outcomes
    assert outcome.warnings[0].startswith("damaged: the file is truncated")


@pytest.mark.parametrize(
    ("codec", "options"),
    [(KINDS[1], {"live": "1"}), (H264, {"movflags": "frag_keyframe+empty_moov+default_base_moof"})],
    ids=["live Matroska", "fragmented MP4"],
)
def test_files_written_as_streams_are_whole_and_can_be_cut(codec, options, tmp_path):
    path = make(tmp_path / f"v{codec.suffix}", codec, noise(), container_options=options)
    assert told(path) == []
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    assert told(path)


def test_bytes_behind_the_end_are_no_damage(whole, tmp_path):
    for kind in (".gif", ".avi", ".mkv"):
        path = next(path for path in whole.values() if path.suffix == kind)
        (tmp_path / path.name).write_bytes(path.read_bytes() + b"made by a camera")
        assert told(tmp_path / path.name) == []


@pytest.mark.parametrize("suffix", [".mkv", ".ts"])
def test_a_gap_in_a_steady_rhythm_is_named(tmp_path, suffix):
    """Packets lost before remuxing leave no other trace than the gap."""
    source, path = (
        make(tmp_path / "v.ts", Codec("libx264", ".ts", options={"g": "1", "bf": "0"})),
        tmp_path / f"w{suffix}",
    )
    with av.open(str(source)) as read, av.open(str(path), "w") as written:
        stream = written.add_stream_from_template(read.streams.video[0])
        for number, packet in enumerate(read.demux(read.streams.video[0])):
            if packet.dts is not None and number not in (10, 11, 12):
                packet.stream = stream
                written.mux(packet)
    assert find_file_damage(path) is None
    (line,) = told(path)
    assert "no frame for 0.16 s after frame 10, where the others are 0.04 s apart" in line


def test_a_file_that_ends_before_its_stated_length_is_named(tmp_path):
    path = make(tmp_path / "v.mkv", KINDS[1], noise(), container_options={"cluster_time_limit": "200"})
    content = bytearray(path.read_bytes())
    segment = content.find(b"\x18\x53\x80\x67")
    content[segment + 5 : segment + 12] = b"\xff" * 7  # of unknown length, as of a stream
    content[segment + 4] = 1
    last = content.rfind(b"\x1f\x43\xb6\x75", 0, len(content) // 2)
    (tmp_path / "cut.mkv").write_bytes(content[:last])
    (line,) = told(tmp_path / "cut.mkv")
    assert "the header says that the video ends at 0.96 s, but its last frame is at" in line


def test_nothing_is_said_without_the_name_of_the_file(whole, tmp_path, capfd):
    for path in whole.values():
        content = path.read_bytes()
        broken = tmp_path / path.name
        place = len(content) // 2
        broken.write_bytes(content[:place] + bytes(3000) + content[place + 3000 :])
        for backend in ("pyav", "opencv"):
            told(broken, backend)
            options = ExtractOptions(flow="none", short_side=None, processes=0, backend=backend)
            extract([Source(f"{backend}{path.name}", broken)], tmp_path / "out", options)
    lines = [line for line in capfd.readouterr().err.splitlines() if line and "videos: " not in line]
    assert [line for line in lines if str(tmp_path) not in line] == []


@pytest.mark.parametrize("suffix", [".gif", ".ts", ".m2ts"])
def test_a_file_whose_beginning_is_gone_is_named(whole, suffix, tmp_path):
    content = next(path for path in whole.values() if path.suffix == suffix).read_bytes()
    path = tmp_path / f"v{suffix}"
    for length in (6, 200):
        path.write_bytes(bytes(length) + content[length:])
        assert told(path)
        path.write_bytes(content[:length] + b"inserted" + content[length:])
        assert told(path)


def test_extract_says_how_many_frames_the_header_promises(tmp_path):
    path = make(tmp_path / "v.avi", KINDS[6])
    content = bytearray(path.read_bytes())
    struct.pack_into("<I", content, content.find(b"strh") + 40, 5000)
    path.write_bytes(content)
    (outcome,) = extract([Source("v", path)], tmp_path, ExtractOptions(flow="none", processes=0)).outcomes
    assert outcome.warnings == [f"{FRAMES} frames decode, the header states 5000"]


def test_the_gap_and_the_stated_end_by_hand():
    steady = [n / 25 for n in range(20)]
    assert find_missing_frames(steady, 0.8, "matroska,webm") is None
    assert (
        find_missing_frames(steady, 0.85, "matroska,webm") is None
    )  # one frame less may be a matter of rounding
    assert "ends at 0.88 s, but its last frame is at 0.76 s" in find_missing_frames(
        steady, 0.88, "matroska,webm"
    )
    assert find_missing_frames(steady, 0.88, "mov,mp4,m4a,3gp,3g2,mj2") is None
    assert "no frame for 2 s after frame 20" in find_missing_frames(
        [*steady, *(2.76 + n / 25 for n in range(5))], None, "mpegts"
    )
    assert (
        find_missing_frames([0, 1, 2, 3, 3.1, 3.2, 3.3, 3.4, 5, 5.1, 5.2, 5.3, 5.4, 9], None, "mpegts")
        is None
    )
    assert find_missing_frames([], 4.0, "mpegts") is None


def test_sizes_that_lead_nowhere_end_the_walk(tmp_path):
    box = (32).to_bytes(4, "big") + b"ftyp" + bytes(24)
    nowhere = (1).to_bytes(4, "big") + b"free" + bytes(24)  # its 64-bit size is 0
    index = (0xFFFFFFF0).to_bytes(4, "big") + b"sidx" + bytes(24)
    nested = b"".join(
        b"LIST" + (12 * (2000 - level) - 8).to_bytes(4, "little") + b"rec " for level in range(2000)
    )
    deep = b"RIFF" + (4 + len(nested)).to_bytes(4, "little") + b"AVI " + nested
    for content, said in (
        (box + nowhere, "damaged at byte 32"),
        (box + index, "the file is truncated"),
        (deep, "nested too deeply"),
    ):
        path = tmp_path / "made.mp4"
        path.write_bytes(content)
        assert said in (find_file_damage(path) or "")


def test_the_file_is_checked_once_and_only_where_its_damage_is_asked_for(whole, monkeypatch):
    checked = []
    monkeypatch.setattr(base, "find_file_damage", lambda path: checked.append(path))
    with open_video(next(path for path in whole.values() if path.suffix == ".gif")) as video:
        assert len(list(video.frames())) == FRAMES
        assert checked == []
        assert (video.damage, video.damage, len(checked)) == (None, None, 1)
