"""File locks, which let only one process at a time use a run, study, shard folder or download.

The operating system releases a lock when its process ends for any reason. Forked loader processes do not inherit locks.
On NFS, locks also apply between machines. On a file system without locks (errno ENOSYS, ENOLCK or EOPNOTSUPP), nothing
is locked.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from two_stream.errors import SettingsError, TwoStreamError
from two_stream.runtime.console import note

_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
PATIENCE = 120.0
"""seconds that workers of an earlier, killed study get to save and exit"""


def _acquire(path: Path, timeout: float) -> FileLock:
    lock = FileLock(path, fallback_to_soft=False)  # a soft lock would outlive a killed process
    try:
        lock.acquire(timeout=timeout, poll_interval=0.5)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return lock


@contextmanager
def exclusive_lock(path: Path, busy: TwoStreamError, *, timeout: float = 0.0) -> Iterator[None]:
    """Hold a lock file during the block, and remove it afterwards.

    Raises:
        TwoStreamError: `busy`, if another process still holds the lock after `timeout` seconds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock = _acquire(path, timeout)
    except Timeout:
        raise busy from None
    try:
        yield
    finally:
        with suppress(OSError):  # Windows cannot remove an open file
            path.unlink()
        lock.release()


@contextmanager
def study_lock(folder: Path) -> Iterator[None]:
    """Keep other processes from running the study in `folder`, and wait for the workers of an earlier run.

    Raises:
        SettingsError: Another process runs the study, or workers of an earlier run do not exit.
    """
    busy = SettingsError(f"{folder}: another process is running this study; wait for it to finish")
    with exclusive_lock(folder / ".lock", busy):
        _wait_for_workers(folder)
        yield


def lock_worker(folder: Path) -> FileLock:
    """Mark that a worker of the study in `folder` is running, for as long as the returned lock is kept."""
    return _acquire(folder / f".worker-{socket.gethostname()}-{os.getpid()}.lock", 0.0)


def _wait_for_workers(folder: Path) -> None:
    busy = SettingsError(f"{folder}: workers of an earlier run of this study are still running; stop them")
    end = time.monotonic() + PATIENCE
    for path in folder.glob(".worker-*.lock"):
        try:
            with exclusive_lock(path, busy):
                continue
        except SettingsError:
            note(f"{folder}: waiting for workers of an earlier run of this study to save and exit")
        with exclusive_lock(path, busy, timeout=max(0.0, end - time.monotonic())):
            pass
