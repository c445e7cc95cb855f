"""The doctor names each sick file with its complaint, and leaves the healthy ones alone."""

from __future__ import annotations

import struct

import cv2
import numpy as np
import pytest

from tests.helpers.videos import CODECS, FRAMES, H264, make, make_audio, make_cut, picture
from two_stream.video import doctor
from two_stream.video.doctor import examine_frame_folders, examine_videos
from two_stream.video.extraction.many_videos import extract
from two_stream.video.extraction.one_video import ExtractOptions
from two_stream.video.sources import Source


def told(findings, subject):
    return [(finding.kind, finding.severity) for finding in findings if finding.subject == str(subject)]


def test_videos_by_name(tmp_path):
    fine = make(tmp_path / "fine.mp4")
    twin = tmp_path / "twin.mp4"
    twin.write_bytes(fine.read_bytes())
    one = make(tmp_path / "one.mp4", H264, [picture(0)])
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    sound = make_audio(tmp_path / "sound.mkv")
    cut = make_cut(tmp_path / "cut.mp4")
    liar = make(tmp_path / "liar.avi", CODECS[12])
    content = bytearray(liar.read_bytes())
    struct.pack_into("<I", content, content.find(b"strh") + 40, 5000)
    liar.write_bytes(content)
    (tmp_path / "notes.txt").write_text("left out")
    absent = tmp_path / "absent.mp4"

    findings = examine_videos([tmp_path, absent], processes=0)
    assert told(findings, fine) == []
    assert told(findings, twin) == [("doubled", "warning")]
    assert told(findings, one) == [("too_short", "warning")]
    assert told(findings, text) == [("unreadable", "error")]
    assert told(findings, sound) == [("unreadable", "error")]
    assert told(findings, cut) == [("damaged", "warning")]
    assert told(findings, liar) == [("header_mismatch", "info")]
    assert told(findings, absent) == [("unreadable", "error")]
    assert len(findings) == 7
    details = {finding.subject: finding.detail for finding in findings}
    assert details[str(twin)] == f"same content as {fine}"
    assert details[str(one)] == "1 frame, expected at least 2"
    assert details[str(liar)] == f"{FRAMES} frames decode, the header states 5000"
    assert f"of the header's {FRAMES} frames decode; " in details[str(cut)]
    assert details[str(absent)] == "no such file"
    assert findings[0].as_dict().keys() == {"kind", "severity", "subject", "detail"}


def test_min_frames(tmp_path):
    path = make(tmp_path / "clip.mp4")
    assert examine_videos([path], processes=0, min_frames=FRAMES) == []
    assert told(examine_videos([path], processes=0, min_frames=FRAMES + 1), path) == [
        ("too_short", "warning")
    ]


@pytest.mark.timeout(90)
def test_a_file_that_hangs_or_kills_its_decoder_is_named_and_the_rest_examined(tmp_path, monkeypatch):
    paths = [make(tmp_path / f"{name}.mp4") for name in ("fine", "hang", "kill", "last")]
    (tmp_path / "last.mp4").write_text("no video")
    monkeypatch.setattr(doctor, "examine_video", sick_examine)
    findings = examine_videos(paths, processes=2, patience=1.5)
    told_all = [(finding.kind, finding.subject) for finding in findings if finding.kind != "doubled"]
    assert told_all == [
        ("timed_out", str(paths[1])),
        ("unreadable", str(paths[2])),
        ("unreadable", str(paths[3])),
    ]
    assert "no progress for 1.5 s" in findings[[f.kind for f in findings].index("timed_out")].detail


def sick_examine(job, beat):
    """Stands for a decoder that hangs or crashes; runs in a worker."""
    import os
    import time

    if job.path.stem == "hang":
        time.sleep(600)
    if job.path.stem == "kill":
        os.abort()
    return doctor.examine_video(job, beat)


@pytest.fixture
def folder(tmp_path):
    path = make(tmp_path / "clip.mp4")
    extract(
        [Source("clip", path)], tmp_path / "out", ExtractOptions(flow="dis", short_side=None, processes=0)
    )
    return tmp_path / "out" / "clip"


def examined(folder, **options):
    return [
        (finding.kind, finding.severity, finding.detail)
        for finding in examine_frame_folders([folder], processes=0, **options)
    ]


def test_a_healthy_frame_folder(folder):
    assert examined(folder) == []
    assert examined(folder, decode=True) == []


def test_missing_numbers_and_folders(folder):
    (folder / "img_00004.jpg").unlink()
    (folder / "img_00009.jpg").unlink()
    assert examined(folder) == [
        ("missing", "error", "img_00004.jpg and 1 more missing in the sequence"),
        ("rgb_flow_mismatch", "error", "22 RGB frames, but 23 flow frames (expected 21)"),
    ]
    assert examined(folder / "absent") == [("missing", "error", "no such folder of frames")]


def test_cut_and_empty_pictures_are_named(folder):
    cut, empty, middle = folder / "img_00002.jpg", folder / "flow_x_00003.jpg", folder / "img_00005.jpg"
    cut.write_bytes(cut.read_bytes()[:-30])
    empty.write_bytes(b"")
    noisy = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    content = cv2.imencode(".jpg", noisy)[1].tobytes()
    middle.write_bytes(content[:4] + b"\x00" * 400 + content[404:])
    found = examine_frame_folders([folder], processes=0)
    assert [(finding.subject, finding.detail) for finding in found] == [
        (str(cut), "truncated JPEG: the end of the file is missing"),
        (str(empty), "empty file (0 bytes)"),
    ]
    deep = examine_frame_folders([folder], processes=0, decode=True)
    assert str(middle) in {finding.subject for finding in deep}


def test_flow_that_does_not_fit_its_rgb(folder):
    (folder / "flow_y_00023.jpg").unlink()
    assert examined(folder) == [("rgb_flow_mismatch", "error", "23 flow x images, but 22 flow y images")]
    (folder / "flow_x_00023.jpg").unlink()
    assert examined(folder) == [
        ("rgb_flow_mismatch", "error", "24 RGB frames, but 22 flow frames (expected 23)")
    ]
    assert examined(folder, modalities=("rgb",)) == []
    for path in folder.glob("flow_*"):
        path.unlink()
    assert examined(folder) == [("missing", "error", "no flow (flow_x_{:05d}.jpg)")]


def test_damage_of_the_video_is_remembered(tmp_path):
    cut = make_cut(tmp_path / "cut.mp4")
    extract([Source("cut", cut)], tmp_path / "out", ExtractOptions(flow="none", processes=0))
    found = examined(tmp_path / "out" / "cut", modalities=("rgb",))
    assert [(kind, severity) for kind, severity, _ in found] == [("damaged", "warning")]
    assert found[0][2].startswith("its video: ")
