"""Links, byte-order marks, names that no list holds, lists that do not fit their videos: read rightly, or named."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.annotations import frames, write
from two_stream.commands import check
from two_stream.commands import prepare as command
from two_stream.commands.weights import _class_names
from two_stream.compression.layers import read_levels
from two_stream.config.load import read_yaml
from two_stream.data.catalog import Record, load_record, read_groups
from two_stream.data.demo import DemoOptions, encode, render
from two_stream.data.options import AuditOptions, FolderOptions
from two_stream.data.prepare.adapters import read_annotations
from two_stream.data.prepare.audit import audit
from two_stream.data.prepare.folders import prepare_folder
from two_stream.data.sources.segments import read_segments
from two_stream.data.splits import load_part, read_list
from two_stream.errors import DataError, SettingsError
from two_stream.video.sources import find_sources, video_files

MARK = "\ufeff"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "five.mp4"
    encode(path, render("rise", 1, 1, DemoOptions(min_frames=5, max_frames=5)), "mpeg4")
    return path


def filled(folder: Path, clip: Path, count: int = 3) -> Path:
    folder.mkdir(parents=True)
    for number in range(count):
        shutil.copy(clip, folder / f"v{number}.mp4")
    return folder


def test_linked_class_folders_are_followed_once_and_loops_end(tmp_path: Path, clip: Path) -> None:
    filled(tmp_path / "elsewhere" / "run", clip)
    filled(tmp_path / "videos" / "walk", clip)
    (tmp_path / "videos" / "run").symlink_to(tmp_path / "elsewhere" / "run")
    (tmp_path / "videos" / "again").symlink_to(
        tmp_path / "videos" / "walk"
    )  # before `walk`, which is the real one
    (tmp_path / "videos" / "walk" / "up").symlink_to(tmp_path / "videos")
    (tmp_path / "elsewhere" / "run" / "loop").symlink_to(tmp_path / "elsewhere" / "run")
    (tmp_path / "videos" / "lost").symlink_to(tmp_path / "nowhere")
    found = [path.relative_to(tmp_path / "videos").as_posix() for path in video_files(tmp_path / "videos")[0]]
    assert found == [f"{name}/v{number}.mp4" for name in ("run", "walk") for number in range(3)]
    made = prepare_folder(tmp_path / "videos", "mine", tmp_path, FolderOptions(processes=0, splits=1))
    assert (made.videos, made.record.classes) == (6, ["run", "walk"])
    assert not [
        f for f in audit(load_record("mine", tmp_path), AuditOptions(processes=0)) if f.severity == "error"
    ]


def test_a_bare_folder_of_linked_frame_folders_is_checked(tmp_path: Path, tiny: Record) -> None:
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "a").symlink_to(tiny.frames_root("rgb"))
    (tiny.frames_root("rgb") / "v_run_g00_c01" / "img_00002.jpg").unlink()
    assert check.main([str(tmp_path / "links"), "--processes", "0"]) == 1


def test_a_list_with_a_byte_order_mark(tmp_path: Path, shared: Path) -> None:
    shutil.copytree(shared / "cases" / "lists" / "byte_order_mark", tmp_path / "bom")
    record = load_record(tmp_path / "bom")
    assert load_part(record, "rgb", 1, "train", selection="paper")[0].id == "left/v0"
    assert load_part(record, "rgb", 1, "test")[0].id == "left/v4"


def test_byte_order_marks_in_every_text_of_a_person(tmp_path: Path) -> None:
    def text(name: str, content: str) -> Path:
        (tmp_path / name).write_text(MARK + content, encoding="utf-8")
        return tmp_path / name

    assert read_list(text("l.txt", "a 3 0\n"))[0].id == "a"
    assert read_groups(text("g.txt", "a g1\n")) == {"a": "g1"}
    assert list(read_segments(text("s.csv", "id,video,start,end,first\na#1,a,,,3\n"))) == ["a#1"]
    assert read_yaml(text("d.yaml", "name: x\n")) == {"name": "x"}
    assert _class_names(str(text("c.txt", "run\nwalk\n"))) == ["run", "walk"]
    assert find_sources(text("v.txt", "a.mp4\n"))[0][0].id == "a"
    for name, content in (
        ("t.csv", "id,label\na,b\n"),
        ("t.tsv", "id\tlabel\na\tb\n"),
        ("t.jsonl", '{"id": "a", "label": "b"}\n'),
        ("t.json", '[{"id": "a", "label": "b"}]'),
    ):
        assert read_annotations("table", text(name, content)).entries[0].id == "a"
    assert read_levels(text("n.json", '{"x": 0.5}'), ["x"], "weights") == {"x": 0.5}


@pytest.mark.parametrize(("listed", "severity"), [(24, "error"), (3, "warning"), (5, None)])
def test_lists_are_compared_with_what_videos_decode(
    tmp_path: Path, clip: Path, capsys: pytest.CaptureFixture[str], listed: int, severity: str | None
) -> None:
    filled(tmp_path / "videos", clip, 2)
    for part, name in (("train", "v0"), ("val", "v1")):
        (tmp_path / f"{part}_rgb_split1.txt").write_text(f"{name} {listed} 0\n")
        (tmp_path / f"{part}_flow_split1.txt").write_text(f"{name} {listed - 1} 0\n")
    (tmp_path / "dataset.yaml").write_text("name: x\nvideos: videos\nclasses: [x, y]\n")
    flags = [str(tmp_path), "--processes", "0"]
    assert check.main(flags) == 0
    assert check.main([*flags, "--decode"]) == (1 if severity == "error" else 0)
    said = f"v1.mp4: 5 frames of the video file decode, the lists say {listed}"
    assert (f"{severity}: count_mismatch: " in (shown := capsys.readouterr().out) and said in shown) == bool(
        severity
    )


def test_frame_folders_go_before_what_the_video_decodes(tiny: Record, clip: Path) -> None:
    """Frames may have been taken at another rate; only a video with fewer than listed is worth a word."""
    (tiny.folder / "videos").mkdir()
    path = tiny.folder / "dataset.yaml"
    path.write_text(path.read_text() + "videos: videos\n")
    shutil.copy(clip, tiny.folder / "videos" / "v_run_g00_c01.mp4")
    found = [
        (f.severity, f.detail)
        for f in audit(load_record(path), AuditOptions(processes=0, decode=True))
        if f.kind == "count_mismatch"
    ]
    assert found == [("warning", "5 frames of the video file decode, the lists say 6")]


@pytest.mark.parametrize(
    "name", ["a\nb", "end ", " start", "end\u00a0", "a\x85b", "a\u2028b", "a\rb", "back\\slash", "\udcff"]
)
def test_names_that_no_list_gives_back_are_refused(tmp_path: Path, clip: Path, name: str) -> None:
    for label in ("run", "walk"):
        filled(tmp_path / "v" / label, clip)
    shutil.copy(clip, os.fsencode(tmp_path / "v" / "run" / f"{name}.mp4"))
    with pytest.raises(DataError, match="cannot be written to a split list") as caught:
        prepare_folder(tmp_path / "v", "mine", tmp_path / "out", FolderOptions(processes=0))
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_names_of_a_table_are_refused_too(tmp_path: Path) -> None:
    write(tmp_path, {"t.jsonl": '{"id": "a\\nb", "label": "x"}\n{"id": "c", "label": "y"}\n'})
    root = frames(tmp_path / "f", {"a\nb": 4, "c": 4})
    flags = ["table", "--annotations", str(tmp_path / "t.jsonl"), "--frames", str(root)]
    with pytest.raises(DataError, match=r"the name 'a\\nb'"):
        command.main([*flags, "--out", str(tmp_path / "out")])


def test_one_class_is_warned_of(tmp_path: Path, clip: Path) -> None:
    filled(tmp_path / "v" / "run", clip, 4)
    made = prepare_folder(tmp_path / "v", "mine", tmp_path, FolderOptions(processes=0, splits=1))
    assert any("'run' is the only class" in w for w in made.warnings)
    record = load_record("mine", tmp_path)
    found = [(f.kind, f.severity) for f in audit(record, AuditOptions(processes=0))]
    assert ("one_class", "warning") in found
    path = tmp_path / "mine" / "dataset.yaml"
    path.write_text(path.read_text() + "multi_label: true\n")  # the class is there or not
    found = [(f.kind, f.severity) for f in audit(load_record(path), AuditOptions(processes=0))]
    assert ("one_class", "warning") not in found


def test_tables_with_semicolons(tmp_path: Path) -> None:
    text = 'path;labels;start;end\nrun/a.mp4;"run;walk";0.5;1.5\nb.mp4;walk;;\n'
    write(tmp_path, {"t.csv": text, "c.csv": "id,labels\na,run;walk\n"})
    first, second = read_annotations("table", tmp_path / "t.csv").entries
    assert (first.id, first.labels, first.seconds, second.labels) == ("run/a", (0, 1), (0.5, 1.5), (1,))
    assert read_annotations("table", tmp_path / "c.csv").entries[0].labels == (0, 1)
    write(tmp_path, {"t.csv": "path;label;start;end\na;run;0,5;1,5\n"})
    with pytest.raises(DataError, match=r"t\.csv:2: `start` is '0,5': expected a number"):
        read_annotations("table", tmp_path / "t.csv")


def test_backslashes_of_windows(tmp_path: Path, clip: Path) -> None:
    write(
        tmp_path, {"l.txt": "run\\v0 5 0\n", "g.txt": "run\\v0 g\n", "t.csv": "path,label\nrun\\v0.mp4,x\n"}
    )
    assert read_list(tmp_path / "l.txt")[0].id == "run/v0"
    assert read_groups(tmp_path / "g.txt") == {"run/v0": "g"}
    assert read_annotations("table", tmp_path / "t.csv").entries[0].id == "run/v0"
    filled(tmp_path / "run", clip, 1)
    write(tmp_path, {"v.txt": "run\\v0.mp4\n"})
    (source,) = find_sources(tmp_path / "v.txt")[0]
    assert (source.id, source.path) == ("run/v0", tmp_path / "run" / "v0.mp4")
    write(tmp_path, {"l.txt": "run\\v0 5 0\nrun/v0 5 0\n"})
    with pytest.raises(DataError, match="is already on line 1"):
        read_list(tmp_path / "l.txt")


@pytest.mark.parametrize("entry", ["yes", "off", "null", "~", "1", "2.5", "2020-01-01", "true"])
@pytest.mark.parametrize("key", ["classes", "mirror_pairs"])
def test_classes_that_yaml_takes_for_something_else(tmp_path: Path, entry: str, key: str) -> None:
    lists: dict[str, Any] = {
        "classes": f"classes: [walk, {entry}]\n",
        "mirror_pairs": f"classes: [walk, run]\nmirror_pairs: [[walk, {entry}]]\n",
    }
    write(tmp_path, {"dataset.yaml": "name: x\n" + lists[key]})
    with pytest.raises(
        SettingsError, match=rf"`{key}`: YAML interprets an entry as .* put the entry in quotes"
    ):
        load_record(tmp_path)
    write(tmp_path, {"dataset.yaml": f"name: x\nclasses: [walk, '{entry}']\n"})
    assert load_record(tmp_path).classes == ["walk", entry]
