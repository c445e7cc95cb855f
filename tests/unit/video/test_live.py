"""Live sources: an HTTP stream on this machine that dies, hangs and comes back; files; what is no source."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from tests.helpers.server import LiveServer
from two_stream.errors import VideoError
from two_stream.video.decoding import live
from two_stream.video.decoding.live import AddressSource, CameraSource, FileSource, LiveSource, open_source


def pictures(count: int = 20) -> list[np.ndarray]:
    return [np.full((64, 96, 3), 10 + 10 * number, np.uint8) for number in range(count)]


def test_an_http_stream_gives_its_pictures_until_it_dies() -> None:
    levels, times = [], []
    with LiveServer(pictures(), fps=50) as server:
        source = open_source(server.address)
        assert isinstance(source, AddressSource)
        with pytest.raises(VideoError, match=r"cannot be read|has ended"):
            for frame in source.numbered(first=5, offset=2.0):
                levels.append(float(frame.picture.mean()))
                times.append((frame.number, frame.seconds))
                if len(levels) == 15:
                    server.close()
    first = round(levels[0] / 10)  # what libav reads to find out the format may be lost
    assert first <= 6
    assert levels[:10] == pytest.approx([10 * number for number in range(first, first + 10)], abs=4)
    assert [number for number, _ in times[:3]] == [5, 6, 7]
    assert [seconds for _, seconds in times[:3]] == pytest.approx([2.0, 2.02, 2.04], abs=1e-3)
    assert source.fps == pytest.approx(50.0)


def test_a_stream_that_sends_nothing_any_more_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "READ_SECONDS", 0.5)
    with LiveServer(pictures(), fps=50) as server:
        threading.Timer(1.5, server.hang.set).start()
        with pytest.raises(VideoError, match=r"no data received for 0\.5 seconds"):
            for _ in open_source(server.address).numbered():
                pass


def test_a_file_gives_what_the_reader_gives(shared) -> None:
    video = sorted((shared / "data" / "fight2" / "fight").glob("*.mp4"))[0]
    source = open_source(str(video))
    assert isinstance(source, FileSource)
    assert not source.live
    frames = list(source.numbered())
    with live.open_video(video) as opened:
        wanted = list(opened.frames())
    assert len(frames) == len(wanted)
    assert all(np.array_equal(one.picture, two) for one, two in zip(frames, wanted))
    assert source.fps is not None
    assert frames[10].seconds == pytest.approx(10 / source.fps)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gopher://x/y", "unknown scheme 'gopher'; expected one of rtsp"),
        ("/no/such.mp4", "no such file"),
        ("99999999999999999999", "expected a camera number"),
        ("²", "no such file"),
    ],
)
def test_what_is_no_source_is_refused_when_it_is_named(name: str, said: str) -> None:
    with pytest.raises(VideoError, match=said):
        open_source(name)


@pytest.mark.parametrize("name", ["http://127.0.0.1:9/x", "rtsp://127.0.0.1:9/x"])
def test_an_address_where_nothing_listens(name: str) -> None:
    with pytest.raises(VideoError, match="cannot be read"):
        next(open_source(name).numbered())


def test_a_stream_may_not_lead_to_a_file_of_this_machine(tmp_path, shared) -> None:
    """A play list from elsewhere names a local file: libav must not follow it."""
    video = sorted((shared / "data" / "fight2" / "fight").glob("*.mp4"))[0]
    import http.server

    body = f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nfile://{video}\n#EXT-X-ENDLIST\n".encode()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/vnd.apple.mpegurl")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(VideoError):
            next(open_source(f"http://127.0.0.1:{server.server_port}/list.m3u8").numbered())
    finally:
        server.shutdown()
        server.server_close()


def test_a_camera_that_is_not_there() -> None:
    source = open_source("77")
    assert isinstance(source, CameraSource)
    with pytest.raises(VideoError, match="camera 77: the camera cannot be opened"):
        next(source.numbered())


class Clock(LiveSource):
    """Gives frames whose time stamps are those of a script."""

    def __init__(self, stamps: list[float | None], live: bool = True) -> None:
        super().__init__("clock")
        self.stamps, self.live = stamps, live

    def frames(self) -> Iterator[tuple[float | None, np.ndarray]]:
        for stamp in self.stamps:
            yield stamp, np.zeros((2, 2, 3), np.uint8)


@pytest.mark.parametrize(
    ("stamps", "seconds"),
    [
        ([100.0, 100.1, 100.2], [0.0, 0.1, 0.2]),
        ([100.0, 105.0, 104.9, 105.2], [0.0, 5.0, 5.0, 5.2]),  # a small step back waits
        ([100.0, 101.0, 0.0, 0.5], [0.0, 1.0, 1.0, 1.5]),  # set anew: goes on from there
        ([0.0, 1.0, 90000.0, 90000.5], [0.0, 1.0, 1.0, 1.5]),
        ([None, None, 50.0, 50.5], [0.0, 0.0, 0.0, 0.5]),
    ],
)
def test_time_goes_on_where_a_live_source_sets_its_clock_anew(stamps, seconds) -> None:
    found = [frame.seconds for frame in Clock(stamps).numbered()]
    assert found == pytest.approx(seconds, abs=0.05)


def test_the_times_of_a_file_are_its_own() -> None:
    assert [frame.seconds for frame in Clock([0.0, 20.0, 40.0], live=False).numbered()] == [0.0, 20.0, 40.0]
