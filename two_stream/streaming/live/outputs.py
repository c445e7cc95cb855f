"""Outputs of a stream with the predictions drawn on the images: an MP4 file, and a live page in a browser."""

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
    """Return an image with the most probable classes drawn on it; its sides are cropped to even numbers."""
    height, width = picture.shape[0] // 2 * 2, picture.shape[1] // 2 * 2
    return blend(picture[:height, :width], *panel(height, width, guesses))


class Recording:
    """Writes an MP4 file in a thread while the stream runs. The file exists only after `close`.

    Each image is displayed from its own time until the time of the next image. All images are resized to the size of
    the first one.
    """

    def __init__(self, out: Path, fps: float | None = None) -> None:
        """Set up a recording to the MP4 file `out`.

        `fps` is the nominal frame rate for players; images keep their own times.

        Raises:
            VideoError: `out` is a folder, or its parent folder does not exist.
        """
        if out.is_dir():
            raise VideoError(out, "is a directory; expected the name of an MP4 file to write")
        if not out.parent.is_dir():
            raise VideoError(
                out,
                f"cannot be written, because the folder {out.parent} does not exist; create the folder first",
            )
        self.out = out
        self.fps = fps
        self._inbox: Inbox[tuple[Image, float, Guesses]] = Inbox(8, drop=False)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="recording")
        self._thread.start()

    def add(self, picture: Image, seconds: float, guesses: Guesses) -> None:
        """Add an image `(H, W, 3)` and its time; wait if the encoder is too slow.

        Raises:
            VideoError: The file cannot be written.
        """
        if not self._inbox.put((picture, seconds, tuple(guesses))) and self._error is not None:
            raise self._error

    def close(self) -> None:
        """Write the remaining images and move the file to its place.

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
                if file is not None and picture.shape[:2] != shape:  # the source changed its size
                    shrunk = cv2.resize(picture, shape[::-1], interpolation=cv2.INTER_AREA)
                    picture = np.asarray(shrunk, np.uint8)
                annotated = draw_guesses(picture, guesses)
                if file is None:
                    shape = picture.shape[:2]
                    part = stack.enter_context(atomic_path(self.out))
                    file = stack.enter_context(Encoder(part, self.out, annotated.shape[:2], self.fps))
                file.add(annotated, seconds)


_PAGE = b"""<!doctype html><html lang="en"><meta charset="utf-8"><title>two-stream</title>
<style>body{margin:0;background:#111;height:100vh;display:grid;place-items:center}img{max-width:100vw;max-height:100vh}</style>
<img src="/pictures" alt="the stream with its likeliest classes"></html>"""


_BETWEEN = "two-stream-picture"


MOST_CONNECTIONS = 16


SILENCE = 10.0
"""number of seconds after which an inactive connection is closed"""


class _Server(ThreadingHTTPServer):
    """Serves a limited number of connections at the same time; further connections are closed."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._free = threading.Semaphore(MOST_CONNECTIONS)
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for a connection, unless the limit is reached."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()


class BrowserWindow:
    """Serves the latest image as a web page to one or more browsers. Slow browsers miss images.

    The machine does not need a screen. By default, only browsers on this machine can connect.
    """

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        """Start serving at the address `host`; port 0 selects a free port.

        Raises:
            SettingsError: The port is in use or not allowed.
        """
        self._newest: bytes = b""
        self._number = 0
        self._changed = threading.Condition()
        self._watchers = 0
        self._closed = False
        try:
            self._server = _Server((host, port), self._handler())
        except OSError as error:
            raise SettingsError(
                f"--window {port}: cannot listen on this port ({error.strerror}); choose another port"
            ) from None
        self._hosts = {host, "localhost", socket.gethostname()}
        self.address = f"http://{host}:{self._server.server_port}/"
        threading.Thread(target=self._server.serve_forever, daemon=True, name="window").start()

    def show(self, picture: Image, guesses: Guesses) -> None:
        """Show an image `(H, W, 3)` if a browser is connected."""
        if not self._watchers:
            return
        is_encoded, jpeg = cv2.imencode(
            ".jpg", cv2.cvtColor(draw_guesses(picture, guesses), cv2.COLOR_RGB2BGR)
        )
        if is_encoded:
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
                    self.send_error(403, "this page is available only at its own address")
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
                """Log nothing, because the terminal displays the stream."""

        return Handler

    def answers(self, host: str, site: str) -> bool:
        """Return whether a request with the headers `Host` and `Sec-Fetch-Site` comes from this page.

        Requests from pages of other sites are rejected, because these pages could embed the images, or use a host name
        of their own that resolves to this machine. Numeric addresses in `Host` are accepted, because an attack by name
        resolution requires a host name.
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
        """Send images to one browser until it disconnects."""
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
        except OSError:  # the browser has disconnected
            pass
        finally:
            with self._changed:
                self._watchers -= 1
