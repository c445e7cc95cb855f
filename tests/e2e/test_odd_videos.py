"""Real odd files from four projects: each decodes as far as it can, and each bad one is named with its reason."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from two_stream.commands.extract import main
from two_stream.errors import VideoError
from two_stream.video.decoding.reader import open_video
from two_stream.video.doctor import examine_videos
from two_stream.video.frames import count_frames

AUDIO = "no video stream (audio only)"
NOTHING = "no frame can be decoded, because the video is encrypted or empty"


@pytest.fixture(scope="module")
def probed(shared):
    """Map each file to (header frames or None, frames OpenCV decoded, frames PyAV decoded)."""
    found = {}
    for line in (shared / "data/odd/probe.txt").read_text().splitlines():
        name, cv, pyav = line.split()[0], *(part for part in line.split(" | ")[1:])
        header = re.search(r"hdr=(\d+)", cv)
        decoded = re.search(r"dec=(\d+)", pyav)
        opencv = int(re.search(r"dec=(\d+)", cv)[1])
        found[name] = (int(header[1]) if header else None, opencv, int(decoded[1]) if decoded else 0)
    assert len(found) == 57
    found["torchcodec/nasa_13013.mp4"] = (
        390,
        390,
        390,
    )  # its second video is FFmpeg's best; the probe read the first
    return found


def test_pyav_decodes_what_the_probe_says(shared, probed, capfd):
    for name, (_, _, expected) in probed.items():
        path = shared / "data/odd" / name
        if not expected:
            with pytest.raises(VideoError) as caught:
                open_video(path)
            assert caught.value.reason.startswith((AUDIO, NOTHING, "not a video")), name
            continue
        video = open_video(path)
        assert video.num_frames == expected, name
        last = video.read([expected - 1, 0])
        assert last.shape == (2, video.height, video.width, 3)
        with pytest.raises(VideoError):
            video.read([expected])
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("wide", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_opencv_gives_the_same_frames_where_it_can(shared, probed, capfd, wide):
    for name, (_, opencv, pyav) in probed.items():
        path = shared / "data/odd" / name
        # OpenCV spends 6 s on each wide-gamut file: one is enough
        if ("colr_nclx" in name) != wide or (wide and "hlg_full" not in name):
            continue
        if not opencv:
            reason = "OpenCV cannot decode av1" if pyav else f"^{re.escape(str(path))}: "
            with pytest.raises(VideoError, match=reason):
                open_video(path, "opencv")
            continue
        ours, theirs = open_video(path), open_video(path, "opencv")
        assert theirs.num_frames == opencv == pyav, name
        assert (theirs.height, theirs.width) == (ours.height, ours.width)
        wanted = [opencv - 1, opencv // 2, 0]
        gap = np.abs(ours.read(wanted).astype(int) - theirs.read(wanted))
        assert gap.mean() < 6, name  # colour ranges differ a little; a frame too far would differ much more
    assert capfd.readouterr().err == ""


def test_a_broken_rotation_is_ignored_and_a_real_one_applied(shared):
    broken = open_video(shared / "data/odd/mp4parse/no_timescale.mp4")
    assert (broken.width, broken.height) == (320, 240)
    upright = open_video(shared / "data/odd/decord/video_0.mov").read([0])[0].astype(int)
    for turn in (90, 180, 270):
        video = open_video(shared / f"data/odd/decord/video_{turn}.mov")
        assert ((video.width, video.height) == (568, 320)) == (turn == 180)
        assert video.read([0])[0].astype(int).shape == ((568, 320, 3) if turn != 180 else upright.shape)


@pytest.mark.timeout(400)
def test_extract_finishes_and_names_every_bad_file(shared, probed, tmp_path):
    report = tmp_path / "summary.json"
    args = [
        str(shared / "data/odd"),
        "--out",
        str(tmp_path / "out"),
        "--flow",
        "dis",
        "--short-side",
        "64",
        "--json",
        str(report),
    ]
    assert main(args) == 1
    videos = {video["id"]: video for video in json.loads(report.read_text())["videos"]}
    by_path = {video["path"]: video for video in videos.values()}
    assert {"mmaction2/test.avi", "mmaction2/test.mp4", "mmaction2/demo"} <= videos.keys()
    assert set(by_path) == {str(shared / "data/odd" / name) for name in probed}
    for name, (_, _, expected) in probed.items():
        known = by_path[str(shared / "data/odd" / name)]
        assert known["frames"] == expected, name
        assert (known["status"] == "failed") == (expected == 0), name
        assert bool(known["reason"]) == (expected == 0), name
        if expected:
            assert count_frames(tmp_path / "out" / known["id"], "rgb") == expected
            assert count_frames(tmp_path / "out" / known["id"], "flow") == expected - 1
        else:
            assert not (tmp_path / "out" / known["id"]).exists()
    damaged = {name for name, video in videos.items() if any("damaged" in one for one in video["warnings"])}
    assert damaged == {"decord/corrupted", "mp4parse/no_timescale"}


@pytest.mark.timeout(300)
def test_check_finishes_and_names_every_bad_file(shared, probed):
    folder = shared / "data/odd"
    by_name = {}
    for finding in examine_videos([folder], patience=30.0):
        by_name.setdefault(finding.subject.removeprefix(f"{folder}/"), {})[finding.kind] = finding.detail
    for name, (_, _, expected) in probed.items():
        kinds = set(by_name.get(name, {}))
        assert ("unreadable" in kinds) == (expected == 0), name
        assert ("too_short" in kinds) == (expected == 1), name
    named = {name for name, found in by_name.items() if {"damaged", "header_mismatch"} & set(found)}
    assert named == {"decord/corrupted.mp4", "mp4parse/no_timescale.mp4"}
    assert by_name["decord/corrupted.mp4"]["damaged"].startswith("28 of the header's 50 frames decode; ")
    assert by_name["mp4parse/no_timescale.mp4"]["damaged"].startswith("8 frames decode; ")
    assert by_name["mmaction2/part_1.mp4"]["doubled"] == f"same content as {folder}/mmaction2/part_0.mp4"
    assert by_name["mp4parse/amr_nb_1f.3gp"]["unreadable"] == AUDIO
    assert "the header states 5544" in by_name["mp4parse/invalid_userdata.mp4"]["unreadable"]
    assert "probe.txt" not in by_name
