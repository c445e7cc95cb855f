"""One file over HTTP: taken up where it broke off, begun anew when it has changed, given up in plain words."""

from __future__ import annotations

import http.client
import json
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
from typing import Any
from urllib.parse import urlsplit

from two_stream.errors import CheckpointError
from two_stream.pretrained.kinds import page_instead
from two_stream.runtime.console import Advance, note, progress
from two_stream.runtime.files import write_json

PART = ".part"
_STATE = ".json"
_BLOCK = 1 << 18
_MIB = 1 << 20
_TRY_AGAIN = frozenset((408, 425, 429, 500, 502, 503, 504))
_MOST_ATTEMPTS = 100


class DeadLinkError(Exception):
    """A link leads nowhere, or not to the file. The message is the reason."""


class _BrokenError(Exception):
    """The transfer failed in a way that may pass."""


@dataclass(frozen=True)
class Patience:
    """How long to wait and how often to try."""

    timeout: float = 30.0
    """seconds without a byte"""
    attempts: int = 5
    """in a row that bring nothing new"""
    backoff: float = 1.0
    """seconds before the second attempt, doubled each time, a minute at most"""


@dataclass(frozen=True)
class _State:
    """What the partial file is a part of."""

    url: str
    length: int | None
    etag: str | None
    modified: str | None

    @property
    def condition(self) -> str | None:
        """Value of If-Range: a strong ETag, else the date."""
        if self.etag and not self.etag.startswith("W/"):
            return self.etag
        return self.modified


class _Redirect(urllib.request.HTTPRedirectHandler):
    """Follow redirects, but never from https to something that anyone on the way could change."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        scheme = urlsplit(newurl).scheme
        if scheme not in ("http", "https") or (req.type == "https" and scheme != "https"):
            raise DeadLinkError(f"leads from {req.type} to {newurl}, which is not followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def download(url: str, part: Path, patience: Patience, *, title: str, size: int | None = None) -> bool:
    """Fill `part` with the content of `url`, going on from what a broken download of it left.

    Args:
        url: http, https or file.
        part: File to fill; `<part>.json` beside it says what it is a part of.
        patience: Timeouts and repetitions.
        title: Shown beside the progress.
        size: Expected bytes, where they are known.

    Returns:
        Whether some of it came from an earlier call.

    Raises:
        DeadLinkError: Not to be had there. What came is kept when going on makes sense.
        CheckpointError: The disk is full.
    """
    scheme = urlsplit(url).scheme
    if scheme == "file":
        _copy_local(url, part)
        return False
    if scheme not in ("http", "https"):
        raise DeadLinkError("expected an address that begins with https:// or http://")
    state = _read_state(part)
    if state is None or state.url != url:
        discard(part)
    resumed = _size(part) > 0
    failures = 0
    for _ in range(_MOST_ATTEMPTS):
        before = _size(part)
        try:
            _receive(url, part, patience, title, size)
        except _BrokenError as error:
            failures = 1 if _size(part) > before else failures + 1
            if failures >= patience.attempts:
                raise DeadLinkError(f"{error} (tried {failures} times{_kept(part)})") from None
            note(f"{title}: {error}; trying again")
            time.sleep(min(60.0, patience.backoff * 2 ** (failures - 1)))
        except DeadLinkError:
            if not _size(part):
                discard(part)
            raise
        else:
            return resumed
    raise DeadLinkError(f"the connection broke {_MOST_ATTEMPTS} times{_kept(part)}")


def discard(part: Path) -> None:
    """Remove a partial file and what was noted of it."""
    part.unlink(missing_ok=True)
    part.with_name(part.name + _STATE).unlink(missing_ok=True)


def _receive(url: str, part: Path, patience: Patience, title: str, size: int | None) -> None:
    """Make one request and append what it brings."""
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
                    return  # all of it had come
                discard(part)
                raise _BrokenError("the file there has changed") from None
            reason = f"HTTP {error.code} {error.reason}".strip()
            raise (_BrokenError if error.code in _TRY_AGAIN else DeadLinkError)(reason) from None
    with response:
        if response.headers.get_content_type() == "text/html":
            raise DeadLinkError("answers with an HTML page in place of the file (dead, or asks for a login)")
        begin = _beginning(response, part, have, state)
        length = _length(response.headers, begin)
        if size is not None and length is not None and length != size:
            discard(part)
            raise DeadLinkError(f"offers {length} bytes, expected {size}")
        _require_space(part, (length or 0) - begin)
        etag, modified = response.headers.get("ETag"), response.headers.get("Last-Modified")
        write_json(part.with_name(part.name + _STATE), asdict(_State(url, length, etag, modified)))
        total = None if length is None else -(-length // _MIB)
        with progress(f"{title} (MiB)", total) as advance:
            _append(response, part, begin, advance)
    if length is not None and _size(part) != length:
        raise _BrokenError(f"the connection broke after {_size(part)} of {length} bytes")


def _open(request: urllib.request.Request, timeout: float) -> Any:
    """Open a connection; what fails for good becomes a DeadLinkError, what may pass a _BrokenError."""
    try:
        return urllib.request.build_opener(_Redirect).open(request, timeout=timeout)
    except urllib.error.HTTPError:
        raise
    except urllib.error.URLError as error:
        cause = error.reason
        if isinstance(cause, socket.gaierror):
            raise DeadLinkError(
                f"host {urlsplit(request.full_url).hostname} is not known here ({cause.strerror})"
            ) from None
        if isinstance(cause, ConnectionRefusedError):
            raise DeadLinkError("connection refused") from None
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise DeadLinkError(f"its certificate is not accepted ({cause.verify_message})") from None
        raise _BrokenError(_words(cause, timeout)) from None
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenError(_words(error, timeout)) from None
    except ValueError as error:  # an address that is none
        raise DeadLinkError(str(error)) from None


def _beginning(response: Any, part: Path, have: int, state: _State | None) -> int:
    """Return at which byte the answer begins: where the partial file ends, or at 0."""
    if response.status != 206 or state is None:
        if have:
            note(f"{part.name}: begun anew, the server does not go on with it or the file has changed")
        return 0
    found = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    etag = response.headers.get("ETag")
    changed = (etag and state.etag and etag != state.etag) or _total(response.headers) != state.length
    if changed or found is None or int(found[1]) != have:
        discard(part)
        raise _BrokenError("the file there has changed")
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
            if done == 0 and page_instead(block[:2048]):
                raise DeadLinkError(str(page_instead(block[:2048])))
            file.write(block)
            done += len(block)
            if done // _MIB > shown:
                advance(done // _MIB - shown)
                shown = done // _MIB


def _copy_local(url: str, part: Path) -> None:
    discard(part)
    source = Path(urllib.request.url2pathname(urlsplit(url).path))
    try:
        shutil.copyfile(source, part)
    except OSError as error:
        discard(part)
        raise DeadLinkError(f"cannot be read ({error.strerror})") from None


def _read_state(part: Path) -> _State | None:
    try:
        state = _State(**json.loads(part.with_name(part.name + _STATE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return state if part.is_file() else None


def _size(part: Path) -> int:
    return part.stat().st_size if part.is_file() else 0


def _kept(part: Path) -> str:
    return f"; {_size(part)} bytes are kept, the same command goes on from there" if _size(part) else ""


def _total(headers: Message) -> int | None:
    found = re.search(r"/(\d+)$", headers.get("Content-Range", ""))
    return int(found[1]) if found else None


def _length(headers: Message, begin: int) -> int | None:
    given = headers.get("Content-Length", "")
    return begin + int(given) if given.isdigit() else None


def _require_space(part: Path, needed: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if needed > free:
        raise CheckpointError(f"{part.parent}: {needed} bytes are needed, {free} are free on this disk")


def _words(error: object, timeout: float | None) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {timeout:g} s" if timeout else "the connection fell silent"
    if isinstance(error, ConnectionResetError | http.client.IncompleteRead | http.client.RemoteDisconnected):
        return "the connection broke"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
