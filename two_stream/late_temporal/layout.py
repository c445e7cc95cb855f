"""Finds the lists and frames of LateTemporalModeling3DCNN where the published code stores them.

The published layout is `datasets/settings/<dataset>/val_rgb_split1.txt` and
`datasets/<dataset>_frames/<video>/img_00001.jpg` in the folder of the trainers; the evaluators run two levels below.
The layout of this package is also supported.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from two_stream.config.load import dump, shipped, validate_settings
from two_stream.data.catalog import MODALITIES, RECORD_FILE, Patterns, Record, Roots, load_record
from two_stream.data.sources.files import FrameFolders
from two_stream.data.splits import read_list
from two_stream.errors import DataError, SettingsError, VideoError
from two_stream.runtime.console import note
from two_stream.runtime.files import write_text
from two_stream.types import Modality, VideoRecord
from two_stream.video.frames import count_frames

ROOTS = (Path(), Path("..", ".."))
"""folder of the published trainers, relative to itself and to `scripts/eval`"""
CLASSES = {"hmdb51": 51, "ucf101": 101, "smtV2": 174, "window": 3}
"""data sets of the published code, with their numbers of classes"""
_FLOW_NAMES = (("flow_x_{:05d}.jpg", "flow_y_{:05d}.jpg"), ("flow_x_{:05d}", "flow_y_{:05d}"))
"""published names of flow frames: with extension for UCF101, without for HMDB51"""


def settings_folders(given: Path | None) -> list[Path]:
    """Return the folders that may contain `<dataset>/` with split lists: the given folder, or all usual folders."""
    if given is not None:
        return [given]
    return [*(root / "datasets" / "settings" for root in ROOTS), Path("settings"), shipped("settings")]


def find_record(dataset: str, given: Path | None = None) -> Record:
    """Return a data set's record, or a minimal record for a data set of the published code that has no record.

    Raises:
        DataError: The data set is unknown; the message suggests the most similar name.
        SettingsError: The record is invalid.
    """
    own = Path(dataset)
    if own.suffix in (".yaml", ".yml") or (own / RECORD_FILE).is_file():
        return load_record(own)
    for folder in [*settings_folders(given), *settings_folders(None)]:
        if (folder / dataset / RECORD_FILE).is_file():
            return load_record(dataset, folder)
    if dataset in CLASSES:
        return Record(name=dataset, classes=[str(label) for label in range(CLASSES[dataset])], num_splits=3)
    return load_record(dataset, given or Path("settings"))  # raises an error with the most similar name


def find_list(record: Record, name: str, given: Path | None = None) -> Path:
    """Return a split list by its published file name.

    Raises:
        DataError: None of the usual folders contains the list; the message names them.
    """
    tried = [folder / record.name / name for folder in settings_folders(given)]
    tried += [record.folder / name] if (record.folder / RECORD_FILE).is_file() else []
    advice = "pass the list with --list, or its folder with --settings"
    return _first_existing(tried, "split list", advice)


def find_frames(record: Record, modality: Modality, given: Path | None = None) -> Path:
    """Return the folder that contains the frame folders of a modality.

    Raises:
        DataError: The folder is in none of the usual places; the message names them.
    """
    root = getattr(record.frames, modality)
    tried = [folder / "datasets" / f"{record.name}_frames" for folder in ROOTS] if given is None else [given]
    if given is None and root is not None:
        tried.append(record.resolve(root))
    return _first_existing(tried, f"folder of {modality} frames", "pass the folder with --data DIR")


def with_frames(record: Record, roots: dict[Modality, Path], ids: Sequence[str]) -> Record:
    """Return a record that reads frames from the given folders.

    Flow files have the names in the record or the published names of UCF101 or HMDB51, depending on which files the
    first videos have.
    """
    here = {modality: root.resolve() for modality, root in roots.items()}
    names = {"rgb": record.patterns.rgb, "flow_x": record.patterns.flow_x, "flow_y": record.patterns.flow_y}
    if "flow" in here:
        known = [(names["flow_x"], names["flow_y"]), *_FLOW_NAMES]
        names["flow_x"], names["flow_y"] = _existing_names(here["flow"], ids, known, record.first.flow)
    return record.model_copy(update={"frames": Roots(**here), "patterns": Patterns(**names)})


def count_listed_frames(
    videos: Sequence[VideoRecord],
    record: Record,
    modality: Modality,
    *,
    uncounted_only: bool = False,
    skip: bool = False,
) -> list[VideoRecord]:
    """Return the videos with the number of frames in their folders.

    `uncounted_only`: count only if the list says 0, as the published evaluators do. `skip`: keep a video without
    frames; reading it fails later.

    Raises:
        VideoError: A folder is missing or has no frame of this modality.
    """
    folders = FrameFolders(record, modality)
    found = []
    for video in videos:
        if uncounted_only and video.num_frames:
            found.append(video)
            continue
        folder = folders.folder(video.id)
        count = 0 if skip and not folder.is_dir() else count_frames(folder, modality, folders.patterns)
        if not count and not skip:
            raise VideoError(
                folder,
                f"no {modality} frames found; expected names such as {folders.patterns.names(modality, 1)[0]}",
            )
        found.append(replace(video, num_frames=count or 1))
    return found


def pattern_of(extension: str, axis: str | None = None) -> str:
    """Convert a frame name of the published code to the form used in data set records.

    `extension` is for example `img_{0:05d}.jpg`, `flow_{0}_{1:05d}` or `flow_{axis}_{:05d}.jpg`; `axis` is `x` or `y`,
    for flow.

    Raises:
        SettingsError: The placeholder of the number or of the axis is missing.
    """
    named = extension if axis is None else re.sub(r"\{0\}|\{axis\}", axis, extension)
    found = re.sub(r"\{[01]?(:0?\d*d)\}", r"{\1}", named)
    if (axis is not None and named == extension) or not re.search(r"\{:0?\d*d\}", found):
        wanted = "img_{0:05d}.jpg" if axis is None else "flow_{0}_{1:05d}.jpg"
        raise SettingsError(f"--extension {extension!r}: expected a name such as {wanted}")
    return found


def training_record(dataset: str, given: Path | None = None) -> tuple[str, str, Path]:
    """Return a data set's name, and the values of `data.dataset` and `data.settings_root`.

    If published lists have no record, a record is written to their folder.

    Raises:
        DataError: The data set is unknown, or has no lists or no frames.
        SettingsError: The record is invalid.
    """
    own = Path(dataset)
    if own.suffix in (".yaml", ".yml") or (own / RECORD_FILE).is_file():
        return load_record(own).name, dataset, given or Path("settings")
    for folder in settings_folders(given):
        lists = folder / dataset
        if (lists / RECORD_FILE).is_file():
            return load_record(dataset, folder).name, dataset, folder
        if any(lists.glob("train_*_split*.txt")):
            _write_record(find_record(dataset, given), lists)
            return dataset, dataset, folder
    tried = [folder / dataset for folder in settings_folders(given)]
    advice = "write them with `two-stream prepare`, or pass their folder with --settings"
    raise DataError(f"{tried[0]}: no split lists (train_rgb_split1.txt, …){_other_paths(tried)}; {advice}")


def _write_record(record: Record, lists: Path) -> None:
    """Write a record for published lists, with their splits and the frames in the published layout."""
    names = [re.search(r"_split(\d+)\.txt$", path.name) for path in lists.glob("*.txt")]
    roots: dict[Modality, Path] = {}
    ids: list[str] = []
    for modality in MODALITIES:
        for path in sorted(lists.glob(f"train_{modality}_split*.txt"))[:1]:
            roots[modality] = find_frames(record, modality)
            ids = ids or [video.id for video in read_list(path)]
    read = with_frames(record, roots, ids)
    frames = {name: Path(os.path.relpath(root.resolve(), lists.resolve())) for name, root in roots.items()}
    made = read.model_copy(
        update={
            "frames": Roots(**frames),
            "num_splits": max(int(found[1]) for found in names if found),
            "videos": None,
            "groups": None,
        }
    )
    validate_settings(Record, made.model_dump(), lists / RECORD_FILE)
    write_text(lists / RECORD_FILE, f"# Written for the published split lists in this folder.\n{dump(made)}")
    note(f"{lists / RECORD_FILE}: written; every command can now read this data set")


def _existing_names(
    root: Path, ids: Sequence[str], known: Sequence[tuple[str, str]], first: int
) -> tuple[str, str]:
    for video in ids[:5]:
        for folder in (root / video, *root.glob(f"*/{glob.escape(video)}")):
            for names in known:
                if (folder / names[0].format(first)).is_file():
                    return names
    return known[0]


def _first_existing(tried: Sequence[Path], what: str, advice: str) -> Path:
    for path in tried:
        if path.exists():
            return path
    raise DataError(f"{tried[0]}: no such {what}{_other_paths(tried)}; {advice}")


def _other_paths(tried: Sequence[Path]) -> str:
    return f" (also tried: {', '.join(map(str, dict.fromkeys(tried[1:])))})" if tried[1:] else ""
