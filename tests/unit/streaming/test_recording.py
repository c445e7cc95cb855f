"""Recording and browser window: what is on them is what was shown, and nothing half-written stays."""

from __future__ import annotations

import http.client
import socket
import threading
import urllib.request
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from two_stream.errors import SettingsError, VideoError
from two_stream.streaming.live.outputs import MOST_CONNECTIONS, BrowserWindow, Recording, draw_guesses

GUESSES = [("fight", 0.9), ("noFight", 0.1)]


def grey(level: int, size: tuple[int, int] = (65, 97)) -> np.ndarray:
    return np.full((*size, 3), level, np.uint8)


def test_every_picture_is_there_at_its_time(tmp_path: Path) -> None:
    out = tmp_path / "out.mp4"
    times = [0.0, 0.04, 0.08, 0.5, 0.54]  # frames were dropped between the third and the fourth
    recording = Recording(out, 25.0)
    for level, seconds in zip(range(20, 250, 50), times):
        recording.add(grey(level), seconds, GUESSES)
    assert not out.exists()
    recording.close()
    with av.open(str(out)) as file:
        frames = list(file.decode(video=0))
    assert [round(float(frame.time), 3) for frame in frames] == times
    levels = [int(frame.to_ndarray(format="rgb24")[-8:].mean()) for frame in frames]
    assert levels == pytest.approx(range(20, 250, 50), abs=4)
    shown = frames[0].to_ndarray(format="rgb24")
    assert shown.shape == (64, 96, 3)
    assert shown[:20].std() > 10 > shown[-8:].std()  # the band with the classes


def test_pictures_of_another_size_are_brought_to_the_first_ones(tmp_path: Path) -> None:
    out = tmp_path / "out.mp4"
    recording = Recording(out)
    for number, size in enumerate([(65, 97), (65, 97), (32, 32), (130, 194), (65, 97)]):
        recording.add(grey(20 + 40 * number, size), 0.1 * number, [])
    recording.close()
    with av.open(str(out)) as file:
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    assert [frame.shape for frame in frames] == [(64, 96, 3)] * 5
    assert [frame[-8:].mean() for frame in frames] == pytest.approx([20, 60, 100, 140, 180], abs=4)


@pytest.mark.parametrize("where", ["", "no/such/out.mp4"])
def test_a_target_that_cannot_be_is_refused_at_once(tmp_path: Path, where: str) -> None:
    with pytest.raises(VideoError, match=r"is a directory|does not exist"):
        Recording(tmp_path / where)


def test_a_recording_without_pictures_writes_no_file(tmp_path: Path) -> None:
    Recording(tmp_path / "out.mp4").close()
    assert list(tmp_path.iterdir()) == []


def test_a_browser_gets_the_newest_picture() -> None:
    window = BrowserWindow(0)
    try:
        with urllib.request.urlopen(window.address, timeout=5) as page:
            assert b'src="/pictures"' in page.read()
        window.show(grey(10), GUESSES)  # nobody looks: nothing is drawn
        assert window._newest == b""
        stop = threading.Event()

        def feed() -> None:
            while not stop.wait(0.01):
                window.show(grey(200), GUESSES)

        feeder = threading.Thread(target=feed)
        feeder.start()
        with urllib.request.urlopen(f"{window.address}pictures", timeout=5) as pictures:
            head = [pictures.readline() for _ in range(4)]
            jpeg = pictures.read(int(head[2].split(b":")[1]))
        stop.set()
        feeder.join()
        assert head[1].strip() == b"Content-Type: image/jpeg"
        found = cv2.cvtColor(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
        assert np.abs(found.astype(int) - draw_guesses(grey(200), GUESSES)).mean() < 6
        with pytest.raises(SettingsError, match="cannot listen on this port"):
            BrowserWindow(window._server.server_port)
    finally:
        window.close()


def test_the_page_answers_to_its_own_address_alone() -> None:
    """Not to a name that a stranger's page lets point here, nor to pictures embedded in another page."""
    window = BrowserWindow(0)
    port = window._server.server_port
    try:
        for headers, status in (
            ({"Host": f"localhost:{port}"}, 200),
            ({"Host": f"127.0.0.1:{port}", "Sec-Fetch-Site": "same-origin"}, 200),
            ({"Host": f"[::1]:{port}"}, 200),
            ({"Host": f"evil.example:{port}"}, 403),
            ({"Host": ""}, 403),
            ({"Host": f"127.0.0.1.evil.example:{port}"}, 403),
            ({"Host": f"localhost:{port}", "Sec-Fetch-Site": "cross-site"}, 403),
        ):
            asked = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            asked.request("GET", "/", headers=headers)
            assert asked.getresponse().status == status, headers
            asked.close()
    finally:
        window.close()


def test_silent_connections_are_closed_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("two_stream.streaming.live.outputs.SILENCE", 1.0)
    window = BrowserWindow(0)
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
