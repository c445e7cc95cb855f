"""The live picture in a browser: a page of this machine, also where there is no screen to open a window on."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import cv2

from two_stream.errors import SettingsError
from two_stream.streaming.recording import Guesses, drawn
from two_stream.video.base import Image

_PAGE = b"""<!doctype html><html lang="en"><meta charset="utf-8"><title>two-stream</title>
<style>body{margin:0;background:#111;height:100vh;display:grid;place-items:center}img{max-width:100vw;max-height:100vh}</style>
<img src="/pictures" alt="the stream with its likeliest classes"></html>"""
_BETWEEN = "two-stream-picture"


class Window:
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
            self._server = ThreadingHTTPServer((host, port), self._handler())
        except OSError as error:
            raise SettingsError(f"--window {port}: cannot listen there ({error.strerror})") from None
        self._server.daemon_threads = True
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
            def do_GET(self) -> None:
                if self.path == "/pictures":
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

    def pictures(self, request: BaseHTTPRequestHandler) -> None:
        """Answer one browser with pictures until it leaves."""
        request.send_response(200)
        request.send_header("Content-Type", f"multipart/x-mixed-replace; boundary={_BETWEEN}")
        request.send_header("Cache-Control", "no-store")
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
