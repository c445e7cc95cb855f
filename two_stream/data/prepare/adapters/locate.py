"""Where the listed videos lie: files or frame folders below a root, in class folders or not."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from two_stream.data.sources.files import index_videos
from two_stream.errors import DataError
from two_stream.video.sources import folder_ids, video_files


@dataclass(frozen=True)
class LocatedVideo:
    """A video that is there."""

    id: str
    """its path below the root, without suffix"""
    path: Path
    """the file, or the folder of frames"""


class VideoIndex:
    """Everything below a root by id and by bare name."""

    def __init__(self, root: Path, *, frames: bool) -> None:
        """Look at the folder once.

        Args:
            root: Folder of videos, or of frame folders.
            frames: The latter.

        Raises:
            DataError: No such folder.
        """
        if not root.is_dir():
            raise DataError(f"{root}: no such folder of {'frames' if frames else 'videos'}")
        self.root = root
        self._what = "frame folder" if frames else "video file"
        if frames:
            self._index, self._ids = _frame_folders(root)
        else:
            files = video_files(root)[0]
            self._index, self._ids = (
                index_videos(root),
                dict(zip(files, folder_ids(root, files), strict=True)),
            )

    def find(self, names: Sequence[str]) -> LocatedVideo | str:
        """Return the first of some names that is there, or why there is none.

        A name with its class folder is looked up as it is, one without in every class folder.
        """
        for name in names:
            places = self._index.get(self._relative(name), [])
            if len(places) > 1:
                shown = ", ".join(path.relative_to(self.root).as_posix() for path in places[:3])
                return f"several of this name ({shown})"
            if places:
                return LocatedVideo(self._ids[places[0]], places[0])
        return f"no {self._what} of this name"

    def _relative(self, name: str) -> str:
        path = Path(name)
        if path.is_absolute() and path.is_relative_to(self.root.absolute()):
            return path.relative_to(self.root.absolute()).as_posix()
        return path.as_posix()


def _frame_folders(root: Path) -> tuple[dict[str, list[Path]], dict[Path, str]]:
    """Return the folders without sub-folders, one or two levels below the root, by id and bare name, and their ids."""
    index: dict[str, list[Path]] = {}
    ids: dict[Path, str] = {}
    for top in _folders(root):
        for path in _folders(top) or [top]:
            ids[path] = path.relative_to(root).as_posix()
            for key in {ids[path], path.name}:
                index.setdefault(key, []).append(path)
    return index, ids


def _folders(path: Path) -> list[Path]:
    with os.scandir(path) as entries:
        return [path / name for name in sorted(e.name for e in entries if e.is_dir() and e.name[0] != ".")]
