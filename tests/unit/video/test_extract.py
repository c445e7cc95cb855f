"""Frame folders: right pictures, whole or absent, skipped when finished, redone when not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.helpers.videos import CODECS, FRAMES, H264, make, make_audio, make_cut, numbers_of
from two_stream.commands.extract import main
from two_stream.errors import DataError, SettingsError
from two_stream.video.extraction.many_videos import extract
from two_stream.video.extraction.one_video import ExtractOptions, frame_size
from two_stream.video.flow import FlowEstimator
from two_stream.video.frames import FramePatterns, count_frames, read_extraction_manifest, read_frames
from two_stream.video.sources import Source, find_collisions, find_sources, folder_ids

QUICK = ExtractOptions(flow="dis", short_side=None, processes=0)


def moving(count=6):
    noise = np.random.default_rng(0).random((100, 120)).astype(np.float32)
    big = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2), None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)
    return [np.repeat(big[20:84, 40 - 3 * k : 104 - 3 * k, None], 3, axis=2).copy() for k in range(count)]


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(".*") if path.name != ".done.json"]


def test_frames_and_flow_land_under_their_numbers(tmp_path):
    path = make(tmp_path / "clip.mp4", H264)
    summary = extract([Source("a/clip", path)], tmp_path / "out", QUICK)
    folder = tmp_path / "out" / "a" / "clip"
    assert [outcome.status for outcome in summary.outcomes] == ["written"]
    assert count_frames(folder, "rgb") == FRAMES
    assert count_frames(folder, "flow") == FRAMES - 1
    assert numbers_of(read_frames(folder, range(1, FRAMES + 1), "rgb")) == list(range(FRAMES))
    manifest = read_extraction_manifest(folder)
    assert (manifest["frames"], manifest["flow_frames"]) == (FRAMES, FRAMES - 1)
    assert manifest["backend_version"].startswith("pyav ")
    assert manifest["settings"]["flow"] == "dis"
    assert manifest["size"] == path.stat().st_size
    assert hidden(tmp_path / "out") == []


@pytest.mark.parametrize("algorithm", ["tvl1", "dis", "farneback"])
def test_stored_flow_is_that_of_the_algorithm(tmp_path, algorithm):
    path = make(tmp_path / "clip.mkv", CODECS[-1], moving())
    options = ExtractOptions(flow=algorithm, short_side=None, processes=0, quality=100)
    extract([Source("clip", path)], tmp_path / "out", options)
    stored = read_frames(tmp_path / "out" / "clip", [1, 5], "flow").astype(int)
    frames = [picture[..., 0] for picture in moving()]
    for row, number in enumerate((1, 5)):
        exact = FlowEstimator(algorithm)(frames[number - 1], frames[number]).astype(int)
        assert np.abs(stored[row] - exact).mean() < 1.5
        assert (
            abs(np.median(stored[row][..., 0]) - round((3 + 20) * 255 / 40)) <= 1
        )  # three pixels to the right


def test_sizes():
    assert frame_size(240, 320, ExtractOptions(short_side=256)) == (256, 341)
    assert frame_size(1280, 720, ExtractOptions(short_side=256)) == (455, 256)
    assert frame_size(240, 320, ExtractOptions(size=(256, 340))) == (256, 340)
    assert frame_size(240, 320, ExtractOptions(short_side=None)) == (240, 320)


def test_published_names_without_extension(tmp_path):
    patterns = FramePatterns(flow_x="flow_x_{:05d}", flow_y="flow_y_{:05d}")
    path = make(tmp_path / "clip.mp4")
    options = ExtractOptions(flow="farneback", size=(30, 40), processes=0, patterns=patterns)
    extract([Source("clip", path)], tmp_path / "out", options)
    folder = tmp_path / "out" / "clip"
    assert (folder / "flow_x_00023").read_bytes().startswith(b"\xff\xd8")
    assert read_frames(folder, [23], "flow", patterns).shape == (1, 30, 40, 2)


def test_finished_is_skipped_other_settings_are_refused_overwrite_redoes(tmp_path):
    source = [Source("clip", make(tmp_path / "clip.mp4"))]
    out = tmp_path / "out"
    extract(source, out, QUICK)
    stamp = (out / "clip" / "img_00001.jpg").stat().st_mtime_ns
    again = extract(source, out, QUICK).outcomes[0]
    assert (again.status, again.frames, again.flow_frames) == ("skipped", FRAMES, FRAMES - 1)
    assert (out / "clip" / "img_00001.jpg").stat().st_mtime_ns == stamp
    other = ExtractOptions(flow="none", short_side=None, processes=0)
    refused = extract(source, out, other).outcomes[0]
    assert refused.status == "failed"
    assert "flow dis -> none; use --overwrite to extract it again" in refused.reason
    assert count_frames(out / "clip", "flow") == FRAMES - 1
    redone = ExtractOptions(flow="none", short_side=None, processes=0, overwrite=True)
    assert extract(source, out, redone).outcomes[0].status == "written"
    assert count_frames(out / "clip", "flow") == 0
    assert hidden(out) == []


def test_a_changed_video_is_noticed(tmp_path):
    path = make(tmp_path / "clip.mp4")
    extract([Source("clip", path)], tmp_path / "out", QUICK)
    os.utime(path, ns=(1, 1))
    outcome = extract([Source("clip", path)], tmp_path / "out", QUICK).outcomes[0]
    assert "the video file has changed" in outcome.reason


def test_half_finished_is_redone(tmp_path):
    source, out = [Source("clip", make(tmp_path / "clip.mp4"))], tmp_path / "out"
    extract(source, out, QUICK)
    (out / "clip" / "img_00007.jpg").unlink()
    assert extract(source, out, QUICK).outcomes[0].status == "written"
    assert (out / "clip" / "img_00007.jpg").is_file()
    (out / "clip" / ".done.json").unlink()
    outcome = extract(source, out, QUICK).outcomes[0]
    assert outcome.status == "written"
    assert outcome.warnings == [f"replaced {2 * FRAMES - 2 + FRAMES} files of an unfinished folder"]


def test_what_is_no_frame_is_never_deleted(tmp_path):
    source, out = [Source("clip", make(tmp_path / "clip.mp4"))], tmp_path / "out"
    (out / "clip").mkdir(parents=True)
    (out / "clip" / "thesis.pdf").write_text("years of work")
    outcome = extract(source, out, ExtractOptions(flow="none", processes=0, overwrite=True)).outcomes[0]
    assert outcome.status == "failed"
    assert "contains a file that is not a frame (thesis.pdf)" in outcome.reason
    assert (out / "clip" / "thesis.pdf").read_text() == "years of work"


def test_leftovers_of_the_dead_go_those_of_the_living_stay(tmp_path):
    import socket

    out = tmp_path / "out"
    dead = subprocess.Popen([sys.executable, "-c", "pass"])
    dead.wait()
    host = socket.gethostname()
    for pid in (dead.pid, os.getppid()):
        (out / f".clip.{host}-{pid}.part").mkdir(parents=True)
    extract([Source("clip", make(tmp_path / "clip.mp4"))], out, QUICK)
    assert hidden(out) == [f".clip.{host}-{os.getppid()}.part"]


def test_on_windows_no_signal_is_sent_to_ask_whether_a_process_lives(tmp_path, monkeypatch):
    import socket

    from two_stream.runtime import files as module

    def kill(pid, number):
        raise AssertionError("on Windows this is Ctrl-C")

    old, new = (tmp_path / f".{name}.{socket.gethostname()}-1.part" for name in ("old", "new"))
    for folder in (old, new):
        folder.mkdir()
    os.utime(old, (time.time() - 7200, time.time() - 7200))
    monkeypatch.setattr(module, "_WINDOWS", True)
    monkeypatch.setattr(module.os, "kill", kill)
    module.clear_leftovers({tmp_path})
    assert hidden(tmp_path) == [new.name]


def test_every_failure_is_listed_and_the_rest_is_done(tmp_path):
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    make(folder / "fine.mp4")
    make(folder / "sub" / "one.mp4", H264, moving(1))
    (folder / "text.mp4").write_text("no video")
    (folder / "empty.avi").touch()
    (folder / "readme.md").write_text("ignored")
    (folder / "._fine.mp4").write_text("resource fork")
    make_audio(folder / "sound.mkv")
    make(folder / "twin.avi", CODECS[12])
    make(folder / "twin.mp4")
    make_cut(folder / "cut.mp4")
    report = tmp_path / "summary.json"
    args = [
        str(folder),
        "--out",
        str(tmp_path / "out"),
        "--flow",
        "dis",
        "--processes",
        "2",
        "--json",
        str(report),
    ]
    assert main(args) == 1
    found = json.loads(report.read_text())
    by_id = {video["id"]: video for video in found["videos"]}
    assert (found["written"], found["skipped"], found["failed"], found["ignored"]) == (5, 0, 3, 2)
    assert set(by_id) == {"cut", "empty", "fine", "sound", "sub/one", "text", "twin.avi", "twin.mp4"}
    assert "not a video" in by_id["text"]["reason"]
    assert by_id["empty"]["reason"] == "empty file (0 bytes)"
    assert by_id["sound"]["reason"] == "no video stream (audio only)"
    for name in ("twin.avi", "twin.mp4"):
        assert (by_id[name]["status"], by_id[name]["frames"]) == ("written", FRAMES)
        assert read_extraction_manifest(tmp_path / "out" / name)["source"] == str(folder / name)
        assert count_frames(tmp_path / "out" / name, "flow") == FRAMES - 1
    assert by_id["sub/one"]["warnings"] == ["too short for flow: one frame"]
    assert (by_id["sub/one"]["frames"], by_id["sub/one"]["flow_frames"]) == (1, 0)
    assert by_id["cut"]["warnings"][0].startswith("damaged: ")
    assert 1 < by_id["cut"]["frames"] <= FRAMES
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "cut",
        "fine",
        "sub",
        "twin.avi",
        "twin.mp4",
    ]


def test_command_lines_that_cannot_work(tmp_path):
    make(tmp_path / "clip.mp4")
    out = str(tmp_path / "out")
    with pytest.raises(DataError, match="no such file or folder"):
        main([str(tmp_path / "absent"), "--out", out])
    (tmp_path / "void").mkdir()
    with pytest.raises(DataError, match="no video files"):
        main([str(tmp_path / "void"), "--out", out])
    with pytest.raises(SettingsError, match="cannot be combined"):
        main([str(tmp_path), "--out", out, "--size", "64", "80", "--short-side", "64"])
    with pytest.raises(SettingsError, match="quality"):
        main([str(tmp_path), "--out", out, "--quality", "0"])
    with pytest.raises(DataError, match="the output folder cannot be created"):
        main([str(tmp_path), "--out", str(tmp_path / "clip.mp4" / "x"), "--processes", "0"])


def test_fixed_size_and_success_code(tmp_path, capsys):
    make(tmp_path / "clip.mp4")
    out = tmp_path / "out"
    args = [
        str(tmp_path / "clip.mp4"),
        "--out",
        str(out),
        "--flow",
        "none",
        "--size",
        "32",
        "56",
        "--processes",
        "0",
    ]
    assert main(args) == 0
    assert read_frames(out / "clip", [1], "rgb").shape == (1, 32, 56, 3)
    assert "1 written (24 frames" in capsys.readouterr().out


def test_lists_of_videos(tmp_path):
    (tmp_path / "videos" / "a b").mkdir(parents=True)
    for name in ("x.mp4", "a b/y.avi"):
        (tmp_path / "videos" / name).touch()
    listing = tmp_path / "videos" / "list.txt"
    absolute = tmp_path / "videos" / "x.mp4"
    listing.write_text(
        f"# comment\nx.mp4\n\na b/y.avi\na b/y.avi named\n{absolute}\ngone.mp4 other/id\nx.mp4\tthird.mp4\n"
    )
    sources, ignored = find_sources(listing)
    assert ignored == 0
    assert [source.id for source in sources] == ["x", "a b/y", "named", "x", "other/id", "third.mp4"]
    assert [source.path.relative_to(tmp_path / "videos").as_posix() for source in sources] == [
        "x.mp4",
        "a b/y.avi",
        "a b/y.avi",
        "x.mp4",
        "gone.mp4",
        "x.mp4",
    ]
    listing.write_text("# nothing\n#\n#\tnor here\n")
    with pytest.raises(DataError, match="list of videos is empty"):
        find_sources(listing)
    listing.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="the list of videos cannot be read as text"):
        find_sources(listing)


def test_a_listed_video_may_begin_with_a_hash(tmp_path):
    """As HMDB51's `#20_Rhythm_clap_u_nm_np1_fr_goo_0.avi` does."""
    for name in ("#20_Rhythm_clap.avi", "# one.avi"):
        (tmp_path / name).touch()
    (tmp_path / "list.txt").write_text(
        "#20_Rhythm_clap.avi\n# two.avi\n# one.avi\n#20_Rhythm_clap.avi id\n#gone.avi\n"
    )
    sources, _ = find_sources(tmp_path / "list.txt")
    assert [source.id for source in sources] == ["#20_Rhythm_clap", "# one", "id", "#gone"]
    assert [source.path.exists() for source in sources] == [True, True, True, False]


def test_files_that_differ_in_the_suffix_keep_it_in_their_ids(tmp_path):
    names = ["a/x.avi", "a/x.mp4", "b/x.mp4", "x.y.mkv", "x.mkv", "a.mp4"]
    expected = ["a/x.avi", "a/x.mp4", "b/x", "x.y", "x", "a"]
    assert folder_ids(tmp_path, [tmp_path / name for name in names]) == expected
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert {
        source.id: source.path.relative_to(tmp_path).as_posix() for source in find_sources(tmp_path)[0]
    } == dict(zip(expected, names))


def test_equal_ids_of_a_list_are_refused(tmp_path):
    (tmp_path / "list.txt").write_text("twin.avi\ntwin.mp4\nlone.mp4\n")
    sources, _ = find_sources(tmp_path / "list.txt")
    found = find_collisions(sources)
    assert sorted(found) == [0, 1]
    for index in (0, 1):
        assert found[index] == (
            f"several videos have the id 'twin': {tmp_path / 'twin.avi'} and {tmp_path / 'twin.mp4'}; "
            "rename one, or list `path id`"
        )


def test_folders_that_would_meet_are_refused():
    found = find_collisions([Source(name, Path("v.mp4")) for name in ("a", "a/b", "c", "../d", "ab")])
    assert sorted(found) == [0, 1, 3]
    assert "'a' would contain that of 'a/b'" in found[0]
    assert "not a relative folder name" in found[3]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kill", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_killed_run_leaves_whole_folders_and_is_finished_by_the_next(tmp_path, kill):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    first = make(folder / "v0.mp4", H264, moving(7) * 2)
    for number in range(1, 5):
        (folder / f"v{number}.mp4").write_bytes(first.read_bytes())
    command = [sys.executable, "-m", "two_stream", "extract", str(folder), "--out", str(out)]
    command += ["--flow", "tvl1", "--short-side", "32", "--processes", "1"]
    running = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    limit = time.monotonic() + 60
    while not list(out.glob("v*")) and time.monotonic() < limit:
        time.sleep(0.02)
    time.sleep(0.2)
    os.killpg(running.pid, kill) if kill == signal.SIGINT else running.kill()
    _, complaint = running.communicate(timeout=30)
    if kill == signal.SIGINT:
        assert running.returncode == 130
        assert complaint.splitlines()[-1] == "two-stream: interrupted"
        assert "Traceback" not in complaint
        assert hidden(out) == []
    finished = {path.name: path.stat().st_ino for path in out.glob("v*")}
    assert 1 <= len(finished) < 5
    for name in finished:
        assert read_extraction_manifest(out / name)["frames"] == count_frames(out / name, "rgb") == 14
    summary = extract(find_sources(folder)[0], out, ExtractOptions(flow="tvl1", short_side=32, processes=2))
    assert {one.id for one in summary.by_status("skipped")} >= set(finished)
    assert summary.failed == []
    for number in range(5):
        assert count_frames(out / f"v{number}", "flow") == 13
        if f"v{number}" in finished:
            assert (out / f"v{number}").stat().st_ino == finished[f"v{number}"]


def test_wrong_options_are_named():
    for wrong, what in (
        ({"flow": "lucas"}, "--flow is 'lucas'"),
        ({"flow": "raft"}, "--flow raft needs --flow-weights FILE"),
        ({"flow": "dis", "network": object()}, "--flow dis uses no weights"),
        ({"threads": 0}, "--threads"),
        ({"quality": 101}, "--quality"),
        ({"short_side": 3}, "frame size"),
    ):
        with pytest.raises(SettingsError, match=what):
            ExtractOptions(**wrong)


def test_the_longest_video_is_begun_first_and_the_summary_keeps_the_order(tmp_path, monkeypatch):
    from two_stream.video.extraction import many_videos as module

    begun = []

    def note(job, beat):
        begun.append(job.source.id)
        return module.ExtractionOutcome(job.source.id, str(job.source.path), "written")

    sources = []
    for name, size in (("a", 10), ("b", 30), ("c", 20), ("d", 30)):
        (tmp_path / name).write_bytes(bytes(size))
        sources.append(Source(name, tmp_path / name))
    sources.append(Source("gone", tmp_path / "gone"))
    monkeypatch.setattr(module, "extract_video", note)
    summary = extract(sources, tmp_path / "out", QUICK)
    assert begun == ["b", "d", "c", "a", "gone"]
    assert [outcome.id for outcome in summary.outcomes] == ["a", "b", "c", "d", "gone"]


class Shift:
    """A flow network that says (1, 2) everywhere, by way of `FlowNetwork`."""

    gpus = 0

    def recorded(self):
        return {"flow_model": "shift"}

    def maker(self, place, threads):
        return self

    def flows(self, pictures):
        waiting = list(pictures)  # a network may read ahead
        for picture in waiting[1:]:
            yield np.broadcast_to(np.array([134, 140], np.uint8), (*picture.shape[:2], 2))


def test_a_network_s_flow_is_stored_and_recorded(tmp_path):
    source = [Source("clip", make(tmp_path / "clip.mp4"))]
    options = ExtractOptions(flow="raft", network=Shift(), short_side=None, processes=0)
    assert extract(source, tmp_path / "out", options).outcomes[0].flow_frames == FRAMES - 1
    folder = tmp_path / "out" / "clip"
    assert count_frames(folder, "rgb") == FRAMES
    stored = read_frames(folder, [1, FRAMES - 1], "flow")
    np.testing.assert_array_equal(stored, np.broadcast_to([134, 140], stored.shape))
    assert read_extraction_manifest(folder)["settings"]["flow_model"] == "shift"
    refused = extract(source, tmp_path / "out", ExtractOptions(flow="dis", short_side=None, processes=0))
    assert "flow raft -> dis" in refused.failed[0].reason
