"""Files of a folder, or behind a URL, read in ranges."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from two_stream.errors import SettingsError

T = TypeVar("T")

_OPEN_FILES = 64
"""files held open per process; a data set may have more shards than a process may have files"""


PROTOCOLS = ("file", "s3", "gs", "az", "http", "https", "memory")
"""Kinds of URL that are opened; memory is fsspec's own, of this process."""


def is_url(location: str) -> bool:
    """Tell a URL from a path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", location) is not None


class Storage:
    """A folder, or a URL through fsspec, whose files are read in ranges. Safe to fork and to send to a worker."""

    def __init__(self, location: str) -> None:
        """Name the place; nothing is opened yet.

        Args:
            location: A path, or a URL such as `s3://bucket/folder`.
        """
        self.location = location
        self.remote = is_url(location)
        self._pid = 0
        self._files: dict[str, BinaryIO] = {}
        self._system: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pid": 0, "_files": {}, "_system": None}

    def where(self, name: str) -> str:
        """Return a file's full name."""
        return f"{self.location}/{name}" if self.remote else str(Path(self.location).expanduser() / name)

    def size(self, name: str) -> int:
        """Return a file's bytes.

        Raises:
            OSError: Missing, or the storage does not answer.
            SettingsError: The URL's kind is not known or not installed.
        """
        self._settle()
        if self.remote:
            return int(_asked(lambda: self._system.info(self.where(name))["size"]))
        return Path(self.where(name)).stat().st_size

    def read(self, name: str, start: int, count: int) -> bytes:
        """Return a range of a file's bytes; fewer where it ends before.

        Raises:
            OSError: Missing, or the storage does not answer.
            SettingsError: The URL's kind is not known or not installed.
        """
        self._settle()
        if self.remote:
            end = start + count
            return bytes(_asked(lambda: self._system.cat_file(self.where(name), start=start, end=end)))
        file = self._opened(name)
        file.seek(start)
        content = file.read(count)
        while 0 < len(content) < count:  # a read may give less than it could
            more = file.read(count - len(content))
            if not more:
                break
            content += more
        return content

    def _opened(self, name: str) -> BinaryIO:
        if name not in self._files:
            while len(self._files) >= _OPEN_FILES:
                self._files.pop(next(iter(self._files))).close()
            self._files[name] = Path(self.where(name)).open("rb", buffering=0)  # noqa: SIM115 - it stays open
        return self._files[name]

    def _settle(self) -> None:
        """Open anew in a process of its own: a forked one shares file positions and connections with its parent."""
        if self._pid == os.getpid():
            return
        self._files = {}
        self._pid = os.getpid()
        if self.remote:
            self._system = self._filesystem()

    def _filesystem(self) -> Any:
        kind = self.location.split(":", 1)[0].lower()
        if kind not in PROTOCOLS:  # fsspec has some that run what they are given, or log in elsewhere
            raise SettingsError(
                f"{self.location}: {kind} is no place for shards; expected {', '.join(PROTOCOLS)}"
            )
        try:
            return import_module("fsspec.core").url_to_fs(self.location)[0]
        except ImportError as error:
            what = " ".join(str(error).split())
            raise SettingsError(f"{self.location}: {what}; pip install two-stream[shards]") from None
        except ValueError as error:
            raise SettingsError(f"{self.location}: {' '.join(str(error).split())}") from None


def _asked(call: Callable[[], T]) -> T:
    """Ask a storage library, each of which has errors of its own."""
    try:
        return call()
    except OSError:
        raise
    except Exception as error:  # the border to a foreign library; the caller names the file
        raise OSError(f"{type(error).__name__}: {' '.join(str(error).split())}") from error
