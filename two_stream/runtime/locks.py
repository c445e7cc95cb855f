"""One process per study, and none begins while workers of a killed one still save."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from two_stream.errors import SettingsError
from two_stream.runtime.console import note

_STUDY, _WORKERS = ".lock", ".workers"
PATIENCE = 120.0
"""seconds that workers of an earlier, killed study get to save and go"""


@contextmanager
def study_lock(folder: Path) -> Iterator[None]:
    """Keep a second process from running the same study, and wait for the workers of an earlier one.

    The locks belong to the processes: they end with them, however they end.

    Raises:
        SettingsError: Another process runs the study, or its workers do not end.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _STUDY).open("a") as mine, (folder / _WORKERS).open("a") as workers:
        if not _lock(mine, exclusive=True):
            raise SettingsError(f"{folder}: another process is running this study; wait for it")
        _wait_for_workers(folder, workers)
        yield


def _wait_for_workers(folder: Path, file: IO[str]) -> None:
    end = time.monotonic() + PATIENCE
    said = False
    while not _lock(file, exclusive=True):
        if not said:
            note(f"{folder}: waiting for the workers of an earlier run of this study to save and end")
            said = True
        if time.monotonic() > end:
            raise SettingsError(
                f"{folder}: workers of an earlier run of this study do not end; end them by hand"
            )
        time.sleep(0.5)
    _unlock(file)


def worker_mark(folder: Path) -> IO[str]:
    """Say, for the life of this process, that a worker of the study is alive; keep what is returned."""
    file = (folder / _WORKERS).open("r")
    _lock(file, exclusive=False)
    return file


def _lock(file: IO[str], *, exclusive: bool) -> bool:
    """Take a lock if it is free; where the system has none of this kind, it counts as free."""
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        fcntl.lockf(file, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _unlock(file: IO[str]) -> None:
    with suppress(ImportError):
        import fcntl

        fcntl.lockf(file, fcntl.LOCK_UN)
