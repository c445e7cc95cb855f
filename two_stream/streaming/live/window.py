"""The live picture in a browser: a page of this machine, also where there is no screen to open a window on."""

from __future__ import annotations

import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import cv2

from two_stream.errors import SettingsError
from two_stream.streaming.live.recording import Guesses, drawn
from two_stream.video.decoding.base import Image

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
        there, jpeg = cv2.imencode(".jpg", cv2.cvtColor(drawn(picture, guesses), cv2.COLOR_RGB2BGR))
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
