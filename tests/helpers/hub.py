"""A server on this machine that answers like the Hugging Face hub, as far as `huggingface_hub` asks it here."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

from two_stream.pretrained.files.hub import _fetch

TOKEN = "hf_right"


@dataclass
class Repo:
    """The commits of a repository, the newest last."""

    private: bool = False
    commits: list[dict[str, bytes]] = field(default_factory=lambda: [{}])

    def sha(self, number: int = -1) -> str:
        number %= len(self.commits)
        return hashlib.sha1(f"{number}{sorted(self.commits[number])}".encode()).hexdigest()

    def files(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        if revision == "main":
            return self.sha(), self.commits[-1]
        numbers = range(len(self.commits))
        return next(((revision, self.commits[n]) for n in numbers if self.sha(n) == revision), None)

    def put(self, **files: bytes) -> None:
        """Commit changed files."""
        self.commits.append(self.commits[-1] | files)


@dataclass
class Hub:
    """What the server stores, and what it was asked."""

    repos: dict[str, Repo] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    broken: int = 0
    """status of all answers, if it is not 0"""
    url: str = ""


@contextmanager
def serve() -> Iterator[Hub]:
    """Run the server."""
    hub = Hub()

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def connected(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[Hub]:
    """Run the server, and let `huggingface_hub` use it and an own cache in this process."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    changed = {"HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True, "HF_HUB_CACHE": str(cache)}
    _fetch.cache_clear()
    with serve() as hub:
        changed["ENDPOINT"] = hub.url
        changed["HUGGINGFACE_CO_URL_TEMPLATE"] = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        for name, value in changed.items():
            monkeypatch.setattr(constants, name, value)
        yield hub
    _fetch.cache_clear()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._get()

    def do_GET(self) -> None:
        self._get()

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.hub.large[self.path.rpartition("/")[2]] = content
        self._send(200, b"")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = urlsplit(self.path).path
        self.hub.requests.append(f"POST {path}")
        if self.hub.broken:
            return self._fail(self.hub.broken)
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._fail(401, "", "Invalid credentials in Authorization header")
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path.endswith(".git/info/lfs/objects/batch"):
            return self._json({"objects": [self._batch(one) for one in json.loads(body)["objects"]]})
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main", path)
        if match is None or match[1] not in self.hub.repos:
            return self._fail(404, "RepoNotFound")
        if match[2] == "preupload":
            kinds = [
                {"path": one["path"], "shouldIgnore": False, "uploadMode": _mode(one["path"])}
                for one in json.loads(body)["files"]
            ]
            return self._json({"files": kinds})
        return self._commit(match[1], [json.loads(line) for line in body.splitlines()])

    def _create(self, asked: dict) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        if asked["organization"] == "somebody-else":
            return self._fail(403, "", "You don't have the rights to create a model under this namespace")
        url = {"url": f"{self.hub.url}/{name}"}
        if name in self.hub.repos:
            return self._json(url, 409)
        private = asked.get("private", asked.get("visibility") == "private")
        self.hub.repos[name] = Repo(private=bool(private))
        return self._json(url)

    def _batch(self, one: dict) -> dict:
        return {**one, "actions": {"upload": {"href": f"{self.hub.url}/large/{one['oid']}"}}}

    def _commit(self, name: str, lines: list[dict]) -> None:
        repo = self.hub.repos[name]
        files = dict(repo.commits[-1])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        repo.commits.append(files)
        self._json({"commitUrl": f"{self.hub.url}/{name}/commit/{repo.sha()}", "commitOid": repo.sha()})

    def _get(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        if self.hub.broken:
            return self._fail(self.hub.broken)
        match = re.fullmatch(
            r"/(?:api/models/)?([^/]+/[^/]+)(?:/(revision|tree|resolve)/([^/]+)(?:/(.+))?)?", path
        )
        if path == "/api/whoami-v2" or match is None or match[1] not in self.hub.repos:
            return self._fail(404, "RepoNotFound")
        repo = self.hub.repos[match[1]]
        if repo.private and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._fail(401, "RepoNotFound")
        found = repo.files(match[3] or "main")
        if found is None:
            return self._fail(404, "RevisionNotFound")
        sha, files = found
        if match[2] == "resolve":
            if match[4] not in files:
                return self._fail(404, "EntryNotFound")
            content = files[match[4]]
            return self._send(200, content, {"X-Repo-Commit": sha, "ETag": f'"{_oid(content)}"'})
        if match[2] == "tree":
            return self._json([_entry(name, content) for name, content in sorted(files.items())])
        siblings = [{"rfilename": name} for name in files]
        return self._json({"id": match[1], "sha": sha, "private": repo.private, "siblings": siblings})

    def _json(self, value: object, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _fail(self, status: int, code: str = "", message: str = "") -> None:
        self._send(status, b"", {"X-Error-Code": code, "X-Error-Message": message})

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _mode(path: str) -> str:
    return "lfs" if Path(path).suffix in (".safetensors", ".npz", ".bin") else "regular"


def _oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


def _entry(name: str, content: bytes) -> dict:
    entry = {"type": "file", "path": name, "size": len(content), "oid": _oid(content)}
    if _mode(name) == "lfs":
        digest = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 130}
    return entry


if __name__ == "__main__":  # to try commands by hand
    with serve() as hub:
        print(f"export HF_ENDPOINT={hub.url} HF_TOKEN={TOKEN} HF_HUB_DISABLE_XET=1", flush=True)
        threading.Event().wait()
