"""`prepare`: folders and official split files become a record and lists; broken videos are left out by name."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from two_stream.commands import prepare as command
from two_stream.data.catalog import Record, load_record
from two_stream.data.demo import DemoOptions, encode, render
from two_stream.data.options import AnnotationOptions, FolderOptions
from two_stream.data.prepare.adapters import read_annotations
from two_stream.data.prepare.adapters.build import prepare_annotations
from two_stream.data.prepare.folders import prepare_folder
from two_stream.data.sources.files import VideoFiles
from two_stream.data.splits import load_part, read_list
from two_stream.errors import DataError, SettingsError

CLASSES = ("fight", "rest")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of 5 frames."""
    path = tmp_path_factory.mktemp("clip") / "five.mp4"
    encode(path, render("rise", 1, 1, DemoOptions(min_frames=5, max_frames=5)), "mpeg4")
    return path


@pytest.fixture
def videos(tmp_path: Path, clip: Path) -> Path:
    """Two classes, six sources `s0`…`s5` with a clip of each class, a broken file and a text beside them."""
    root = tmp_path / "my videos"
    for name in CLASSES:
        (root / name).mkdir(parents=True)
        for source in range(6):
            shutil.copy(clip, root / name / f"s{source} {name}.mp4")
    (root / "rest" / "notes.txt").write_text("not a video")
    return root


def quick(**options: object) -> FolderOptions:
    return FolderOptions(processes=0, **options)  # type: ignore[arg-type]


def test_folder_becomes_grouped_stratified_splits(videos: Path, tmp_path: Path) -> None:
    made = prepare_folder(videos, "mine", tmp_path / "settings", quick(group_regex=r"/(s\d+)"))
    assert (made.videos, made.sources, made.failures, made.warnings) == (12, 6, [], [])
    record = load_record("mine", tmp_path / "settings")
    assert record.classes == ["fight", "rest"]
    assert record.videos_root().resolve() == videos
    assert len(made.lists) == 12
    tests = []
    for split in (1, 2, 3):
        train = load_part(record, "rgb", split, "train", selection="paper")
        test = load_part(record, "rgb", split, "test")
        assert {r.num_frames for r in train} == {5}
        assert {r.num_frames for r in load_part(record, "flow", split, "test")} == {4}
        assert len(test) == 4
        assert sorted(r.label for r in test) == [0, 0, 1, 1]
        assert not {r.group for r in train} & {r.group for r in test}
        tests += sorted({r.group for r in test})
    assert sorted(tests) == ["s0", "s1", "s2", "s3", "s4", "s5"]
    assert test[0].id.startswith("fight/s")
    with_seed = prepare_folder(videos, "other", tmp_path / "settings", quick(group_regex=r"/(s\d+)", seed=1))
    assert with_seed.lists[1].read_text() != made.lists[1].read_text()


def test_groups_file_may_leave_out_the_class_folder(videos: Path, tmp_path: Path) -> None:
    groups = tmp_path / "sources.txt"
    lines = [f"s{s} {name} film{s % 3}" for name in CLASSES for s in range(6)]
    groups.write_text("\n".join(lines))
    made = prepare_folder(videos, "mine", tmp_path / "settings", quick(groups=groups))
    assert made.sources == 3
    record = load_record("mine", tmp_path / "settings")
    assert record.group_of("rest/s4 rest") == "film1"
    groups.write_text("\n".join(lines[:-1]))
    with pytest.raises(DataError, match=r"sources\.txt: no line for video 'rest/s5 rest'"):
        prepare_folder(videos, "mine", tmp_path / "settings", quick(groups=groups))


def test_broken_videos_are_left_out_and_the_exit_code_says_so(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], clip: Path
) -> None:
    (videos / "fight" / "bad one.mp4").write_text("no video at all")
    (videos / "rest" / "empty.avi").write_bytes(b"")
    encode(videos / "rest" / "still.mp4", render("rise", 1, 1, DemoOptions())[:1], "mpeg4")
    shutil.copy(clip, videos / "rest" / "s0 rest.avi")  # differs from s0 rest.mp4 in the suffix only
    out = tmp_path / "settings"
    flags = ["folder", str(videos), "--name", "mine", "--out", str(out), "--processes", "0"]
    assert command.main(flags) == 1
    shown = capsys.readouterr()
    for name in ("fight/bad one", "rest/empty", "rest/still"):
        assert f"left out: {name}: " in shown.out
    assert "too short: 1 frame" in shown.out
    assert "3 videos left out" in shown.out
    assert "every video is its own source" in shown.err
    listed = (out / "mine" / "train_rgb_split1.txt").read_text() + (
        out / "mine" / "val_rgb_split1.txt"
    ).read_text()
    assert len(listed.splitlines()) == 13
    assert "bad one" not in listed
    assert {"rest/s0 rest.avi 5 1", "rest/s0 rest.mp4 5 1"} < set(listed.splitlines())
    source = VideoFiles(load_record("mine", out), "rgb", "pyav", "dis")
    assert source.path("rest/s0 rest.avi").suffix == ".avi"


def test_frame_folders_are_counted_instead_of_decoding(videos: Path, tmp_path: Path) -> None:
    frames = tmp_path / "frames"
    for name in CLASSES:
        for source in range(6):
            folder = frames / name / f"s{source} {name}"
            folder.mkdir(parents=True)
            for number in range(1, 9):
                (folder / f"img_{number:05d}.jpg").touch()
                if number < 8:
                    (folder / f"flow_x_{number:05d}.jpg").touch()
                    (folder / f"flow_y_{number:05d}.jpg").touch()
    shutil.rmtree(frames / "rest" / "s5 rest")  # this one is decoded
    prepare_folder(videos, "mine", tmp_path / "settings", quick(frames=frames, splits=1))
    record = load_record("mine", tmp_path / "settings")
    for modality, folder, decoded in (("rgb", 8, 5), ("flow", 7, 4)):
        every = load_part(record, modality, 1, "train", selection="paper") + load_part(
            record, modality, 1, "test"
        )  # type: ignore[arg-type]
        assert {r.id: r.num_frames for r in every}.pop("rest/s5 rest") == decoded
        assert {r.num_frames for r in every if r.id != "rest/s5 rest"} == {folder}


def test_folders_that_cannot_become_a_data_set(tmp_path: Path, videos: Path, clip: Path) -> None:
    out = tmp_path / "settings"
    with pytest.raises(DataError, match="no such file or folder"):
        prepare_folder(tmp_path / "nothing", "x", out, quick())
    flat = tmp_path / "flat"
    flat.mkdir()
    shutil.copy(clip, flat / "a.mp4")
    with pytest.raises(DataError, match="'a' is not in a class folder"):
        prepare_folder(flat, "x", out, quick())
    with pytest.raises(DataError, match="all videos come from one source"):
        prepare_folder(videos, "x", out, quick(group_regex="(s)"))
    with pytest.raises(SettingsError, match="expected a regular expression"):
        prepare_folder(videos, "x", out, quick(group_regex="(s"))
    with pytest.raises(SettingsError, match="use only one"):
        FolderOptions(groups=Path("g"), group_regex="(x)")
    (videos / "third").mkdir()
    (videos / "third" / "bad.mp4").write_text("x")
    with pytest.raises(DataError, match="no video of class 'third' can be read"):
        prepare_folder(videos, "x", out, quick())
    assert not (out / "x").exists()


def test_a_split_needs_two_sides(tmp_path: Path, clip: Path) -> None:
    for name in CLASSES:
        (tmp_path / "videos" / name).mkdir(parents=True)
        shutil.copy(clip, tmp_path / "videos" / name)
    with pytest.raises(DataError, match="split 1 would have no test video") as caught:
        prepare_folder(tmp_path / "videos", "x", tmp_path, quick())
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "x").exists()
    shutil.copy(
        clip, tmp_path / "videos" / "rest" / "more.mp4"
    )  # one class is enough, the other is warned of
    made = prepare_folder(tmp_path / "videos", "x", tmp_path, quick(splits=1))
    assert made.warnings[0] == "split 1 has no test video of fight: too few source videos"


def test_unknown_kind_names_the_nearest() -> None:
    with pytest.raises(SettingsError, match="did you mean `hmdb51`"):
        command.main(["hmdb5"])


@pytest.fixture
def settings(tmp_path: Path, repository: Path) -> Path:
    for name in ("ucf101", "hmdb51"):
        (tmp_path / "settings" / name).mkdir(parents=True)
        shutil.copy(repository / "settings" / name / "dataset.yaml", tmp_path / "settings" / name)
    return tmp_path / "settings"


def official_hmdb(folder: Path, record: Record, lists: Path) -> None:
    """Write official files that say what the published lists say."""
    folder.mkdir()
    for split in (1, 2, 3):
        marks: dict[int, list[str]] = {label: [] for label in range(51)}
        for part, mark in (("train", 1), ("val", 2)):
            for r in read_list(lists / f"{part}_rgb_split{split}.txt"):
                marks[r.label].append(f"{r.id}.avi {mark} ")
        for label, lines in marks.items():
            text = "\n".join([*lines, "unused_video.avi 0 "]) + "\n"
            (folder / f"{record.classes[label]}_test_split{split}.txt").write_text(text)


def test_hmdb51_official_files_give_the_published_lists(settings: Path, shared: Path, tmp_path: Path) -> None:
    lists = shared / "data" / "hmdb51_lists"
    record = load_record("hmdb51", settings)
    official_hmdb(tmp_path / "official", record, lists)
    annotations = read_annotations("hmdb51", tmp_path / "official")
    label_of = {entry.id: entry.labels[0] for entry in annotations.entries}
    for split, parts in enumerate(annotations.splits, 1):
        for part, found in zip(("train", "val"), parts):
            published = {(r.id, r.label) for r in read_list(lists / f"{part}_rgb_split{split}.txt")}
            assert len(found) == len(published) == (3570 if part == "train" else 1530)
            assert {(name, label_of[name]) for name in found} == published


def test_hmdb51_lists_from_frame_folders(
    settings: Path, shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lists = shared / "data" / "hmdb51_lists"
    official_hmdb(tmp_path / "official", load_record("hmdb51", settings), lists)
    published = (lists / "val_rgb_split1.txt").read_text().splitlines()[:3]
    for line in published:
        folder = tmp_path / "frames" / line.rsplit(maxsplit=2)[0]
        folder.mkdir(parents=True)
        for number in range(1, int(line.split()[-2]) + 1):
            (folder / f"img_{number:05d}.jpg").touch()
    flags = ["--annotations", str(tmp_path / "official"), "--frames", str(tmp_path / "frames")]
    assert command.main(["hmdb51", *flags, "--out", str(settings)]) == 1  # the other videos are not here
    assert (settings / "hmdb51" / "val_rgb_split1.txt").read_text().splitlines() == published
    assert "6368 videos left out" in capsys.readouterr().out


def test_official_frames_of_other_names(shared: Path, tmp_path: Path, settings: Path) -> None:
    """Where no record is there yet, the names are found; a record that is there says them."""
    lists = shared / "data" / "hmdb51_lists"
    official_hmdb(tmp_path / "official", load_record("hmdb51", settings), lists)
    names = [
        line.rsplit(maxsplit=2)[0] for line in (lists / "val_rgb_split1.txt").read_text().splitlines()[:3]
    ]
    folders = [tmp_path / "frames" / name for name in names]
    folders += [tmp_path / "frames" / top / names[2] for top in ("a", "b")]
    for folder in (*folders[:2], *folders[3:]):  # the last one lies in two class folders
        folder.mkdir(parents=True)
        for number in range(4):
            (folder / f"{number:03d}.png").touch()
    flags = ["hmdb51", "--annotations", str(tmp_path / "official"), "--frames", str(tmp_path / "frames")]
    assert command.main([*flags, "--out", str(tmp_path / "new")]) == 1
    record = load_record("hmdb51", tmp_path / "new")
    assert (record.patterns.rgb, record.first.rgb) == ("{:03d}.png", 0)
    assert record.patterns.flow_x == load_record("hmdb51", settings).patterns.flow_x
    assert [v.num_frames for v in read_list(record.list_path("test", "rgb", 1))] == [4, 4]
    assert record.modalities() == ["rgb"]
    with pytest.raises(
        DataError, match=r"none of the .* expected img_00001\.jpg .*its files are \['000\.png', '001\.png'\]"
    ):
        command.main([*flags, "--out", str(settings)])
    with pytest.raises(SettingsError, match="is not overwritten"):
        command.main([*flags, "--out", str(settings), "--rgb-pattern", "{:03d}.png"])


def test_wrong_official_hmdb51_files_are_named(settings: Path, shared: Path, tmp_path: Path) -> None:
    record = load_record("hmdb51", settings)
    with pytest.raises(DataError, match="folder of the split files does not exist"):
        read_annotations("hmdb51", tmp_path / "official")
    official_hmdb(tmp_path / "official", record, shared / "data" / "hmdb51_lists")
    wave = tmp_path / "official" / "wave_test_split2.txt"
    wave.write_text("a.avi 1\nb.avi 3\n")
    with pytest.raises(DataError, match=r"wave_test_split2\.txt:2"):
        read_annotations("hmdb51", tmp_path / "official")
    wave.unlink()
    with pytest.raises(DataError, match=r"wave_test_split2\.txt: no such file"):
        read_annotations("hmdb51", tmp_path / "official")


def test_ucf101_official_files(settings: Path, tmp_path: Path, clip: Path) -> None:
    folder, root = tmp_path / "ucfTrainTestlist", tmp_path / "UCF-101"
    folder.mkdir()
    (folder / "classInd.txt").write_text("1 ApplyEyeMakeup\n37 HandstandPushups\n")
    for split in (1, 2, 3):
        (folder / f"trainlist{split:02d}.txt").write_text(
            "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1\nHandStandPushups/v_HandStandPushups_g09_c02.avi 37\n"
        )
        (folder / f"testlist{split:02d}.txt").write_text("ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi\n")
    for name in ("ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01", "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(clip, root / f"{name}.avi")
    (root / "HandstandPushups").mkdir()
    shutil.copy(clip, root / "HandstandPushups" / "v_HandStandPushups_g09_c02.avi")
    made = prepare_annotations("ucf101", AnnotationOptions(folder, out=settings, videos=root, processes=0))
    assert made.failures == []
    text = (settings / "ucf101" / "train_flow_split3.txt").read_text()
    assert text == "v_ApplyEyeMakeup_g08_c01 4 0\nv_HandStandPushups_g09_c02 4 36\n"
    assert (settings / "ucf101" / "val_rgb_split1.txt").read_text() == "v_ApplyEyeMakeup_g01_c01 5 0\n"
    assert len(read_annotations("ucf101", folder).splits) == 3
    with pytest.raises(SettingsError, match="--videos or --frames is required"):
        prepare_annotations("ucf101", AnnotationOptions(folder, out=settings))
    (folder / "testlist02.txt").write_text("YoYoo/v_x.avi\n")
    with pytest.raises(DataError, match=r"testlist02\.txt:1: .*did you mean `YoYo`"):
        read_annotations("ucf101", folder)
    (folder / "classInd.txt").write_text("2 ApplyEyeMakeup\n")
    with pytest.raises(DataError, match=r"classInd\.txt:1: class 'ApplyEyeMakeup' has number 2"):
        read_annotations("ucf101", folder)
