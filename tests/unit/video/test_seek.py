"""Reads that begin at a key frame: the right frames, from packets or a kept index, and never on trust alone."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.videos import CODECS, Codec, make
from two_stream.errors import VideoError
from two_stream.runtime.files import cache_folder, write_cached
from two_stream.video.decoding import backend_pyav, base, index
from two_stream.video.decoding.backend_pyav import PyavVideo, open_stream, version
from two_stream.video.decoding.index import read_packet_index, starts_like_index
from two_stream.video.decoding.reader import open_video

LONG = 150
GOP = Codec("libx264", ".mp4", options={"bf": "2", "g": "12", "x264-params": "scenecut=0"})


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TWO_STREAM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def moving(count: int = LONG) -> list[np.ndarray]:
    """A texture that moves on by a pixel or two in every frame, so that no two are alike."""
    scene = np.random.default_rng(0).integers(0, 256, (30, 60, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    return [scene[20 + k : 68 + k, 10 + 2 * k : 74 + 2 * k].copy() for k in range(count)]


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("film") / "clip.mp4", GOP, moving())


@pytest.fixture
def truth(film: Path) -> np.ndarray:
    return np.stack(list(open_video(film).frames()))


class Spy(PyavVideo):
    """Notes where decoding begins."""

    def __init__(self, path: Path) -> None:
        self.starts: list[int] = []
        super().__init__(path)

    def _decode(self, start: int = 0):
        self.starts.append(start)
        return super()._decode(start)


def picked(video, wanted) -> np.ndarray:
    found = list(video.pick(wanted))
    assert [number for number, _ in found] == sorted(set(wanted))
    return np.stack([picture for _, picture in found])


def test_a_fresh_file_is_read_from_the_key_frame_before(film: Path, truth: np.ndarray) -> None:
    assert not (truth[1:] == truth[:-1]).all(axis=(1, 2, 3)).any()
    video = Spy(film)
    np.testing.assert_array_equal(picked(video, range(100, 120)), truth[100:120])
    assert video.starts == [96]
    again = Spy(film)
    np.testing.assert_array_equal(again.read([149, 61]), truth[[149, 61]])
    assert again.starts == [60, 144]  # two key frames: what lies between is not decoded
    early = Spy(film)
    np.testing.assert_array_equal(picked(early, [3, 40]), truth[[3, 40]])
    assert early.starts == [0]  # so near the beginning an index does not pay


def test_the_index_of_a_full_pass_replaces_that_of_the_packets(film: Path, truth: np.ndarray) -> None:
    Spy(film).read([100])
    assert index.load_frame_index(film, version()).kind == "packets"
    assert open_video(film).num_frames == LONG
    kept = index.load_frame_index(film, version())
    assert (kept.kind, len(kept.pts), len(kept.prints)) == ("decoded", LONG, LONG)
    assert kept.keys == list(range(0, LONG, 12))
    video = Spy(film)
    np.testing.assert_array_equal(video.read([130, 131]), truth[[130, 131]])
    assert video.starts == [120]


@pytest.mark.parametrize("codec", [c for c in CODECS if c.suffix != ".gif"], ids=str)
def test_every_codec_gives_the_same_frames_with_and_without_an_index(
    codec: Codec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend_pyav, "_PAYS", 1)
    path = make(tmp_path / f"clip{codec.suffix}", codec, moving(60))
    truth = np.stack(list(open_video(path).frames()))
    for wanted in ([41, 43], [17], [59], [3, 30, 58], [8, 16, 24]):
        np.testing.assert_array_equal(picked(open_video(path), wanted), truth[wanted])
    with pytest.raises(VideoError, match=r"frame 60 was requested .* only 60 frames can be decoded"):
        open_video(path).read([50, 60])


def believed(path: Path) -> bool:
    with open_stream(path, 0) as (container, stream):
        found = read_packet_index(container, stream)
    if found is None:
        return False
    with open_stream(path, 0) as (container, stream):
        return starts_like_index(container, stream, found)


def test_packets_are_believed_only_where_key_frames_are_safe(tmp_path: Path) -> None:
    by_name = {str(codec): codec for codec in CODECS}
    safe = {
        name: believed(make(tmp_path / f"{place}{codec.suffix}", codec, moving(60)))
        for place, (name, codec) in enumerate(by_name.items())
        if codec.suffix != ".gif"
    }
    assert safe["h264-b-frames-yuv420p.mp4"]
    assert safe["h264-yuv420p10le.mp4"]
    assert safe["hevc-yuv420p.mp4"]
    assert safe["vp9-yuv420p.webm"]
    for doubtful in ("mpeg4-b-frames-yuv420p.avi", "vp8-yuv420p.webm", "av1-yuv420p.mp4", "ffv1-bgr0.mkv"):
        assert not safe[doubtful], doubtful


def test_recovery_points_are_no_key_frames(tmp_path: Path) -> None:
    """Intra refresh marks packets as key frames from which only part of the picture is right at first."""
    for codec in CODECS[1:3]:
        path = make(tmp_path / f"clip{codec.suffix}", codec, moving(60))
        with open_stream(path, 0) as (container, stream):
            flagged = sum(packet.is_keyframe for packet in container.demux(stream))
        with open_stream(path, 0) as (container, stream):
            found = read_packet_index(container, stream)
        assert found is None or len(found.keys) < flagged or flagged == 1


def test_an_edit_that_hides_frames_takes_a_full_pass(tmp_path: Path, film: Path, truth: np.ndarray) -> None:
    content = film.read_bytes()
    at = content.find(b"elst")
    assert at > 0
    start = int.from_bytes(content[at + 16 : at + 20], "big")
    with open_stream(film, 0) as (_, stream):
        step = round(1 / (25 * stream.time_base))
    moved = (start + 5 * step).to_bytes(4, "big")
    path = tmp_path / "edited.mp4"
    path.write_bytes(content[: at + 16] + moved + content[at + 20 :])
    assert not believed(path)
    whole = np.stack(list(open_video(path).frames()))
    assert len(whole) < LONG
    video = open_video(path)
    np.testing.assert_array_equal(picked(video, [100, 101]), whole[[100, 101]])


def test_a_damaged_file_keeps_the_frames_and_the_end_of_a_full_pass(film: Path, tmp_path: Path) -> None:
    content = film.read_bytes()
    path = tmp_path / "cut.mp4"
    shutil.copy(film, tmp_path / "fast.mp4")
    made = make(tmp_path / "fast.mp4", GOP, moving(), container_options={"movflags": "faststart"})
    content = made.read_bytes()
    start = content.find(b"mdat")
    path.write_bytes(content[: start + (len(content) - start) * 2 // 3])
    whole = list(open_video(path).frames())
    assert 60 < len(whole) < LONG
    for _ in range(2):  # unknown, then known
        np.testing.assert_array_equal(picked(open_video(path), [60, 61]), np.stack(whole[60:62]))
        with pytest.raises(VideoError, match=f"only {len(whole)} frames can be decoded"):
            open_video(path).read([len(whole)])
    assert index.load_frame_index(path, version()).kind == "none"


@pytest.mark.parametrize("wrong", ["stamp", "print"])
def test_a_wrong_index_is_given_up_for_good(film: Path, truth: np.ndarray, wrong: str) -> None:
    assert open_video(film).num_frames == LONG
    kept = index.load_frame_index(film, version())
    lie = index.Index(kept.pts.copy(), list(kept.keys), kept.prints.copy())
    if wrong == "stamp":
        lie.pts[100:] += 1
    else:
        lie.prints[102] ^= 1
    index.store_frame_index(film, version(), lie)
    video = Spy(film)
    np.testing.assert_array_equal(picked(video, [98, 99, 103]), truth[[98, 99, 103]])
    assert video.starts == [96, 0]
    assert index.load_frame_index(film, version()).kind == "none"


def test_packets_that_lie_are_replaced_by_a_full_pass(film: Path, truth: np.ndarray) -> None:
    Spy(film).read([100])
    kept = index.load_frame_index(film, version())
    pts = kept.pts.copy()
    pts[105:] += 1
    index.store_frame_index(film, version(), index.Index(pts, list(kept.keys), kind="packets"))
    video = Spy(film)
    np.testing.assert_array_equal(picked(video, range(100, 110)), truth[100:110])
    assert video.starts == [96, 0, 96]  # refuted, a full pass, and on from a key frame
    assert index.load_frame_index(film, version()).kind == "decoded"


def test_an_index_belongs_to_one_state_of_one_file_and_one_decoder(film: Path, tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    shutil.copy(film, path)
    open_video(path).read([100])
    assert index.load_frame_index(path, version()) is not None
    assert index.load_frame_index(path, "pyav 1.0") is None
    os.utime(path, ns=(1, 1))
    assert index.load_frame_index(path, version()) is None
    assert index.load_frame_index(film, version()) is None
    assert index.load_frame_index(tmp_path / "absent.mp4", version()) is None


def test_damaged_caches_and_places_that_cannot_be_written(
    film: Path, truth: np.ndarray, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_video(film).read([100])
    (file,) = [path for path in cache.rglob("*") if path.is_file()]
    content = file.read_bytes()
    for spoilt in (b"", content[:-3], content[:40], b"{}\n", content[:-1] + b"\x01\x02"):
        file.write_bytes(spoilt)
        assert index.load_frame_index(film, version()) is None
        np.testing.assert_array_equal(open_video(film).read([100]), truth[[100]])
    (tmp_path / "file").write_text("no folder")
    for place in (str(tmp_path / "file"), "off", ""):
        monkeypatch.setenv("TWO_STREAM_CACHE", place)
        video = Spy(film)
        np.testing.assert_array_equal(video.read([100]), truth[[100]])
        assert video.starts == [96]
        assert not index.store_frame_index(film, version(), index.Index(kind="none"))


def test_files_whose_packets_cannot_be_believed_take_one_full_pass_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make(tmp_path / "clip.webm", CODECS[10], moving(80))
    truth = np.stack(list(open_video(path).frames()))
    first, second = Spy(path), Spy(path)
    for video in (first, second):
        np.testing.assert_array_equal(picked(video, [70]), truth[[70]])
    assert first.starts[0] == 0  # the full pass
    assert second.starts[0] > 0  # its index
    monkeypatch.setenv("TWO_STREAM_CACHE", "off")
    third = Spy(path)
    np.testing.assert_array_equal(picked(third, [70]), truth[[70]])
    assert third.starts == [0]  # nothing can be kept, so no pass over what is not needed


def test_a_long_file_that_cannot_be_sought_is_named_once(
    film: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(PyavVideo, "_find_index", lambda self: None)
    monkeypatch.setattr(base, "FAR", 20)
    for wanted in (3, 20, 21):
        with open_video(film, "pyav") as video:
            assert [number for number, _ in video.pick([wanted])] == [wanted]
        said = " ".join(capsys.readouterr().err.split())
        assert said.count("decoded from its start") == (wanted == 20)


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TWO_STREAM_CACHE", str(tmp_path / "x"))
    assert cache_folder() == tmp_path / "x"
    monkeypatch.setenv("TWO_STREAM_CACHE", "off")
    assert cache_folder() is None
    monkeypatch.delenv("TWO_STREAM_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() in (
        tmp_path / ".cache" / "two-stream",
        tmp_path / "Library" / "Caches" / "two-stream",
    )
    assert write_cached(tmp_path / "a" / "b", b"1")
    assert (tmp_path / "a" / "b").read_bytes() == b"1"
    assert not write_cached(tmp_path / "a" / "b" / "c", b"1")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]


def test_odd_files_give_today_s_frames_from_anywhere(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend_pyav, "_PAYS", 1)
    rng = np.random.default_rng(0)
    names = [
        "decord/corrupted.mp4",
        "decord/unordered.mov",
        "mmaction2/demo.mp4",
        "torchcodec/h265_video.mp4",
    ]
    names += ["mmaction2/test.avi", "mp4parse/no_timescale.mp4", "torchcodec/av1_video.mkv"]
    for name in names:
        path = shared / "data" / "odd" / name
        truth = list(open_video(path).frames())
        for start in rng.integers(len(truth), size=3):
            (frame,) = open_video(path).read([start])
            np.testing.assert_array_equal(frame, truth[start])
        with pytest.raises(VideoError, match=f"only {len(truth)} frames can be decoded"):
            open_video(path).read([len(truth)])
