"""Catalogue records: what is read, what is refused and how it is said; the two published data sets."""

from __future__ import annotations

from pathlib import Path

import pytest

from two_stream.config.schema import DataOptions
from two_stream.data.catalog import Record, dataset_record, load_record, read_groups
from two_stream.data.prepare.adapters.annotations import AnnotatedClasses
from two_stream.data.splits import read_list
from two_stream.errors import DataError, SettingsError
from two_stream.video.frames import FramePatterns


def write_record(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "dataset.yaml"
    path.write_text("name: x\nclasses: [a, b]\n" + text)
    return path


def test_record_by_name_path_and_folder(tmp_path: Path) -> None:
    path = write_record(tmp_path / "x", "num_splits: 3\nframes: {rgb: ../pictures}\n")
    by_path = load_record(path)
    assert by_path == load_record("x", tmp_path) == load_record(tmp_path / "x")
    assert by_path.folder == tmp_path / "x"
    assert by_path.list_path("test", "flow", 2) == tmp_path / "x" / "val_flow_split2.txt"
    assert by_path.list_path("val", "rgb", 1) == tmp_path / "x" / "train_rgb_split1.txt"
    (tmp_path / "pictures").mkdir()
    assert by_path.frames_root("rgb").resolve() == tmp_path / "pictures"
    assert by_path.frame_patterns == FramePatterns()
    with pytest.raises(DataError, match=r"has no split 4; set `data.split` to a number from 1 to 3"):
        by_path.list_path("train", "rgb", 4)
    with pytest.raises(DataError, match=r"frames\.flow"):
        by_path.frames_root("flow")
    with pytest.raises(DataError, match="`videos` is missing"):
        by_path.videos_root()


def test_absent_folder_is_named(tmp_path: Path) -> None:
    record = load_record(write_record(tmp_path, "frames: {rgb: nowhere}\nvideos: /no/such/place\n"))
    with pytest.raises(DataError, match=r"nowhere does not exist; run `two-stream extract`"):
        record.frames_root("rgb")
    with pytest.raises(DataError, match="/no/such/place"):
        record.videos_root()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("num_split: 3\n", r"dataset\.yaml: unknown key `num_split`; did you mean `num_splits`"),
        ("frames: {rbg: x}\n", "did you mean `rgb`"),
        (
            "patterns: {rgb: img.jpg}\n",
            r"img\.jpg': expected a pattern with one placeholder for the frame number",
        ),
        ("num_splits: 0\n", "num_splits"),
        ("group: '['\n", "expected a regular expression"),
        ("group: abc\n", "with a group in parentheses"),
        ("group: (a)\ngroups: g.txt\n", "keep one"),
        ("lists: '{part}_{split}.txt'\n", r"the name must contain \{modality\}"),
        ("mirror_pairs: [[a, c]]\n", "`mirror_pairs` contains 'c', which is not a class"),
        ("mirror_pairs: [[a, b], [b, a]]\n", "contains 'b' twice|contains 'a' twice"),
        ("mirror_pairs: [[a, a]]\n", "contains 'a' twice"),
        ("mirror_pairs: [[a, b]]\nmirror: false\n", "remove one of them"),
    ],
)
def test_wrong_records_say_what_and_where(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said) as caught:
        load_record(write_record(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_doubled_class_and_unknown_name(tmp_path: Path) -> None:
    write_record(tmp_path / "ucf101", "")
    with pytest.raises(DataError, match="did you mean `ucf101`"):
        load_record("ucf11", tmp_path)
    path = tmp_path / "dataset.yaml"
    path.write_text("name: x\nclasses: [a, b, a]\n")
    with pytest.raises(SettingsError, match="class 'a' is listed twice"):
        load_record(path)


def test_a_relative_path_in_another_folder_names_the_key_and_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_record(tmp_path / "demo", "")
    data = DataOptions(dataset="demo/dataset.yaml")
    monkeypatch.chdir(tmp_path)
    assert dataset_record(data).classes == ["a", "b"]
    monkeypatch.chdir(tmp_path / "demo")
    with pytest.raises(SettingsError) as caught:
        dataset_record(data)
    assert str(caught.value) == (
        f"`data.dataset` is demo/dataset.yaml: no such file in the current folder {tmp_path / 'demo'}; "
        "run from the folder that the path is relative to, or pass another path with --data.dataset (for a "
        "finished run or the folder of a study, with --data-root)"
    )


def test_groups_from_a_file_or_a_pattern(tmp_path: Path) -> None:
    (tmp_path / "groups.txt").write_text("a/1 film one\na/2 s1\n\na name with spaces s2\n")
    assert read_groups(tmp_path / "groups.txt") == {
        "a/1 film": "one",
        "a/2": "s1",
        "a name with spaces": "s2",
    }
    record = load_record(write_record(tmp_path, "groups: groups.txt\n"))
    assert record.group_of("a/2") == "s1"
    with pytest.raises(DataError, match=r"groups\.txt: the group of video 'a/9' is missing"):
        record.group_of("a/9")
    (tmp_path / "groups.txt").write_text("a/1 s1\na/1 s2\n")
    with pytest.raises(DataError, match=r"groups\.txt:2"):
        read_groups(tmp_path / "groups.txt")
    pattern = load_record(write_record(tmp_path, "group: '^(.+?)_(?:{classes})_'\n"))
    assert pattern.group_of("film_a_3") == "film"
    assert pattern.group_of("other") == "other"
    assert pattern.fits_group("film_b_")
    assert not pattern.fits_group("film_c_")


def test_class_index_ignores_case_and_names_the_nearest(repository: Path) -> None:
    ucf = load_record("ucf101", repository / "settings")
    assert ucf.num_classes == 101
    classes = AnnotatedClasses(ucf.classes, "x", any_case=True)
    labels = [classes.label(n, "x") for n in ("ApplyEyeMakeup", "HandStandPushups", "YoYo")]
    assert labels == [0, 36, 100]
    with pytest.raises(DataError, match="did you mean `YoYo`"):
        classes.label("YoYoo", "x")


def test_ucf101_sources(repository: Path) -> None:
    ucf = load_record("ucf101", repository / "settings")
    assert ucf.group_of("v_Biking_g07_c03") == ucf.group_of("Biking/v_Biking_g07_c01") == "Biking_g07"
    assert ucf.group_of("v_Diving_g07_c03") != ucf.group_of("v_Biking_g07_c03")
    assert ucf.num_splits == 3
    assert len(set(ucf.classes)) == 101


@pytest.fixture
def hmdb(repository: Path) -> Record:
    return load_record("hmdb51", repository / "settings")


def test_hmdb51_labels_and_sources_fit_the_published_lists(hmdb: Record, shared: Path) -> None:
    lists = sorted((shared / "data" / "hmdb51_lists").glob("*_split?.txt"))
    assert len(lists) == 13
    assert hmdb.classes == sorted(hmdb.classes)
    seen = set()
    for path in lists:
        for video in read_list(path, num_classes=51, group_of=hmdb.group_of):
            action = hmdb.classes[video.label]
            assert video.id.startswith(f"{video.group}_{action}_"), (path.name, video)
            seen.add(video.label)
    assert seen == set(range(51))


def test_hmdb51_official_splits_share_no_source_within_a_class(hmdb: Record, shared: Path) -> None:
    for split in (1, 2, 3):
        sides = [
            {
                (video.group, video.label)
                for video in read_list(
                    shared / "data" / "hmdb51_lists" / f"{part}_rgb_split{split}.txt", group_of=hmdb.group_of
                )
            }
            for part in ("train", "val")
        ]
        assert len(sides[0]) > 500
        assert not sides[0] & sides[1]


def test_mirror_pairs_exchange_labels(tmp_path: Path) -> None:
    path = tmp_path / "dataset.yaml"
    path.write_text("name: x\nclasses: [left, still, right]\nmirror_pairs: [[left, right]]\n")
    assert load_record(path).mirror_labels == (2, 1, 0)
    assert load_record(write_record(tmp_path / "y", "")).mirror_labels == (0, 1)
