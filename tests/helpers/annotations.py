"""Small annotation files in the official forms, and frame folders whose frames are empty files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write(folder: Path, files: Mapping[str, Any]) -> Path:
    """Write texts as they are and everything else as JSON; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def frames(
    root: Path,
    counts: Mapping[str, int],
    pattern: str = "img_{:05d}.jpg",
    *,
    first: int = 1,
    flow: bool = True,
) -> Path:
    """Make frame folders of so many frames, with flow or without; return their root."""
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for number in range(first, count + first):
            (root / name / pattern.format(number)).touch()
            for axis in "xy" if flow and number > first else "":
                (root / name / f"flow_{axis}_{number - 1:05d}.jpg").touch()
    return root


CSV = "label,youtube_id,time_start,time_end,split\n"
KINETICS = {
    "kinetics_train.csv": CSV + "zumba,ccccccccccc,0,10,train\nabseiling,aaaaaaaaaaa,1,11,train\n",
    "kinetics_val.csv": CSV + '"air, drumming",bbbbbbbb-_b,20,30,val\nzumba,ddddddddddd,5,15,val\n',
    "kinetics_test.csv": "youtube_id,time_start,time_end,split\neeeeeeeeeee,5,15,test\n",
}
JESTER = {
    "jester-v1-labels.csv": "Swiping Left\nSwiping Right\nTurning Hand Clockwise\nTurning Hand Counterclockwise\n"
    "Rolling Hand Forward\nRolling Hand Backward\nSliding Two Fingers Left\nSliding Two Fingers Right\nNo gesture\n",
    "jester-v1-train.csv": "34870;Swiping Right\n56557;Turning Hand Clockwise\n",
    "jester-v1-validation.csv": "9223;No gesture\n",
    "jester-v1-test.csv": "1\n",
}
JESTER_NUMBERED = {
    "classInd.txt": "1 Doing_other_things\n2 Swiping_Left\n3 Swiping_Right\n",
    "trainlist.txt": "34870 2\n56557 3\n",
    "vallist.txt": "9223 1\n",
}
SSV2 = {
    "something-something-v2-labels.json": {
        "Pushing something from left to right": "1",
        "Holding something next to something": "0",
        "Pushing something from right to left": "2",
        "Turning the camera left while filming something": "3",
        "Turning the camera right while filming something": "4",
    },
    "something-something-v2-train.json": [
        {
            "id": "78687",
            "label": "holding potato next to bottle",
            "template": "Holding [something] next to [something]",
            "placeholders": ["potato", "bottle"],
        },
        {"id": "42326", "label": "pushing x", "template": "Pushing [something] from right to left"},
    ],
    "something-something-v2-validation.json": [
        {"id": "74225", "label": "y", "template": "Turning the camera left while filming [something]"}
    ],
    "something-something-v2-test.json": [{"id": "1420"}],
}
ACTIVITYNET = {
    "taxonomy": [
        {"nodeId": 0, "nodeName": "Root", "parentId": None},
        {"nodeId": 2, "nodeName": "Sports", "parentId": 0},
        {"nodeId": 5, "nodeName": "Surfing", "parentId": 2},
        {"nodeId": 4, "nodeName": "Archery", "parentId": 2},
    ],
    "version": "VERSION 1.3",
    "database": {
        "x": {
            "duration": 4.0,
            "subset": "training",
            "fps": 10.0,
            "annotations": [
                {"segment": [0.5, 3.0], "label": "Archery"},
                {"segment": [3.0, 99.0], "label": "Surfing"},
            ],
        },
        "y": {
            "subset": "validation",
            "fps": 10.0,
            "annotations": [{"segment": [0, 1.05], "label": "Surfing"}],
        },
        "z": {"subset": "testing", "annotations": []},
    },
}
MIT = {
    "moments_categories.txt": "adult+male+singing,0\nclapping,1\n",
    "trainingSet.csv": "clapping/x1.mp4,clapping,2,3\n",
    "validationSet.csv": "clapping/x2.mp4,clapping,3,0\nadult+male+singing/x3.mp4,adult+male+singing,3,0\n",
}
DIVING = {
    "Diving48_vocab.json": [["Back", "15som", "05Twis", "FREE"], ["Back", "15som", "15Twis", "FREE"]],
    "Diving48_V2_train.json": [
        {"vid_name": "-mmq0PT-u8k_00155", "label": 1, "start_frame": 0, "end_frame": 4},
        {"vid_name": "-mmq0PT-u8k_00156", "label": 0, "start_frame": 0, "end_frame": 70},
    ],
    "Diving48_V2_test.json": [
        {"vid_name": "_8Vy3dlHg2w_00000", "label": 0, "start_frame": 0, "end_frame": 6}
    ],
}
STAIR = {
    "actionlist.csv": "Action ID,English category,Japanese category\na001,drinking,飲んでいる\na002,eating_meal,食べ\n",
    "data/videolist_train.txt": "eating_meal/a002-0001Y.mp4 2\ndrinking/a001-0005Y.mp4 1\n",
    "data/videolist_val.txt": "drinking/a001-0004Y.mp4 1\n",
}
CHARADES_CSV = "id,subject,scene,script,actions,length\n"
CHARADES = {
    "Charades_v1_classes.txt": "c000 Holding some clothes\nc001 Putting clothes somewhere\nc002 Taking a towel\n",
    "Charades_v1_train.csv": CHARADES_CSV
    + '46GP8,HR43,Kitchen,"A person says ""hi"",\nthen leaves",c002 11.90 21.20;c000 0.00 12.60;c002 1.0 2.0,24.8\n'
    + "N11GT,0KZ7,Stairs,A person sits,c001 0.00 2.00,18.3\nEMPTY,0KZ7,Stairs,Nothing,,9.0\n",
    "Charades_v1_test.csv": CHARADES_CSV + "YSKX3,IRL4,Room,A,c000 0.00 2.00,30.1\n",
}


def damage(content: dict[str, Any], name: str, old: str, new: str) -> dict[str, Any]:
    """Return files in which a text of one file is another."""
    text = content[name] if isinstance(content[name], str) else json.dumps(content[name])
    assert old in text
    return {**content, name: text.replace(old, new, 1)}


NET = {"activity_net.json": ACTIVITYNET}
SAMPLES: dict[str, dict[str, Any]] = {
    "kinetics400": KINETICS,
    "jester": JESTER,
    "ssv2": SSV2,
    "activitynet": NET,
    "mit": MIT,
    "diving48": DIVING,
    "stair": STAIR,
    "charades": CHARADES,
}
"""kind -> its files"""
DAMAGES = {
    "kinetics: column": (
        "kinetics400",
        damage(KINETICS, "kinetics_val.csv", "label,", "name,"),
        r"val\.csv:1: column 'label' is missing",
    ),
    "kinetics: delimiter": (
        "kinetics400",
        {**KINETICS, "kinetics_val.csv": "label\tyoutube_id\tn\nzumba\tddddddddddd\t3\n"},
        r"val\.csv:1: column 'label' is missing in 'label\\tyoutube_id\\tn': "
        r"expected `label,youtube_id,time_start,time_end`$",
    ),
    "kinetics: no video": (
        "kinetics400",
        damage(KINETICS, "kinetics_train.csv", "aaaaaaaaaaa", ""),
        r"train\.csv:3: `youtube_id` is empty",
    ),
    "kinetics: cut off": (
        "kinetics400",
        damage(KINETICS, "kinetics_train.csv", ",1,11,train\n", ",1"),
        r"train\.csv:3: found 3 fields, expected 5",
    ),
    "kinetics: time": (
        "kinetics400",
        damage(KINETICS, "kinetics_train.csv", ",0,10", ",zero,10"),
        r"train\.csv:2: `time_start` is 'zero'",
    ),
    "kinetics: backwards": (
        "kinetics400",
        damage(KINETICS, "kinetics_train.csv", ",0,10", ",12,10"),
        r"train\.csv:2: start is 12 s and end is 10 s",
    ),
    "kinetics: no label": (
        "kinetics400",
        damage(KINETICS, "kinetics_val.csv", "zumba", ""),
        r"val\.csv:3: `label` is empty",
    ),
    "kinetics: no file": (
        "kinetics400",
        {"kinetics_train.csv": KINETICS["kinetics_train.csv"]},
        r"official: expected a file \*val\*\.csv",
    ),
    "kinetics: both sides": (
        "kinetics400",
        damage(KINETICS, "kinetics_val.csv", "zumba,ddddddddddd,5,15", "zumba,ccccccccccc,0,10"),
        r"val\.csv:3: .* is also at .*train\.csv:2",
    ),
    "jester: class": (
        "jester",
        damage(JESTER, "jester-v1-train.csv", "Swiping Right", "Swiping Rigth"),
        r"train\.csv:1: 'Swiping Rigth' is not a class.*Swiping Right",
    ),
    "jester: cut off": (
        "jester",
        damage(JESTER, "jester-v1-validation.csv", ";No gesture", ""),
        r"validation\.csv:1: '9223': expected `id;label`",
    ),
    "jester: twice": (
        "jester",
        damage(JESTER, "jester-v1-labels.csv", "No gesture", "Swiping Left"),
        r"labels\.csv: class 'Swiping Left' is listed twice",
    ),
    "jester: number": (
        "jester",
        damage(JESTER_NUMBERED, "trainlist.txt", "56557 3", "56557 4"),
        r"trainlist\.txt:2: class number '4': expected 1 to 3",
    ),
    "jester: order": (
        "jester",
        damage(JESTER_NUMBERED, "classInd.txt", "2 Swiping_Left", "7 Swiping_Left"),
        r"classInd\.txt:2: .* has number 7, expected 2",
    ),
    "ssv2: cut off": (
        "ssv2",
        damage(SSV2, "something-something-v2-train.json", "}]", "},"),
        r"train\.json:1: invalid JSON",
    ),
    "ssv2: class": (
        "ssv2",
        damage(SSV2, "something-something-v2-validation.json", "camera left", "camera lift"),
        r"validation\.json: \[0\]\.template: .* is not a class",
    ),
    "ssv2: key": (
        "ssv2",
        damage(SSV2, "something-something-v2-train.json", '"id": "42326"', '"no": "42326"'),
        r"train\.json: \[1\]: the key 'id' is missing",
    ),
    "ssv2: gap": (
        "ssv2",
        damage(SSV2, "something-something-v2-labels.json", '"4"', '"9"'),
        r"labels\.json: no class has label 4",
    ),
    "activitynet: times": (
        "activitynet",
        damage(NET, "activity_net.json", "[0.5, 3.0]", "[3.5, 3.0]"),
        r"database\.x\.annotations\[0\]: start is 3\.5 s and end is 3 s",
    ),
    "activitynet: class": (
        "activitynet",
        damage(NET, "activity_net.json", '"label": "Archery"', '"label": "Archerie"'),
        r"annotations\[0\]\.label: 'Archerie' is not a class",
    ),
    "activitynet: subset": (
        "activitynet",
        damage(NET, "activity_net.json", '"validation"', '"valid"'),
        r"database\.y\.subset: 'valid': expected training",
    ),
    "activitynet: fps": (
        "activitynet",
        damage(NET, "activity_net.json", '"fps": 10.0', '"fps": 0'),
        r"database\.x\.fps: 0: expected more than 0",
    ),
    "activitynet: cut off": (
        "activitynet",
        damage(NET, "activity_net.json", '"segment": [0, 1.05]', '"segment": [0]'),
        r"database\.y\.annotations\[0\]\.segment: found 1 values",
    ),
    "activitynet: classes": (
        "activitynet",
        damage(NET, "activity_net.json", "taxonomy", "tax"),
        r"expected class names in `labels` or `taxonomy`",
    ),
    "mit: class": (
        "mit",
        damage(MIT, "trainingSet.csv", ",clapping", ",claping"),
        r"trainingSet\.csv:1: 'claping' is not a class",
    ),
    "mit: order": (
        "mit",
        damage(MIT, "moments_categories.txt", "clapping,1", "clapping,2"),
        r"categories\.txt:2: .*label 2, expected 1",
    ),
    "mit: cut off": (
        "mit",
        damage(MIT, "validationSet.csv", "x3.mp4,adult+male+singing,3,0", "x3.mp4"),
        r"validationSet\.csv:2: .*expected `class/video\.mp4",
    ),
    "diving48: label": (
        "diving48",
        damage(DIVING, "Diving48_V2_train.json", '"label": 1', '"label": 2'),
        r"train\.json: \[0\]\.label: 2: expected 0 to 1",
    ),
    "diving48: frames": (
        "diving48",
        damage(DIVING, "Diving48_V2_test.json", '"end_frame": 6', '"end_frame": 0'),
        r"test\.json: \[0\]: frames 0 to 0",
    ),
    "diving48: kind": (
        "diving48",
        damage(DIVING, "Diving48_V2_test.json", '"label": 0', '"label": "0"'),
        r'test\.json: \[0\]\.label: "0": expected a whole number',
    ),
    "diving48: file": (
        "diving48",
        {"Diving48_V2_test.json": []},
        r"official: expected a file Diving48_vocab\.json",
    ),
    "stair: number": (
        "stair",
        damage(STAIR, "data/videolist_train.txt", ".mp4 2", ".mp4 1"),
        r"videolist_train\.txt:1: 'eating_meal' is class 2 of actionlist\.csv, not 1",
    ),
    "stair: class": (
        "stair",
        damage(STAIR, "data/videolist_val.txt", "drinking", "drnking"),
        r"videolist_val\.txt:1: 'drnking' is not a class",
    ),
    "charades: action": (
        "charades",
        damage(CHARADES, "Charades_v1_train.csv", "c001 0.00 2.00", "c001 0.00"),
        r"train\.csv:4: action 'c001 0\.00': expected",
    ),
    "charades: class": (
        "charades",
        damage(CHARADES, "Charades_v1_test.csv", "c000", "c157"),
        r"test\.csv:2: 'c157' is not a class",
    ),
    "charades: no id": (
        "charades",
        damage(CHARADES, "Charades_v1_test.csv", "YSKX3", ""),
        r"test\.csv:2: `id` is empty",
    ),
    "charades: order": (
        "charades",
        damage(CHARADES, "Charades_v1_classes.txt", "c001", "c003"),
        r"classes\.txt:2: class c003, expected c001",
    ),
    "charades: cut off": (
        "charades",
        damage(CHARADES, "Charades_v1_train.csv", ",18.3\n", "\n"),
        r"train\.csv:4: found 5 fields, expected 6",
    ),
}
