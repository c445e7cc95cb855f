"""Atomic writes of files and folders, checksums, locks, arrays of untrusted files, and the cache folder.

A rename cannot replace a folder that contains files, so `replaced_folder` renames twice. Between the two renames, the
name does not exist; `complete_folder` then returns the old folder, which has a hidden name until the new folder is in
place. A reader therefore always finds a complete folder, even if the writing process was killed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import socket
import sys
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from two_stream.errors import CheckpointError, FullDiskError, SettingsError, TwoStreamError
from two_stream.runtime.console import note
from two_stream.runtime.text import json_text, parse_json

if TYPE_CHECKING:
    import numpy as np
    from filelock import FileLock
    from numpy.typing import NDArray


import math
import zipfile
from typing import IO, Literal

_FULL = re.compile(
    r"No space left|os error 28\b|inline_container\.cc|PytorchStreamWriter|\d requested and \d+ written"
)
"""messages of safetensors, torch and numpy about a failed write"""
_WINDOWS = os.name == "nt"
_ABANDONED = 3600.0
"""seconds without a new file after which an unfinished folder counts as abandoned on Windows"""
CHECKSUMS = "checksums.json"
_CRC = ', "crc32": "'
CACHE_VARIABLE = "TWO_STREAM_CACHE"
"""environment variable that names the cache folder; `off` disables the cache"""


@contextmanager
def room_for(path: Path, kept: str = "") -> Iterator[None]:
    """Turn a library's error about a full disk into a `FullDiskError` that names `path`.

    Raises:
        FullDiskError: Also says what is kept.
    """
    try:
        yield
    except TwoStreamError:
        raise
    except Exception as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if not full and not _FULL.search(str(error)):
            raise
        left = "the previous content is kept" if path.exists() else "no part of it is left"
        raise FullDiskError(path, kept or left) from None


def unfinished(final: Path) -> Path:
    """Return a hidden path next to `final`, to be written first; its name contains the machine and the process."""
    return final.parent / f".{final.name}.{socket.gethostname()}-{os.getpid()}.part"


def clear_leftovers(parents: Iterable[Path]) -> None:
    """Remove unfinished files and folders directly below `parents` whose process on this machine has exited."""
    pattern = re.compile(rf"\..+\.{re.escape(socket.gethostname())}-(\d+)\.(part|old)")
    for parent in set(parents):
        names = [entry.name for entry in parent.iterdir()] if parent.is_dir() else []
        for match in filter(None, map(pattern.fullmatch, names)):
            left = parent / match[0]
            if _is_running(int(match[1]), left):
                continue
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                with suppress(OSError):
                    left.unlink()


def _is_running(pid: int, left: Path) -> bool:
    """Whether the process that writes to `left` may still run."""
    if _WINDOWS:  # os.kill would send Ctrl-C or end the process
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


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`; on success it is fsynced and renamed to `path`, otherwise removed.

    The file mode follows the umask, even if a library sets another mode (safetensors sets 0600).

    Raises:
        FullDiskError: The disk is full.
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
def temporary_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder next to `path`, in which `path` can be prepared; the folder is removed at the end.

    Raises:
        FullDiskError: The disk is full.
    """
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
    """Check that a file can be written, before its content is computed.

    Raises:
        SettingsError: It is a folder, or cannot be created.
    """
    if path.is_dir():
        raise SettingsError(f"{path}: is a folder; expected the path of a file to write")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise SettingsError(f"{path}: cannot be written ({error.strerror}); choose another file") from None


def keep_inputs(outputs: Iterable[Path], inputs: Iterable[Path | str]) -> None:
    """Check that no file to write is one of the files to read.

    Raises:
        SettingsError: A file would be replaced.
    """
    read = {Path(path).resolve() for path in inputs}
    for path in outputs:
        if path.resolve() in read:
            raise SettingsError(f"{path}: this file is read and would be replaced; choose another name")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    with atomic_path(path) as part:
        part.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    r"""Write a UTF-8 text file atomically; bytes that are not UTF-8 are escaped, for example as `\udce9`."""
    write_bytes(path, content.encode(errors="backslashreplace"))


def write_json(path: Path, value: Any, indent: int | None = 2) -> None:
    """Write a JSON file atomically; keys keep their order."""
    write_text(path, json_text(value, indent=indent) + "\n")


def checked_line(values: dict[str, Any]) -> str:
    """Return a JSON line that ends with a checksum of the rest of the line."""
    text = json_text(values)
    return text[:-1] + _CRC + _crc(text) + '"}'


def is_line_intact(line: str) -> bool | None:
    """Whether the checksum of a line from `checked_line` is correct; None if the line has no checksum."""
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
    with path.open("r+b") as file:  # Windows flushes only files that are open for writing
        os.fsync(file.fileno())


def fsync_dir(path: Path) -> None:
    """Flush a folder's entries to the disk, if the system supports it."""
    with suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def replaced_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder, which replaces `target` on success and is removed otherwise.

    The files in the folder are flushed to the disk, together with their checksums. Leftovers of killed processes are
    removed first.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    old = _old(target)
    if old.is_dir() and not target.exists():  # killed between the two renames
        old.rename(target)
        fsync_dir(target.parent)
    shutil.rmtree(old, ignore_errors=True)
    new = target.parent / f".{target.name}.new"
    shutil.rmtree(new, ignore_errors=True)
    kept = f"the previous {target.name}/ is kept" if target.is_dir() else "no part of it is left"
    try:
        with room_for(target, kept):
            new.mkdir()
            yield new
            write_checksums(new)
            if target.exists():
                target.rename(old)
            new.rename(target)
            fsync_dir(target.parent)
            shutil.rmtree(old, ignore_errors=True)
    except FullDiskError as error:  # of a file in the new folder
        raise FullDiskError(error.path.replace(str(new), str(target)), kept) from None
    finally:
        shutil.rmtree(new, ignore_errors=True)


def complete_folder(target: Path) -> Path:
    """Return the folder to read: `target`, or the old folder if a process was killed between the two renames."""
    old = _old(target)
    return old if not target.exists() and old.is_dir() else target


def _old(target: Path) -> Path:
    return target.parent / f".{target.name}.old"


def write_checksums(folder: Path) -> None:
    """Write the SHA-256 of every file of a folder to `checksums.json` and flush everything to the disk."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != CHECKSUMS)
    (folder / CHECKSUMS).write_text(json.dumps({path.name: sha256(path) for path in files}, indent=2) + "\n")
    for path in [*files, folder / CHECKSUMS]:
        fsync_file(path)
    fsync_dir(folder)


def verify_checksums(
    folder: Path, what: str = "checkpoint", remedy: str = "restore it or train again"
) -> None:
    """Compare every file of a folder with the SHA-256 in its `checksums.json`.

    Args:
        folder: Written with `write_checksums`.
        what: Name of its kind, for messages.
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
            f"{folder / CHECKSUMS}: missing or damaged; the {what} cannot be verified; {remedy}"
        ) from None
    for name, digest in pairs:
        path = folder / Path(name).name
        if not path.is_file():
            raise CheckpointError(f"{path}: the file is missing, but {CHECKSUMS} lists it; {remedy}")
        if sha256(path) != digest:
            raise CheckpointError(f"{path}: damaged (SHA-256 differs from {CHECKSUMS}); {remedy}")


def cache_folder() -> Path | None:
    """Return the user's cache folder, which may not exist yet, or None if the cache is disabled."""
    given = os.environ.get(CACHE_VARIABLE)
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
    """Write a cache file atomically but without flushing it; return False if it cannot be written.

    If several processes write the same file at the same time, the content of one process remains.
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


_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
PATIENCE = 120.0
"""seconds that workers of an earlier, killed study get to save and exit"""


def _acquire(path: Path, timeout: float) -> FileLock:
    from filelock import (
        FileLock,  # not above: it warns where the system has no locks, and few commands need one
    )

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

    The operating system releases the lock when the process ends for any reason. Forked loader processes do not inherit
    the lock. On NFS, the lock also applies between machines. On a file system without locks (errno ENOSYS, ENOLCK or
    EOPNOTSUPP), nothing is locked.

    Raises:
        TwoStreamError: `busy`, if another process still holds the lock after `timeout` seconds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock = _acquire(path, timeout)
    except TimeoutError:
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


MOST_BYTES = int(os.environ.get("TWO_STREAM_MOST_BYTES", 2**32))
"""Largest size of a file of arrays in memory, set by the environment."""

_MOST_HEADER = 4096
_HEADER = re.compile(
    rb"\{'descr': '(?P<kind>[<|](?:[biufc](?:1|2|4|8|16)|[US]\d{1,6}))', 'fortran_order': (?P<order>True|False), "
    rb"'shape': \((?P<shape>(?:\d{1,15}(?:, ?|,?(?=\))))*)\), \} *\n"
)


def read_arrays(file: Path | IO[bytes]) -> dict[str, NDArray[Any]]:
    """Read the arrays of an `.npz` file after checking their declared sizes.

    Raises:
        OSError: It cannot be read.
        ValueError: Not an archive of plain arrays, damaged, or over `MOST_BYTES` (`TWO_STREAM_MOST_BYTES`) in memory.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            infos = archive.infolist()
            total = sum(info.file_size for info in infos)
            if total > MOST_BYTES:
                raise ValueError(
                    f"the arrays have {total:,} bytes, more than TWO_STREAM_MOST_BYTES ({MOST_BYTES:,})"
                )
            if len({info.filename for info in infos}) != len(infos):
                raise ValueError("two arrays have the same name")
            found = {}
            for info in infos:
                with archive.open(info) as member:
                    found[info.filename.removesuffix(".npy")] = _read_array(member, info)
            return found
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"damaged: {error}") from None


def map_array(path: Path) -> NDArray[Any]:
    """Map the array of an `.npy` file into memory, read-only.

    Raises:
        OSError: It cannot be read.
        ValueError: Not a plain array, or its size differs from the file's.
    """
    import numpy as np  # not above: commands that read no arrays import this module too

    with path.open("rb") as file:
        kind, shape, order = _read_header(file, path.name, path.stat().st_size)
        if not math.prod(shape):
            return np.zeros(shape, kind)
        return np.memmap(path, kind, "r", file.tell(), shape, order)


def _read_array(member: IO[bytes], info: zipfile.ZipInfo) -> NDArray[Any]:
    """Read one array of an archive."""
    import numpy as np

    kind, shape, order = _read_header(member, info.filename, info.file_size)
    flat = np.frombuffer(bytearray(member.read(math.prod(shape) * kind.itemsize)), dtype=kind)
    return flat.reshape(shape, order=order)


def _read_header(
    file: IO[bytes], name: str, length: int
) -> tuple[np.dtype[Any], tuple[int, ...], Literal["C", "F"]]:
    """Read the type, shape and order of an array that has `length` bytes including its header.

    numpy's reader evaluates the header as Python; this function accepts only what numpy writes.
    """
    import numpy as np

    magic = file.read(8)
    lengths = {b"\x93NUMPY\x01\x00": 2, b"\x93NUMPY\x02\x00": 4}
    if magic not in lengths:
        raise ValueError(f"{name}: not an array in numpy's format 1 or 2")
    count = int.from_bytes(file.read(lengths[magic]), "little")
    header = _HEADER.fullmatch(file.read(min(count, _MOST_HEADER)))
    if header is None:
        raise ValueError(f"{name}: invalid header, or a data type other than numbers or text")
    kind = np.dtype(header["kind"].decode())
    shape = tuple(int(size) for size in header["shape"].decode().replace(",", " ").split())
    if file.tell() + math.prod(shape) * kind.itemsize != length:
        raise ValueError(f"{name}: {length:,} bytes do not fit the shape {shape} of {kind}")
    return kind, shape, "F" if header["order"] == b"True" else "C"
