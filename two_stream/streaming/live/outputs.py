"""The annotated copy of a stream: every picture with what the networks last said of it, written in a thread."""

from __future__ import annotations

import socket
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import cv2
import numpy as np

from two_stream.errors import SettingsError, VideoError
from two_stream.evaluation.pictures.annotate import Encoder, blend, panel
from two_stream.runtime.files import atomic_path
from two_stream.streaming.live.pipeline import Inbox
from two_stream.video.decoding.base import Image

Guesses = Sequence[tuple[str, float]]


def draw_guesses(picture: Image, guesses: Guesses) -> Image:
    """Return a picture, its sides even, with the likeliest classes on it."""
    height, width = picture.shape[0] // 2 * 2, picture.shape[1] // 2 * 2
    return blend(picture[:height, :width], *panel(height, width, guesses))


class Recording:
    """Writes an MP4 file while the stream runs; the file is whole once it is closed, and absent before.

    A picture is shown from its own time on, so one that was dropped leaves the one before it standing. All have the
    size of the first.
    """

    def __init__(self, out: Path, fps: float | None = None) -> None:
        """Prepare a recording.

        Args:
            out: MP4 file to write.
            fps: Frame rate, for players; time stamps are the pictures' own.

        Raises:
            VideoError: It is a folder, or its folder is not there.
        """
        if out.is_dir():
            raise VideoError(out, "is a directory; name the MP4 file to write")
        if not out.parent.is_dir():
            raise VideoError(out, f"cannot be written: there is no folder {out.parent}")
        self.out = out
        self.fps = fps
        self._inbox: Inbox[tuple[Image, float, Guesses]] = Inbox(8, drop=False)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="recording")
        self._thread.start()

    def add(self, picture: Image, seconds: float, guesses: Guesses) -> None:
        """Hand on a picture `(H, W, 3)` and when it is from; waits when the encoder is behind.

        Raises:
            VideoError: The file cannot be written.
        """
        if not self._inbox.put((picture, seconds, tuple(guesses))) and self._error is not None:
            raise self._error

    def close(self) -> None:
        """Write what is left and put the file in its place.

        Raises:
            VideoError: The file cannot be written.
        """
        self._inbox.close()
        self._thread.join()
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _run(self) -> None:
        try:
            with ExitStack() as stack:
                self._write(stack)
        except BaseException as error:  # noqa: BLE001 - raised again by `add` and `close`
            self._error = error
        finally:
            self._inbox.close(empty=True)

    def _write(self, stack: ExitStack) -> None:
        file: Encoder | None = None
        shape = (0, 0)
        while not self._inbox.over:
            for picture, seconds, guesses in self._inbox.take(timeout=0.5):
                if file is not None and picture.shape[:2] != shape:  # a source may change its pictures' size
                    picture = np.asarray(
                        cv2.resize(picture, shape[::-1], interpolation=cv2.INTER_AREA), np.uint8
                    )
                made = draw_guesses(picture, guesses)
                if file is None:
                    shape = picture.shape[:2]
                    part = stack.enter_context(atomic_path(self.out))
                    file = stack.enter_context(Encoder(part, self.out, made.shape[:2], self.fps))
                file.add(made, seconds)


_PAGE = b"""<!doctype html><html lang="en"><meta charset="utf-8"><title>two-stream</title>
<style>body{margin:0;background:#111;height:100vh;display:grid;place-items:center}img{max-width:100vw;max-height:100vh}</style>
<img src="/pictures" alt="the stream with its likeliest classes"></html>"""


_BETWEEN = "two-stream-picture"


MOST_CONNECTIONS = 16


SILENCE = 10.0
"""seconds after which a connection that sends or takes nothing is closed"""


class _Server(ThreadingHTTPServer):
    """Answers a bounded number of connections at once; further ones are closed."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._free = threading.Semaphore(MOST_CONNECTIONS)
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for a connection, if one is free."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer a connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()


class BrowserWindow:
    """Serves the newest picture to any number of browsers; slow ones miss pictures."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        """Begin to serve.

        Args:
            port: 0 takes any free one.
            host: Address to listen at; by default this machine alone can look.

        Raises:
            SettingsError: The port is taken or not allowed.
        """
        self._newest: bytes = b""
        self._number = 0
        self._changed = threading.Condition()
        self._watchers = 0
        self._closed = False
        try:
            self._server = _Server((host, port), self._handler())
        except OSError as error:
            raise SettingsError(f"--window {port}: cannot listen there ({error.strerror})") from None
        self._hosts = {host, "localhost", socket.gethostname()}
        self.address = f"http://{host}:{self._server.server_port}/"
        threading.Thread(target=self._server.serve_forever, daemon=True, name="window").start()

    def show(self, picture: Image, guesses: Guesses) -> None:
        """Show a picture `(H, W, 3)`; nothing is drawn while nobody looks."""
        if not self._watchers:
            return
        there, jpeg = cv2.imencode(".jpg", cv2.cvtColor(draw_guesses(picture, guesses), cv2.COLOR_RGB2BGR))
        if there:
            with self._changed:
                self._newest = jpeg.tobytes()
                self._number += 1
                self._changed.notify_all()

    def close(self) -> None:
        """Stop serving."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        window = self

        class Handler(BaseHTTPRequestHandler):
            timeout = SILENCE

            def do_GET(self) -> None:
                if not window.answers(self.headers.get("Host", ""), self.headers.get("Sec-Fetch-Site", "")):
                    self.send_error(403, "this page answers to its own address alone")
                elif self.path == "/pictures":
                    window.pictures(self)
                elif self.path == "/":
                    self.send_response(200)
                    self.send_header("Content-Type", "text/html; charset=utf-8")
                    self.send_header("Content-Length", str(len(_PAGE)))
                    self.end_headers()
                    self.wfile.write(_PAGE)
                else:
                    self.send_error(404)

            def log_message(self, format: str, *args: Any) -> None:
                """Keep the terminal for the stream."""

        return Handler

    def answers(self, host: str, site: str) -> bool:
        """Return whether a request is for this page itself.

        A page of another site reaches this machine under a name of its own that points here, or embeds the pictures.
        An address in numbers is no such name.

        Args:
            host: The header `Host`.
            site: The header `Sec-Fetch-Site`: where the request comes from, as browsers say.
        """
        name = urlsplit(f"//{host}").hostname or ""
        if site not in ("", "none", "same-origin"):
            return False
        try:
            ip_address(name)
        except ValueError:
            return name in {one.lower() for one in self._hosts}
        return True

    def pictures(self, request: BaseHTTPRequestHandler) -> None:
        """Answer one browser with pictures until it leaves."""
        request.send_response(200)
        request.send_header("Content-Type", f"multipart/x-mixed-replace; boundary={_BETWEEN}")
        request.send_header("Cache-Control", "no-store")
        request.send_header("Cross-Origin-Resource-Policy", "same-origin")
        request.end_headers()
        with self._changed:
            self._watchers += 1
        number = 0
        try:
            while True:
                with self._changed:
                    while not self._closed and self._number == number:
                        self._changed.wait()
                    if self._closed:
                        return
                    number, jpeg = self._number, self._newest
                head = f"--{_BETWEEN}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
                request.wfile.write(head.encode() + jpeg + b"\r\n")
        except OSError:  # the browser has gone
            pass
        finally:
            with self._changed:
                self._watchers -= 1
