"""Outputs of a stream with the predictions drawn on the images: an MP4 file, and a live page in a browser."""

from __future__ import annotations

import math
import secrets
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import cv2
import numpy as np

from two_stream.errors import SettingsError, VideoError
from two_stream.evaluation.pictures.annotate import Encoder, blend, panel
from two_stream.runtime.files import atomic_path
from two_stream.runtime.plotting import DARK, LIGHT
from two_stream.runtime.text import json_text
from two_stream.streaming.live.pipeline import Inbox
from two_stream.streaming.live.screen import Status, hide_password
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


_PAGE = Path(__file__).parent / "templates" / "live.html"


SPAN = 120.0
"""number of seconds of the page's time line"""


_BETWEEN = 0.25
"""smallest number of seconds between two points of the time line, and between two messages to a browser"""


_LAST = 1.0
"""number of seconds that a browser has to fetch the last image after the stream has ended"""


MOST_CONNECTIONS = 16


SILENCE = 10.0
"""number of seconds after which an inactive connection is closed"""


class _Server(ThreadingHTTPServer):
    """Serves a limited number of connections at the same time; further connections are closed."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._free = threading.Semaphore(MOST_CONNECTIONS)
        super().__init__(address, handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore that a browser has disconnected; otherwise print the error."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

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
    """Serves a web page with the latest image and the state of the stream. Slow browsers miss images and messages.

    The machine does not need a screen. By default, only browsers on this machine can connect. If the
    window is used as a context manager and an error is raised, the page shows the error.
    """

    def __init__(
        self, port: int, status: Status, attempt: Callable[[], int] = lambda: 0, host: str = "127.0.0.1"
    ) -> None:
        """Start serving at the address `host`; port 0 selects a free port.

        `attempt` returns the number of attempts to open a lost source, and 0 while the source is available.

        Raises:
            SettingsError: The port is in use or not allowed.
        """
        self._facts = status.facts()
        self._attempt = attempt
        self._run = secrets.token_hex(8)
        self._picture: Image | None = None
        self._shown, self._number = 0.0, 0
        self._encoded = (0, b"")
        self._encoding = threading.Lock()
        self._points: deque[tuple[int, float, Guesses]] = deque(maxlen=round(SPAN / _BETWEEN))
        self._changed = threading.Condition()
        self._watchers = 0
        self._reason: str | None = None
        try:
            self._server = _Server((host, port), self._handler())
        except OSError as error:
            raise SettingsError(
                f"--window {port}: cannot listen on this port ({error.strerror}); choose another port"
            ) from None
        self._hosts = {host, "localhost", socket.gethostname()}
        self.address = f"http://{host}:{self._server.server_port}/"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True, name="window").start()

    def show(self, picture: Image, status: Status) -> None:
        """Show an image `(H, W, 3)` and the state of the stream. The image must not be changed afterwards."""
        with self._changed:
            before, self._facts = self._facts, status.facts()
            self._picture, self._shown, self._number = picture, time.monotonic(), self._number + 1
            last = self._points[-1][1] if self._points else -math.inf
            if before["guesses"] and not status.guesses:  # the source was lost after the last image
                self._points.append((self._number, before["seconds"], []))
            elif (
                status.predictions.total > before["predictions"]["total"]
                and status.seconds - last >= _BETWEEN
            ):
                self._points.append((self._number, status.seconds, self._facts["guesses"]))
            self._changed.notify_all()

    def close(self, reason: str = "") -> None:
        """Tell the browsers that the stream has ended and why, and stop serving once they have the last image."""
        with self._changed:
            if self._reason is None:
                self._reason = reason
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._watchers, timeout=2 * _LAST)
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.close(str(error) if error is not None else "")

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        window = self

        class Handler(BaseHTTPRequestHandler):
            timeout = SILENCE

            def do_GET(self) -> None:
                path, _, query = self.path.partition("?after=")
                if not window.answers(self.headers.get("Host", ""), self.headers.get("Sec-Fetch-Site", "")):
                    self.send_error(403, "this page is available only at its own address")
                elif path == "/state":
                    window.send_states(self)
                elif path == "/picture":
                    number, jpeg = window.next_picture(int(query[:18]) if query.isdecimal() else 0)
                    self.reply(
                        200 if jpeg else 204, jpeg, **{"Content-Type": "image/jpeg", "X-Number": str(number)}
                    )
                elif path == "/":
                    nonce = secrets.token_urlsafe(16)
                    policy = (
                        f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; "
                        "connect-src 'self'; img-src blob: data:; base-uri 'none'; form-action 'none'; "
                        "frame-ancestors 'none'"
                    )
                    headers = {"Content-Type": "text/html; charset=utf-8", "Content-Security-Policy": policy}
                    self.reply(200, live_page(nonce), **headers)
                else:
                    self.send_error(404)

            def reply(self, status: int, body: bytes | None, **headers: str) -> None:
                """Send a response. If `body` is None, its length is unknown and the caller writes it."""
                self.send_response(status)
                headers |= {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
                headers |= {"Cross-Origin-Resource-Policy": "same-origin", "Referrer-Policy": "no-referrer"}
                if body is not None:
                    headers["Content-Length"] = str(len(body))
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body or b"")

            def log_message(self, format: str, *args: Any) -> None:
                """Log nothing, because the terminal displays the stream."""

        return Handler

    def answers(self, host: str, site: str) -> bool:
        """Return whether a request with the headers `Host` and `Sec-Fetch-Site` comes from this page.

        Requests from pages of other sites are rejected, because these pages could embed the images, or use a host name
        of their own that resolves to this machine. Numeric addresses in `Host` are accepted, because DNS
        rebinding requires a host name.
        """
        name = urlsplit(f"//{host}").hostname or ""
        if site not in ("", "none", "same-origin"):
            return False
        try:
            ip_address(name)
        except ValueError:
            return name in {one.lower() for one in self._hosts}
        return True

    def next_picture(self, after: int) -> tuple[int, bytes]:
        """Wait for an image whose number is larger than `after`, and return its number and the newest image as JPEG.

        The JPEG is empty if no image arrives. An image is encoded only once, for the first browser that requests it.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self._number > after or self._reason is not None, timeout=SILENCE / 2
            )
            number, picture = self._number, self._picture
        if picture is None or number <= after:
            return number, b""
        with self._encoding:
            if self._encoded[0] < number:
                _, jpeg = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
                self._encoded = (number, jpeg.tobytes())
            return self._encoded

    def state(self, after: int = -1) -> dict[str, Any]:
        """Return the state of the stream as values for JSON, with the points of the time line after image `after`."""
        with self._changed:
            attempt = self._attempt()
            running = "lost" if attempt else "live" if self._number else "connecting"
            return self._facts | {
                "run": self._run,
                "state": running if self._reason is None else "ended",
                "reason": hide_password(self._reason or ""),
                "attempt": attempt,
                "age": round(time.monotonic() - self._shown, 3) if self._number else None,
                "number": self._number,
                "all": after < 0,
                "points": [[seconds, guesses] for number, seconds, guesses in self._points if number > after],
            }

    def send_states(self, request: Any) -> None:
        """Send the state to one browser as server-sent events, until it disconnects or the stream has ended."""
        with self._changed:
            self._watchers += 1
        sent, is_over = -1, False
        try:
            request.reply(200, None, **{"Content-Type": "text/event-stream"})
            while not is_over:
                state = self.state(sent)
                sent, is_over = state["number"], state["state"] == "ended"
                request.wfile.write(f"data: {json_text(state)}\n\n".encode())
                with self._changed:
                    self._changed.wait_for(lambda: self._reason is not None, timeout=_BETWEEN)
            request.connection.settimeout(_LAST)
            request.rfile.read(1)  # the browser disconnects when it has the last image
        except OSError:  # the browser has disconnected
            pass
        finally:
            with self._changed:
                self._watchers -= 1
                self._changed.notify_all()


def live_page(nonce: str) -> bytes:
    """Return the live page; its style and script are marked with `nonce`."""
    text = _PAGE.read_text("utf-8")
    values: dict[str, object] = {"nonce": nonce, "span": SPAN}
    for name, colors in (("light", LIGHT), ("dark", DARK)):
        values[name] = " ".join(f"--{key}: {color};" for key, color in colors.items())
    for name, value in values.items():
        text = text.replace(f"@{name}@", str(value))
    return text.encode()
