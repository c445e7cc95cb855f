"""Checks video files and frame folders, for `two-stream check`.

Every video is decoded completely in a worker process, which is killed if it makes no progress.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import cv2

from two_stream.errors import TwoStreamError, VideoError
from two_stream.runtime.console import progress
from two_stream.runtime.files import sha256
from two_stream.runtime.text import plural
from two_stream.runtime.workers import Beat, TaskFailure, run_tasks, usable_processes
from two_stream.types import Modality
from two_stream.video.decoding.reader import backend_version, open_video
from two_stream.video.frames import (
    FLAGS,
    FramePatterns,
    check_complete,
    decode_with_damage,
    list_file_names,
    read_extraction_manifest,
    read_file_bytes,
)
from two_stream.video.sources import video_files

Severity = Literal["error", "warning", "info"]


@dataclass(frozen=True)
class Finding:
    """A problem of a file, folder or list."""

    kind: str
    """kind of the problem, such as unreadable, timed_out, damaged, too_short or missing"""
    severity: Severity
    subject: str
    """path of the file or folder, or name of the list"""
    detail: str
    """description of the problem in one line"""

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as values that can be written as JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Listed:
    """The number of frames of a video according to the split lists."""

    frames: int
    fewer: Severity = "error"
    """severity if fewer frames can be decoded than listed"""
    more: bool = True
    """whether it is a problem if more frames can be decoded than listed"""


@dataclass(frozen=True)
class _VideoJob:
    path: Path
    backend: str
    min_frames: int
    listed: Listed | None


@dataclass(frozen=True)
class _FolderJob:
    folder: Path
    patterns: FramePatterns
    modalities: tuple[Modality, ...]
    min_frames: int
    decode: bool


def examine_videos(
    paths: Iterable[Path],
    *,
    min_frames: int = 2,
    backend: str = "pyav",
    processes: int | None = None,
    patience: float = 60.0,
    listed: Mapping[Path, Listed] | None = None,
) -> list[Finding]:
    """Decode every video completely and return the problems, in the order of the paths.

    The kinds of problems are `unreadable`, `timed_out`, `damaged`, `too_short`, `doubled`, `header_mismatch` and
    `count_mismatch`. `unreadable` means that no frame can be decoded, and `doubled` that two files have the same
    content. `header_mismatch` means that the header states a wrong number of frames, which does not affect any results.
    `count_mismatch` means that the lists state a wrong number of frames.

    Args:
        paths: Video files and folders of them (searched recursively; other files are left out).
        min_frames: Smallest number of frames that is long enough.
        backend: Decoder.
        processes: Worker processes; None uses all processors, 0 works in this process, without a time limit.
        patience: Seconds without a new frame after which a file is skipped.
        listed: Frame counts of the lists, by file.

    Raises:
        SettingsError: The backend is unknown or not installed.
    """
    backend_version(backend)
    files: list[Path] = []
    for path in paths:
        files.extend(video_files(path)[0] if path.is_dir() else [path])
    files = list(dict.fromkeys(files))
    jobs = [_VideoJob(file, backend, min_frames, (listed or {}).get(file)) for file in files]
    found = _run(examine_video, jobs, [str(file) for file in files], "check videos", processes, patience)
    for file, detail in _doubled(files):
        found[str(file)].append(Finding("doubled", "warning", str(file), detail))
    return [finding for file in files for finding in found[str(file)]]


def examine_frame_folders(
    folders: Iterable[Path],
    *,
    patterns: FramePatterns | None = None,
    modalities: Sequence[Modality] = ("rgb", "flow"),
    min_frames: int = 2,
    decode: bool = False,
    processes: int | None = None,
) -> list[Finding]:
    """Return the problems of frame folders, in the order of the folders.

    The kinds of problems are `missing`, `first_number`, `unreadable`, `damaged`, `size_mismatch`, `rgb_flow_mismatch`
    and `too_short`. `first_number` means that the first file has a wrong number. `damaged` means that the source video
    was damaged, or, with `decode`, that an image has wrong pixels. For JPEG files, `size_mismatch` is found only with
    `decode`. `rgb_flow_mismatch` means that the numbers of frames do not match: flow should have one frame fewer than
    RGB or, as in some published data, the same number.

    Args:
        folders: One folder per video.
        patterns: Names of the files.
        modalities: What each folder should contain.
        min_frames: Smallest number of RGB frames that is long enough.
        decode: Decode every image instead of reading only its first and last bytes.
        processes: Worker processes; None uses all processors, 0 works in this process.
    """
    listed = list(folders)
    chosen = patterns or FramePatterns()
    jobs = [_FolderJob(folder, chosen, tuple(modalities), min_frames, decode) for folder in listed]
    names = [str(folder) for folder in listed]
    found = _run(examine_folder, jobs, names, "check frames", processes, 600.0)
    return [finding for name in dict.fromkeys(names) for finding in found[name]]


def _run(
    function: Any, jobs: Sequence[Any], names: list[str], what: str, processes: int | None, patience: float
) -> dict[str, list[Finding]]:
    found: dict[str, list[Finding]] = defaultdict(list)
    count = usable_processes() if processes is None else processes
    with (
        progress(what, total=len(jobs)) as advance,
        closing(run_tasks(function, jobs, processes=count, patience=patience)) as answers,
    ):
        for index, answer in answers:
            if isinstance(answer, TaskFailure):
                kind = "timed_out" if answer.kind == "hung" else "unreadable"
                answer = [Finding(kind, "error", names[index], answer.reason)]
            found[names[index]] = list(answer)
            advance(1, found=sum(map(len, found.values())))
    return found


def examine_video(job: _VideoJob, beat: Beat) -> list[Finding]:
    """Decode one video completely and return its problems."""
    subject = str(job.path)
    try:
        with open_video(job.path, job.backend) as video:
            frames = video.count(beat)
            damage, announced = video.damage, video.header_frames
    except VideoError as error:
        return [Finding("unreadable", "error", subject, error.reason)]
    except (TwoStreamError, OSError, MemoryError, cv2.error) as error:
        return [Finding("unreadable", "error", subject, str(error).strip() or type(error).__name__)]
    findings: list[Finding] = []
    if damage:
        of = f" of the header's {announced}" if announced else ""
        findings.append(Finding("damaged", "warning", subject, f"{frames}{of} frames decode; {damage}"))
    elif announced and announced != frames:
        detail = f"{plural(frames, 'frame', 'decodes', 'decode')}, the header states {announced}"
        findings.append(Finding("header_mismatch", "info", subject, detail))
    if job.listed and (frames < job.listed.frames or (job.listed.more and frames > job.listed.frames)):
        severity = job.listed.fewer if frames < job.listed.frames else "warning"
        detail = f"{plural(frames, 'frame')} of the video file decode, the lists say {job.listed.frames}"
        findings.append(Finding("count_mismatch", severity, subject, detail))
    if frames < job.min_frames:
        detail = f"{plural(frames, 'frame')}, expected at least {job.min_frames}"
        findings.append(Finding("too_short", "warning", subject, detail))
    return findings


def _doubled(files: Sequence[Path]) -> list[tuple[Path, str]]:
    """Find files with the same content; only files of the same size are read."""
    by_size: dict[int, list[Path]] = defaultdict(list)
    for file in files:
        if file.is_file() and file.stat().st_size:
            by_size[file.stat().st_size].append(file)
    twins: list[tuple[Path, str]] = []
    for same_size in by_size.values():
        first: dict[str, Path] = {}
        for file in same_size if len(same_size) > 1 else ():
            try:
                digest = sha256(file)
            except OSError:  # unreadable: reported as such already
                continue
            original = first.setdefault(digest, file)
            if original != file:
                twins.append((file, f"same content as {original}"))
    return twins


def examine_folder(job: _FolderJob, beat: Beat) -> list[Finding]:
    """Return the problems of one frame folder."""
    subject = str(job.folder)
    if not job.folder.is_dir():
        return [Finding("missing", "error", subject, "no such folder of frames")]
    names = list_file_names(job.folder)
    findings: list[Finding] = []
    counts: dict[str, int] = {}
    manifest = read_extraction_manifest(job.folder)
    parts = [(int(a), int(b)) for a, b in (manifest or {}).get("parts", [])]
    for modality in job.modalities:
        sizes: dict[Path, tuple[int, ...]] = {}
        for pattern, files in zip(job.patterns.of(modality), job.patterns.numbered(names, modality)):
            counts[pattern] = len(files)
            spans = [range(first, last + (modality == "rgb")) for first, last in parts]
            findings += _check_numbers(subject, pattern, job.patterns.first(modality), files, spans)
            paths = [job.folder / files[number] for number in sorted(files)]
            findings += _check_pictures(paths, job.decode, FLAGS[modality], sizes, beat)
        findings += _check_sizes(sizes)
    if len(parts) < 2:  # a part has one flow frame fewer than images
        findings += _check_counts(job, counts)
    if manifest and manifest.get("damage"):
        findings.append(Finding("damaged", "warning", subject, f"its video: {manifest['damage']}"))
    return findings


def _check_numbers(
    subject: str, pattern: str, first: int, files: dict[int, str], spans: Sequence[range]
) -> list[Finding]:
    """Find missing frames; `spans` are the numbers of the extracted parts, if not the whole video was extracted."""
    if min(files, default=1) < 1:
        detail = (
            f"starts with {files[min(files)]}, but the data set says {pattern.format(first)}; correct "
            "its `first`"
        )
        return [Finding("first_number", "error", subject, detail)]
    expected = {number for span in spans or [range(1, max(files, default=0) + 1)] for number in span}
    absent = sorted(expected - set(files))
    if not absent:
        return []
    more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
    detail = f"{pattern.format(absent[0] - 1 + first)}{more} missing in the sequence"
    return [Finding("missing", "error", subject, detail)]


def _check_pictures(
    paths: Sequence[Path], decode: bool, flags: int, sizes: dict[Path, tuple[int, ...]], beat: Beat
) -> list[Finding]:
    """Check images, and add the (width, height) of decoded images to `sizes`."""
    findings: list[Finding] = []
    for path in paths:
        try:
            if decode or not _check_ends(path):
                picture, damage = decode_with_damage(read_file_bytes(path), path, flags)
                sizes[path] = picture.shape[1::-1]
                if damage:
                    detail = f"decodes with wrong pixels ({damage})"
                    findings.append(Finding("damaged", "error", str(path), detail))
        except VideoError as error:
            findings.append(Finding("unreadable", "error", str(path), error.reason))
        beat()
    return findings


def _check_sizes(sizes: dict[Path, tuple[int, ...]]) -> list[Finding]:
    """Find images whose size differs from most other images; flow x and y are compared together."""
    findings = []
    for (width, height), _ in Counter(sizes.values()).most_common(1):
        for path, size in sizes.items():
            if size != (width, height):
                detail = f"is {size[0]}×{size[1]}, other frames of the folder {width}×{height}"
                findings.append(Finding("size_mismatch", "error", str(path), detail))
    return findings


def _check_ends(path: Path) -> bool:
    """Check the first and last bytes of an image file; return whether this check is sufficient (true for a JPEG).

    Raises:
        VideoError: It is empty, or a JPEG file without its end marker.
    """
    try:
        with path.open("rb") as file:
            head = file.read(2)
            size = file.seek(0, 2)
            file.seek(max(0, size - 1024))
            tail = file.read()
    except OSError as error:
        raise VideoError(path, f"the file cannot be read ({error.strerror})") from None
    return check_complete(head, tail, path)


def _check_counts(job: _FolderJob, counts: dict[str, int]) -> list[Finding]:
    subject, patterns = str(job.folder), job.patterns
    findings: list[Finding] = []
    rgb = counts.get(patterns.rgb)
    if rgb == 0:
        findings.append(Finding("missing", "error", subject, f"no RGB frames ({patterns.rgb})"))
    elif rgb is not None and rgb < job.min_frames:
        detail = f"{plural(rgb, 'frame')}, expected at least {job.min_frames}"
        findings.append(Finding("too_short", "warning", subject, detail))
    if "flow" not in job.modalities:
        return findings
    x, y = counts[patterns.flow_x], counts[patterns.flow_y]
    if x != y:
        detail = f"{x} flow x images, but {y} flow y images"
        findings.append(Finding("rgb_flow_mismatch", "error", subject, detail))
    elif x == 0 and rgb != 1:
        findings.append(Finding("missing", "error", subject, f"no flow ({patterns.flow_x})"))
    elif rgb and x not in (rgb, rgb - 1):
        detail = f"{plural(rgb, 'RGB frame')}, but {plural(x, 'flow frame')} (expected {rgb - 1})"
        findings.append(Finding("rgb_flow_mismatch", "error", subject, detail))
    return findings
