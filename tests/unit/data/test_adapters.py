"""Every data set's official files give its classes, counts and order; what is wrong with them is named by line."""

from __future__ import annotations

import copy
import gzip
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import annotations as files
from tests.helpers.annotations import frames, write
from tests.helpers.videos import make, picture
from two_stream.commands import prepare as command
from two_stream.data.catalog import Record, load_record
from two_stream.data.options import AnnotationOptions
from two_stream.data.prepare.adapters import ADAPTERS, read_annotations
from two_stream.data.prepare.adapters.annotations import Annotations
from two_stream.data.prepare.adapters.build import prepare_annotations
from two_stream.data.prepare.folders import Prepared
from two_stream.data.splits import load_part
from two_stream.errors import DataError, SettingsError


def prepared(
    kind: str, annotations: Path, root: Path | None = None, *, videos: Path | None = None, **options: Any
) -> tuple[Prepared, Record]:
    """Prepare frame folders, or videos, which are decoded in this process."""
    out = annotations.parent / "settings"
    chosen = AnnotationOptions(
        annotations, name=kind, out=out, frames=root, videos=videos, **{"processes": 0} | options
    )
    made = prepare_annotations(kind, chosen)
    return made, load_record(kind, out)


def lines(record: Record, part: str, modality: str = "rgb") -> list[str]:
    return (record.folder / f"{part}_{modality}_split1.txt").read_text().splitlines()


def test_kinetics_labels_are_the_sorted_names_and_clips_lie_in_class_folders_or_not(tmp_path: Path) -> None:
    official = write(tmp_path / "official", files.KINETICS)
    counts = {"zumba/ccccccccccc_000000_000010": 5, "aaaaaaaaaaa_000001_000011": 7, "bbbbbbbb-_b": 4}
    made, record = prepared("kinetics600", official, frames(tmp_path / "frames", counts))
    assert record.classes == ["abseiling", "air, drumming", "zumba"]
    assert lines(record, "train") == ["zumba/ccccccccccc_000000_000010 5 2", "aaaaaaaaaaa_000001_000011 7 0"]
    assert lines(record, "val") == ["bbbbbbbb-_b 4 1"]
    assert lines(record, "val", "flow") == ["bbbbbbbb-_b 3 1"]
    line = official / "kinetics_val.csv"
    assert made.failures == [("ddddddddddd_000005_000015", f"no frame folder with this name ({line}:3)")]
    assert "kinetics600 has 600 classes, these files name 3" in made.warnings
    assert record.group_of("zumba/ccccccccccc_000000_000010") == "ccccccccccc"
    assert record.group_of("bbbbbbbb-_b") == "bbbbbbbb-_b"


@pytest.mark.parametrize("content", [files.JESTER, files.JESTER_NUMBERED])
def test_jester_in_both_forms(tmp_path: Path, content: dict[str, str]) -> None:
    official = write(tmp_path / "official", content)
    root = frames(tmp_path / "frames", {"34870": 3, "56557": 4, "9223": 5}, "{:05d}.jpg")
    made, record = prepared("jester", official, root)
    assert record.patterns.rgb == "{:05d}.jpg"
    assert not made.failures
    if content is files.JESTER:
        assert lines(record, "train") == ["34870 3 1", "56557 4 2"]
        assert lines(record, "val") == ["9223 5 8"]
        # rolling hands stay what they are in a mirror
        assert record.mirror_labels == (1, 0, 3, 2, 4, 5, 7, 6, 8)
    else:
        assert record.classes == ["Doing_other_things", "Swiping_Left", "Swiping_Right"]
        assert lines(record, "train") == ["34870 3 1", "56557 4 2"]
        assert lines(record, "val") == ["9223 5 0"]
        assert record.mirror_labels == (0, 2, 1)


def test_ssv2_takes_templates_and_pairs_left_with_right(tmp_path: Path) -> None:
    official = write(tmp_path / "official", files.SSV2)
    _, record = prepared("ssv2", official, frames(tmp_path / "frames", {"78687": 3, "42326": 4, "74225": 5}))
    assert record.classes[0] == "Holding something next to something"
    assert lines(record, "train") == ["78687 3 0", "42326 4 2"]
    assert lines(record, "val") == ["74225 5 3"]
    assert record.mirror_labels == (0, 2, 1, 4, 3)


def test_activitynet_segments_are_parts_of_videos(tmp_path: Path, fixtures: dict[str, Any]) -> None:
    official = write(tmp_path / "official", {"activity_net.v1-3.min.json": files.ACTIVITYNET})
    made, record = prepared("activitynet", official, frames(tmp_path / "frames", {"v_x": 40, "y": 30}))
    assert record.classes == ["Surfing", "Archery"]
    assert lines(record, "train") == ["v_x#1 25 1", "v_x#2 10 0"]
    assert lines(record, "train", "flow") == ["v_x#1 24 1", "v_x#2 9 0"]
    assert lines(record, "val") == ["y#1 10 0"]
    assert (record.folder / "segments.csv").read_text().splitlines() == [
        "id,video,start,end,first",
        "v_x#1,v_x,0.5,3,6",
        "v_x#2,v_x,3,99,31",
        "y#1,y,0,1.05,1",
    ]
    assert record.group_of("v_x#2") == "x"
    assert "1 video of the testing subset has no class and is left out" in made.warnings
    (reference,) = fixtures["3dresnets"]["dataset"]["runs"]["ActivityNet default formatter"]
    assert reference["segment"] == [6, 6 + 25]


def test_segments_of_activitynet_without_duration_are_left_out(tmp_path: Path) -> None:
    content = copy.deepcopy(files.ACTIVITYNET)
    content["database"]["x"]["annotations"].insert(0, {"label": "Surfing", "segment": [0, 0]})
    official = write(tmp_path / "official", {"activity_net.v1-3.min.json": content})
    made, record = prepared("activitynet", official, frames(tmp_path / "frames", {"v_x": 40, "y": 30}))
    assert lines(record, "train") == ["v_x#1 25 1", "v_x#2 10 0"]
    (said,) = (text for text in made.warnings if "without duration" in text)
    assert said.startswith("1 segment without duration left out (first: ")
    assert said.endswith("database.x.annotations[0])")


def test_a_rule_for_sources_holds_for_parts_of_videos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(path: Path) -> Annotations:
        found = known.read(path)
        return replace(found, group=r"^v_(.)", entries=[replace(entry, group="") for entry in found.entries])

    known = ADAPTERS["activitynet"]
    monkeypatch.setitem(ADAPTERS, "activitynet", replace(known, read=read))
    official = write(tmp_path / "official", {"activity_net.v1-3.min.json": files.ACTIVITYNET})
    _, record = prepared("activitynet", official, frames(tmp_path / "frames", {"v_x": 40, "y": 30}))
    assert [record.group_of(name) for name in ("v_x#1", "v_x#2", "y#1")] == ["x", "x", "y"]


def test_moments_diving_and_stair(tmp_path: Path) -> None:
    mit = write(tmp_path / "mit", files.MIT)
    _, record = prepared("mit", mit, frames(tmp_path / "a", {"clapping/x1": 2, "x2": 3, "x3": 4}))
    assert record.classes == ["adult+male+singing", "clapping"]
    assert (lines(record, "train"), lines(record, "val")) == (["clapping/x1 2 1"], ["x2 3 1", "x3 4 0"])
    diving = write(tmp_path / "diving", files.DIVING)
    counts = {"-mmq0PT-u8k_00155": 9, "-mmq0PT-u8k_00156": 7, "_8Vy3dlHg2w_00000": 6}
    _, record = prepared("diving48", diving, frames(tmp_path / "b", counts))
    assert record.classes == ["Back, 15som, 05Twis, FREE", "Back, 15som, 15Twis, FREE"]
    assert lines(record, "train") == ["-mmq0PT-u8k_00155 4 1", "-mmq0PT-u8k_00156 7 0"]
    assert lines(record, "train", "flow") == ["-mmq0PT-u8k_00155 3 1", "-mmq0PT-u8k_00156 6 0"]
    assert record.group_of("-mmq0PT-u8k_00156") == "-mmq0PT-u8k"
    assert record.segments is None
    stair = write(tmp_path / "stair", files.STAIR)
    counts = {"eating_meal/a002-0001Y": 2, "drinking/a001-0005Y": 3, "drinking/a001-0004Y": 4}
    _, record = prepared("stair", stair, frames(tmp_path / "c", counts))
    assert record.classes == ["drinking", "eating_meal"]
    assert lines(record, "train") == ["eating_meal/a002-0001Y 2 1", "drinking/a001-0005Y 3 0"]
    assert lines(record, "val") == ["drinking/a001-0004Y 4 0"]


def test_a_part_given_in_frames_begins_where_it_says(tmp_path: Path) -> None:
    """3D-ResNets' JSON files count frames from 1 and leave the last out; the rate of the video does not matter."""
    items = {
        name: {"subset": subset, "annotations": {"label": "a", "segment": segment}}
        for name, subset, segment in (
            ("x", "training", [11, 21]),
            ("y", "training", [1, 31]),
            ("z", "validation", [1, 9]),
        )
    }
    write(tmp_path, {"own.json": {"labels": ["a"], "database": items}})
    _, record = prepared("json", tmp_path / "own.json", frames(tmp_path / "f", {"x": 30, "y": 30, "z": 30}))
    assert lines(record, "train") == ["x#1 10 0", "y 30 0"]
    assert lines(record, "val") == ["z 8 0"]
    assert (record.folder / "segments.csv").read_text() == "id,video,start,end,first\nx#1,x,,,11\n"


def test_charades_has_every_class_of_a_video_and_people_as_groups(tmp_path: Path) -> None:
    official = write(tmp_path / "official", files.CHARADES)
    made, record = prepared(
        "charades", official, frames(tmp_path / "f", {"46GP8": 5, "N11GT": 6, "YSKX3": 7})
    )
    assert record.multi_label
    assert lines(record, "train") == ["46GP8 5 0,2", "N11GT 6 1"]
    assert lines(record, "val") == ["YSKX3 7 0"]
    (first, second) = load_part(record, "rgb", 1, "train", selection="paper")
    assert (first.labels, first.group, second.group) == ((0, 2), "HR43", "0KZ7")
    assert "1 video has no action and is left out" in made.warnings


@pytest.fixture(scope="module")
def fixtures(shared: Path) -> dict[str, Any]:
    with gzip.open(shared / "fixtures" / "families" / "pipelines.json.gz") as file:
        return dict(json.load(file))


@pytest.mark.parametrize(
    ("family", "script"),
    [
        ("efficient3d", "ucf101_json"),
        ("efficient3d", "jester_json"),
        ("efficient3d", "kinetics_json"),
        ("3dresnets", "ucf101_json"),
        ("3dresnets", "hmdb51_json"),
        ("3dresnets", "kinetics_json"),
        ("3dresnets", "mit_json"),
    ],
)
def test_the_codebases_own_json_files(
    tmp_path: Path, fixtures: dict[str, Any], family: str, script: str
) -> None:
    content = fixtures[family]["annotation_scripts"][script]["output"]
    (tmp_path / "own.json").write_text(json.dumps(content))
    items: dict[str, Any] = {}
    for name, item in content["database"].items():
        items |= item if name in ("training", "validation") else {name: item}
    known = {name.removesuffix(".mp4"): item for name, item in items.items() if item["subset"] != "testing"}
    counts = {name: item["annotations"].get("segment", [1, 6])[1] - 1 for name, item in known.items()}
    root = frames(tmp_path / "frames", counts, "image_{:05d}.jpg")
    _, record = prepared("json", tmp_path / "own.json", root)
    assert record.classes == content["labels"]
    assert record.patterns.rgb == "image_{:05d}.jpg"
    for part, subset in (("train", "training"), ("val", "validation")):
        expected = [
            f"{name} {counts[name]} {content['labels'].index(item['annotations']['label'])}"
            for name, item in known.items()
            if item["subset"] == subset
        ]
        assert lines(record, part) == expected


@pytest.mark.parametrize("family", ["efficient3d", "3dresnets"])
def test_official_files_and_the_codebases_scripts_agree(
    tmp_path: Path, fixtures: dict[str, Any], family: str
) -> None:
    """The official CSV, TXT and list files give what the published scripts make of them."""
    scripts = fixtures[family]["annotation_scripts"]
    for kind, name in (("kinetics700", "kinetics_json"), ("jester", "jester_json"), ("mit", "mit_json")):
        if name not in scripts:
            continue
        found = read_annotations(kind, write(tmp_path / kind, scripts[name]["inputs"]))
        (tmp_path / f"{kind}.json").write_text(json.dumps(scripts[name]["output"]))
        own = read_annotations("json", tmp_path / f"{kind}.json")
        assert found.classes == own.classes
        wanted = {entry.id: (entry.labels, entry.split) for entry in own.entries}
        assert {Path(entry.id).name: (entry.labels, entry.split) for entry in found.entries} == wanted


TABLES = {
    "t.csv": "path,label,start,end,group,fps,split\na/x.mp4,walk,,,g 1,,train\nb y.mp4,run,0.5,1.5,,10,val\n",
    "t.tsv": "id\tlabel\tsplit\na/x\twalk\ttrain\nb y\trun\ttest\n",
    "t.json": [
        {"path": "a/x.mp4", "labels": ["walk", "run"], "split": "train"},
        {"path": "b y.mp4", "labels": ["run"], "split": "validation"},
    ],
    "t.jsonl": '{"id": "a/x", "label": 3, "split": "train"}\n\n{"id": "b y", "label": 20, "split": "val"}\n',
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_in_every_form(tmp_path: Path, name: str) -> None:
    write(tmp_path, {name: TABLES[name]})
    _, record = prepared("table", tmp_path / name, frames(tmp_path / "frames", {"a/x": 5, "b y": 30}))
    expected = {
        "t.csv": (["run", "walk"], "a/x 5 1", "b y#1 10 0"),
        "t.tsv": (["run", "walk"], "a/x 5 1", "b y 30 0"),
        "t.json": (["run", "walk"], "a/x 5 0,1", "b y 30 0"),
        "t.jsonl": (["3", "20"], "a/x 5 0", "b y 30 1"),
    }[name]
    assert (record.classes, *lines(record, "train"), *lines(record, "val")) == expected
    if name == "t.csv":
        assert (record.group_of("a/x"), record.group_of("b y#1")) == ("g_1", "b_y")


def test_a_table_without_split_is_given_one(tmp_path: Path) -> None:
    rows = "".join(f"v{i},{'ab'[i % 2]},g{i // 2}\n" for i in range(12))
    write(tmp_path, {"t.csv": "id,label,group\n" + rows})
    made, record = prepared(
        "table", tmp_path / "t.csv", frames(tmp_path / "f", {f"v{i}": 3 for i in range(12)})
    )
    train, test = (load_part(record, "rgb", 1, part, selection="paper") for part in ("train", "test"))
    assert len(train) + len(test) == 12
    assert len(test) == 4
    assert not {r.group for r in train} & {r.group for r in test}
    assert any("no split is given" in note for note in made.warnings)


@pytest.mark.parametrize("case", files.DAMAGES)
def test_each_kind_of_damage_names_file_and_line(tmp_path: Path, case: str) -> None:
    kind, content, said = files.DAMAGES[case]
    with pytest.raises(DataError, match=said) as caught:
        read_annotations(kind, write(tmp_path / "official", content))
    assert "\n" not in str(caught.value)


TABLE_DAMAGES = {
    "delimiter": (
        "t.csv",
        "path\tlabel\nx\ta\n",
        r"t\.csv:1: unknown column 'path\\tlabel': .*`path,id,label,",
    ),
    "a column": ("t.csv", "path,lable\nx,a\n", r"t\.csv:1: unknown column 'lable'.*`label`"),
    "no class": ("t.csv", "path,label\nx,a\ny,\n", r"t\.csv:3: expected a class in `label`"),
    "both": (
        "t.csv",
        "path,label,labels\nx,a,a;b\n",
        r"t\.csv:2: expected a class in `label`, or several in `labels`",
    ),
    "no video": ("t.csv", "path,label\n,a\n", r"t\.csv:2: the video is missing; set `path` or `id`"),
    "no end": ("t.csv", "path,label,start,end\nx,a,3,\n", r"t\.csv:2: `end` is ''"),
    "split": ("t.csv", "path,label,split\nx,a,dev\n", r"t\.csv:2: `split` is 'dev'"),
    "some splits": ("t.csv", "path,label,split\nx,a,train\ny,a,\n", r"t\.csv:3: `split` is empty"),
    "fields": ("t.tsv", "path\tlabel\nx\ta\tb\n", r"t\.tsv:2: found 3 fields"),
    "empty": ("t.csv", "", r"t\.csv: the table has no rows"),
    "JSON lines": ("t.jsonl", '{"id": "x", "label": "a"}\n{"id": \n', r"t\.jsonl:2: invalid JSON"),
    "JSON": ("t.json", '[{"id": "x", "labels": "a"}]', r't\.json: \[0\]\.labels: "a": expected a list'),
    "suffix": ("t.txt", "x a\n", r"t\.txt: expected a \.csv"),
    "rate": ("t.csv", "path,label,fps\nx,a,0\n", r"t\.csv:2: `fps` is 0"),
}


@pytest.mark.parametrize("case", TABLE_DAMAGES)
def test_wrong_tables_name_the_line(tmp_path: Path, case: str) -> None:
    name, text, said = TABLE_DAMAGES[case]
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=said):
        read_annotations("table", tmp_path / name)


def test_missing_videos_are_counted_and_the_first_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = "".join(f"v{i},a,train\n" for i in range(40))
    write(tmp_path, {"t.csv": "id,label,split\n" + rows + "v40,a,test\n"})
    root = frames(tmp_path / "frames", {"v0": 5, "v40": 5, "one": 1})
    flags = ["table", "--annotations", str(tmp_path / "t.csv"), "--frames", str(root)]
    assert command.main([*flags, "--out", str(tmp_path / "out"), "--name", "mine"]) == 1
    shown = capsys.readouterr().out
    assert "left out: v1: no frame folder with this name" in shown
    assert "left out: … and 29 more" in shown
    assert "39 videos left out" in shown
    assert "v11:" not in shown
    (tmp_path / "t.csv").write_text("id,label,split\nv1,a,train\n")
    with pytest.raises(DataError, match=r"frames: the listed video is not here; v1: no frame folder"):
        command.main([*flags, "--out", str(tmp_path / "out")])
    with pytest.raises(SettingsError, match="--videos or --frames is required"):
        command.main(flags[:3])
    with pytest.raises(SettingsError, match="did you mean `kinetics400`"):
        command.main(["kinetics40"])


def seconds(path: Path, long: float) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return make(path, frames=[picture(0)] * round(25 * long))


def test_every_part_of_a_missing_video_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = "v,a,0,1,train\nlost,a,0,1,train\nlost,b,1,2,train\nlost,b,2,3,test\nv,b,1,2,train\n"
    table = write(tmp_path, {"t.csv": "id,label,start,end,split\n" + rows}) / "t.csv"
    seconds(tmp_path / "videos" / "sub" / "v.mp4", 2)
    flags = ["table", "--annotations", str(table), "--videos", str(tmp_path / "videos"), "--processes", "0"]
    assert command.main([*flags, "--out", str(tmp_path / "out")]) == 1
    shown = capsys.readouterr().out.splitlines()
    assert shown[:3] == [f"left out: lost: no video file with this name ({table}:{n})" for n in (3, 4, 5)]
    assert shown[3].endswith("2 clips of 1 source, 2 classes, 1 split in 4 lists; 3 clips left out")
    table.write_text("id,label,split\nv,a,train\nlost,a,test\n")
    assert command.main([*flags, "--out", str(tmp_path / "out")]) == 1
    shown = capsys.readouterr().out.splitlines()
    assert shown[1].endswith("1 video of 1 source, 1 class, 1 split in 4 lists; 1 video left out")
    table.write_text("id,label,split\nw,a,train\nlost,a,test\n")
    said = f"none of the 2 listed videos is here; w: no video file with this name ({table}:2); there is for example "
    with pytest.raises(DataError, match=re.escape(said + "sub/v.mp4") + "$"):
        command.main([*flags, "--out", str(tmp_path / "out")])
    (tmp_path / "videos" / "sub" / "v.mp4").unlink()
    with pytest.raises(DataError, match=r"there is no video file here$"):
        command.main([*flags, "--out", str(tmp_path / "out")])


def test_parts_after_the_end_of_their_video(tmp_path: Path) -> None:
    """Videos of 5 s and of 2 s; a part is not called shortened where less than a frame of it is missing."""
    rows = "a,x,3,99,train\na,x,7,9,train\na,x,0,5.03,train\nb,x,1,2.04,test\nb,x,2,3,test\nb,x,0,2,test\n"
    table = write(tmp_path, {"t.csv": "id,label,start,end,split\n" + rows}) / "t.csv"
    for name, long in (("a", 5), ("b", 2)):
        seconds(tmp_path / "videos" / f"{name}.mp4", long)
    made, record = prepared("table", table, videos=tmp_path / "videos")
    assert lines(record, "train") == ["a#1 50 0", "a#3 125 0"]
    assert lines(record, "val") == ["b#1 25 0", "b#3 50 0"]
    assert made.failures == [
        ("a#2", f"the part starts at 7 s, but the video ends at 5 s ({table}:3)"),
        ("b#2", f"the part starts at 2 s, but the video ends at 2 s ({table}:6)"),
    ]
    assert made.warnings[-1] == (
        f"2 parts end after their video and are shortened (first: {table}:2: to 99 s, but the video ends at 5 s)"
    )
    items = {
        name: {"subset": "training", "annotations": {"label": "x", "segment": segment}}
        for name, segment in (("a", [11, 61]), ("b", [51, 60]))
    }
    write(tmp_path, {"own.json": {"labels": ["x"], "database": items}})
    made, record = prepared("json", tmp_path / "own.json", frames(tmp_path / "f", {"a": 59, "b": 50}))
    assert lines(record, "train") == ["a#1 49 0"]
    where = f"{tmp_path / 'own.json'}: database"
    assert made.failures == [("b#1", f"the part starts at frame 51, but the video has 50 frames ({where}.b)")]
    assert made.warnings[-1] == (
        f"1 part ends after its video and is shortened (first: {where}.a: to frame 60, but the video has 59 frames)"
    )
    (note,) = [note for note in made.warnings if note.startswith("the test")]
    assert note == "the test list is empty: none of its videos is here"


def test_a_record_of_ones_own_stays_or_is_in_the_way(tmp_path: Path) -> None:
    write(tmp_path, {"t.csv": "id,label,split\nx,a,train\ny,b,test\n"})
    root = frames(tmp_path / "frames", {"x": 5, "y": 5})
    own = write(tmp_path / "settings" / "table", {"dataset.yaml": "# mine\nname: table\nclasses: [a, b]\n"})
    made, _ = prepared("table", tmp_path / "t.csv", root)
    assert (own / "dataset.yaml").read_text().startswith("# mine")
    assert any("is not overwritten" in note for note in made.warnings)
    (own / "dataset.yaml").write_text("name: table\nclasses: [b, a]\n")
    with pytest.raises(DataError, match="the classes in this record differ"):
        prepared("table", tmp_path / "t.csv", root)


def test_one_file_for_two_lines_and_several_files_for_one(tmp_path: Path) -> None:
    content = files.damage(files.KINETICS, "kinetics_val.csv", "ddddddddddd", "ccccccccccc")
    counts = {"ccccccccccc": 5, "a/aaaaaaaaaaa_000001_000011": 5, "b/aaaaaaaaaaa_000001_000011": 5}
    made, record = prepared("kinetics400", write(tmp_path / "o", content), frames(tmp_path / "f", counts))
    reasons = dict(made.failures)
    assert "is already used by another line" in reasons["ccccccccccc_000005_000015"]
    assert reasons["aaaaaaaaaaa_000001_000011"].startswith(
        "several with this name: a/aaaaaaaaaaa_000001_000011"
    )
    assert lines(record, "train") == ["ccccccccccc 5 2"]


def test_every_kind_is_documented(repository: Path) -> None:
    page = (repository / "docs" / "datasets.md").read_text()
    for kind in (*ADAPTERS, "folder", "ucf101", "hmdb51"):
        assert f"`prepare {kind}" in page, f"docs/datasets.md has no row for {kind}"


TESTED_ELSEWHERE = {
    "ucf101": "test_prepare.py",
    "hmdb51": "test_prepare.py",
    "json": "test_the_codebases_own_json_files",
    "table": "TABLES and TABLE_DAMAGES",
    "timeline": "test_dense_labels.py",
}


def test_every_kind_has_sample_files_and_damages(tmp_path: Path) -> None:
    """Kinds of one reader share them; `TESTED_ELSEWHERE` names the kinds without."""
    damaged = {kind for kind, *_ in files.DAMAGES.values()}
    for what, kinds in (("SAMPLES", set(files.SAMPLES)), ("DAMAGES", damaged)):
        readers = {ADAPTERS[kind].read for kind in kinds}
        lacking = [kind for kind in ADAPTERS if ADAPTERS[kind].read not in readers]
        assert not set(lacking) - set(TESTED_ELSEWHERE), f"add them to {what} of tests/helpers/annotations.py"
        assert lacking == list(TESTED_ELSEWHERE)
    for kind, content in files.SAMPLES.items():
        found = read_annotations(kind, write(tmp_path / kind, content))
        assert {entry.split for entry in found.entries} == {"train", "test"}, kind
