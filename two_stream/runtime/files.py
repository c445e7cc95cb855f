"""Files that are whole or absent: atomic writes, checksums, careful reading."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from two_stream.errors import FullDiskError, SettingsError, TwoStreamError
from two_stream.runtime.leftovers import clear_leftovers, unfinished
from two_stream.runtime.text import json_text

_FULL = re.compile(
    r"No space left|os error 28\b|inline_container\.cc|PytorchStreamWriter|\d requested and \d+ written"
)
"""how safetensors, torch and numpy say that a write failed"""


@contextmanager
def room_for(path: Path, kept: str = "") -> Iterator[None]:
    """Tell of a full disk with the name of what was being written, in whatever words the writing library does.

    Raises:
        FullDiskError: With what is kept.
    """
    try:
        yield
    except TwoStreamError:
        raise
    except Exception as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if not full and not _FULL.search(str(error)):
            raise
        left = "what was there before is kept" if path.exists() else "nothing of it is left behind"
        raise FullDiskError(path, kept or left) from None


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is fsynced and renamed over `path`, else removed.

    Where the disk is full, a `FullDiskError` names `path`.
    The mode is the one that the umask gives, also where a library writes another one (safetensors: 0600).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_leftovers([path.parent])
    part = unfinished(path.parent / f"{path.name[:40]}.{os.urandom(4).hex()}")
    try:
        with room_for(path):
            part.touch(exist_ok=False)
            mode = part.stat().st_mode
            yield part
            part.chmod(mode)
            fsync_file(part)
            part.replace(path)
            fsync_dir(path.parent)
    finally:
        with suppress(FileNotFoundError):
            part.unlink()


@contextmanager
def folder_beside(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path` to make it in, removed at the end; an error of a full disk names `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_leftovers([path.parent])
    folder = unfinished(path)
    try:
        with room_for(path):
            folder.mkdir()
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_writable(path: Path) -> None:
    """Find out whether a file can be written before the work that it is for.

    Raises:
        SettingsError: A folder, or it cannot be made there.
    """
    if path.is_dir():
        raise SettingsError(f"{path}: is a folder; give the file to write")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise SettingsError(f"{path}: cannot be written ({error.strerror}); choose another file") from None


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    with atomic_path(path) as part:
        part.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    r"""Write a UTF-8 text file atomically; bytes of names that are not UTF-8 become `\udce9`, as everywhere."""
    write_bytes(path, content.encode(errors="backslashreplace"))


def write_json(path: Path, value: Any, indent: int | None = 2) -> None:
    """Write a JSON file atomically, keys in their order."""
    write_text(path, json_text(value, indent=indent) + "\n")


_CRC = ', "crc32": "'


def checked_line(values: dict[str, Any]) -> str:
    """Return a JSON line that ends in a checksum of what is before it."""
    text = json_text(values)
    return text[:-1] + _CRC + _crc(text) + '"}'


def is_whole(line: str) -> bool | None:
    """Tell whether a line is as `checked_line` made it; None where it has no checksum."""
    text, found, crc = line.rpartition(_CRC)
    return crc == _crc(text + "}") + '"}' if found else None


def _crc(text: str) -> str:
    return f"{zlib.crc32(text.encode(errors='surrogatepass')):08x}"


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync_file(path: Path) -> None:
    """Flush a file's content to the disk."""
    with path.open("r+b") as file:  # Windows flushes only what may be written
        os.fsync(file.fileno())


def fsync_dir(path: Path) -> None:
    """Flush a folder's entries to the disk, where the system can."""
    with suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
