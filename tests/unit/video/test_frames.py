"""Frame folders: names, order of channels, and what is said about a broken file."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from two_stream.errors import SettingsError, VideoError
from two_stream.video import frames as module
from two_stream.video.frames import FramePatterns, count_frames, names_by_number, read_frames

PUBLISHED = FramePatterns(flow_x="flow_x_{:05d}", flow_y="flow_y_{:05d}")


def jpeg(picture):
    return cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


@pytest.fixture
def folder(tmp_path):
    for number in range(1, 6):
        rgb = np.empty((24, 32, 3), np.uint8)
        rgb[...] = (200, 30, 10 * number)
        (tmp_path / f"img_{number:05d}.jpg").write_bytes(jpeg(rgb[..., ::-1]))
        if number < 5:
            (tmp_path / f"flow_x_{number:05d}").write_bytes(jpeg(np.full((24, 32), 100 + number, np.uint8)))
            (tmp_path / f"flow_y_{number:05d}").write_bytes(jpeg(np.full((24, 32), 50 + number, np.uint8)))
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "img_00001.jpg.bak").write_text("x")
    return tmp_path


def test_rgb_order_numbers_and_repeats(folder, monkeypatch):
    reads = []
    original = module.read_picture
    monkeypatch.setattr(
        module, "read_picture", lambda path, *more: reads.append(path.name) or original(path, *more)
    )
    clip = read_frames(folder, [4, 1, 4, 4, 2], "rgb")
    assert clip.shape == (5, 24, 32, 3)
    assert clip.dtype == np.uint8
    for row, number in enumerate([4, 1, 4, 4, 2]):
        np.testing.assert_allclose(clip[row].reshape(-1, 3).mean(0), (200, 30, 10 * number), atol=3)
    assert reads == ["img_00004.jpg", "img_00001.jpg", "img_00002.jpg"]


def test_flow_is_x_then_y_and_needs_no_extension(folder):
    clip = read_frames(folder, [2, 3], "flow", PUBLISHED)
    assert clip.shape == (2, 24, 32, 2)
    np.testing.assert_allclose(clip.mean(axis=(1, 2)), [(102, 52), (103, 53)], atol=0.6)


def test_resize_is_bilinear_per_picture(folder):
    small = read_frames(folder, [1], "rgb", resize=(12, 20))
    whole = read_frames(folder, [1], "rgb")
    np.testing.assert_array_equal(small[0], cv2.resize(whole[0], (20, 12), interpolation=cv2.INTER_LINEAR))
    assert read_frames(folder, [1], "flow", PUBLISHED, resize=(12, 20)).shape == (1, 12, 20, 2)


def test_counting(folder):
    assert count_frames(folder, "rgb") == 5
    assert count_frames(folder, "flow", PUBLISHED) == 4
    assert count_frames(folder, "flow") == 0
    (folder / "flow_y_00002").unlink()
    assert count_frames(folder, "flow", PUBLISHED) == 3
    with pytest.raises(VideoError, match="no such folder of frames"):
        count_frames(folder / "absent", "rgb")
    with pytest.raises(VideoError, match="expected a folder of frames, found a file"):
        count_frames(folder / "notes.txt", "rgb")


@pytest.mark.parametrize("cut", [0.5, 0.9, 0.999])
def test_a_cut_file_fails_with_its_name(folder, cut):
    path = folder / "img_00003.jpg"
    content = jpeg(np.random.default_rng(0).integers(0, 255, (24, 32, 3), np.uint8))
    path.write_bytes(content[: int(len(content) * cut)])
    with pytest.raises(VideoError, match="truncated JPEG") as caught:
        read_frames(folder, [1, 2, 3], "rgb")
    assert caught.value.path == str(path)


def test_other_broken_files_fail_with_their_names(folder):
    for content, reason in ((b"", r"empty file \(0 bytes\)"), (b"text, no picture", "not an image")):
        (folder / "img_00002.jpg").write_bytes(content)
        with pytest.raises(VideoError, match=rf"img_00002\.jpg: {reason}"):
            read_frames(folder, [2], "rgb")
    with pytest.raises(VideoError, match=r"img_00009\.jpg: no such frame"):
        read_frames(folder, [9], "rgb")
    with pytest.raises(VideoError, match="no such frame: its folder is missing"):
        read_frames(folder / "absent", [1], "rgb")
    (folder / "img_00004.jpg").write_bytes(jpeg(np.zeros((10, 10, 3), np.uint8)))
    with pytest.raises(VideoError, match=r"img_00004\.jpg: is 10×10, other frames of the folder 32×24"):
        read_frames(folder, [1, 4], "rgb")
    with pytest.raises(VideoError, match="expected at least one frame number"):
        read_frames(folder, [], "rgb")


def test_patterns_pick_exactly_their_names():
    names = [
        "img_00001.jpg",
        "img_00012.jpg",
        "img_1.jpg",
        "img_100000.jpg",
        "img_0000012.jpg",
        "ximg_00002.jpg",
    ]
    assert names_by_number(names, "img_{:05d}.jpg") == {
        1: "img_00001.jpg",
        12: "img_00012.jpg",
        100000: "img_100000.jpg",
    }
    assert names_by_number(["7", "07", "x"], "{}") == {7: "7"}
    assert names_by_number(["a.b1", "axb2"], "a.b{:d}") == {1: "a.b1"}


@pytest.mark.parametrize(
    "pattern", ["img.jpg", "{:05d}_{:05d}.jpg", "sub/img_{:05d}.jpg", ".img_{:05d}", "img_{x}.jpg"]
)
def test_a_wrong_pattern_is_refused(pattern):
    with pytest.raises(SettingsError, match="frame pattern rgb"):
        FramePatterns(rgb=pattern)


def test_patterns_must_differ():
    with pytest.raises(SettingsError, match="expected three different patterns"):
        FramePatterns(flow_x="flow_{:05d}.jpg", flow_y="flow_{:05d}.jpg")
