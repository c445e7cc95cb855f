"""A headless Chromium spoken to over two pipes: the DevTools protocol, JSON messages that end in a zero byte."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import re
import select
import shutil
import subprocess
import sys
import time
import unicodedata
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
_PATIENCE = 60.0
"""seconds"""
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage"),
    *("--no-first-run", "--disable-extensions", "--disable-background-networking", "--remote-debugging-pipe"),
)
_ABOVE = 10
_START = """import os, sys
os.dup2(int(sys.argv[1]), 3)
os.dup2(int(sys.argv[2]), 4)
os.execvp(sys.argv[3], sys.argv[3:])"""
"""The protocol is spoken over descriptors 3 and 4; those handed on lie above, so that none is overwritten."""

CONTRAST = """[...document.querySelectorAll(
  'p, li, dt, dd, th, td, h1, h2, h3, a, summary, figcaption span, svg text')].filter(one =>
  one.getClientRects().length && one.textContent.trim()).map(one => {
  const parse = text => (text.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
  const linear = v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  let behind = one;
  const ground = part => parse(getComputedStyle(part).backgroundColor);
  while (behind.parentElement && ground(behind)[3] === 0) behind = behind.parentElement;
  let back = ground(behind);
  const svg = one.closest('svg');
  if (svg) {
    one.scrollIntoView({ block: 'center' });
    const box = one.getBoundingClientRect();
    const below = document.elementsFromPoint(box.x + box.width / 2, box.y + box.height / 2);
    for (const shape of below.filter(part => part.tagName === 'path' && svg.contains(part)).reverse()) {
      const style = getComputedStyle(shape);
      if (style.fill === 'none') continue;
      const alpha = style.opacity * style.fillOpacity, tint = parse(style.fill);
      back = back.slice(0, 3).map((value, i) => alpha * tint[i] + (1 - alpha) * value);
    }
  }
  const style = getComputedStyle(one), own = light(parse(svg ? style.fill : style.color)), other = light(back);
  return [(Math.max(own, other) + 0.05) / (Math.min(own, other) + 0.05), one.textContent.trim().slice(0, 40)];
}).sort((a, b) => a[0] - b[0])[0]"""
"""The least contrast (WCAG) of any text with what is behind it: the page, and in figures the shapes under it."""


def find_chromium() -> str | None:
    """Return the browser: what TWO_STREAM_CHROMIUM names, else the first one on the path."""
    named = os.environ.get("TWO_STREAM_CHROMIUM")
    return named or next((found for name in NAMES if (found := shutil.which(name))), None)


class Browser:
    """One tab."""

    def __init__(self, send: int, receive: int) -> None:
        self._send, self._receive = send, receive
        self._buffer = b""
        self._number = 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and return its result; what happens meanwhile is kept in `events`."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._send, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]

    def _next(self) -> dict[str, Any]:
        end = time.monotonic() + _PATIENCE
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._receive], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"the browser said nothing for {_PATIENCE:.0f} s"
            chunk = os.read(self._receive, 1 << 20)
            assert chunk, "the browser ended"
            self._buffer += chunk
        text, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        if "method" in message:
            self.events.append(message)
        return message

    def open(self, page: Path | str) -> None:
        """Load a file or an address and wait until all of it is there."""
        self.events.clear()
        self.call("Page.navigate", url=page if isinstance(page, str) else page.resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self._next()

    def complaints(self) -> list[str]:
        """Return the errors and warnings of the console and the exceptions so far."""
        found = []
        for event in self.events:
            params = event["params"]
            if event["method"] == "Runtime.exceptionThrown":
                found.append(json.dumps(params["exceptionDetails"]))
            elif event["method"] == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
                found.append(params["entry"]["text"])
            elif event["method"] == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
                found.append(json.dumps(params["args"]))
        return found

    def evaluate(self, script: str) -> Any:
        """Return the value of an expression in the page; a promise is awaited."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def size(self, width: int, height: int, *, mobile: bool = False) -> None:
        """Set the size of the window in CSS pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=mobile,
        )

    def media(self, kind: str = "", scheme: str = "light") -> None:
        """Pretend to be paper (`print`) or a screen, in a light or dark scheme."""
        self.call(
            "Emulation.setEmulatedMedia",
            media=kind,
            features=[{"name": "prefers-color-scheme", "value": scheme}],
        )

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        """Write what is seen, or the whole page, as PNG."""
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))

    def press(self, key: str, text: str = "") -> None:
        """Press and release a key, such as `Tab` or `ArrowRight`."""
        codes = {"Tab": 9, "Enter": 13, "ArrowRight": 39}
        for kind in ("keyDown", "keyUp"):
            given = {"key": key, "code": key, "windowsVirtualKeyCode": codes[key], "text": text}
            self.call("Input.dispatchKeyEvent", type=kind, **given)

    def pdf(self, paper: tuple[float, float] = (8.27, 11.69)) -> bytes:
        """Return the page printed on paper of this width and height in inches (default: A4)."""
        size = {"paperWidth": paper[0], "paperHeight": paper[1]}
        answer = self.call("Page.printToPDF", preferCSSPageSize=True, printBackground=True, **size)
        return base64.b64decode(answer["data"])


def pdf_text(data: bytes) -> str:
    """Return the text of a PDF file that Chromium wrote, in the order of drawing."""
    objects = {
        int(n): body for n, body in re.findall(rb"(?:^|\n)(\d+) 0 obj\s(.*?)\sendobj", data, re.DOTALL)
    }

    def stream(body: bytes) -> bytes:
        raw = body.partition(b"stream\n")[2].rpartition(b"\nendstream")[0]
        return zlib.decompress(raw) if b"/FlateDecode" in body else raw

    fonts: dict[bytes, dict[int, str]] = {}
    for name, number in set(re.findall(rb"/(F\d+) (\d+) 0 R", data)):
        letters = fonts.setdefault(name, {})
        if not (link := re.search(rb"/ToUnicode (\d+) 0 R", objects[int(number)])):
            continue
        table = stream(objects[int(link[1])])
        for block in re.findall(rb"beginbfchar(.*?)endbfchar", table, re.DOTALL):
            for glyph, text in re.findall(rb"<(\w+)>\s*<(\w+)>", block):
                letters[int(glyph, 16)] = bytes.fromhex(text.decode()).decode("utf-16-be")
        for block in re.findall(rb"beginbfrange(.*?)endbfrange", table, re.DOTALL):
            for first, last, text in re.findall(rb"<(\w+)>\s*<(\w+)>\s*<(\w+)>", block):
                for step in range(int(last, 16) - int(first, 16) + 1):
                    letters[int(first, 16) + step] = chr(int(text, 16) + step)
    found = []
    for body in objects.values():
        if b"stream" not in body or b"/Length1" in body or b" Tf" not in (page := stream(body)):
            continue
        letters = {}
        for font, shown in re.findall(rb"/(F\d+) [\d.]+ Tf|(\[[^\]]*\] ?TJ|<[0-9A-Fa-f]+> ?Tj)", page):
            letters = fonts[font] if font else letters
            for text in re.findall(rb"<([0-9A-Fa-f]+)>", shown):
                codes = [int(text[place : place + 4], 16) for place in range(0, len(text), 4)]
                found.append("".join(letters.get(code, "?") for code in codes))
    return unicodedata.normalize("NFKC", "".join(found))


@contextmanager
def browser(program: str, profile: Path, *flags: str) -> Iterator[Browser]:
    """Start a browser with a profile of its own, and more flags; it is ended with its children."""
    to_read, to_write = os.pipe()
    from_read, from_write = os.pipe()
    ends = [fcntl.fcntl(end, fcntl.F_DUPFD, _ABOVE) for end in (to_read, from_write)]
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            _START,
            *map(str, ends),
            program,
            *_FLAGS,
            *flags,
            f"--user-data-dir={profile}",
        ],
        pass_fds=ends,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for end in ends:
        os.close(end)
    os.close(to_read)
    os.close(from_write)
    try:
        made = Browser(to_write, from_read)
        yield made
        made._session = None
        made.call("Browser.close")
        process.wait(timeout=20)
    finally:
        os.close(to_write)
        os.close(from_read)
        if process.poll() is None:
            process.kill()
            process.wait()


VOID = {"meta", "link", "br", "img", "hr", "wbr", "input"}


class Checker(HTMLParser):
    """Fails on unbalanced tags; collects what a browser would load and every text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.tags: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.loads += [
            value for name, value in attrs if name in ("src", "href", "srcset", "xlink:href", "data")
        ]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.loads += [value for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
