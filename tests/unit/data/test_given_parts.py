"""A split that comes as folders or as a table: its parts become the lists, and no validation part is carved."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.helpers.annotations import frames, write
from two_stream.commands import prepare as command
from two_stream.data.catalog import Record, load_record
from two_stream.data.demo import DemoOptions, encode, render
from two_stream.data.options import AuditOptions, FolderOptions
from two_stream.data.packing import all_videos
from two_stream.data.prepare.audit import audit
from two_stream.data.prepare.folders import Prepared, prepare_folder
from two_stream.data.splits import all_training_videos, load_part
from two_stream.errors import DataError
from two_stream.evaluation.features.extract_features import _Writer
from two_stream.studies.running.plan import _digest


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "five.mp4"
    encode(path, render("rise", 1, 1, DemoOptions(min_frames=5, max_frames=5)), "mpeg4")
    return path


def folders(root: Path, clip: Path, tops: dict[str, int], classes: tuple[str, ...] = ("run", "walk")) -> Path:
    """Write `top/class/vN.mp4`, so many of each class."""
    for top, count in tops.items():
        for name in classes:
            (root / top / name).mkdir(parents=True)
            for number in range(count):
                shutil.copy(clip, root / top / name / f"{top[:2]}{number}.mp4")
    return root


def prepared(root: Path, tmp_path: Path) -> tuple[Prepared, Record]:
    made = prepare_folder(root, "mine", tmp_path / "settings", FolderOptions(processes=0))
    return made, load_record("mine", tmp_path / "settings")


def counts(record: Record, selection: str = "holdout") -> list[int]:
    parts = ("train", "val", "test")
    return [len(load_part(record, "rgb", 1, part, selection=selection)) for part in parts]  # type: ignore[arg-type]


def test_folders_named_train_val_and_test_are_the_split(tmp_path: Path, clip: Path) -> None:
    root = folders(tmp_path / "videos", clip, {"Train": 4, "valid": 2, "TESTING": 1})
    made, record = prepared(root, tmp_path)
    assert (record.classes, record.num_splits, counts(record)) == (["run", "walk"], 1, [8, 4, 2])
    assert {v.id.split("/")[0] for v in load_part(record, "flow", 1, "val")} == {"valid"}
    assert "8 training, 4 validation, 2 test videos" in made.warnings[0]
    assert counts(record, "paper") == [8, 2, 2]
    assert len(all_training_videos(record, "rgb", 1)) == 12
    assert len(all_videos(record, "rgb")) == made.videos == 14
    assert not [f for f in audit(record, AuditOptions(processes=0)) if f.severity == "error"]
    shutil.rmtree(root / "valid")  # the validation list of before does not stay
    _, record = prepared(root, tmp_path)
    assert not record.holdout_path("rgb", 1).exists()
    assert sum(counts(record)[:2]) == 8


@pytest.mark.parametrize("other", ["val", "Validation", "test", "eval"])
def test_training_and_one_more_folder(tmp_path: Path, clip: Path, other: str) -> None:
    made, record = prepared(folders(tmp_path / "v", clip, {"training": 5, other: 2}), tmp_path)
    assert {v.id.split("/")[0] for v in load_part(record, "rgb", 1, "test")} == {other}
    assert sum(counts(record)[:2]) == 10
    assert "10 training, 4 test videos" in made.warnings[0]


@pytest.mark.parametrize("tops", [("train", "walk"), ("val", "test"), ("train", "training"), ("test", "run")])
def test_folders_that_are_no_split_are_classes_and_one_line_says_so(
    tmp_path: Path, clip: Path, tops: tuple[str, str]
) -> None:
    made, record = prepared(folders(tmp_path / "v", clip, dict.fromkeys(tops, 3)), tmp_path)
    assert record.classes == sorted(tops)
    assert [w for w in made.warnings if "used as classes" in w] == made.warnings[:1]


def test_videos_right_in_the_folders_make_them_classes(tmp_path: Path, clip: Path) -> None:
    for top in ("train", "test"):
        (tmp_path / "v" / top).mkdir(parents=True)
        for number in range(4):
            shutil.copy(clip, tmp_path / "v" / top / f"{number}.mp4")
    made, record = prepared(tmp_path / "v", tmp_path)
    assert record.classes == ["test", "train"]
    assert "used as classes" in made.warnings[0]
    folders(tmp_path / "v", clip, {"train": 1, "test": 1})
    with pytest.raises(
        DataError, match=r"'test/0' is not in a class folder; expected .* \(misplaced videos: 8"
    ):
        prepared(tmp_path / "v", tmp_path)


def test_plain_classes_are_told_nothing(tmp_path: Path, clip: Path) -> None:
    for name in ("run", "trains"):
        folders(tmp_path / "v", clip, {name: 2}, ("deep",))
    made, record = prepared(tmp_path / "v", tmp_path)
    assert record.classes == ["run", "trains"]
    assert not any("used as classes" in w for w in made.warnings)


def test_leaks_into_the_own_validation_part_are_found(tmp_path: Path, clip: Path) -> None:
    _, record = prepared(folders(tmp_path / "v", clip, {"train": 2, "val": 1, "test": 1}), tmp_path)
    path = record.holdout_path("rgb", 1)
    for part, said in (("train", "training"), ("test", "validation")):
        kept = path.read_text()
        line = record.list_path(part, "rgb", 1).read_text().splitlines()[0]  # type: ignore[arg-type]
        path.write_text(f"{kept}{line}\n")
        details = [f.detail for f in audit(record, AuditOptions(processes=0)) if f.kind == "leakage"]
        where = {"train": line.split()[0], "test": line.split()[0]}[part]
        assert f"{where!r} is in the {said} list too" in details
        path.write_text(kept)


def test_a_table_of_three_parts(tmp_path: Path, shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = shared / "cases" / "lists" / "three_way_split" / "split3.csv"
    ids = [line.split(".")[0] for line in table.read_text().splitlines()[1:]]
    root = frames(tmp_path / "frames", dict.fromkeys(ids, 9))
    flags = ["table", "--annotations", str(table), "--frames", str(root), "--out", str(tmp_path / "out")]
    assert command.main([*flags, "--name", "three"]) == 0
    record = load_record("three", tmp_path / "out")
    assert counts(record) == [6, 3, 3]
    assert {v.id for v in load_part(record, "rgb", 1, "val")} == {"yes/v2", "no/v2", "null/v2"}
    assert {v.id for v in load_part(record, "rgb", 1, "test")} == {"yes/v3", "no/v3", "null/v3"}
    assert len(record.list_path("train", "rgb", 1).read_text().splitlines()) == 6
    assert "6 training, 3 validation, 3 test videos" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["val", "test"])
def test_a_table_of_training_and_one_more_part(tmp_path: Path, word: str) -> None:
    rows = "".join(f"v{i},{'ab'[i % 2]},{'train' if i < 8 else word}\n" for i in range(12))
    write(tmp_path, {"t.csv": "id,label,split\n" + rows})
    root = frames(tmp_path / "f", {f"v{i}": 3 for i in range(12)})
    flags = ["table", "--annotations", str(tmp_path / "t.csv"), "--frames", str(root)]
    assert command.main([*flags, "--out", str(tmp_path)]) == 0
    record = load_record("t", tmp_path)
    assert len(load_part(record, "rgb", 1, "test")) == 4
    assert not record.holdout_path("rgb", 1).exists()


def test_stored_features_and_keys_of_studies_know_the_own_validation_part(tmp_path: Path, clip: Path) -> None:
    _, record = prepared(folders(tmp_path / "v", clip, {"train": 2, "val": 1, "test": 1}), tmp_path)
    spec, data = SimpleNamespace(modality="rgb"), SimpleNamespace(split=1)
    writer: Any = SimpleNamespace(
        record=record,
        model=SimpleNamespace(spec=spec),
        experiment=SimpleNamespace(data=data),
        train_views=1,
        train=None,
    )
    stored = _Writer.plan(writer, "train")
    assert {video.id.split("/")[0] for video in stored.videos} == {"train", "val"}
    keys = set()
    for _ in range(2):
        keys.add(_digest.__wrapped__(str(record.folder), tmp_path, "rgb", 1, "videos", None))
        path = record.holdout_path("rgb", 1)
        path.write_text(path.read_text().splitlines()[0] + "\n")
    assert len(keys) == 2
