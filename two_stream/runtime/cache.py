"""The folder for what can be made again: never beside a user's files, and gone without harm."""

from __future__ import annotations

import os
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

VARIABLE = "TWO_STREAM_CACHE"
"""environment variable that names the folder; `off` keeps nothing"""


def cache_folder() -> Path | None:
    """Return the folder, which need not exist; None when nothing is to be kept."""
    given = os.environ.get(VARIABLE)
    if given is not None:
        return None if given.strip().lower() in ("", "off") else Path(given).expanduser()
    try:
        home = Path.home()
    except RuntimeError:  # a user without a home
        return None
    if os.name == "nt":
        base = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = home / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    return base / "two-stream"


def write_cached(path: Path, content: bytes) -> bool:
    """Write a file that may be lost: whole or absent, not flushed to the disk; False where that is not possible.

    Several processes may write the same file at once; one of them wins.
    """
    part = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(part).replace(path)
    except OSError:  # a read-only place or a full disk
        if part:
            with suppress(OSError):
                Path(part).unlink()
        return False
    return True
