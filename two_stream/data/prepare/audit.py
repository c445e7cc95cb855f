"""Checks the split lists of a data set against each other and against the files on disk."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from two_stream.data.catalog import MODALITIES, Record
from two_stream.data.options import AuditOptions
from two_stream.data.sources.files import FrameFolders, find_video, index_videos
from two_stream.data.sources.segments import Segment, segments_of
from two_stream.data.splits import numbered_records, single_class_warning
from two_stream.errors import DataError, VideoError
from two_stream.runtime.text import plural
from two_stream.types import Modality, Part, VideoRecord
from two_stream.video.doctor import Finding, Listed, Severity, examine_frame_folders, examine_videos
from two_stream.video.frames import frame_numbers, read_extraction_manifest

PARTS: tuple[Part, ...] = ("train", "test")
IMBALANCE = 3.0
"""ratio of the largest to the smallest class of a list above which it is reported"""
_NAMED = 3
"""examples named in a finding about many videos"""


_ADVICE = (
    "a source on both sides of a split makes the test accuracy too high; make the split again by source, correct "
    "`group` of the record if it is not one source, or accept a published split with --official-split"
)
Lists = dict[tuple[Part, Modality], list[VideoRecord]]


def audit(record: Record, options: AuditOptions | None = None) -> list[Finding]:
    """Return the problems of a data set, first in its split lists, then in the listed files.

    The kinds of problems are `missing`, `unreadable`, `doubled`, `label`, `leakage`, `rgb_flow_mismatch`, `too_short`,
    `imbalance`, `one_class` and `count_mismatch`, and those of `examine_videos` and `examine_frame_folders`.
    `doubled` means that an id occurs twice in a list, and `leakage` that a video or its source is on both sides of a
    split. `label` means that a label is out of range or differs between two lists. `count_mismatch` means that the
    number of frames differs between a list and the disk.

    Args:
        record: The data set.
        options: How thoroughly to check.
    """
    chosen = options or AuditOptions()
    findings: list[Finding] = []
    everything: dict[Modality, dict[str, VideoRecord]] = {modality: {} for modality in MODALITIES}
    used = record.modalities() or list(MODALITIES)
    for split in range(1, record.num_splits + 1):
        lists: Lists = {}
        own = [m for m in used if record.holdout_path(m, split).is_file()]
        for modality in used:
            for part in (*PARTS, "val") if own else PARTS:
                path = _path(record, part, modality, split)
                lists[part, modality] = _read(record, path, chosen.min_frames, findings)
                for r in lists[part, modality]:
                    first = everything[modality].setdefault(r.id, r)
                    if first.all_labels != r.all_labels:
                        detail = f"{r.id!r} has label {_labels(r)} here, {_labels(first)} in another list"
                        findings.append(Finding("label", "error", str(path), detail))
        pairs: list[tuple[Part, Part]] = [("train", "test")]
        pairs += [("train", "val"), ("val", "test")] if own else []
        told = set()
        for modality in used:
            for pair in pairs:
                for finding in _sides(record, split, modality, lists, pair, official=chosen.official_split):
                    key = (pair, finding.detail)  # the lists of the other stream usually say the same
                    if finding.kind != "leakage" or key not in told:
                        findings.append(finding)
                    told.add(key)
        findings += _streams(record, split, lists)
    findings += [
        Finding("one_class", "warning", str(record.folder), detail) for detail in single_class_warning(record)
    ]
    findings += _on_disk(record, _of_videos(record, everything, findings), chosen)
    return list(dict.fromkeys(findings))


def _of_videos(
    record: Record, everything: dict[Modality, dict[str, VideoRecord]], findings: list[Finding]
) -> dict[Modality, dict[str, VideoRecord]]:
    """Return the videos that must exist on disk; a video with segments must be long enough for the last one."""
    used = {modality: records for modality, records in everything.items() if records}
    if record.segments is None:
        return used
    subject = str(record.resolve(record.segments))
    try:
        segments = segments_of(record)
    except DataError as error:
        findings.append(Finding("unreadable", "error", subject, str(error).removeprefix(f"{subject}:")))
        return used
    listed = {name for records in used.values() for name in records}
    unused = sorted(set(segments) - listed)
    if unused:
        detail = f"{plural(len(unused), 'segment', 'is', 'are')} in no list: {_some(unused)}"
        findings.append(Finding("missing", "warning", subject, detail))
    return {modality: _whole(records, segments) for modality, records in used.items()}


def _whole(records: dict[str, VideoRecord], segments: dict[str, Segment]) -> dict[str, VideoRecord]:
    videos: dict[str, VideoRecord] = {}
    for name, r in records.items():
        segment = segments.get(name)
        video, last = (segment.video, segment.first - 1 + r.num_frames) if segment else (name, r.num_frames)
        if video not in videos or videos[video].num_frames < last:
            videos[video] = replace(r, id=video, num_frames=last)
    return videos


def _read(record: Record, path: Path, min_frames: int, findings: list[Finding]) -> list[VideoRecord]:
    """Read a list and report its problems; a repeated id is kept once."""

    def add(kind: str, severity: Severity, detail: str) -> None:
        findings.append(Finding(kind, severity, str(path), detail))

    if not path.is_file():
        add("missing", "error", "no such split list; write it with `two-stream prepare`")
        return []
    try:
        lines = numbered_records(path, multi_label=record.multi_label)
    except DataError as error:
        add("unreadable", "error", str(error).removeprefix(f"{path}:"))
        return []
    first: dict[str, int] = {}
    records = []
    for number, r in lines:
        if r.id in first:
            add("doubled", "error", f"{r.id!r} is on lines {first[r.id]} and {number}")
            continue
        first[r.id] = number
        if max(r.all_labels) >= record.num_classes:
            detail = f"line {number}: label {_labels(r)} of {r.id!r}: expected 0 to {record.num_classes - 1}"
            add("label", "error", detail)
        if r.num_frames < min_frames:
            add(
                "too_short",
                "warning",
                f"{r.id!r} has {plural(r.num_frames, 'frame')}, expected at least {min_frames}",
            )
        try:
            records.append(replace(r, group=record.group_of(r.id)))
        except DataError as error:
            add("missing", "error", str(error))
            records.append(replace(r, group=r.id))
    if not records:
        add("missing", "error", "the list is empty")
    return records


def _path(record: Record, part: Part, modality: Modality, split: int) -> Path:
    """Return the path of a list; here, `val` is the data set's own validation list."""
    return record.holdout_path(modality, split) if part == "val" else record.list_path(part, modality, split)


def _sides(
    record: Record,
    split: int,
    modality: Modality,
    lists: Lists,
    parts: tuple[Part, Part],
    *,
    official: bool,
) -> list[Finding]:
    """Find videos and sources that are in both lists of a split.

    A source with the same class in both lists is an error, or a warning in an `official` split.
    """
    train, test = (lists[part, modality] for part in parts)
    subject = str(_path(record, parts[1], modality, split))
    first = {"train": "training", "val": "validation", "test": "test"}[parts[0]]
    findings = []
    both = {r.id for r in train} & {r.id for r in test}
    findings += [
        Finding("leakage", "error", subject, f"{name!r} is in the {first} list too") for name in sorted(both)
    ]
    inside: dict[str, set[int]] = defaultdict(set)
    for r in train:
        inside[r.group].add(r.label)
    apart = [r for r in test if r.id not in both and r.group in inside]
    same = sorted({(r.group, r.label) for r in apart if r.label in inside[r.group]})
    for group, label in same:
        detail = f"source {group!r} has videos of class {_name(record, label)!r} in the {first} list too"
        findings.append(Finding("leakage", "warning" if official else "error", subject, detail))
    if same and not official:
        findings.append(Finding("leakage", "info", str(record.folder), _ADVICE))
    other = sorted({r.group for r in apart if r.label not in inside[r.group]})
    if other:
        counted = plural(len(other), "source", "has", "have")
        detail = f"{counted} videos of different classes in the {first} list: {_some(other)}"
        findings.append(Finding("leakage", "warning", subject, detail))
    for part, records in zip(parts, (train, test)):
        if records:
            findings += _balance(record, str(_path(record, part, modality, split)), records)
    return findings


def _balance(record: Record, subject: str, records: Sequence[VideoRecord]) -> list[Finding]:
    counts = Counter(label for r in records for label in r.all_labels if label < record.num_classes)
    empty = [name for label, name in enumerate(record.classes) if not counts[label]]
    findings = []
    if empty:
        detail = f"{len(empty)} of {plural(record.num_classes, 'class')} have no video: {_some(empty)}"
        findings.append(Finding("imbalance", "warning", subject, detail))
    if counts and max(counts.values()) > IMBALANCE * min(counts.values()):
        most, least = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
        detail = (
            f"{_name(record, most)!r} has {plural(counts[most], 'video')}, {_name(record, least)!r} {counts[least]}; "
            "report mean-class accuracy as well as top-1"
        )
        findings.append(Finding("imbalance", "warning", subject, detail))
    return findings


def _streams(record: Record, split: int, lists: Lists) -> list[Finding]:
    """Compare the RGB list of each part with its flow list."""
    findings: list[Finding] = []
    for part in dict.fromkeys(part for part, _ in lists):
        rgb, flow = ({r.id: r for r in lists.get((part, m), [])} for m in MODALITIES)
        if not rgb or not flow:
            continue
        subject = str(_path(record, part, "flow", split))
        for here, there, what in ((rgb, flow, "RGB"), (flow, rgb, "flow")):
            lone = sorted(set(here) - set(there))
            findings += [
                Finding("rgb_flow_mismatch", "error", subject, f"{name!r} is in the {what} list only")
                for name in lone
            ]
        for name in rgb.keys() & flow.keys():
            a, b = rgb[name], flow[name]
            if a.all_labels != b.all_labels:
                detail = f"{name!r} has label {_labels(a)} in the RGB list, {_labels(b)} in the flow list"
                findings.append(Finding("label", "error", subject, detail))
            if abs(a.num_frames - b.num_frames) > 1:
                detail = f"{name!r} has {a.num_frames} RGB and {plural(b.num_frames, 'flow frame')}"
                findings.append(Finding("rgb_flow_mismatch", "warning", subject, detail))
    return sorted(findings, key=lambda f: (f.subject, f.kind, f.detail))


def _on_disk(
    record: Record, everything: dict[Modality, dict[str, VideoRecord]], options: AuditOptions
) -> list[Finding]:
    """Compare the lists with the frame folders, or with the video files if there are no frame folders."""
    findings: list[Finding] = []
    folders: dict[Modality, FrameFolders] = {}
    for modality in everything:
        root = getattr(record.frames, modality)
        if root is None or not record.resolve(root).is_dir():
            where = record.resolve(root) if root else "`frames` of the record"
            detail = f"no {modality} frames here yet; write them with `two-stream extract`"
            if record.videos is not None:
                detail += ", or set `data.source: videos` to read the videos"
            findings.append(Finding("missing", "info", str(where), detail))
            continue
        folders[modality] = FrameFolders(record, modality)
        parts = record.segments is not None
        findings += _counted(folders[modality], everything[modality].values(), parts=parts)
    findings += _folder_health(folders, everything, options)
    if record.videos is None or not record.resolve(record.videos).is_dir():
        if not folders and everything:
            where = str(record.resolve(record.videos) if record.videos else record.folder)
            findings.append(Finding("missing", "error", where, "neither frame folders nor videos exist"))
        return findings
    root = record.resolve(record.videos)
    index = index_videos(root)
    listed: dict[Path, Listed] = {}
    for name in dict.fromkeys(name for records in everything.values() for name in records):
        needed = {
            m: records[name].num_frames + (m == "flow")
            for m, records in everything.items()
            if name in records
        }
        fewer: Severity = (
            "error" if set(needed) - set(folders) else "warning"
        )  # frame folders take precedence
        try:
            path = find_video(index, root, name)
            listed[path] = Listed(max(needed.values()), fewer, more=not folders and record.segments is None)
        except VideoError as error:
            findings.append(Finding("missing", "info" if folders else "error", error.path, error.reason))
    if options.decode:
        findings += examine_videos(
            listed,
            listed=listed,
            min_frames=options.min_frames,
            backend=options.backend,
            processes=options.processes,
            patience=options.patience,
        )
    return findings


def _counted(folders: FrameFolders, records: Iterable[VideoRecord], *, parts: bool) -> list[Finding]:
    """Compare the frame counts in the lists with the folders; with `parts`, folders may contain more frames."""
    findings = []
    for r in records:
        try:
            folder = folders.folder(r.id)
            numbers = frame_numbers(folder, folders.modality, folders.patterns)
            # of an extracted part, `_folder_health` finds missing frames
            partly = parts and "parts" in (read_extraction_manifest(folder) or {})
            found = max(numbers, default=0) if partly else len(numbers)
        except VideoError:
            continue  # reported by `_folder_health`
        if found and found != r.num_frames and not (parts and found > r.num_frames):
            severity: Severity = "error" if found < r.num_frames else "warning"
            detail = f"{found} {folders.modality} frames, the lists have {r.num_frames}"
            findings.append(Finding("count_mismatch", severity, str(folder), detail))
    return findings


def _folder_health(
    folders: dict[Modality, FrameFolders],
    everything: dict[Modality, dict[str, VideoRecord]],
    options: AuditOptions,
) -> list[Finding]:
    """Check every listed frame folder; a folder that both streams use is checked once."""
    wanted: dict[Path, list[Modality]] = defaultdict(list)
    findings: list[Finding] = []
    for modality, root in folders.items():
        for name in everything[modality]:
            try:
                wanted[root.folder(name)].append(modality)
            except VideoError as error:
                findings.append(Finding("missing", "error", error.path, error.reason))
    for modalities in dict.fromkeys(tuple(m) for m in wanted.values()):
        findings += examine_frame_folders(
            [folder for folder, m in wanted.items() if tuple(m) == modalities],
            patterns=folders[modalities[0]].patterns,
            modalities=modalities,
            min_frames=options.min_frames,
            decode=options.decode,
            processes=options.processes,
        )
    return findings


def _name(record: Record, label: int) -> str:
    return record.classes[label] if label < record.num_classes else str(label)


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:_NAMED])
    return shown + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def _labels(video: VideoRecord) -> str:
    return ",".join(map(str, video.all_labels))
