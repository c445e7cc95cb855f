"""Split lists of other programs: every form gives the data set of the plain one, and wrong lines are named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tests.helpers.annotations import frames, write
from two_stream import cli
from two_stream.config.schema import Experiment
from two_stream.data.catalog import Record, load_record
from two_stream.data.demo import DemoOptions, encode, render
from two_stream.data.options import ListOptions
from two_stream.data.prepare.adapters.build import prepare_annotations
from two_stream.data.prepare.adapters.lists import read_class_file, read_lists
from two_stream.data.prepare.folders import Prepared
from two_stream.data.splits import load_part, training_lists
from two_stream.errors import DataError, SettingsError
from two_stream.training.tracking import TIME_FIELDS
from two_stream.training.train import train

CLASSES = ["catch ball", "run", "sit, then stand"]
Row = tuple[str, int, int]
"""folder, number of frames, label from 0"""


def rows(numbers: range) -> list[Row]:
    """The videos with these numbers, of three classes in turn; folders and names contain spaces and commas."""
    return [(f"{CLASSES[n % 3]}/clip {n}", 5 + n, n % 3) for n in numbers]


TRAIN, TEST = rows(range(9)), rows(range(9, 12))
NAMED = '"/data/old machine/{0}.avi",{2}'
FORMS: dict[str, tuple[Callable[[Row], str], dict[str, str]]] = {
    "mmaction2 videos": (lambda row: f"{row[0]}.mp4 {row[2]}\n", {}),
    "mmaction2 frames": (lambda row: f"{row[0]} {row[1]} {row[2]}\n", {}),
    "PySlowFast": (lambda row: f'"/data/k400/{row[0]}.mp4",{row[2]}\n', {}),
    "VideoMAE": (lambda row: f"/data/k400/train set/{row[0]}.mp4 {row[2]}\n", {}),
    "VideoMAE with frames": (lambda row: f"../frames/{row[0]}.AVI {row[1]} {row[2]}\n", {}),
    "TSM from 1": (lambda row: f"{row[0]} {row[1]} {row[2] + 1}\n", {}),
    "tabs and Windows": (lambda row: f"\\data\\{row[0]}\t{row[2]}\r\n".replace("/", "\\"), {}),
    "commas, frames, quotes": (lambda row: f'"{row[0]}", {row[1]}, {row[2]}\n', {}),
    "names with tabs": (lambda row: f"{row[0]}\t{row[1]}\t{CLASSES[row[2]]}\n", {"classes.txt": ""}),
    "names with commas": (lambda row: f'"{row[0]}","{CLASSES[row[2]]}"\n', {}),
    "names with spaces": (lambda row: f"{row[0]}.mp4 {CLASSES[row[2]]}\n", {}),
    "names after folders": (lambda row: f"{row[0]} {CLASSES[row[2]]}\n", {"classes.txt": "\n".join(CLASSES)}),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Frame folders with pictures."""
    root = tmp_path_factory.mktemp("lists") / "frames"
    for name, count, _ in TRAIN + TEST:
        (root / name).mkdir(parents=True)
        random = np.random.default_rng(count)
        for number in range(1, count + 1):
            picture = random.integers(0, 256, (16, 20, 3), dtype=np.uint8)
            cv2.imwrite(str(root / name / f"img_{number:05d}.jpg"), picture)
    return root


def prepared(folder: Path, files: dict[str, str], **places: Any) -> tuple[Prepared, Record]:
    """Prepare lists; `train.txt`, `val.txt`, `test.txt` and `classes.txt` are passed if there are any."""
    write(folder, files)
    lists: dict[str, Any] = {Path(name).stem: folder / name for name, text in files.items() if text}
    made = prepare_annotations("list", ListOptions(**lists, out=folder / "settings", processes=0, **places))
    return made, load_record(folder.name, folder / "settings")


def parts(record: Record) -> list[Any]:
    return [load_part(record, "rgb", 1, part, seed=1) for part in ("train", "val", "test")]  # type: ignore[arg-type]


def losses(record: Record, folder: Path) -> list[dict[str, Any]]:
    backbone = {"kind": "resnet3d", "depth": 10, "width": 0.125, "temporal_stride": 4}
    size = {"clip_length": 4, "resize": [16, 20], "crop": 16}
    model = {"modality": "rgb", "backbone": backbone, "head": {"kind": "average"}, "input": size}
    options = {"epochs": 2, "batch_size": 4, "log_images": False, "optimizer": {"kind": "sgd", "lr": 0.01}}
    data = {"dataset": str(record.folder), "workers": 0, "holdout": 0.4}
    settings = {
        "runs": str(folder),
        "device": "cpu",
        "threads": 1,
        "model": model,
        "data": data,
        "train": options,
    }
    made = train(Experiment.model_validate(settings))
    lines = [json.loads(line) for line in made.run.metrics.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIME_FIELDS} for line in lines]


@pytest.fixture(scope="module")
def plain(root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Any], list[dict[str, Any]]]:
    """The parts and the losses of a data set whose record and lists are written by hand."""
    folder = tmp_path_factory.mktemp("plain")
    content = {"name": "plain", "frames": {"rgb": str(root)}, "classes": CLASSES}
    lists = {"train": TRAIN, "val": TEST}
    texts = {
        f"{part}_rgb_split1.txt": "".join("{} {} {}\n".format(*row) for row in those)
        for part, those in lists.items()
    }
    record = load_record(write(folder, {"dataset.yaml": content, **texts}))
    return parts(record), losses(record, folder)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_plain_data_set(form: str, root: Path, plain: Any, tmp_path: Path) -> None:
    line, more = FORMS[form]
    files = {name: "".join(map(line, those)) for name, those in (("train.txt", TRAIN), ("val.txt", TEST))}
    made, record = prepared(tmp_path / "set", files | more, frames=root)
    assert parts(record) == plain[0]
    assert record.frames_root("rgb") == root
    assert not made.failures
    if form.startswith("names"):
        assert record.classes == CLASSES
    assert losses(record, tmp_path) == plain[1]
    first = int(form == "TSM from 1")
    said = "names" if form.startswith("names") else f"numbers from {first}: {first} is class '{first}'"
    assert any(f"labels are {'class ' * (said == 'names')}{said}" in text for text in made.warnings)


def test_headers_marks_of_windows_and_blank_lines_are_skipped(root: Path, plain: Any, tmp_path: Path) -> None:
    texts = {}
    for name, those in (("train.csv", TRAIN), ("val.csv", TEST)):
        body = "".join(f'"{row[0]}.mp4",{row[1]},{row[2]}\r\n\r\n' for row in those)
        texts[name] = f"\ufeffvideo_path,num_frames,label\r\n{body}"
    assert parts(prepared(tmp_path / "set", texts, frames=root)[1]) == plain[0]
    body = "".join(f"{row[0]}.mp4 {row[2]}\n" for row in TRAIN)
    assert (
        len(read_lists({"train": write(tmp_path, {"l.txt": f"path label\n{body}"}) / "l.txt"}).entries) == 9
    )


def test_videos_in_one_folder_for_each_list(tmp_path: Path) -> None:
    """As mmaction2 stores Kinetics; the paths in both lists are the same."""
    path = tmp_path / "five.mp4"
    encode(path, render("rise", 1, 1, DemoOptions(min_frames=5, max_frames=5)), "mpeg4")
    for part in ("train", "val"):
        for name in ("a/x 1", "a/y", "b/x 2", "b/y"):
            (tmp_path / "videos" / f"videos_{part}" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, tmp_path / "videos" / f"videos_{part}" / f"{name}.mp4")
    text = "a/x 1.mp4 0\na/y.mp4 0\nb/x 2.mp4 1\nb/y.mp4 1\n"
    made, record = prepared(
        tmp_path / "set", {"train.txt": text, "val.txt": text}, videos=tmp_path / "videos"
    )
    train_part, test = (load_part(record, "rgb", 1, part, selection="paper") for part in ("train", "test"))  # type: ignore[arg-type]
    assert [(video.id, video.num_frames, video.label) for video in train_part] == [
        ("videos_train/a/x 1", 5, 0), ("videos_train/a/y", 5, 0),
        ("videos_train/b/x 2", 5, 1), ("videos_train/b/y", 5, 1),
    ]  # fmt: skip
    assert [video.id for video in test][:2] == ["videos_val/a/x 1", "videos_val/a/y"]
    assert any("'a/x 1.mp4' is read as 'videos_val/a/x 1'" in text for text in made.warnings)


def test_with_a_test_list_the_validation_list_is_the_holdout(tmp_path: Path) -> None:
    root = frames(tmp_path / "frames", {f"v{n}": 6 for n in range(6)}, flow=False)
    files = {"train.txt": "v0 6 0\nv1 6 1\n", "val.txt": "v2 6 0\nv3 6 1\n", "test.txt": "v4 6 0\nv5 6 1\n"}
    made, record = prepared(tmp_path / "set", files, frames=root)
    assert [[video.id for video in part] for part in parts(record)] == [
        ["v0", "v1"],
        ["v2", "v3"],
        ["v4", "v5"],
    ]
    assert any("2 training, 2 validation, 2 test videos" in text for text in made.warnings)
    del files["val.txt"]
    assert [video.id for video in load_part(prepared(tmp_path / "two", files, frames=root)[1], "rgb", 1, "test")] == [
        "v4", "v5",
    ]  # fmt: skip
    with pytest.raises(SettingsError, match="--val or --test is required"):
        prepared(tmp_path / "one", {"train.txt": "v0 0\n"}, frames=root)


def test_folders_of_denseflow_start_at_zero(tmp_path: Path) -> None:
    """`class/video/img_00000.jpg` with `flow_x_00000.jpg`, one flow frame fewer."""
    names = [f"{label}/v_{label}_{n}" for label in ("Bowling", "Diving") for n in range(3)]
    for name in names:
        for number in range(7):
            write(tmp_path / "raw" / name, {f"img_{number:05d}.jpg": ""})
            for axis in "xy" if number < 6 else "":
                write(tmp_path / "raw" / name, {f"flow_{axis}_{number:05d}.jpg": ""})
    lines = [f"{name} 7 {name.split('/')[0]}\n" for name in names]
    files = {"train.txt": "".join(lines[:2] + lines[3:5]), "val.txt": lines[2] + lines[5]}
    _, record = prepared(tmp_path / "set", files, frames=tmp_path / "raw")
    assert (record.first.rgb, record.first.flow) == (0, 0)
    assert {video.num_frames for video in parts(record)[2]} == {7}
    assert [video.num_frames for video in load_part(record, "flow", 1, "test")] == [6, 6]


def test_numbers_before_the_label_may_belong_to_the_name(tmp_path: Path) -> None:
    root = frames(tmp_path / "frames", {"take 1": 5, "take 2": 6, "other": 7}, flow=False)
    files = {"train.txt": "take 1 0\ntake 2 1\n", "val.txt": "other 7 0\n"}
    made, record = prepared(tmp_path / "set", files, frames=root)
    found = load_part(record, "rgb", 1, "train", selection="paper")
    assert [(video.id, video.num_frames) for video in found] == [("take 1", 5), ("take 2", 6)]
    assert load_part(record, "rgb", 1, "test")[0].id == "other"
    assert not any("another number" in text for text in made.warnings)


def test_names_of_videos_without_their_suffix(tmp_path: Path) -> None:
    for name in ("a/-3B32lodo2M.mp4", "x.webm", "b/y.avi"):
        (tmp_path / "v" / name).parent.mkdir(parents=True, exist_ok=True)
        encode(tmp_path / "v" / name, render("rise", 1, 1, DemoOptions(min_frames=5, max_frames=5)), "mpeg4")
    files = {"train.txt": "-3B32lodo2M 0\nx 1\n", "val.txt": "b/y 0\n"}
    made, record = prepared(tmp_path / "set", files, videos=tmp_path / "v")
    assert not made.failures
    found = load_part(record, "rgb", 1, "train", selection="paper") + load_part(record, "rgb", 1, "test")
    assert [(video.id, video.num_frames) for video in found] == [("a/-3B32lodo2M", 5), ("x", 5), ("b/y", 5)]


def test_frame_folders_may_lie_deeper_than_class_folders(tmp_path: Path) -> None:
    root = frames(tmp_path / "frames", {f"{part}/run/v{n}": 4 for part in "ab" for n in range(2)}, flow=False)
    files = {"train.txt": "a/run/v0 0\na/run/v1 0\n", "val.txt": "b/run/v0 0\nb/run/v1 0\n"}
    _, record = prepared(tmp_path / "set", files, frames=root)
    assert [video.id for video in load_part(record, "rgb", 1, "test")] == ["b/run/v0", "b/run/v1"]


def test_other_numbers_of_frames_and_missing_videos_are_said(tmp_path: Path, capsys: Any) -> None:
    root = frames(tmp_path / "frames", {f"v{n}": 6 for n in range(4)}, flow=False)
    text = "v0 6 0\nv1 90 1\nv2 5 0\ngone 6 1\n"
    write(tmp_path, {"train.txt": text, "val.txt": "v3 6 1\n"})
    code = cli.main([
        "prepare", "list", "--train", str(tmp_path / "train.txt"), "--val", str(tmp_path / "val.txt"),
        "--frames", str(root), "--out", str(tmp_path / "settings"), "--name", "mine",
    ])  # fmt: skip
    said = " ".join(" ".join(capsys.readouterr()).split())
    assert code == 1
    assert "1 video has another number of frames than listed; the counted frames are used" in said
    assert "train.txt:2: 90, found 6" in said
    assert "left out: gone: no frame folder with this name" in said
    assert "train.txt:4" in said
    record = load_record("mine", tmp_path / "settings")
    assert len(load_part(record, "rgb", 1, "train", selection="paper")) == 3


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"train.txt": "a 0\nb\n"}, r"train\.txt:2: 'b': expected `path label` or .*separated by spaces"),
        ({"train.txt": "a.mp4 0\nb.mp4,1\n"}, r"train\.txt:2: 'b\.mp4,1': expected `path label`"),
        ({"train.txt": "a.mp4,0\nb.mp4,x,1\n"}, r"train\.txt:2: 'b\.mp4,x,1': expected `path label`"),
        ({"train.txt": "a,0\nb,\n"}, r"train\.txt:2: 'b,': expected `path label`.*separated by commas"),
        ({"train.txt": "\n"}, r"train\.txt: the list is empty"),
        ({"train.txt": "label,path\n0,a\n"}, r"train\.txt:1: 'label,path': expected .*use `prepare table`"),
        ({"train.txt": "a 0\nb -1\n"}, r"train\.txt:2: label '-1': expected a whole number .*train\.txt:1 \('0'\)"),
        ({"train.txt": "a 0\nb run\n"}, r"train\.txt:2: label 'run': expected a whole number"),
        ({"train.txt": "a 0\nb 1234567\n"}, r"train\.txt:2: label 1234567: expected at most 5 digits"),
        ({"train.txt": "a 0\nb 2\n", "classes.txt": "x\ny\n"}, r"train\.txt:2: label 2: expected 0 to 1, because "),
        ({"train.txt": "a x\nb z\n", "classes.txt": "x\ny\n", "val.txt": "v x\n"}, r"train\.txt:2: 'z' is not a class"),
        ({"train.txt": "a 0\n", "classes.txt": "x\nx\n"}, r"classes\.txt: class 'x' is listed twice"),
        ({"train.txt": "a 0\n", "val.txt": "b 1\na 0\n"}, r"val\.txt:2: 'a' is also at .*train\.txt:1, with"),
        ({"train.txt": "a 0\nb 1\na 1\n"}, r"train\.txt:3: 'a' is also at .*train\.txt:1"),
        ({"train.txt": "a 3 0\nb 3\n"}, r"train\.txt:2: found one number or name after 'b', but a number of frames"),
        ({"train.txt": "a 3 0 1\nb 3 1\n"}, r"train\.txt:1: found more than two numbers after 'a': expected one label"),
        ({"train.txt": "a.mp4 3 0 1\nb.mp4 3 1\n"}, r"train\.txt:1: 'a\.mp4 3 0 1': expected one label; use `pre"),
        ({"train.txt": "x/c 0\nx/d 1\n", "val.txt": "x/e 0\n"}, "none of the 3 listed videos is here; x/c: no frame"),
    ],
)  # fmt: skip
def test_wrong_lists_are_named_by_file_and_line(files: dict[str, str], said: str, tmp_path: Path) -> None:
    root = frames(tmp_path / "frames", {"a": 3, "b": 3, "v": 3}, flow=False)
    with pytest.raises(DataError, match=said) as caught:
        prepared(tmp_path / "set", {"val.txt": "v 1\n", **files}, frames=root)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "set" / "settings").exists()


def test_repeated_lines_are_counted(tmp_path: Path) -> None:
    root = frames(tmp_path / "frames", {"a": 3, "b": 3, "v": 3}, flow=False)
    made, record = prepared(
        tmp_path / "set", {"train.txt": "a 0\nb 1\n./a 0\n", "val.txt": "v 1\n"}, frames=root
    )
    assert len(load_part(record, "rgb", 1, "train", selection="paper")) == 2
    assert any("1 line repeats another line" in text for text in made.warnings)


@pytest.mark.parametrize(
    ("text", "names", "first"),
    [
        ("run\nsit down\n", ["run", "sit down"], None),
        ("0 run\n1 sit down\n", ["run", "sit down"], 0),
        ("2 sit down\n1 run\n", ["run", "sit down"], 1),
        ("id,name\n0,run\n1,\"sit, down\"\n", ["run", "sit, down"], 0),
        ("run\t1\nsit down\t2\n", ["run", "sit down"], 1),
        ("class 0\nclass 1\n", ["class 0", "class 1"], None),
        ("Back, 15som\nBack, 2som\n", ["Back, 15som", "Back, 2som"], None),
        ("3 points\n4 points\n", ["3 points", "4 points"], None),
    ],
)  # fmt: skip
def test_files_of_class_names(text: str, names: list[str], first: int | None, tmp_path: Path) -> None:
    assert read_class_file(write(tmp_path, {"c.txt": text}) / "c.txt") == (names, first)


@pytest.mark.parametrize(
    ("labels", "classes", "found"),
    [
        ((0, 2), None, (0, 2)),
        ((1, 3), None, (0, 2)),
        ((2, 3), None, (2, 3)),  # classes without videos
        ((1, 2), "a\nb\nc\n", (1, 2)),
        ((1, 3), "a\nb\nc\n", (0, 2)),
        ((1, 2), "1 a\n2 b\n3 c\n", (0, 1)),
        ((0, 2), "1 a\n2 b\n3 c\n", (0, 2)),
    ],
)
def test_the_first_number_of_labels(labels: Any, classes: str | None, found: Any, tmp_path: Path) -> None:
    write(
        tmp_path,
        {"t.txt": "".join(f"v{n} {label}\n" for n, label in enumerate(labels)), "c.txt": classes or ""},
    )
    made = read_lists({"train": tmp_path / "t.txt"}, tmp_path / "c.txt" if classes else None)
    assert tuple(entry.labels[0] for entry in made.entries) == found


def test_a_training_reads_the_parts_of_load_part(tiny: Record) -> None:
    for selection in ("holdout", "folds", "paper"):
        settings: dict[str, Any] = {"seed": 3, "model": {"modality": "flow"}, "data": {"dataset": "tiny"}}
        settings["train"] = {"selection": selection}
        if selection == "folds":
            settings["train"]["optimizer"] = {"kind": "logistic"}
        experiment = Experiment.model_validate(settings)
        found = training_lists(experiment, tiny)
        for part, own in zip(("train", "val"), found):
            assert own == load_part(tiny, "flow", 1, part, selection=selection, seed=3)  # type: ignore[arg-type]
        assert found[2]["training_videos"] == 10
