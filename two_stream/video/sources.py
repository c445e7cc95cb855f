"""Finds videos and their ids in a folder or in a list."""

from __future__ import annotations

import os
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from two_stream.errors import DataError
from two_stream.video.decoding.base import VIDEO_SUFFIXES
from two_stream.video.decoding.memory import is_frame_file

_LIST_SUFFIXES = frozenset({".txt", ".lst", ".list", ".csv"})


@dataclass(frozen=True)
class Source:
    """A video, and the name of its frame folder relative to the output folder."""

    id: str
    path: Path
    parts: tuple[tuple[int, int], ...] = ()
    """first and last image (from 1) of each part to extract, in order and apart; empty for the whole video"""


def find_sources(source: Path) -> tuple[list[Source], int]:
    """Return the videos in a folder and its sub-folders, the videos listed in a text file, or a single video.

    For a folder, `folder_ids` defines the ids. In a list, a line is `path id` or only a path; without an id, the
    relative path without suffix is used. A line that is `#`, or starts with `#` and a space, is a comment.

    Returns:
        The sources in order of their ids (a list keeps its order), and the number of other files.

    Raises:
        DataError: There is no such file or folder, or no video in it.
    """
    if source.is_dir():
        files, ignored = video_files(source)
        if not files:
            raise DataError(f"{source}: no video files in this folder, only {ignored} other files")
        return [Source(name, file) for name, file in zip(folder_ids(source, files), files)], ignored
    if not source.exists():
        raise DataError(f"{source}: no such file or folder")
    if source.suffix.lower() in _LIST_SUFFIXES:
        return _listed(source), 0
    return [Source(source.stem, source)], 0


def video_files(folder: Path) -> tuple[list[Path], int]:
    """Return the sorted files below a folder that have the suffix of a video, and the number of other files.

    Hidden files and folders, such as `._clip.mp4` of macOS and unfinished frame folders, are left out.
    """
    files: list[Path] = []
    ignored = 0
    for root, names in walk_folders(folder):
        for name in sorted(names):
            if not name.startswith(".") and Path(name).suffix.lower() in VIDEO_SUFFIXES:
                files.append(root / name)
            else:
                ignored += 1
    return sorted(files), ignored


def find_inputs(folder: Path) -> tuple[list[tuple[str, Path]], int]:
    """Return the ids and paths of the video files and frame folders below a folder, and the number of other files.

    A folder that contains images or stored flow is a frame folder, unless it contains a video or a frame folder. The
    id is the path relative to `folder`; the suffix of a video is kept only if several ids would be equal. If `folder`
    is itself a frame folder, its id is its path.

    Raises:
        DataError: There is no video and no frame folder.
    """
    files, others = video_files(folder)
    pictures = {root: len(list(filter(is_frame_file, names))) for root, names in walk_folders(folder)}
    pictures = {root: count for root, count in pictures.items() if count}
    holding = {parent for path in (*files, *pictures) for parent in path.parents}
    folders = [root for root in pictures if root not in holding]
    others -= sum(pictures[root] for root in folders)
    if folders == [folder]:
        return [(str(folder), folder)], others
    if not files and not folders:
        raise DataError(
            f"{folder}: contains no video file and no folder of frames, only {others} other files"
        )
    names = {root.relative_to(folder).as_posix(): root for root in folders}
    for name, path in zip(folder_ids(folder, files), files):
        names[path.relative_to(folder).as_posix() if name in names else name] = path
    return sorted(names.items()), others


def walk_folders(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield (folder, names of its files) for a folder and all its sub-folders, except for hidden folders.

    Links to folders are followed after all other folders. A folder is never visited twice.
    """
    seen: set[tuple[int, int]] = set()
    starts = deque([folder])
    while starts:
        for path, folders, names in os.walk(starts.popleft()):
            root = Path(path)
            status = root.stat()
            if (status.st_dev, status.st_ino) in seen:
                folders.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            starts += [root / name for name in folders if (root / name).is_symlink()]
            yield root, names


def folder_ids(root: Path, files: Iterable[Path]) -> list[str]:
    """Return the id of each file below a folder: its relative path without suffix.

    The ids of files that differ only in the suffix, such as `test.avi` and `test.mp4`, contain the suffix.
    """
    relative = [(file.relative_to(root), file.relative_to(root).with_suffix("")) for file in files]
    shared = Counter(short for _, short in relative)
    return [(path if shared[short] > 1 else short).as_posix() for path, short in relative]


def _listed(path: Path) -> list[Source]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (UnicodeDecodeError, OSError):
        raise DataError(
            f"{path}: the list of videos cannot be read as text; expected one path per line"
        ) from None
    stripped = [line.strip() for line in lines]
    entries = [line for line in stripped if line and not _is_comment(line, path.parent)]
    if not entries:
        raise DataError(f"{path}: the list of videos is empty; expected one path per line")
    return [_parse_line(line, path.parent) for line in entries]


def _is_comment(line: str, base: Path) -> bool:
    """Return whether a line is a comment, and not a video such as HMDB51's `#20_Rhythm_clap_u_nm_np1_fr_goo_0.avi`."""
    return not line.split()[0].strip("#") and _locate(line, base) is None


def _parse_line(line: str, base: Path) -> Source:
    if "\\" in line and _locate(line, base) is None:  # written on Windows
        line = line.replace("\\", "/")
    head, _, tail = line.replace("\t", " ").rpartition(" ")
    head = head.strip()
    if (
        head and _locate(line, base) is None
    ):  # paths may contain spaces: a line that is a path is not `path id`
        path = _locate(head, base)
        if path is not None or Path(head).suffix.lower() in VIDEO_SUFFIXES:
            return Source(tail, path or base / head)
    written = PurePosixPath(line).with_suffix("") if PurePosixPath(line).name else PurePosixPath(line)
    plain = not written.is_absolute() and ".." not in written.parts
    return Source(str(written) if plain else written.name, _locate(line, base) or base / line)


def _locate(text: str, base: Path) -> Path | None:
    """Find a listed path, relative to the folder of the list or else to the working folder."""
    for candidate in (base / text, Path(text)):
        try:
            if candidate.exists():
                return candidate
        except OSError:  # a name too long to be a path
            return None
    return None


def find_collisions(sources: Iterable[Source]) -> dict[int, str]:
    """Return the reason for each source that cannot be used, such as a repeated id; the keys are indices of sources."""
    listed = list(sources)
    by_id: dict[str, list[int]] = defaultdict(list)
    for index, source in enumerate(listed):
        by_id[source.id].append(index)
    reasons: dict[int, str] = {}
    for name, indices in by_id.items():
        if len(indices) > 1:
            paths = " and ".join(str(listed[index].path) for index in indices)
            reason = f"several videos have the id {name!r}: {paths}; rename one, or list `path id`"
            reasons.update(dict.fromkeys(indices, reason))
        for parent in PurePosixPath(name).parents:
            if str(parent) in by_id and str(parent) != name:
                other = by_id[str(parent)][0]
                why = f"the folder of id {str(parent)!r} would contain that of {name!r}"
                files = f"{listed[other].path} and {listed[indices[0]].path}"
                for index in [*indices, *by_id[str(parent)]]:
                    reasons.setdefault(index, f"{why}: {files}; rename one, or list `path id`")
    for index, source in enumerate(listed):
        parts = PurePosixPath(source.id).parts
        if not parts or PurePosixPath(source.id).is_absolute() or ".." in parts or "\\" in source.id:
            reasons[index] = f"id {source.id!r} is not a relative folder name"
    return reasons
