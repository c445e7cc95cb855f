"""Files that are whole or absent: atomic writes, checksums, careful reading."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from two_stream.runtime.leftovers import clear_leftovers, unfinished


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is fsynced and renamed over `path`, else removed.

    The file's mode is the one that the umask gives, also where a library writes another one (safetensors: 0600).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_leftovers([path.parent])
    part = unfinished(path.parent / f"{path.name[:40]}.{os.urandom(4).hex()}")
    part.touch(exist_ok=False)
    mode = part.stat().st_mode
    try:
        yield part
        part.chmod(mode)
        fsync_file(part)
        part.replace(path)
        fsync_dir(path.parent)
    finally:
        with suppress(FileNotFoundError):
            part.unlink()


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    with atomic_path(path) as part:
        part.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Write a UTF-8 text file atomically."""
    write_bytes(path, content.encode())


def write_json(path: Path, value: Any, indent: int | None = 2) -> None:
    """Write a JSON file atomically, keys in their order."""
    write_text(path, json.dumps(value, indent=indent, ensure_ascii=False) + "\n")


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
