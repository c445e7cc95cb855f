"""The data doctor on data sets, and `two-stream check`: each fault planted once and found by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from two_stream.commands import check as command
from two_stream.data.catalog import Record, load_record
from two_stream.data.demo import DemoOptions, encode, render
from two_stream.data.options import AuditOptions
from two_stream.data.prepare.audit import audit
from two_stream.errors import DataError, SettingsError
from two_stream.video.doctor import Finding

QUICK = AuditOptions(processes=0)


def found(record: Record, options: AuditOptions = QUICK) -> set[tuple[str, str]]:
    return {(f.kind, f.severity) for f in audit(record, options)}


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def edit(path: Path, change: Callable[[list[str]], list[str]]) -> None:
    path.write_text("".join(f"{line}\n" for line in change(lines(path))))


def one(record: Record, kind: str, severity: str) -> Finding:
    """The only finding of a kind and severity, or the first of several about the same."""
    hits = [f for f in audit(record, QUICK) if (f.kind, f.severity) == (kind, severity)]
    assert hits
    return hits[0]


@pytest.fixture
def sound(tiny: Record) -> Record:
    """The tiny data set where every source has videos of one class only."""
    for split in (1, 2):
        for part in ("train", "val"):
            for modality in ("rgb", "flow"):
                path = tiny.folder / f"{part}_{modality}_split{split}.txt"
                edit(
                    path,
                    lambda old: [f"{x.rsplit(maxsplit=1)[0]} {int(x.split('_g')[1][:2]) % 3}" for x in old],
                )
    return tiny


def test_sound_data_set_has_no_errors(sound: Record) -> None:
    findings = audit(sound, QUICK)
    assert [f for f in findings if f.severity == "error"] == []
    empty = [f for f in findings if f.kind == "imbalance" and "no video" in f.detail]
    assert len(empty) == 4  # each of the four test lists holds one class of three
    assert "2 of 3 classes" in empty[0].detail


def test_doubled_id_names_both_lines(sound: Record) -> None:
    path = sound.list_path("train", "rgb", 1)
    edit(path, lambda old: [*old, old[1]])
    finding = one(sound, "doubled", "error")
    assert finding.subject == str(path)
    assert lines(path)[1].split()[0] in finding.detail
    assert "lines 2 and 11" in finding.detail


def test_video_on_both_sides(sound: Record) -> None:
    video = lines(sound.list_path("test", "rgb", 1))[0]
    edit(sound.list_path("train", "rgb", 1), lambda old: [*old, video])
    finding = one(sound, "leakage", "error")
    assert video.split()[0] in finding.detail
    assert finding.subject == str(sound.list_path("test", "rgb", 1))


def test_source_on_both_sides_is_worse_within_a_class(sound: Record) -> None:
    test = lines(sound.list_path("test", "rgb", 1))
    for modality in ("rgb", "flow"):
        edit(sound.list_path("test", modality, 1), lambda old: old[:1])  # type: ignore[arg-type]
        moved = test[1] if modality == "rgb" else test[1].replace(" 6 ", " 5 ")
        edit(sound.list_path("train", modality, 1), lambda old, moved=moved: [*old, moved])  # type: ignore[misc, arg-type]
    leaks = [f for f in audit(sound, QUICK) if f.kind == "leakage"]  # once for both streams
    assert [f.severity for f in leaks] == ["error", "info"]
    assert leaks[0].subject == str(sound.list_path("test", "rgb", 1))
    assert leaks[0].detail == "source 'g01' has videos of class 'run' in the training list too"
    assert "or accept a published split with --official-split" in leaks[1].detail
    (accepted,) = [f for f in audit(sound, replace(QUICK, official_split=True)) if f.kind == "leakage"]
    assert accepted == replace(leaks[0], severity="warning")
    for modality in ("rgb", "flow"):
        edit(sound.list_path("train", modality, 1), lambda old: [*old[:-1], old[-1][:-1] + "2"])  # type: ignore[arg-type]
    assert ("leakage", "error") not in found(sound)
    assert "1 source has videos of different classes" in one(sound, "leakage", "warning").detail


def test_label_out_of_range_and_label_that_changes(sound: Record) -> None:
    path = sound.list_path("train", "rgb", 1)
    edit(path, lambda old: [old[0][:-1] + "7", old[1][:-1] + "2", *old[2:]])
    details = [f.detail for f in audit(sound, QUICK) if f.kind == "label"]
    assert any("line 1: label 7" in d and "expected 0 to 2" in d for d in details)
    assert any("in another list" in d for d in details)
    assert any("in the RGB list" in d and "in the flow list" in d for d in details)


def test_streams_that_disagree(sound: Record) -> None:
    path = sound.list_path("train", "flow", 1)
    edit(path, lambda old: [old[0].replace(" 5 ", " 3 "), *old[1:-1]])
    kinds = found(sound)
    assert {("rgb_flow_mismatch", "error"), ("rgb_flow_mismatch", "warning")} <= kinds
    assert "6 RGB and 3 flow frames" in one(sound, "rgb_flow_mismatch", "warning").detail


def test_lists_that_disagree_with_the_disk(sound: Record) -> None:
    root = sound.frames_root("rgb")
    shutil.rmtree(root / "v_jump_g00_c00")
    (root / "v_run_g00_c01" / "img_00006.jpg").unlink()
    (root / "v_sitdown_g01_c02" / "flow_x_00003.jpg").write_bytes(b"")
    (root / "v_jump_g01_c03" / "img_00007.jpg").write_bytes(
        (root / "v_jump_g01_c03" / "img_00006.jpg").read_bytes()
    )
    findings = {(f.kind, f.severity, Path(f.subject).name) for f in audit(sound, QUICK)}
    assert ("missing", "error", "v_jump_g00_c00") in findings
    assert ("count_mismatch", "error", "v_run_g00_c01") in findings
    assert ("unreadable", "error", "flow_x_00003.jpg") in findings
    assert ("count_mismatch", "warning", "v_jump_g01_c03") in findings


def test_decode_finds_what_a_glance_does_not(sound: Record) -> None:
    path = sound.frames_root("rgb") / "v_run_g00_c01" / "img_00002.jpg"
    content = path.read_bytes()
    path.write_bytes(content[:20] + b"\x00" * (len(content) - 40) + content[-20:])
    assert ("unreadable", "error") not in found(sound)
    assert ("unreadable", "error") in found(sound, AuditOptions(processes=0, decode=True))


def test_missing_and_unreadable_lists(sound: Record) -> None:
    sound.list_path("test", "flow", 2).unlink()
    sound.list_path("train", "rgb", 2).write_text("a b c d e\n")
    findings = audit(sound, QUICK)
    assert any(f.kind == "missing" and f.subject.endswith("val_flow_split2.txt") for f in findings)
    wrong = next(f for f in findings if f.kind == "unreadable")
    assert wrong.subject.endswith("train_rgb_split2.txt")
    assert wrong.detail.startswith("1: 'a b c d e': expected")


def test_short_videos_and_imbalance(sound: Record) -> None:
    path = sound.list_path("train", "rgb", 1)
    edit(path, lambda old: [*old, *(f"more_{n} 6 0" for n in range(9)), "short 1 1"])
    findings = audit(sound, QUICK)
    assert any(f.kind == "too_short" and "'short' has 1 frame," in f.detail for f in findings)
    assert any(f.kind == "imbalance" and "'jump' has 13 videos" in f.detail for f in findings)


@pytest.fixture
def filmed(tmp_path: Path) -> Path:
    """Videos without frame folders; one of them is listed but absent, one is no video."""
    options = DemoOptions(min_frames=3, max_frames=3)
    for name in ("a", "b"):
        (tmp_path / "videos").mkdir(exist_ok=True)
        encode(tmp_path / "videos" / f"{name}.mp4", render("rise", 1, ord(name), options), "mpeg4")
    (tmp_path / "videos" / "c.mp4").write_text("no video")
    for modality, frames in (("rgb", 3), ("flow", 2)):
        (tmp_path / f"train_{modality}_split1.txt").write_text(f"a {frames} 0\nc {frames} 0\n")
        (tmp_path / f"val_{modality}_split1.txt").write_text(f"b {frames} 0\nlost {frames} 0\n")
    (tmp_path / "dataset.yaml").write_text(
        "name: filmed\nvideos: videos\nframes: {rgb: f, flow: f}\nclasses: [x]\n"
    )
    return tmp_path


def test_videos_stand_in_for_frames(filmed: Path) -> None:
    record = load_record(filmed)
    findings = audit(record, QUICK)
    assert [(f.kind, f.subject) for f in findings if f.severity == "error"] == [
        ("missing", str(filmed / "videos" / "lost"))
    ]
    assert any(f.severity == "info" and "two-stream extract" in f.detail for f in findings)
    decoded = audit(record, AuditOptions(processes=0, decode=True))
    assert ("unreadable", str(filmed / "videos" / "c.mp4")) in {(f.kind, f.subject) for f in decoded}
    shutil.rmtree(filmed / "videos")
    assert any("neither frame folders nor videos" in f.detail for f in audit(record, QUICK))


def test_published_hmdb51_lists_have_no_errors(repository: Path, shared: Path, tmp_path: Path) -> None:
    for path in (shared / "data" / "hmdb51_lists").glob("*_split[123].txt"):
        shutil.copy(path, tmp_path)
    shutil.copy(repository / "settings" / "hmdb51" / "dataset.yaml", tmp_path)
    findings = audit(load_record(tmp_path), QUICK)
    errors = [f for f in findings if f.severity == "error"]
    assert [f.kind for f in errors] == ["missing"]  # the videos are not here
    apart = [f for f in findings if f.kind == "rgb_flow_mismatch"]
    assert {f.severity for f in apart} == {"warning"}
    assert any("'Italian_Job_2_talk_h_nm_np1_fr_med_6' has 165 RGB and 167 flow" in f.detail for f in apart)


def test_command_prints_writes_json_and_sets_the_exit_code(
    filmed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "report.json"
    flags = ["--processes", "0", "--json", str(target)]
    assert command.main([str(filmed), *flags]) == 1
    shown = capsys.readouterr().out
    assert "error: missing: " in shown
    assert shown.index("error: ") < shown.index("info: ")
    written = json.loads(target.read_text())
    assert written["error"] == 1
    assert written["findings"][0]["severity"] == "error"
    assert written["findings"][0]["subject"].endswith("lost")
    assert command.main([str(filmed / "videos" / "a.mp4"), *flags]) == 0
    assert json.loads(target.read_text())["error"] == 0
    assert command.main([str(filmed / "videos"), *flags]) == 1
    assert "c.mp4" in capsys.readouterr().out
    assert command.main([str(filmed / "absent.mp4"), *flags]) == 1


def test_command_checks_a_bare_folder_of_frames(sound: Record, capsys: pytest.CaptureFixture[str]) -> None:
    root = sound.frames_root("rgb")
    assert command.main([str(root), "--processes", "0"]) == 0
    (root / "v_run_g00_c01" / "img_00002.jpg").unlink()
    assert command.main([str(root), "--processes", "0"]) == 1
    assert "img_00002.jpg missing in the sequence" in capsys.readouterr().out


@pytest.mark.parametrize("how", ["flags", "looks", "manifest"])
def test_command_checks_frame_folders_of_other_names(
    sound: Record, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    """The published layout has flow files without a suffix."""
    root = sound.frames_root("rgb")
    names = {"rgb": "img_{:05d}.jpg", "flow_x": "flow_x_{:05d}", "flow_y": "flow_y_{:05d}"}
    if how != "looks":
        names = {"rgb": "im{}.jpg", "flow_x": "u{}.jpg", "flow_y": "v{}.jpg"}
    content = {"settings": {"patterns": names}, "frames": 6, "flow_frames": 5, "size": 1, "mtime_ns": 1}
    for folder in root.iterdir():
        for number in range(1, 7):
            for key, name in names.items():
                old = folder / (f"{key}_{number:05d}.jpg" if key != "rgb" else f"img_{number:05d}.jpg")
                if old.exists():
                    old.rename(folder / name.format(number))
        if how == "manifest":
            (folder / ".done.json").write_text(json.dumps(content))
    flags = ["--processes", "0"]
    if how == "flags":
        for key, name in names.items():
            flags += [f"--{key.replace('_', '-')}-pattern", name]
        with pytest.raises(DataError, match="--rgb-pattern"):
            command.main([str(root), "--processes", "0"])
    assert command.main([str(root), *flags]) == 0
    assert "0 errors" in capsys.readouterr().out
    lost = names["flow_y"].format(5)
    (root / "v_run_g00_c01" / lost).unlink()
    assert command.main([str(root), *flags]) == 1
    assert "5 flow x images, but 4 flow y images" in capsys.readouterr().out


def test_several_folders_of_one_name_are_a_finding(sound: Record) -> None:
    root = sound.frames_root("rgb")
    shutil.copytree(root / "v_run_g00_c01", root / "run" / "v_run_g00_c01")
    (root / "v_run_g00_c01").rename(root / "jump")
    shutil.copytree(root / "run" / "v_run_g00_c01", root / "jump" / "v_run_g00_c01")
    finding = one(sound, "missing", "error")
    assert finding.subject == str(root / "v_run_g00_c01")
    assert "(jump/v_run_g00_c01, run/v_run_g00_c01)" in finding.detail


def test_command_refuses_what_is_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected a file, a folder or a data set"):
        command.main(["nothing", "--settings-root", str(tmp_path)])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="neither videos nor frame folders"):
        command.main([str(tmp_path / "empty")])
    with pytest.raises(SettingsError):
        command.main([])


def test_many_findings_of_one_kind_are_summed_up(sound: Record, capsys: pytest.CaptureFixture[str]) -> None:
    path = sound.list_path("train", "rgb", 1)
    edit(path, lambda old: [*old, *(f"ghost_{n:03d} 6 0" for n in range(60))])
    assert command.main([str(sound.folder), "--processes", "0"]) == 1
    shown = capsys.readouterr().out
    assert "and 20 more; --json FILE lists all" in shown
    assert "ghost_000" in shown
