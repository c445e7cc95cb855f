"""`prepare timeline`: dense labels of five kinds of files, the clips for training, and damaged files."""

from pathlib import Path

import pytest

from tests.helpers.annotations import frames, write
from two_stream.commands import prepare
from two_stream.data.bouts import read_recordings
from two_stream.data.catalog import load_record
from two_stream.data.options import TimelineOptions
from two_stream.data.prepare.adapters.build import prepare_annotations
from two_stream.data.prepare.adapters.dense import read_timeline
from two_stream.data.prepare.adapters.windows import choose_marks
from two_stream.data.sources.segments import segments_of
from two_stream.data.splits import load_part
from two_stream.errors import DataError, SettingsError

BORIS = (
    "Observation id,Source,Time offset (s),Subject,Behavior,Modifier #1,Behavior type,Time,Media file name,Comment\n"
    "o1,player,0.0,rat,groom,,START,1.000,/data/v1.mp4,\n"
    "o1,player,0.0,rat,rear,,POINT,1.200,/data/v1.mp4,\n"
    "o1,player,0.0,rat,groom,,STOP,2.500,/data/v1.mp4,\n"
    "o1,player,0.0,cage mate,rear,,START,3,/data/v1.mp4,\no1,player,0.0,cage mate,rear,,STOP,4,/data/v1.mp4,\n"
)
AGGREGATED = (
    "Observation id\tMedia file name\tSubject\tBehavior\tBehavior type\tStart (s)\tStop (s)\n"
    "o1\tv1.mp4\trat\tgroom\tSTATE\t1.0\t2.5\no1\tv1.mp4\tcage mate\trear\tSTATE\t3\t4\n"
    "o1\tv1.mp4\trat\trear\tPOINT\t1.2\t1.2\n"
)
OLD_BORIS = "Observation id\to1\nMedia file(s)\n\n" + (
    "Time\tMedia file path\tSubject\tBehavior\tStatus\n1\tC:\\d\\v1.mp4\trat\tgroom\tSTART\n"
    "2.5\tC:\\d\\v1.mp4\trat\tgroom\tSTOP\n3\tC:\\d\\v1.mp4\tcage mate\trear\tSTART\n"
    "4\tC:\\d\\v1.mp4\tcage mate\trear\tSTOP\n1.2\tC:\\d\\v1.mp4\trat\trear\tPOINT\n"
)
ELAN = """<?xml version="1.0" encoding="UTF-8"?>
<ANNOTATION_DOCUMENT><HEADER><MEDIA_DESCRIPTOR MEDIA_URL="file:///C:/my%20data/v1.mp4"/></HEADER>
<TIME_ORDER><TIME_SLOT TIME_SLOT_ID="t1" TIME_VALUE="1000"/><TIME_SLOT TIME_SLOT_ID="t2" TIME_VALUE="2500"/>
<TIME_SLOT TIME_SLOT_ID="t3" TIME_VALUE="3000"/><TIME_SLOT TIME_SLOT_ID="t4" TIME_VALUE="4000"/></TIME_ORDER>
<TIER TIER_ID="rat"><ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="a1" TIME_SLOT_REF1="t1" TIME_SLOT_REF2="t2">
<ANNOTATION_VALUE>groom</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION></TIER>
<TIER TIER_ID="cage mate"><ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="a2" TIME_SLOT_REF1="t3"
TIME_SLOT_REF2="t4"><ANNOTATION_VALUE>rear</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION></TIER>
<TIER TIER_ID="notes"><ANNOTATION><REF_ANNOTATION ANNOTATION_REF="a1"><ANNOTATION_VALUE>x</ANNOTATION_VALUE>
</REF_ANNOTATION></ANNOTATION></TIER></ANNOTATION_DOCUMENT>"""
SHAPE = '<box frame="{}" outside="{}" keyframe="1"/>'
CVAT = (
    "<annotations><version>1.1</version><meta><task><source>v1.mp4</source></task></meta>"
    '<track id="0" label="groom">'
    + SHAPE.format(10, 0)
    + SHAPE.format(17, 0)
    + SHAPE.format(25, 1)
    + "</track>"
    '<track id="1" label="rear">'
    + "".join(SHAPE.format(n, 0) for n in range(30, 40))
    + "</track></annotations>"
)
TAGS = "<annotations><meta><source>v1.mp4</source></meta>" + "".join(
    f'<image id="{n}" name="f"><tag label="{"groom" if n < 26 else "rear"}"/></image>'
    for n in (*range(10, 25), *range(30, 40))
)
BACKUP = [
    {
        "tags": [{"frame": n, "label": "rear"} for n in range(30, 40)],
        "tracks": [
            {"label": "groom", "shapes": [{"frame": 10, "outside": False}, {"frame": 25, "outside": True}]}
        ],
    }
]


def studio(*results: dict) -> list[dict]:
    return [{"data": {"video": "/data/upload/3/0123abcd-v1.mp4"}, "annotations": [{"result": list(results)}]}]


FRAMES = studio(
    {"type": "timelinelabels", "value": {"ranges": [{"start": 11, "end": 25}], "timelinelabels": ["groom"]}},
    {"type": "timelinelabels", "value": {"ranges": [{"start": 31, "end": 40}], "timelinelabels": ["rear"]}},
)
SECONDS = studio(
    {"type": "labels", "from_name": "l", "value": {"start": 1.0, "end": 2.5, "labels": ["groom"]}},
    {"type": "labels", "from_name": "l", "value": {"start": 3, "end": 4, "labels": ["rear"]}},
    {"type": "choices", "from_name": "q", "value": {"choices": ["good"]}},
)
FORMS = {
    "columns": {"l.csv": "video,start,end,class\nv1.mp4,1,2.5,groom\nv1.mp4,3,4,rear\n"},
    "other names": {"l.csv": "File;Onset;Offset;Behaviour\nv1;1.0;2.5;groom\nv1;3;4;rear\n"},
    "seconds": {"l.tsv": "Video\tStart (s)\tEnd (s)\tLabel\nv1\t1\t2.5\tgroom\nv1\t3\t4\trear\n"},
    "a file each": {"v1.csv": "start,end,label\n1,2.5,groom\n3,4,rear\n"},
    "BORIS": {"b.csv": BORIS},
    "BORIS aggregated": {"b.tsv": AGGREGATED},
    "BORIS 7": {"b.tsv": OLD_BORIS},
    "ELAN": {"e.eaf": ELAN},
    "CVAT tracks": {"c.xml": CVAT},
    "CVAT tags": {"c.xml": TAGS + "</annotations>"},
    "CVAT backup": {"v1.json": BACKUP},
    "Label Studio frames": {"s.json": FRAMES},
    "Label Studio seconds": {"s.json": SECONDS},
}


def prepared(tmp_path: Path, files: dict, counts: dict[str, int] | None = None, **options):
    """Prepare recordings of ten frames per second, of which `v0` has no labels unless `files` has some."""
    counts = counts or {"v1": 60, "v0": 50}
    labels = write(tmp_path / "labels", {"v0.csv": "start,end,class\n", **files})
    root = frames(tmp_path / "frames", counts)
    chosen = TimelineOptions(
        annotations=labels, frames=root, fps=10, name="x", out=tmp_path / "settings", **options
    )
    made = prepare_annotations("timeline", chosen)
    return made, load_record(tmp_path / "settings" / "x")


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_bouts(tmp_path: Path, form: str) -> None:
    made, record = prepared(tmp_path, FORMS[form])
    found = read_recordings(record)
    assert found["v1"].bouts == ((1.0, 2.5, "groom"), (3.0, 4.0, "rear"))
    assert found["v0"].bouts == ()
    assert (found["v1"].frames, found["v1"].flow, found["v1"].seconds, found["v1"].times) == (60, 59, 6.0, ())
    assert record.classes == ["groom", "rear", "background"]
    assert any("1 point event" in note for note in made.warnings) == form.startswith("BORIS")
    assert not made.failures


def test_the_clips_are_bouts_and_gaps_of_at_least_the_shortest_length(tmp_path: Path) -> None:
    text = "video,start,end,class\nv1,0,5,a\nv1,6,6.2,b\nv1,8,8.5,b\nv2,1,2,a\n"
    _, record = prepared(
        tmp_path, {"l.csv": text}, {"v0": 30, "v1": 90, "v2": 30}, longest=2, shortest=0.8, background=10
    )
    segments = segments_of(record)
    labels = {
        r.id: r for part in ("train", "test") for r in load_part(record, "rgb", 1, part, selection="paper")
    }
    spans = [
        (s.start, s.end, labels[name].label, s.first, labels[name].num_frames)
        for name, s in segments.items()
        if s.video == "v1"
    ]
    third = 5 / 3
    assert spans == [
        (0, pytest.approx(third, rel=1e-5), 0, 1, 16),
        (pytest.approx(third, rel=1e-5), pytest.approx(2 * third, rel=1e-5), 0, 17, 17),
        (pytest.approx(2 * third, rel=1e-5), 5, 0, 34, 17),
        (5, 6, 2, 51, 10),  # the background; the gap of 0.5 s at the end is too short
        (5.7, 6.5, 1, 58, 8),  # 6.0 to 6.2, widened to 0.8 s
        (6.2, 8, 2, 63, 18),
        (7.85, 8.65, 1, 79, 8),
    ]
    assert [s.video for s in segments.values()].count("v0") == 2  # 3 s in two clips
    sides = {
        part: {r.group for r in load_part(record, "rgb", 1, part, selection="paper")}
        for part in ("train", "test")
    }
    assert not sides["train"] & sides["test"]


def test_background_is_limited_and_evenly_spread(tmp_path: Path) -> None:
    text = "video,start,end,class\nv1,0,1,a\nv2,0,1,b\nv2,1,2,Background\n"
    counts = {"v1": 100, "v2": 100, "v0": 40}
    _, record = prepared(tmp_path, {"l.csv": text}, counts, longest=1, background=2)
    kept = [(s.video, s.start) for s in segments_of(record).values() if s.start]
    assert kept == [("v1", 1), ("v1", 6), ("v2", 3), ("v2", 8)]  # numbers 0, 5, 11 and 16 of 22
    assert record.classes == ["a", "b", "background"]
    _, record = prepared(tmp_path / "none", {"l.csv": text}, counts, longest=1, background=0)
    assert (len(segments_of(record)), record.classes) == (2, ["a", "b"])


def test_tracks_are_chosen_and_overlaps_are_named(tmp_path: Path) -> None:
    marks = choose_marks(
        read_timeline(write(tmp_path / "b", {"b.csv": BORIS})),
        TimelineOptions(annotations=tmp_path, track="rat"),
    )
    assert marks.classes == ["groom", "background"]
    overlap = BORIS.replace("START,3,", "START,2,").replace("STOP,4,", "STOP,3,")
    with pytest.raises(
        DataError, match=r"b\.csv:6: 'rear' from 2 s overlaps 'groom' until 2\.5 s \(.*b\.csv:4\); .*--track"
    ):
        prepared(tmp_path, {"b.csv": overlap})
    with pytest.raises(SettingsError, match=r"--track is 'rats': no label has it; did you mean .rat."):
        prepared(tmp_path / "2", {"b.csv": overlap}, track="rats")
    assert prepared(tmp_path / "3", {"b.csv": overlap}, track="rat")[1].classes == ["groom", "background"]


DAMAGES = {
    "no file": ({"a.txt": ""}, "the folder has no dense labels"),
    "empty": ({"a.csv": ""}, r"a\.csv: the file is empty"),
    "column": ({"a.csv": "video,start,end,kind\nv,0,1,a\n"}, r"a\.csv:1: the column `class` is missing"),
    "number": ({"a.csv": "video,start,end,class\nv,x,1,a\n"}, r"a\.csv:2: `start` is 'x'"),
    "span": ({"a.csv": "video,start,end,class\nv,2,1,a\n"}, r"a\.csv:2: start is 2 s and end is 1 s"),
    "class": ({"a.csv": "video,start,end,class\nv,0,1,\n"}, r"a\.csv:2: the class is empty"),
    "never stops": (
        {"b.csv": BORIS.replace("groom,,STOP,2.500", "groom,,POINT,2.500")},
        r"b\.csv:2: 'groom' .*never stops",
    ),
    "stops twice": ({"b.csv": BORIS.replace("groom,,START", "groom,,STOP")}, r"b\.csv:2: 'groom' has STOP"),
    "offset": (
        {"b.csv": BORIS.replace("player,0.0,rat,groom,,START", "player,9,rat,groom,,START")},
        r"b\.csv:2: the time offset is 9 s",
    ),
    "two media": (
        {"b.csv": BORIS.replace("2.500,/data/v1", "2.500,/data/v2")},
        r"b\.csv:4: observation 'o1' has several",
    ),
    "cut ELAN": ({"e.eaf": ELAN[:700]}, r"e\.eaf:\d+: invalid XML"),
    "entities": (
        {"e.eaf": '<!DOCTYPE x [<!ENTITY a "b">]>' + ELAN[38:]},
        r"e\.eaf: expected XML without DOCTYPE",
    ),
    "root": ({"e.eaf": "<a/>"}, r"e\.eaf: the XML root is <a>: expected <ANNOTATION_DOCUMENT>"),
    "slot": (
        {"e.eaf": ELAN.replace('REF2="t2"', 'REF2="t9"')},
        r"tier 'rat', annotation a1: TIME_SLOT_REF2 has no time",
    ),
    "no text": (
        {"e.eaf": ELAN.replace(">rear<", "> <")},
        r"tier 'cage mate', annotation a2: the annotation has no text",
    ),
    "frame": ({"c.xml": CVAT.replace('frame="17"', 'frame="x"')}, r"c\.xml: track 0: frame is 'x'"),
    "no label": (
        {"c.xml": CVAT.replace('label="rear"', "")},
        r"c\.xml: track 1: <track> has no attribute label",
    ),
    "project": ({"c.xml": CVAT.replace("<task>", "<project/><task>")}, r"c\.xml: is the export of a project"),
    "JSON": ({"a.json": "[{"}, r"a\.json:1: invalid JSON"),
    "backup": (
        {"a.json": [{"tags": [{"frame": 1}]}]},
        r"a\.json: \[0\]\.tags\[0\]: the key 'label' is missing",
    ),
    "studio": ({"a.json": [{"data": {}}]}, r"a\.json: \[0\]: the key 'annotations' is missing"),
    "two versions": (
        {"a.json": [{**FRAMES[0], "annotations": [{}, {}]}]},
        r"a\.json: \[0\]: the task has 2 annotations",
    ),
    "frames": (
        {
            "a.json": studio(
                {
                    "type": "timelinelabels",
                    "value": {"ranges": [{"start": 0, "end": 4}], "timelinelabels": ["a"]},
                }
            )
        },
        r"\[0\]\.result\[0\]: frames 0 to 4",
    ),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_damaged_files_are_named_with_the_place(tmp_path: Path, case: str) -> None:
    content, said = DAMAGES[case]
    with pytest.raises(DataError, match=said) as caught:
        read_timeline(write(tmp_path / "official", content))
    assert "\n" not in str(caught.value)


def test_labels_of_another_video_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"l\.csv:2: 'a' starts at 7 s, but the video has 60 frames and ends at 6 s"
    ):
        prepared(tmp_path, {"l.csv": "video,start,end,class\nv1,7,8,a\n"})
    with pytest.raises(DataError, match=r"the labels of .*v1 are also at .*l\.csv:2; keep one"):
        prepared(tmp_path / "2", {"l.csv": "video,start,end,class\nv1,1,2,a\nsub/v1.mp4,1,2,a\n"})


def test_a_column_names_the_recordings_of_each_part(tmp_path: Path) -> None:
    rows = [(n, s, "groom", split) for n, split in enumerate(("train", "Test", "train")) for s in (1, 3)]
    text = "".join(f"v{n}.mp4,{s},{s + 1},{name},{split}\n" for n, s, name, split in rows)
    root = frames(tmp_path / "frames", {f"v{n}": 50 for n in range(3)})
    write(tmp_path, {"l.csv": "video,start,end,class,split\n" + text})
    options = TimelineOptions(annotations=tmp_path / "l.csv", out=tmp_path, name="bouts", frames=root, fps=10)
    prepare_annotations("timeline", options)
    record = load_record("bouts", tmp_path)
    sides = {part: load_part(record, "rgb", 1, part, selection="paper") for part in ("train", "test")}
    assert {part: {clip.id.split("#")[0] for clip in clips} for part, clips in sides.items()} == {
        "train": {"v0", "v2"},
        "test": {"v1"},
    }
    for old, new, said in (
        ("4,groom,train\n", "4,groom,\n", ":3: 'v0.mp4' has another `group` or `split` than at .*:2"),
        (",train\n", ",\n", ":2: `split` is empty, but not in other rows"),
        ("Test", "exam", ":4: `split` is 'exam': expected train, val or test"),
    ):
        changed = text.replace(old, new, 1 if "4" in old else -1)
        write(tmp_path, {"l.csv": "video,start,end,class,split\n" + changed})
        with pytest.raises(DataError, match=said):
            read_timeline(tmp_path / "l.csv")


def test_the_command_leaves_out_recordings_without_a_video(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = (
        write(tmp_path, {"l.csv": "video,start,end,class\nv1,1,2,a\nv2,1,2,a\nmissing,0,1,a\n"}) / "l.csv"
    )
    root = frames(tmp_path / "f", {"v1": 60, "v2": 60})
    args = [
        "timeline",
        "--annotations",
        str(labels),
        "--frames",
        str(root),
        "--fps",
        "10",
        "--out",
        str(tmp_path / "s"),
    ]
    assert prepare.main(args) == 1
    assert "left out: missing: no frame folder with this name" in capsys.readouterr().out
    assert sorted(read_recordings(load_record(tmp_path / "s" / "l"))) == ["v1", "v2"]
    with pytest.raises(DataError, match="gone: no such file or folder"):
        prepare.main(["timeline", "--annotations", "gone", "--frames", str(root)])
    with pytest.raises(SettingsError, match="--shortest is 20 and --longest is 10"):
        prepare.main([*args, "--shortest", "20"])
