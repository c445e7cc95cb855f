"""A live source for tests: pictures encoded without end, at their own pace, as MPEG-TS over HTTP on this machine."""

from __future__ import annotations

import contextlib
import io
import threading
import time
from collections.abc import Sequence
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import av
import numpy as np
from numpy.typing import NDArray

_TICKS = 90_000


class _Pipe(io.RawIOBase):
    """Hands bytes on as libav makes them."""

    def __init__(self, write: Any) -> None:
        self._write = write

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._write(bytes(data))
        return len(data)


class LiveServer:
    """Serves the pictures in a loop from `/` until it is closed; `hang` keeps connections open and sends nothing.

    As a context it closes itself. A closed one can be followed by another at the same port.
    """

    def __init__(self, pictures: Sequence[NDArray[np.uint8]], fps: float = 25.0, port: int = 0) -> None:
        self.pictures = list(pictures)
        self.fps = fps
        self.closed = threading.Event()
        self.hang = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "video/mp2t")
                self.end_headers()
                with contextlib.suppress(OSError, av.FFmpegError):
                    server.stream(self.wfile.write)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        ThreadingHTTPServer.allow_reuse_address = True
        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_port
        self.address = f"http://127.0.0.1:{self.port}/live.ts"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stream(self, write: Any) -> None:
        """Encode and send until closed."""
        height, width = self.pictures[0].shape[:2]
        container = av.open(_Pipe(write), "w", format="mpegts", options={"flush_packets": "1"})
        encoder = container.add_stream("mpeg2video", rate=Fraction(self.fps).limit_denominator(1001))
        encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
        encoder.bit_rate, encoder.gop_size, encoder.max_b_frames = 2_000_000, 12, 0
        begin, number = time.monotonic(), 0
        while not self.closed.is_set():
            if self.hang.is_set():
                time.sleep(0.05)
                continue
            picture = self.pictures[number % len(self.pictures)]
            for packet in encoder.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
            number += 1
            self.closed.wait(max(0.0, begin + number / self.fps - time.monotonic()))

    def close(self) -> None:
        """Cut every connection."""
        self.closed.set()
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
