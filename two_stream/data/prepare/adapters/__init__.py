"""Reads all kinds of annotation files that `two-stream prepare` supports, and returns them in the same form.

`official.py` reads the files of published data sets, and `table.py` reads tables. `build.py` writes the record and the
split lists.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from two_stream.config.load import nearest
from two_stream.data.catalog import packaged_record
from two_stream.data.prepare.adapters import official
from two_stream.data.prepare.adapters.annotations import Annotations
from two_stream.data.prepare.adapters.dense import read_timeline
from two_stream.data.prepare.adapters.table import read_table
from two_stream.errors import SettingsError
from two_stream.runtime.text import plural


@dataclass(frozen=True)
class Adapter:
    """How one kind of annotation files is read by `two-stream prepare`."""

    read: Callable[[Path], Annotations]
    files: str
    """description of the value of `--annotations`"""
    classes: int | None = None
    """number of classes of the published data set; None: not checked"""


_KINETICS = "folder of kinetics_train.csv and kinetics_val.csv (label,youtube_id,time_start,time_end,split)"
ADAPTERS = {
    "ucf101": Adapter(
        official.read_ucf101, "folder of trainlist01.txt, testlist01.txt … (ucfTrainTestlist)", 101
    ),
    "hmdb51": Adapter(
        official.read_hmdb51, "folder of <class>_test_split1.txt … (testTrainMulti_7030_splits)", 51
    ),
    "kinetics400": Adapter(official.read_kinetics, _KINETICS, 400),
    "kinetics600": Adapter(official.read_kinetics, _KINETICS, 600),
    "kinetics700": Adapter(official.read_kinetics, _KINETICS, 700),
    "jester": Adapter(
        official.read_jester, "folder of jester-v1-labels.csv, -train.csv and -validation.csv", 27
    ),
    "ssv2": Adapter(
        official.read_ssv2,
        "folder of something-something-v2-labels.json, -train.json and -validation.json",
        174,
    ),
    "activitynet": Adapter(official.read_activitynet, "activity_net.v1-3.min.json", 200),
    "mit": Adapter(
        official.read_mit, "folder of moments_categories.txt, trainingSet.csv and validationSet.csv"
    ),
    "diving48": Adapter(
        official.read_diving48, "folder of Diving48_vocab.json and Diving48_V2_{train,test}.json", 48
    ),
    "stair": Adapter(
        official.read_stair, "folder of actionlist.csv, videolist_train.txt and videolist_val.txt", 100
    ),
    "charades": Adapter(
        official.read_charades, "folder of Charades_v1_classes.txt and Charades_v1_{train,test}.csv", 157
    ),
    "json": Adapter(
        official.read_codebase_json, "JSON file of Efficient-3DCNNs or 3D-ResNets (ucf101_01.json …)"
    ),
    "table": Adapter(
        read_table, "CSV, TSV, JSON or JSON lines: path, label or labels, split, start, end, group, fps"
    ),
    "timeline": Adapter(
        read_timeline,
        "CSV file (video,start,end,class), or export of BORIS, ELAN, CVAT or Label Studio; or their folder",
    ),
}
"""kind -> what it reads"""


def read_annotations(kind: str, path: Path) -> Annotations:
    """Read annotation files of the given kind.

    Raises:
        SettingsError: Unknown kind.
        DataError: A file is missing, incomplete or in a different format; names `file:line`, or the key in a JSON file.
    """
    if kind not in ADAPTERS:
        raise SettingsError(f"two-stream prepare: unknown kind {kind!r}{nearest(kind, list(ADAPTERS))}")
    found = ADAPTERS[kind].read(path)
    found.check()
    found.notes += _compared(kind, found.classes)
    return found


def _compared(kind: str, classes: list[str]) -> list[str]:
    """Return notes if the classes in the files differ from those of the published data set."""
    notes = []
    expected = ADAPTERS[kind].classes
    if expected is not None and len(classes) != expected:
        notes.append(f"{kind} has {expected} classes, these files name {len(classes)}")
    known = (packaged_record(kind) or {}).get("classes", classes)
    strange = [name for name in classes if name not in known]
    if strange:
        counted = plural(len(strange), "class", "is", "are")
        notes.append(f"{counted} not {kind}'s as published, such as {strange[0]!r}")
    elif len(classes) == len(known) and classes != known:
        notes.append(
            f"the classes are {kind}'s in a different order; published weights do not fit these labels"
        )
    return notes
