"""What a run that was killed leaves behind, and whether its writer still lives."""

from __future__ import annotations

import os
import re
import shutil
import socket
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

_WINDOWS = os.name == "nt"
_ABANDONED = 3600.0
"""seconds without a new file after which, on Windows, an unfinished folder is nobody's"""


def unfinished(final: Path) -> Path:
    """Return the hidden place beside `final` that this process writes to; it names machine and process."""
    return final.parent / f".{final.name}.{socket.gethostname()}-{os.getpid()}.part"


def clear_leftovers(parents: Iterable[Path]) -> None:
    """Remove what dead processes of this machine left unfinished directly under `parents`."""
    pattern = re.compile(rf"\..+\.{re.escape(socket.gethostname())}-(\d+)\.(part|old)")
    for parent in set(parents):
        names = [entry.name for entry in parent.iterdir()] if parent.is_dir() else []
        for match in filter(None, map(pattern.fullmatch, names)):
            left = parent / match[0]
            if _lives(int(match[1]), left):
                continue
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                with suppress(OSError):
                    left.unlink()


def _lives(pid: int, left: Path) -> bool:
    """Tell whether the process that writes there may still run."""
    if _WINDOWS:  # there, os.kill does not ask: it sends Ctrl-C or ends the process
        try:
            return time.time() - left.stat().st_mtime < _ABANDONED
        except OSError:
            return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
