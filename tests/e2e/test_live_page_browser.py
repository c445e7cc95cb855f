"""The live page of a stream in a real browser: on a desktop and a phone, light and dark, while it runs and after."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest

from tests.helpers.browser import CONTRAST, Browser
from two_stream.streaming.live.outputs import BrowserWindow
from two_stream.streaming.live.screen import Status

pytestmark = pytest.mark.integration
HOSTILE = "<img src=x onerror=alert(1)>"
CLASSES = [HOSTILE, "wave", "turn " + "very" * 14, "跳ぶ", "$x^2$", "jump", "clap"]
SOURCE = "rtsp://me:s3cret@10.0.0.1/<b>door</b>"
PICTURE = """(() => {
  const image = document.getElementById('picture'), box = image.getBoundingClientRect();
  return [image.naturalWidth, image.naturalHeight, box.width, box.height, getComputedStyle(image).objectFit];
})()"""
TEXTS = "[...document.querySelectorAll('%s')].map(one => one.textContent)"
CUT = """[...document.querySelectorAll(
  'h1, h2, h3, p:not(.spoken), li span, li b, dt, dd, figcaption span')].filter(one =>
  one.scrollWidth > one.clientWidth + 1 && one.clientWidth).map(one => one.textContent)"""
ROWS = """[...document.querySelectorAll('.row:not([hidden]) svg')].map(one =>
  [...one.children].map(path => path.getAttribute('d')).join('').split('M').length - 1)"""
WATCH = """window.changes = [];
new MutationObserver(() => changes.push(document.getElementById('spoken').textContent)).observe(
  document.getElementById('spoken'), { childList: true, characterData: true, subtree: true })"""


class Feed:
    """A window that is shown twenty pictures a second until `pause`; each second another class leads."""

    def __init__(self, port: int = 0) -> None:
        self.status = Status(SOURCE, "rgb: first after 8 frames", networks="rgb + flow")
        self.attempt = 0
        self.window = BrowserWindow(port, self.status, lambda: self.attempt)
        self._stop, self._run = threading.Event(), threading.Event()
        self._run.set()
        self._thread = threading.Thread(target=self._feed)

    def _feed(self) -> None:
        picture, shares = np.zeros((48, 64, 3), np.uint8), [0.5, 0.2, 0.1, 0.08, 0.06, 0.04, 0.02]
        for tick in range(100_000):
            if self._stop.wait(0.05):
                return
            self._run.wait()
            lead = tick // 20 % len(CLASSES)
            self.status.guesses = list(zip(CLASSES[lead:] + CLASSES[:lead], shares))
            self.status.seconds = 100 + tick / 20  # has run for a while
            self.status.frames.add()
            self.status.predictions.add()
            self.status.latency.add(0.03)
            self.window.show(np.roll(picture + np.uint8(tick % 200), tick, axis=1), self.status)

    def start(self) -> None:
        self._thread.start()

    def pause(self, paused: bool) -> None:
        (self._run.clear if paused else self._run.set)()

    def close(self, reason: str = "") -> None:
        self.pause(False)
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self.window.close(reason)


@pytest.fixture
def feed() -> Iterator[Feed]:
    made = Feed()
    yield made
    made.close()


def until(tab: Browser, state: str, seconds: float = 12.0) -> None:
    deadline = time.monotonic() + seconds
    while not (told := tab.evaluate("document.getElementById('state').textContent")).startswith(state):
        assert time.monotonic() < deadline, f"{told}, not {state}"
        time.sleep(0.05)


def frozen(tab: Browser) -> bool:
    style = tab.evaluate("getComputedStyle(document.getElementById('picture')).opacity")
    return float(style) < 0.5 and bool(tab.evaluate("document.querySelector('figcaption').offsetHeight"))


def check_layout(tab: Browser) -> None:
    """On a phone and a desktop, light and dark: nothing is cut or pale, and the picture fills the space."""
    for width, across, down in ((390, 340, 250), (838, 400, 250), (1920, 900, 400), (1200, 700, 400)):
        for scheme, page in (("light", "rgb(245, 246, 248)"), ("dark", "rgb(17, 20, 24)")):
            tab.size(width, 900, mobile=width < 500)
            tab.media(scheme=scheme)
            assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == page
            assert tab.evaluate("document.documentElement.scrollWidth") == width
            assert tab.evaluate(CUT) == []
            least, text = tab.evaluate(CONTRAST)
            assert least >= 4.5, text
            *natural, box_width, box_height, fit = tab.evaluate(PICTURE)
            assert (natural, fit) == ([64, 48], "contain")  # its aspect is kept
            assert box_width > across
            assert box_height > down
    assert tab.evaluate("document.documentElement.scrollHeight") == 900  # all of it fits a desktop's window


def test_a_running_page_shows_everything_and_the_end_stays(tab: Browser, feed: Feed) -> None:
    tab.size(1400, 900)
    tab.open(feed.window.address)
    until(tab, "Connecting")
    assert frozen(tab)
    feed.start()
    until(tab, "Live")
    tab.evaluate(WATCH)
    deadline = time.monotonic() + 20
    while len(changes := tab.evaluate("changes")) < 2:  # another class leads
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert all(before != after for before, after in pairwise(changes))  # nothing is said otherwise
    assert not frozen(tab)
    check_layout(tab)
    feed.pause(True)
    time.sleep(0.5)
    shown = tab.evaluate(TEXTS % "#classes span")
    assert sorted(shown) == sorted(CLASSES)
    assert tab.evaluate(TEXTS % "#classes b")[:2] == ["50.0 %", "20.0 %"]
    assert tab.evaluate(TEXTS % "#spoken") == shown[:1]
    assert (
        tab.evaluate("document.querySelectorAll('main img, main b b').length") == 1
    )  # no name is an element
    facts = dict(zip(tab.evaluate(TEXTS % "dt"), tab.evaluate(TEXTS % "dd")))
    assert facts["Source"] == "rtsp://10.0.0.1/<b>door</b>"
    assert (facts["Networks"], facts["Latency"]) == ("rgb + flow", "30 ms (p99 30 ms)")
    assert facts["Stream time"].startswith("01:4")
    rows = tab.evaluate(ROWS)
    assert len(rows) == 5
    assert min(rows) >= 2
    assert set(tab.evaluate(TEXTS % ".row:not([hidden]) h3")) <= set(CLASSES)
    until(tab, "No new image")  # a source that sends nothing does not look live
    assert frozen(tab)
    feed.attempt = 3
    until(tab, "Source lost, reconnecting (attempt 3)")
    assert frozen(tab)
    feed.attempt = 0
    feed.pause(False)
    until(tab, "Live")
    assert not frozen(tab)
    feed.close("end of the file")
    until(tab, "Stream ended")
    time.sleep(0.7)  # nothing answers any more
    until(tab, "Stream ended")
    assert frozen(tab)
    check_layout(tab)
    (detail,) = tab.evaluate(TEXTS % "#detail")
    assert detail.startswith("end of the file; the last image is from ")
    assert len(tab.evaluate(TEXTS % "#classes span")) == len(CLASSES)
    assert tab.complaints() == []


def test_a_program_that_dies_is_told_and_one_that_returns_is_picked_up(tab: Browser, feed: Feed) -> None:
    def gone(*given: object) -> dict:
        raise OSError

    tab.size(390, 844, mobile=True)
    feed.start()
    tab.open(feed.window.address)
    until(tab, "Live")
    server = feed.window._server
    feed.window.state = gone  # the connection breaks without a last word
    server.shutdown()
    server.server_close()
    until(tab, "The program has stopped")
    assert frozen(tab)
    again = Feed(server.server_port)
    again.start()
    try:
        until(tab, "Live")
        assert not frozen(tab)
    finally:
        again.close()
