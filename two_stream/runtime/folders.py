"""Folders that are whole or absent: swapped in at once, checked by SHA-256 when read.

A folder cannot be renamed over another that has files in it, so a swap takes two renames. Between them the
name is missing for a moment; `complete_folder` then gives the predecessor, which keeps a hidden name until the new
folder is in place. Whatever the moment of a kill, the name leads to one whole folder.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from two_stream.errors import CheckpointError, FullDiskError
from two_stream.runtime.files import fsync_dir, fsync_file, room_for, sha256
from two_stream.runtime.text import parse_json

CHECKSUMS = "checksums.json"


@contextmanager
def replaced_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside `target`; on success it takes the place of `target`, else it is removed.

    The files are checksummed (`checksums.json`) and fsynced before the swap. Leftovers of killed attempts
    are cleared first, so they cannot pile up.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    _settle(target)
    new = target.parent / f".{target.name}.new"
    shutil.rmtree(new, ignore_errors=True)
    kept = f"the {target.name}/ before it is kept" if target.is_dir() else "nothing of it is left behind"
    try:
        with room_for(target, kept):
            new.mkdir()
            yield new
            write_checksums(new)
            _swap(new, target)
    except FullDiskError as error:  # of a file in the new folder
        raise FullDiskError(error.path.replace(str(new), str(target)), kept) from None
    finally:
        shutil.rmtree(new, ignore_errors=True)


def complete_folder(target: Path) -> Path:
    """Return the folder to read: `target`, or its predecessor where a kill fell between the two renames."""
    old = _old(target)
    return old if not target.exists() and old.is_dir() else target


def write_checksums(folder: Path) -> None:
    """Record the SHA-256 of every file of a folder beside them and flush all of it to the disk."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != CHECKSUMS)
    (folder / CHECKSUMS).write_text(json.dumps({path.name: sha256(path) for path in files}, indent=2) + "\n")
    for path in [*files, folder / CHECKSUMS]:
        fsync_file(path)
    fsync_dir(folder)


def verify_checksums(
    folder: Path, what: str = "checkpoint", remedy: str = "restore it or train again"
) -> None:
    """Compare every file of a folder with its recorded SHA-256.

    Args:
        folder: Written with `write_checksums`.
        what: What it is, for messages.
        remedy: What to do about a damaged file.

    Raises:
        CheckpointError: The folder, its checksums or a file is missing or damaged; names it.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such {what} folder")
    try:
        expected = parse_json((folder / CHECKSUMS).read_text(encoding="utf-8"))
        pairs = [(str(name), str(digest)) for name, digest in expected.items()]
    except (OSError, ValueError, AttributeError):
        raise CheckpointError(
            f"{folder / CHECKSUMS}: missing or damaged; the {what} cannot be trusted"
        ) from None
    for name, digest in pairs:
        path = folder / Path(name).name
        if not path.is_file():
            raise CheckpointError(f"{path}: missing, though {CHECKSUMS} lists it; {remedy}")
        if sha256(path) != digest:
            raise CheckpointError(f"{path}: damaged (SHA-256 differs from {CHECKSUMS}); {remedy}")


def _old(target: Path) -> Path:
    return target.parent / f".{target.name}.old"


def _settle(target: Path) -> None:
    """Finish what a kill left: with the name missing, the predecessor gets it back."""
    old = _old(target)
    if old.is_dir() and not target.exists():
        old.rename(target)
        fsync_dir(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _swap(new: Path, target: Path) -> None:
    old = _old(target)
    if target.exists():
        target.rename(old)
    new.rename(target)
    fsync_dir(target.parent)
    shutil.rmtree(old, ignore_errors=True)
