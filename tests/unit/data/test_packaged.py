"""The records that come with the package: whole class lists, the right mirror pairs, usable outside a checkout."""

from __future__ import annotations

import configparser
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.helpers.annotations import frames, write
from two_stream.commands import prepare as command
from two_stream.data.catalog import PACKAGED, known_datasets, load_record
from two_stream.data.prepare.adapters import ADAPTERS, read_annotations
from two_stream.errors import DataError

COUNTS = {
    "ucf101": 101,
    "hmdb51": 51,
    "kinetics400": 400,
    "kinetics600": 600,
    "kinetics700": 700,
    "jester": 27,
    "ssv2": 174,
    "mit": 339,
    "stair": 100,
}


def test_every_packaged_record_has_the_classes_of_its_data_set(tmp_path: Path) -> None:
    assert set(COUNTS) == set(known_datasets(tmp_path))
    for name, count in COUNTS.items():
        record = load_record(name, tmp_path)
        assert (record.name, record.num_classes) == (name, count)
        assert record.folder == tmp_path / name
        if name in ADAPTERS:
            assert ADAPTERS[name].classes in (None, count)
    for name in ("kinetics400", "kinetics600", "kinetics700", "ssv2"):
        classes = load_record(name, tmp_path).classes
        assert classes == sorted(classes), "published checkpoints follow the sorted names"


def test_mirror_pairs_are_those_the_field_uses(tmp_path: Path) -> None:
    def exchanged(name: str) -> dict[int, int]:
        labels = load_record(name, tmp_path).mirror_labels
        return {a: b for a, b in enumerate(labels) if a < b}

    assert exchanged("ssv2") == {86: 87, 93: 94, 166: 167}  # as mmaction2's flip_label_map
    assert exchanged("jester") == {0: 1, 6: 7, 14: 15}  # the same, and turning hands


def test_whole_official_files_need_no_note_and_others_get_one(tmp_path: Path) -> None:
    names = load_record("jester", tmp_path).classes

    def notes(classes: list[str]) -> list[str]:
        content = {"jester-v1-labels.csv": "\n".join(classes)}
        content |= {f"jester-v1-{part}.csv": f"1{part};{classes[0]}\n" for part in ("train", "validation")}
        return read_annotations("jester", write(tmp_path / "official", content)).notes

    assert notes(names) == []
    assert notes(names[:5]) == ["jester has 27 classes, these files name 5"]
    assert notes([*names[:26], "Waving"]) == ["1 class is not jester's as published, such as 'Waving'"]
    (said,) = notes(names[::-1])
    assert "a different order" in said


def test_a_packaged_data_set_that_is_not_prepared_says_what_to_do(tmp_path: Path) -> None:
    path = load_record("jester", tmp_path).list_path("train", "rgb", 1)
    assert path == tmp_path / "jester" / "train_rgb_split1.txt"
    with pytest.raises(DataError, match="no such data set; did you mean `jester`"):
        load_record("jesters", tmp_path)
    with pytest.raises(DataError, match="no such data set"):
        load_record("../records/jester", tmp_path)


def test_ucf101_is_prepared_outside_a_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    lists = {}
    for split in (1, 2, 3):
        lists[f"trainlist{split:02d}.txt"] = "YoYo/v_YoYo_g08_c01.avi 101\n"
        lists[f"testlist{split:02d}.txt"] = "YoYo/v_YoYo_g01_c02.avi\n"
    write(tmp_path / "official", lists)
    frames(tmp_path / "some" / "frames", {"v_YoYo_g08_c01": 5, "v_YoYo_g01_c02": 6})
    assert command.main(["ucf101", "--annotations", "official", "--frames", "some/frames"]) == 0
    assert "101 classes, 3 splits in 12 lists" in capsys.readouterr().out
    record = load_record("ucf101")
    assert record.frames_root("rgb").resolve() == tmp_path / "some" / "frames"
    assert (record.folder / "val_flow_split3.txt").read_text() == "v_YoYo_g01_c02 5 100\n"
    assert record.group_of("v_YoYo_g08_c01") == "YoYo_g08"
    assert command.main(["ucf101", "--annotations", "official", "--frames", "some/frames"]) == 0


def test_the_records_are_installed(repository: Path) -> None:
    setup = configparser.ConfigParser()
    setup.read(repository / "setup.cfg")
    patterns = [text.strip() for text in setup["options.package_data"]["two_stream"].split(",")]
    for path in PACKAGED.iterdir():
        name = path.relative_to(PACKAGED.parents[1]).as_posix()
        assert any(fnmatch(name, pattern) for pattern in patterns)
    for name in ("ucf101", "hmdb51"):
        assert (repository / "settings" / name / "dataset.yaml").samefile(PACKAGED / f"{name}.yaml")
