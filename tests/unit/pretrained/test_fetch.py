"""Fetching against a server on this machine that breaks off, forgets, changes its mind and lies."""

from __future__ import annotations

import hashlib
import http.server
import re
import socket
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from two_stream.errors import CheckpointError, SettingsError
from two_stream.pretrained.files import fetch as download_module
from two_stream.pretrained.files.fetch import Patience, Sources, fetch, verify_file
from two_stream.pretrained.files.manifest import Preprocessing, PublishedFile, WeightsClasses

CONTENT = bytes(range(256)) * 4096  # one MiB
SHA = hashlib.sha256(CONTENT).hexdigest()
IMPATIENT = Patience(timeout=5.0, attempts=3, backoff=0.0)


@dataclass
class Site:
    """What the server does next."""

    files: dict[str, bytes] = field(default_factory=lambda: {"w.pth": CONTENT})
    ranges: bool = True
    etag: str | None = '"one"'
    heeds_condition: bool = True
    """whether If-Range is understood"""
    breaks: list[int] = field(default_factory=list)
    """after how many bytes the next answers break off"""
    status: list[int] = field(default_factory=list)
    """of the next answers, in place of their content"""
    kind: str = "application/octet-stream"
    move_to: str | None = None
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    """path and Range of each request"""
    conditions: list[str | None] = field(default_factory=list)
    """If-Range of each request that was answered with content"""
    url: str = ""


@pytest.fixture(autouse=True)
def direct(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy of the machine would answer in the test server's place."""
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            _answer(self, made)

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    server.shutdown()
    server.server_close()
    thread.join()


def _answer(handler: http.server.BaseHTTPRequestHandler, site: Site) -> None:
    site.requests.append((handler.path, handler.headers.get("Range")))
    content = site.files.get(handler.path.strip("/"))
    handler.close_connection = True
    if site.move_to:
        handler.send_response(302)
        handler.send_header("Location", site.move_to)
        handler.end_headers()
        return
    code = site.status.pop(0) if site.status else (404 if content is None else 200)
    if code != 200:
        handler.send_error(code)
        return
    start = 0
    asked = re.match(r"bytes=(\d+)-", handler.headers.get("Range", ""))
    condition = handler.headers.get("If-Range")
    site.conditions.append(condition)
    same = condition in (None, site.etag) or not site.heeds_condition
    if asked and site.ranges and same:
        start = int(asked[1])
        if start >= len(content):
            handler.send_response(416)
            handler.send_header("Content-Range", f"bytes */{len(content)}")
            handler.end_headers()
            return
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
    else:
        handler.send_response(200)
    handler.send_header("Content-Type", site.kind)
    handler.send_header("Content-Length", str(len(content) - start))
    if site.etag:
        handler.send_header("ETag", site.etag)
    handler.end_headers()
    body = content[start:]
    handler.wfile.write(body[: site.breaks.pop(0)] if site.breaks else body)
    handler.wfile.flush()


def entry(site: Site | None = None, **changes: object) -> PublishedFile:
    settings: dict[str, object] = {
        "name": "small",
        "title": "Small",
        "file": "w.pth",
        "url": f"{site.url}/w.pth" if site else None,
        "page": "https://example.org/page",
        "sha256": SHA,
        "licence": "MIT",
        "modality": "rgb",
        "layout": "none",
        "preprocessing": Preprocessing(frames=8, size=32, value_range=(0, 1), mean=(0.5,), std=(0.5,)),
        "classes": WeightsClasses(count=3, set="three"),
        "source": "here",
    }
    return PublishedFile.model_validate(settings | changes)


def get(made: PublishedFile, folder: Path, **options: object):
    return fetch(made, folder, Sources(**options), patience=IMPATIENT)


def complaint(made: PublishedFile, folder: Path, **options: object) -> str:
    with pytest.raises(CheckpointError) as caught:
        get(made, folder, **options)
    assert "\n" not in str(caught.value)
    assert not (folder / "w.pth").exists()
    return str(caught.value)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_arrives_checked_and_alone(site, tmp_path):
    done = get(entry(site), tmp_path / "new" / "weights")
    assert done.how == "downloaded"
    assert done.assurance == "sha256 as published"
    assert done.file.read_bytes() == CONTENT
    assert names(done.file.parent) == ["w.pth"]
    again = get(entry(site), done.file.parent)
    assert again.how == "present"
    assert len(site.requests) == 1


def test_a_break_is_mended_within_the_call_by_range(site, tmp_path):
    site.breaks = [300_000, 400_000]
    assert get(entry(site), tmp_path).file.read_bytes() == CONTENT
    assert [asked for _, asked in site.requests] == [None, "bytes=300000-", "bytes=700000-"]


def test_a_broken_download_goes_on_in_the_next_call(site, tmp_path):
    site.breaks = [500_000, 0, 0]
    message = complaint(entry(site), tmp_path)
    assert "the connection was lost after 500000 of 1048576 bytes" in message
    assert "500000 bytes are kept" in message
    assert (tmp_path / "w.pth.part").read_bytes() == CONTENT[:500_000]
    before = len(site.requests)
    assert get(entry(site), tmp_path).file.read_bytes() == CONTENT
    assert [asked for _, asked in site.requests[before:]] == ["bytes=500000-"]
    assert names(tmp_path) == ["w.pth"]


def test_ctrl_c_leaves_what_came(site, tmp_path, monkeypatch):
    content = CONTENT * 3
    site.files["w.pth"] = content
    made = entry(site, sha256=hashlib.sha256(content).hexdigest())
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(download_module, "progress", _InterruptedProgress)
        get(made, tmp_path)
    kept = (tmp_path / "w.pth.part").stat().st_size
    assert 0 < kept < len(content)
    assert not (tmp_path / "w.pth").exists()
    assert get(made, tmp_path).file.read_bytes() == content
    assert site.requests[-1][1] == f"bytes={kept}-"


class _InterruptedProgress:
    def __init__(self, *_: object) -> None: ...

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None: ...

    def __call__(self, *_: object) -> None:
        raise KeyboardInterrupt


def test_a_server_without_ranges_starts_over_cleanly(site, tmp_path):
    site.ranges = False
    site.breaks = [500_000]
    assert get(entry(site), tmp_path).file.read_bytes() == CONTENT
    assert [asked for _, asked in site.requests] == [None, "bytes=500000-"]


@pytest.mark.parametrize("tag", [True, False], ids=["ETag", "length only"])
def test_a_file_that_changed_between_calls_starts_over(site, tmp_path, tag):
    changed = CONTENT[::-1] + (b"" if tag else b"longer")
    made = entry(site, sha256=hashlib.sha256(changed).hexdigest())
    site.breaks = [500_000, 0, 0]
    site.etag = '"one"' if tag else None
    complaint(made, tmp_path)
    site.etag, site.files["w.pth"] = ('"two"' if tag else None), changed
    assert get(made, tmp_path).file.read_bytes() == changed


@pytest.mark.parametrize("heeds", [True, False], ids=["If-Range", "ETag compared"])
def test_without_any_hash_the_tag_alone_keeps_two_files_apart(site, tmp_path, heeds):
    made = entry(site, sha256=None)
    site.breaks, site.heeds_condition = [500_000, 0, 0], heeds
    complaint(made, tmp_path)
    site.etag, site.files["w.pth"] = '"two"', CONTENT[::-1]
    assert get(made, tmp_path).file.read_bytes() == CONTENT[::-1]
    assert site.conditions[1:4] == ['"one"'] * 3
    assert (len(site.requests) == 4) == heeds  # else the answer was thrown away and asked for again


def test_a_part_from_another_address_is_not_gone_on_with(site, tmp_path):
    made = entry(site, sha256=None)
    site.breaks = [500_000, 0, 0]
    complaint(made, tmp_path)
    site.files["mirror/w.pth"] = CONTENT[::-1]
    assert get(made, tmp_path, mirror=f"{site.url}/mirror").file.read_bytes() == CONTENT[::-1]
    assert site.requests[-1] == ("/mirror/w.pth", None)


def test_a_resumed_file_with_a_wrong_hash_is_made_once_more(site, tmp_path):
    """Same length, no ETag: nothing but the hash tells that two files were joined."""
    changed = CONTENT[::-1]
    made = entry(site, sha256=hashlib.sha256(changed).hexdigest())
    site.breaks, site.etag = [500_000, 0, 0], None
    complaint(made, tmp_path)
    site.files["w.pth"] = changed
    assert get(made, tmp_path).file.read_bytes() == changed
    assert site.requests[-1][1] is None


def test_all_had_come_before_the_interruption(site, tmp_path):
    get(entry(site), tmp_path)
    (tmp_path / "w.pth").rename(tmp_path / "w.pth.part")
    (tmp_path / "w.pth.part.json").write_text(
        f'{{"url": "{site.url}/w.pth", "length": {len(CONTENT)}, "etag": "\\"one\\"", "modified": null}}'
    )
    assert get(entry(site), tmp_path).how == "downloaded"
    assert site.requests[-1][1] == f"bytes={len(CONTENT)}-"


def test_a_part_of_unknown_origin_is_not_trusted(site, tmp_path):
    (tmp_path / "w.pth.part").write_bytes(b"x" * 1000)
    assert get(entry(site), tmp_path).file.read_bytes() == CONTENT
    assert site.requests == [("/w.pth", None)]


def test_a_wrong_hash_keeps_nothing_and_says_both(site, tmp_path):
    site.files["w.pth"] = b"something else"
    message = complaint(entry(site), tmp_path)
    assert f"expected sha256 {SHA}, found {hashlib.sha256(b'something else').hexdigest()}" in message
    assert names(tmp_path) == []
    assert "expected sha256 0123abcd…" in complaint(
        entry(site, sha256=None, sha256_prefix="0123abcd"), tmp_path
    )
    assert "has 14 bytes, expected 99" in complaint(entry(site, size=99), tmp_path)
    assert "expected git blob " + "0" * 40 in complaint(entry(site, sha256=None, git_blob="0" * 40), tmp_path)


def test_prefix_and_git_blob_are_enough_and_the_whole_hash_is_noted(site, tmp_path):
    blob = hashlib.sha1(b"blob 1048576\0" + CONTENT).hexdigest()
    for place, known, assurance in (
        ("a", {"sha256_prefix": SHA[:8]}, "the first 8 digits of its sha256 are as published"),
        ("b", {"git_blob": blob}, "as in the publisher's git repository"),
    ):
        done = get(entry(site, sha256=None, **known), tmp_path / place)
        assert done.assurance == assurance
        assert (tmp_path / place / "w.pth.sha256").read_text() == f"{SHA}  w.pth\n"


def test_without_a_published_hash_the_one_found_is_noted_and_watched(site, tmp_path):
    made = entry(site, sha256=None)
    done = get(made, tmp_path)
    assert done.assurance == f"no hash is published; its sha256 {SHA} is recorded in w.pth.sha256"
    assert verify_file(made, done.file) == "no hash is published; unchanged since the download"
    done.file.write_bytes(CONTENT[:-1] + b"!")
    with pytest.raises(
        CheckpointError, match=rf"the file has changed since its download: expected sha256 {SHA}, found "
    ):
        get(made, tmp_path)
    assert fetch(made, tmp_path, force=True, patience=IMPATIENT).file.read_bytes() == CONTENT


def test_a_file_there_that_differs_is_left_and_named(site, tmp_path):
    (tmp_path / "w.pth").write_bytes(b"mine")
    with pytest.raises(
        CheckpointError,
        match=r"w\.pth: not the published .*expected sha256 .*use `fetch --force` to replace it",
    ):
        get(entry(site), tmp_path)
    assert (tmp_path / "w.pth").read_bytes() == b"mine"
    assert site.requests == []
    fetch(entry(site), tmp_path, force=True, patience=IMPATIENT)
    assert (tmp_path / "w.pth").read_bytes() == CONTENT


@pytest.mark.parametrize(("code", "asked"), [(404, 1), (410, 1), (403, 1), (503, 3)])
def test_dead_links_name_everything(site, tmp_path, code, asked):
    site.status = [code] * 9
    message = complaint(entry(site), tmp_path)
    assert message.startswith(f"small: {site.url}/w.pth: HTTP {code} ")
    for way in ("--mirror URL", "--from DIR", "https://example.org/page", "w.pth"):
        assert way in message
    assert len(site.requests) == asked
    assert names(tmp_path) == []


def test_a_passing_fault_is_waited_out(site, tmp_path):
    site.status = [503, 429]
    assert get(entry(site), tmp_path).how == "downloaded"


@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "application/octet-stream"])
def test_a_page_in_place_of_the_file(site, tmp_path, kind):
    site.kind, site.files["w.pth"] = kind, b"<!doctype html><title>Sign in</title>"
    assert "HTML page" in complaint(entry(site, sha256=None), tmp_path)
    assert names(tmp_path) == []


def test_nobody_listens_and_no_such_host(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/w.pth"
        assert f"small: {url}: connection refused" in complaint(entry(url=url), tmp_path)
    assert "unknown host nowhere.invalid" in complaint(entry(url="http://nowhere.invalid/w.pth"), tmp_path)


def test_silence_is_given_up(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/w.pth"
        with pytest.raises(CheckpointError, match=r"no answer within 0\.1 s \(2 attempts\)"):
            fetch(entry(url=url), tmp_path, patience=Patience(timeout=0.1, attempts=2, backoff=0.0))


def test_redirects_are_followed_to_http_only(site, tmp_path):
    site.move_to = "ftp://127.0.0.1/w.pth"
    assert "redirects from http to ftp://127.0.0.1/w.pth, which is not allowed" in complaint(
        entry(site), tmp_path
    )


def test_https_is_never_left(tmp_path):
    request = urllib.request.Request("https://example.org/w.pth")
    with pytest.raises(download_module.DeadLinkError, match=r"redirects from https to http://example\.org/"):
        download_module._Redirect().redirect_request(request, None, 302, "", {}, "http://example.org/")


def test_a_mirror_takes_the_publishers_place(site, tmp_path):
    site.files["deep/w.pth"] = site.files.pop("w.pth")
    made = entry(url="http://nowhere.invalid/w.pth")
    assert get(made, tmp_path, mirror=f"{site.url}/deep/").how == "downloaded"
    assert site.requests == [("/deep/w.pth", None)]
    with pytest.raises(SettingsError, match=r"--mirror is '/data': expected an https://"):
        get(made, tmp_path / "other", mirror="/data")


def test_a_second_link_is_tried_when_the_first_is_dead(site, tmp_path):
    made = entry(url=f"{site.url}/gone.pth", mirrors=(f"{site.url}/w.pth",))
    assert get(made, tmp_path).file.read_bytes() == CONTENT
    site.files.clear()
    message = complaint(made, tmp_path / "other")
    assert "gone.pth: HTTP 404" in message
    assert "w.pth: HTTP 404" in message


def test_a_local_folder_is_enough(site, tmp_path):
    (tmp_path / "disk").mkdir()
    given = tmp_path / "disk" / "w.pth"
    made = entry(site)
    message = complaint(made, tmp_path, local=given.parent, local_only=True)
    assert message.startswith(f"small: w.pth is not in {given.parent}")
    given.write_bytes(b"damaged")
    assert f"{given}: not the published small: expected sha256 {SHA}" in complaint(
        made, tmp_path, local=given.parent
    )
    given.write_bytes(CONTENT)
    assert get(made, tmp_path, local=given.parent, local_only=True).how == "copied"
    assert given.read_bytes() == CONTENT
    assert site.requests == []
    given.unlink()
    assert get(made, tmp_path / "third", local=given.parent).how == "downloaded"


def test_file_addresses(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "w.pth").write_bytes(CONTENT)
    made = entry(url=(tmp_path / "disk" / "w.pth").as_uri())
    assert get(made, tmp_path).how == "downloaded"
    assert "No such file" in complaint(entry(url=f"{made.url}x"), tmp_path / "other")


def test_a_page_without_a_link_is_work_for_a_person(tmp_path):
    message = complaint(entry(), tmp_path)
    assert message == (
        f"small: there is no direct link; open https://example.org/page in a browser, save w.pth as "
        f"{tmp_path / 'w.pth'}, then run `two-stream weights verify small` (or use --mirror URL, --from DIR)"
    )


def test_a_full_disk_is_said_before_anything_is_written(site, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr(download_module.shutil, "disk_usage", lambda _: usage)
    assert "the download needs 1048576 bytes, but only 10 bytes are free" in complaint(entry(site), tmp_path)


def test_two_processes_do_not_write_one_part(site, tmp_path):
    import fcntl

    with (tmp_path / ".w.pth.part.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        assert "another process is downloading this file" in complaint(entry(site), tmp_path)
