"""Decoding, preparing and predicting side by side, so that a prediction is late by what it takes and by no queue.

One thread reads the source, one resizes pictures and computes flow, and the caller's runs the networks. Between them
are inboxes of a few frames. From a live source the oldest frame makes room when the networks do not keep up, and is
counted; reading a file waits.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Generic, TypeVar

import torch

from two_stream.errors import VideoError
from two_stream.streaming.live.networks import NetworkTrack, Track, WindowLogits
from two_stream.video.decoding.base import Image
from two_stream.video.decoding.live import LiveFrame, LiveSource

_CHUNK = 8
"""frames that go through the networks at once when so many wait"""
_LONGEST_WAIT = 5.0
"""seconds between two attempts to open a source that is gone"""


@dataclass(frozen=True)
class FrameResult:
    """A frame that has gone through the pipeline."""

    frame: LiveFrame
    said: dict[str, WindowLogits]
    """by network, of those that made a prediction with it; mostly all or none"""
    passed: tuple[LiveFrame, ...] = ()
    """the frames since the one before, which no network asked for, when they are kept"""
    begins: bool = False
    """the first frame, or the first after the source was gone: the networks have forgotten what was before"""
    ended: bool = False
    """the source is over: the frame was seen before, and this is what its end completes"""


@dataclass(frozen=True)
class _Item:
    """A frame on its way; `inputs` holds what each network that wants it sees."""

    frame: LiveFrame
    index: int
    """since the source was opened"""
    opening: int
    """which opening of the source that was"""
    previous: Image | None
    passed: tuple[LiveFrame, ...]
    inputs: dict[str, torch.Tensor] = field(default_factory=dict)


class Pipeline:
    """Reads a source to its end, or until `stop`.

    Attributes:
        dropped: Frames left out so far because the networks were busy.
        interruptions: Times that the source went away and came back.
    """

    def __init__(
        self,
        source: LiveSource,
        streams: Sequence[NetworkTrack],
        *,
        queue: int = 4,
        patience: float = 60.0,
        paced: bool = False,
        keep_passed: bool = False,
        said: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Prepare a pipeline; nothing is opened yet.

        Args:
            source: Where frames come from.
            streams: The networks.
            queue: Frames that may wait for their turn.
            patience: Seconds that a live source may be gone.
            paced: Read a file at its own frame rate, as if it were live.
            keep_passed: Hand on the frames between those that networks want.
            said: Told what happens to the source.
        """
        self.source = source
        self.streams = list(streams)
        self.patience = patience
        self.paced = paced
        self.keep_passed = keep_passed
        self.said = said
        self.interruptions = 0
        self._read: Inbox[_Item] = Inbox(queue, drop=source.live or paced)
        self._ready: Inbox[_Item] = Inbox(4, drop=False)
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._tracks = [Track(stream) for stream in self.streams]
        self._newest: _Item | None = None

    @property
    def dropped(self) -> int:
        """Frames left out so far because the networks were busy."""
        return self._read.dropped

    def warm_up(self, sizes: Sequence[tuple[int, tuple[int, int]]]) -> None:
        """Let every network compute a few frames of nothing before the source is opened.

        Args:
            sizes: Channels and (height, width) of each network's frames.
        """
        for track, (channels, size) in zip(self._tracks, sizes, strict=True):
            track.warm_up(size, channels)

    def stop(self) -> None:
        """Let the pipeline end at once; may be called from any thread or a signal handler."""
        self._stop.set()

    def run(self) -> Iterator[FrameResult]:
        """Yield every frame once the networks have seen it.

        Raises:
            VideoError: The source cannot be opened, or is gone for longer than `patience`.
        """
        threads = [
            threading.Thread(target=self._guarded, args=(work, box), daemon=True, name=work.__name__)
            for work, box in ((self._reading, self._read), (self._preparing, self._ready))
        ]
        for thread in threads:
            thread.start()
        try:
            while not self._stop.is_set() and not self._ready.over:
                yield from self._predicted(self._ready.take(_CHUNK, timeout=0.2))
            if self._error is None and not self._stop.is_set() and not self.source.live:
                yield from self._finished()
        finally:
            self._stop.set()
            for box in (self._read, self._ready):
                box.close(empty=True)
            for thread in threads:
                thread.join(timeout=1.0)  # a read that hangs ends with the process
        if self._error is not None:
            raise self._error

    def _guarded(self, work: Callable[[], None], box: Inbox[_Item]) -> None:
        """Run a thread's work; keep its error for the caller, and close what it fills."""
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised again by `run`
            self._error = self._error or error
        finally:
            box.close()

    def _reading(self) -> None:
        number, offset, lost, opening = 1, 0.0, None, 0
        while not self._stop.is_set():
            opening += 1
            index, previous = 0, None
            passed: list[LiveFrame] = []
            opened = time.monotonic()
            frame: LiveFrame | None = None
            try:
                for frame in self.source.numbered(number, offset):
                    if index == 0 and lost is not None:
                        self._back(lost)
                        lost = None
                    if self.paced and self._stop.wait(max(0.0, opened + frame.seconds - time.monotonic())):
                        return
                    if any(stream.wants(index) for stream in self.streams):
                        item = _Item(frame, index, opening, previous, tuple(passed))
                        passed.clear()
                        if not self._read.put(item):
                            return
                    elif self.keep_passed:
                        passed.append(frame)
                    previous, index = frame.picture, index + 1
                    if self._stop.is_set():
                        return
                return
            except VideoError as error:
                if frame is not None:
                    number, offset = frame.number + 1, frame.seconds
                    lost = (time.monotonic(), frame.seconds)
                elif not self.source.live or lost is None:
                    raise
                offset = self._wait(error, lost, first=frame is not None)

    def _wait(self, error: VideoError, lost: tuple[float, float] | None, *, first: bool) -> float:
        """Wait before the next attempt to open the source; return the seconds its next frame will count from.

        Raises:
            VideoError: It is a file, or has been gone for longer than `patience`.
        """
        if not self.source.live or self.patience <= 0 or lost is None:
            raise error
        since, seconds = lost
        gone = time.monotonic() - since
        if gone > self.patience:
            raise VideoError(error.path, f"gone for {gone:.0f} seconds ({error.reason})") from None
        if first:
            self.interruptions += 1
            self.said(f"{error}; waiting up to {self.patience:g} s for it to come back")
        self._stop.wait(min(_LONGEST_WAIT, 0.5 + gone / 4))
        return seconds + time.monotonic() - since

    def _back(self, lost: tuple[float, float]) -> None:
        self.said(
            f"{self.source.name}: back after {time.monotonic() - lost[0]:.1f} s; the networks begin anew"
        )

    def _preparing(self) -> None:
        while not self._read.over and not self._stop.is_set():
            for item in self._read.take(timeout=0.2):
                for stream in self.streams:
                    if stream.wants(item.index):
                        item.inputs[stream.name] = stream.prepare(item.previous, item.frame.picture)
                if not self._ready.put(item):
                    return

    def _predicted(self, items: list[_Item]) -> Iterator[FrameResult]:
        """Send a few frames through the networks, which begin anew where the source was opened anew."""
        for _, run in groupby(items, key=lambda item: item.opening):
            yield from self._step(list(run))

    def _step(self, items: list[_Item]) -> Iterator[FrameResult]:
        begins = self._newest is None or self._newest.opening != items[0].opening
        if begins:
            for track in self._tracks:
                track.reset()
        found: list[dict[str, WindowLogits]] = [{} for _ in items]
        for track in self._tracks:
            name = track.stream.name
            rows = [row for row, item in enumerate(items) if name in item.inputs]
            if rows:
                numbers = [items[row].frame.number for row in rows]
                made = track.step(numbers, [items[row].inputs[name] for row in rows])
                for place, one in made.items():
                    found[rows[place]][name] = one
        self._newest = items[-1]
        for row, (item, said) in enumerate(zip(items, found, strict=True)):
            yield FrameResult(item.frame, said, item.passed, begins=begins and row == 0)

    def _finished(self) -> Iterator[FrameResult]:
        """Yield what the end of a file completes, window by window."""
        if self._newest is None:
            return
        windows: dict[int, dict[str, WindowLogits]] = {}
        for track in self._tracks:
            for said in track.finish():
                windows.setdefault(said.first, {})[track.stream.name] = said
        for first in sorted(windows):
            yield FrameResult(self._newest.frame, windows[first], ended=True)


T = TypeVar("T")


class Inbox(Generic[T]):
    """Holds at most `size` things. When it is full, `put` waits, or the oldest thing makes room and is counted.

    Attributes:
        dropped: Things that made room.
    """

    def __init__(self, size: int, *, drop: bool) -> None:
        self.size = size
        self.drop = drop
        self.dropped = 0
        self._things: deque[T] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def put(self, thing: T) -> bool:
        """Add a thing; false when the inbox has been closed, and nothing was added."""
        with self._changed:
            while not self._closed and len(self._things) >= self.size:
                if self.drop:
                    self._things.popleft()
                    self.dropped += 1
                else:
                    self._changed.wait()
            if self._closed:
                return False
            self._things.append(thing)
            self._changed.notify_all()
            return True

    def take(self, most: int = 1, timeout: float | None = None) -> list[T]:
        """Wait for things and return the oldest, `most` at once; empty when it is closed, or nothing came in time."""
        with self._changed:
            if not self._things and not self._closed:
                self._changed.wait(timeout)
            taken = [self._things.popleft() for _ in range(min(most, len(self._things)))]
            if taken:
                self._changed.notify_all()
            return taken

    def close(self, *, empty: bool = False) -> None:
        """Let no more in; what is there can still be taken, unless it is to be emptied."""
        with self._changed:
            self._closed = True
            if empty:
                self._things.clear()
            self._changed.notify_all()

    @property
    def over(self) -> bool:
        """Closed, and everything taken."""
        with self._changed:
            return self._closed and not self._things

    def __len__(self) -> int:
        with self._changed:
            return len(self._things)
