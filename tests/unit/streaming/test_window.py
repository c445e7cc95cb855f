"""The live page: its states, its newest picture, whom it answers, and that no browser slows the stream."""

from __future__ import annotations

import http.client
import json
import re
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import cv2
import numpy as np
import pytest

from two_stream.errors import SettingsError, VideoError
from two_stream.runtime.plotting import DARK, LIGHT
from two_stream.streaming.live.outputs import MOST_CONNECTIONS, BrowserWindow
from two_stream.streaming.live.screen import Status

GUESSES = [("fight", 0.9), ("<b>no</b>\u202e", 0.1)]


def grey(level: int, size: tuple[int, int] = (65, 97)) -> np.ndarray:
    return np.full((*size, 3), level, np.uint8)


def status(source: str = "door.mp4") -> Status:
    return Status(source, "rgb: first after 8 frames, then every 4", networks="rgb + flow")


def predicted(made: Status, seconds: float, guesses=GUESSES) -> Status:
    made.seconds, made.guesses = seconds, guesses
    made.frames.add()
    made.predictions.add()
    made.latency.add(0.02)
    return made


@pytest.fixture
def window() -> Iterator[BrowserWindow]:
    made = BrowserWindow(0, status())
    yield made
    made.close()


def states(response) -> Iterator[dict]:
    """The messages of `/state`, up to the end of the stream."""
    for line in response:
        if line.startswith(b"data: "):
            yield (state := json.loads(line[6:]))
            if state["state"] == "ended":
                return


def test_a_state_is_all_that_the_page_shows(window: BrowserWindow) -> None:
    attempts = [0]
    window._attempt = lambda: attempts[0]
    first = window.state()
    assert (first["state"], first["age"], first["guesses"]) == ("connecting", None, [])
    assert (first["source"], first["networks"]) == ("door.mp4", "rgb + flow")
    made = status()
    window.show(grey(1), predicted(made, 1.5))
    made.dropped = 3
    window.show(grey(2), predicted(made, 2.0))
    state = window.state()
    assert (state["state"], state["seconds"], state["dropped"], state["number"]) == ("live", 2.0, 3, 2)
    assert state["guesses"] == [("fight", 0.9), ("<b>no</b>\\u202e", 0.1)]  # unprintable letters are escaped
    assert state["latency"] == [20, 20]
    assert (state["frames"]["total"], state["predictions"]["total"]) == (2, 2)
    assert 0 <= state["age"] < 5
    attempts[0] = 4
    assert (window.state()["state"], window.state()["attempt"]) == ("lost", 4)
    window.close("end of the file")
    assert (window.state()["state"], window.state()["reason"]) == ("ended", "end of the file")


def test_the_time_line_has_few_points_and_a_gap_where_the_source_was_lost(window: BrowserWindow) -> None:
    made = status()
    for tick in range(100):
        window.show(grey(1), predicted(made, tick / 100))
    window.show(grey(1), made)  # no new prediction
    points = window.state()["points"]
    assert [seconds for seconds, _ in points] == [0.0, 0.25, 0.5, 0.75]
    made.guesses, made.seconds = (), 9.0  # opened again: the networks are reset
    window.show(grey(1), made)
    window.show(grey(1), made)
    window.show(grey(1), predicted(made, 10.0))
    seen = window.state()["number"]
    assert [[seconds, len(guesses)] for seconds, guesses in window.state()["points"][4:]] == [
        [0.99, 0],
        [10.0, 2],
    ]
    assert window.state(seen)["points"] == []  # a browser is sent each point once
    for tick in range(1000):
        window.show(grey(1), predicted(made, 11.0 + tick))
    assert len(window.state()["points"]) == 480


def test_passwords_are_not_shown() -> None:
    address = "rtsp://me:s3cret@10.0.0.1/door@2"
    with pytest.raises(VideoError), BrowserWindow(0, status(address)) as window:
        raise VideoError(address, "was lost for 60 seconds")
    state = window.state()
    assert state["source"] == "rtsp://10.0.0.1/door@2"
    assert state["reason"] == "rtsp://10.0.0.1/door@2: was lost for 60 seconds"


def test_a_camera_has_a_name() -> None:
    assert status("0").facts()["source"] == "camera 0"


def test_scores_that_are_not_numbers_are_json(window: BrowserWindow) -> None:
    window.show(grey(1), predicted(status(), 1.0, [("fight", float("nan"))]))
    with urllib.request.urlopen(f"{window.address}state", timeout=5) as response:
        assert b"NaN" not in response.readline()


def test_the_newest_picture_is_encoded_when_a_browser_asks(
    window: BrowserWindow, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, encoded = status(), []
    real = cv2.imencode
    monkeypatch.setattr(cv2, "imencode", lambda *given: encoded.append(1) or real(*given))
    for level in (10, 100, 200):
        window.show(grey(level), predicted(made, level))
    assert not encoded  # nobody looks
    for _ in range(2):
        with urllib.request.urlopen(f"{window.address}picture?after=0", timeout=5) as response:
            assert (response.headers["Content-Type"], response.headers["X-Number"]) == ("image/jpeg", "3")
            jpeg = response.read()
        found = cv2.cvtColor(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
        assert np.abs(found.astype(int) - grey(200)).mean() < 6
    assert len(encoded) == 1


def test_a_browser_waits_for_the_next_picture(window: BrowserWindow) -> None:
    window.show(grey(1), status())
    threading.Timer(0.1, window.show, (grey(2), status())).start()
    with urllib.request.urlopen(f"{window.address}picture?after=1", timeout=4) as response:
        assert response.headers["X-Number"] == "2"
    with urllib.request.urlopen(f"{window.address}picture?after=-1", timeout=4) as response:
        assert response.headers["X-Number"] == "2"
    threading.Timer(0.1, window.close).start()
    with urllib.request.urlopen(f"{window.address}picture?after={'9' * 5000}", timeout=4) as response:
        assert (response.status, response.read()) == (204, b"")


def test_the_end_is_told_before_the_window_closes(window: BrowserWindow) -> None:
    with urllib.request.urlopen(f"{window.address}state", timeout=5) as response:
        assert response.headers["Content-Type"] == "text/event-stream"
        messages = states(response)
        assert next(messages)["state"] == "connecting"
        window.show(grey(1), predicted(status(), 1.0))
        until = time.monotonic() + 5
        while (message := next(messages))["state"] != "live":
            assert time.monotonic() < until
        assert len(message["points"]) == 1
        closing = threading.Thread(target=window.close, args=("stopped in the terminal",))
        closing.start()
        *_, last = messages
    closing.join(5)
    assert not closing.is_alive()
    assert (last["state"], last["reason"]) == ("ended", "stopped in the terminal")
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(window.address, timeout=5)


def test_a_browser_that_does_not_read_or_leaves_slows_nothing(
    window: BrowserWindow, capsys: pytest.CaptureFixture[str]
) -> None:
    port, made = window._server.server_port, status()
    lazy = [socket.create_connection(("127.0.0.1", port), 5) for _ in range(4)]
    for number, one in enumerate(lazy):
        path = "picture?after=0" if number % 2 else "state"
        one.sendall(f"GET /{path} HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n".encode())
    big, begin = np.random.default_rng(0).integers(0, 255, (1080, 1920, 3)).astype(np.uint8), time.monotonic()
    for tick in range(200):
        window.show(big, predicted(made, tick))
    assert time.monotonic() - begin < 1.0
    for one in lazy:
        one.close()
    deadline = time.monotonic() + 10
    while window._server._free._value < MOST_CONNECTIONS:  # every connection has ended
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert "Traceback" not in capsys.readouterr().err


def test_a_port_in_use_is_one_line(window: BrowserWindow) -> None:
    with pytest.raises(SettingsError, match="cannot listen on this port"):
        BrowserWindow(window._server.server_port, status())


def test_the_page_runs_its_own_script_alone_and_has_the_palette(window: BrowserWindow) -> None:
    pages = []
    for _ in range(2):
        with urllib.request.urlopen(window.address, timeout=5) as response:
            policy, text = response.headers["Content-Security-Policy"], response.read().decode()
            assert response.headers["X-Content-Type-Options"] == "nosniff"
            assert response.headers["Cross-Origin-Resource-Policy"] == "same-origin"
        (nonce,) = set(re.findall(r"nonce-([\w-]+)'", policy))
        assert text.count(f'nonce="{nonce}"') == len(re.findall("<style|<script", text)) == 2
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        pages.append(nonce)
    assert pages[0] != pages[1]
    assert not re.search(r"@\w+@|https?://(?!www\.w3\.org)|innerHTML|style=", text)
    assert set(re.findall(r"#[0-9a-f]{6}", text)) == set((LIGHT | DARK).values()) | set(LIGHT.values())


def test_the_page_answers_to_its_own_address_alone() -> None:
    """Not to a name that a stranger's page lets point here, nor to pictures embedded in another page."""
    window = BrowserWindow(0, status())
    port = window._server.server_port
    try:
        for headers, wanted in (
            ({"Host": f"localhost:{port}"}, 200),
            ({"Host": f"127.0.0.1:{port}", "Sec-Fetch-Site": "same-origin"}, 200),
            ({"Host": f"[::1]:{port}"}, 200),
            ({"Host": f"evil.example:{port}"}, 403),
            ({"Host": ""}, 403),
            ({"Host": f"127.0.0.1.evil.example:{port}"}, 403),
            ({"Host": f"localhost:{port}", "Sec-Fetch-Site": "cross-site"}, 403),
        ):
            for path in ("/",) if wanted == 200 else ("/", "/state", "/picture?after=0"):
                asked = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
                asked.request("GET", path, headers=headers)
                assert asked.getresponse().status == wanted, headers
                asked.close()
    finally:
        window.close()


def test_silent_connections_are_closed_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("two_stream.streaming.live.outputs.SILENCE", 1.0)
    window = BrowserWindow(0, status())
    try:
        silent = [socket.create_connection(("127.0.0.1", window._server.server_port), 5) for _ in range(20)]
        ends = [one.recv(1) for one in silent[MOST_CONNECTIONS:]]  # too many: closed at once
        assert ends == [b""] * 4
        assert [one.recv(1) for one in silent[:MOST_CONNECTIONS]] == [b""] * MOST_CONNECTIONS
        for one in silent:
            one.close()
        with urllib.request.urlopen(window.address, timeout=5) as page:
            assert page.status == 200
    finally:
        window.close()
