"""`two-stream check`: finds problems in videos, frame folders and data sets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from two_stream.commands.flags import parse
from two_stream.data.options import AuditOptions
from two_stream.runtime.text import plural

if TYPE_CHECKING:
    from two_stream.data.catalog import Record
    from two_stream.types import Modality
    from two_stream.video.doctor import Finding
    from two_stream.video.frames import FramePatterns

SUMMARY = (
    "Find unreadable, short and missing videos, duplicates (--decode), and leaks between training and test."
)
EXAMPLES = ("check demo/data/dataset.yaml --decode", "check videos --json problems.json")
SEVERITIES = ("error", "warning", "info")
_SHOWN = 40
"""largest number of findings of one kind to print; the JSON file has all of them"""


@dataclass(frozen=True, kw_only=True)
class Options(AuditOptions):
    """Flags of `two-stream check`."""

    targets: tyro.conf.Positional[tuple[str, ...]]
    """data sets (name or dataset.yaml), folders of videos or of frame folders, or videos"""
    json: Path | None = None
    """JSON file to write, with every finding"""
    settings_root: Path = Path("settings")
    """folder that contains the named data sets"""
    rgb_pattern: str | None = None
    """file name pattern of RGB frames in frame folders, as for `two-stream extract`; if omitted, the pattern is read
    from the folder's manifest or detected"""
    flow_x_pattern: str | None = None
    """file name pattern of flow x in frame folders"""
    flow_y_pattern: str | None = None
    """file name pattern of flow y in frame folders"""


def main(args: list[str]) -> int:
    """Run the command; return 0 if there are no errors, otherwise 1.

    Raises:
        TwoStreamError: A flag is wrong, or a target is neither a data set nor a path.
    """
    options = parse(Options, args, prog="two-stream check", description=SUMMARY, examples=EXAMPLES)

    from two_stream.errors import SettingsError
    from two_stream.runtime.files import write_json

    if not options.targets:
        raise SettingsError("two-stream check: no target given; name a data set, folders or videos")
    checked = {target: _check(target, options) for target in options.targets}
    findings = [finding for found, _ in checked.values() for finding in found]
    findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    _report(findings, [f"{target}: {examined}" for target, (_, examined) in checked.items()])
    _report_precision(options)
    counts = {severity: sum(f.severity == severity for f in findings) for severity in SEVERITIES}
    if options.json is not None:
        content = {
            "targets": list(options.targets),
            **counts,
            "findings": [finding.as_dict() for finding in findings],
        }
        write_json(options.json, content)
    return 1 if counts["error"] else 0


def _check(target: str, flags: Options) -> tuple[list[Finding], str]:
    """Check a data set, a video, or the videos and the frame folders below a folder.

    Return the findings, and what was examined, such as `8 classes, 120 videos, 3 splits`.
    """
    from two_stream.config.load import nearest
    from two_stream.data.catalog import known_datasets
    from two_stream.data.prepare.audit import audit
    from two_stream.errors import DataError
    from two_stream.video.decoding.reader import VIDEO_SUFFIXES
    from two_stream.video.doctor import examine_frame_folders, examine_videos
    from two_stream.video.sources import video_files

    path = Path(target)
    record = _record(path, flags.settings_root)
    if record is not None:
        return audit(record, flags), _size_of(record)
    if not path.exists() and path.suffix.lower() not in VIDEO_SUFFIXES:
        hint = nearest(path.name, known_datasets(flags.settings_root))
        raise DataError(
            f"{target}: not found; expected a file, a folder or a data set under {flags.settings_root}{hint}"
        )
    videos = video_files(path)[0] if path.is_dir() else [path]
    groups = _frame_folders(path, flags) if path.is_dir() else {}
    if not videos and not groups:
        raise DataError(
            f"{path}: contains neither videos nor frame folders (img_00001.jpg …); "
            "for frames with other names use --rgb-pattern, --flow-x-pattern and --flow-y-pattern"
        )
    findings: list[Finding] = []
    if videos:
        findings += examine_videos(
            videos,
            min_frames=flags.min_frames,
            backend=flags.backend,
            processes=flags.processes,
            patience=flags.patience,
        )
    for (patterns, modalities), folders in groups.items():
        findings += examine_frame_folders(
            folders,
            patterns=patterns,
            modalities=modalities,
            min_frames=flags.min_frames,
            decode=flags.decode,
            processes=flags.processes,
        )
    counts = ((len(videos), "video"), (sum(map(len, groups.values())), "frame folder"))
    return findings, ", ".join(plural(number, what) for number, what in counts if number)


def _size_of(record: Record) -> str:
    from two_stream.data.splits import load_part
    from two_stream.errors import TwoStreamError

    videos: set[str] = set()
    for modality in record.modalities():
        for split in range(1, record.num_splits + 1):
            with suppress(TwoStreamError):  # missing lists are already reported as findings
                videos |= {
                    video.id for video in load_part(record, modality, split, "train", selection="paper")
                }
                videos |= {video.id for video in load_part(record, modality, split, "test")}
    counts = ((record.num_classes, "class"), (len(videos), "video"), (record.num_splits, "split"))
    return ", ".join(plural(number, what) for number, what in counts)


def _record(path: Path, settings_root: Path) -> Record | None:
    """Return the data set that a target names, or None if the target is not a data set."""
    from two_stream.data.catalog import RECORD_FILE, known_datasets, load_record

    is_name = not path.exists() and str(path) in known_datasets(settings_root)
    if is_name or path.suffix in (".yaml", ".yml") or (path / RECORD_FILE).is_file():
        return load_record(path, settings_root)
    return None


def _frame_folders(
    folder: Path, flags: Options
) -> dict[tuple[FramePatterns, tuple[Modality, ...]], list[Path]]:
    """Find the frame folders below a folder from the names and contents of their files."""
    from two_stream.data.catalog import MODALITIES
    from two_stream.video.frames import names_by_number, read_extraction_manifest
    from two_stream.video.sources import walk_folders

    groups: dict[tuple[FramePatterns, tuple[Modality, ...]], list[Path]] = {}
    for root, names in walk_folders(folder):
        if not names:
            continue
        manifest = read_extraction_manifest(root)
        patterns = _patterns(flags, manifest["settings"]["patterns"] if manifest else {}, names)
        from_0 = [any(0 in names_by_number(names, name) for name in patterns.of(m)) for m in MODALITIES]
        patterns = replace(patterns, first_rgb=1 - from_0[0], first_flow=1 - from_0[1])  # there is no record
        flow = any(names_by_number(names, pattern) for pattern in patterns.of("flow"))
        flow = flow or bool(manifest and manifest["flow_frames"])
        flow = flow or any(name.startswith("flow_x_") for name in names)
        rgb = names_by_number(names, patterns.rgb) or any(name.startswith("img_") for name in names)
        if manifest or flow or rgb:
            groups.setdefault((patterns, ("rgb", "flow") if flow else ("rgb",)), []).append(root)
    return groups


def _patterns(flags: Options, recorded: Mapping[str, str], names: Sequence[str]) -> FramePatterns:
    """Return the file name patterns of a folder: from the flags, its manifest, or the names of its files.

    The published HMDB51 layout has no manifest, and its flow files have no suffix.
    """
    from two_stream.video.frames import FramePatterns, names_by_number

    published = {
        axis: bare
        for axis, bare in (("flow_x", "flow_x_{:05d}"), ("flow_y", "flow_y_{:05d}"))
        if names_by_number(names, bare) and not names_by_number(names, f"{bare}.jpg")
    }
    chosen: dict[str, Any] = dict(recorded) or published
    given = {"rgb": flags.rgb_pattern, "flow_x": flags.flow_x_pattern, "flow_y": flags.flow_y_pattern}
    return FramePatterns(**chosen | {key: value for key, value in given.items() if value is not None})


def _report_precision(flags: Options) -> None:
    """Print how precisely an accuracy can be measured on each data set."""
    from two_stream.errors import TwoStreamError
    from two_stream.evaluation.scores.words import expected_words
    from two_stream.runtime.console import say

    for target in flags.targets:
        record = _record(Path(target), flags.settings_root)
        if record is not None:
            with suppress(TwoStreamError):  # missing lists are already reported as findings
                say(f"{target}: {expected_words(record, (record.modalities() or ['rgb'])[0], 1)}")


def _report(findings: Sequence[Finding], examined: Sequence[str]) -> None:
    from two_stream.runtime.console import console, say, table

    kinds = Counter((finding.severity, finding.kind) for finding in findings)
    shown: Counter[tuple[str, str]] = Counter()
    rows = []
    for finding in findings:
        key = (finding.severity, finding.kind)
        shown[key] += 1
        if shown[key] <= _SHOWN:
            rows.append((finding.severity, finding.kind, finding.subject, finding.detail))
        elif shown[key] == _SHOWN + 1:
            rows.append((*key, "…", f"and {kinds[key] - _SHOWN} more; --json FILE lists all"))
    if rows and console.is_terminal:
        console.print(table("", ("severity", "kind", "what", "finding"), rows))
    else:
        for row in rows:
            say("{}: {}: {}: {}".format(*row))
    counts = Counter[str](finding.severity for finding in findings)
    summary = ", ".join(
        plural(counts[severity], name)
        for severity, name in zip(SEVERITIES, ("error", "warning", "note"), strict=True)
    )
    say(f"examined {'; '.join(examined)}; found {summary}")
