"""Reads frames, prepares inputs and computes predictions in parallel, with short queues so that latency stays low.

One thread reads the source, one thread resizes images and computes flow, and the caller's thread runs the networks.
Queues of a few frames connect the threads. If the networks are too slow for a live source, the oldest frame is dropped
and counted. A file is read only as fast as the networks can process it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Generic, TypeVar

import torch

from two_stream.errors import SettingsError, VideoError
from two_stream.streaming.live.networks import NetworkTrack, WindowLogits
from two_stream.video.decoding.base import Image
from two_stream.video.decoding.live import LiveFrame, LiveSource
from two_stream.video.rate import seen_at

T = TypeVar("T")
_CHUNK = 8
"""largest number of waiting frames that are processed in one forward pass"""
_LONGEST_WAIT = 5.0
"""longest time in seconds between two attempts to open a lost source"""


class Inbox(Generic[T]):
    """A bounded queue between two threads.

    If the queue is full, `put` waits, or drops the oldest item if `drop` is true.

    Attributes:
        dropped: Number of dropped items.
    """

    def __init__(self, size: int, *, drop: bool) -> None:
        self.size = size
        self.drop = drop
        self.dropped = 0
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def put(self, item: T) -> bool:
        """Add an item and return true. If the inbox is closed, add nothing and return false."""
        with self._changed:
            while not self._closed and len(self._items) >= self.size:
                if self.drop:
                    self._items.popleft()
                    self.dropped += 1
                else:
                    self._changed.wait()
            if not self._closed:
                self._items.append(item)
                self._changed.notify_all()
            return not self._closed

    def take(self, most: int = 1, timeout: float | None = None) -> list[T]:
        """Wait for items and return up to `most` of the oldest.

        The list is empty if the inbox is closed and has no items, or if no item arrives within `timeout` seconds.
        """
        with self._changed:
            if not self._items and not self._closed:
                self._changed.wait(timeout)
            taken = [self._items.popleft() for _ in range(min(most, len(self._items)))]
            if taken:
                self._changed.notify_all()
            return taken

    def close(self, *, empty: bool = False) -> None:
        """Accept no more items. Items in the inbox can still be taken, unless `empty` is true, which removes them."""
        with self._changed:
            self._closed = True
            if empty:
                self._items.clear()
            self._changed.notify_all()

    @property
    def over(self) -> bool:
        """Whether the inbox is closed and empty."""
        with self._changed:
            return self._closed and not self._items

    def __len__(self) -> int:
        with self._changed:
            return len(self._items)


@dataclass(frozen=True)
class FrameResult:
    """A processed frame with its predictions."""

    frame: LiveFrame
    windows: dict[str, WindowLogits]
    """predictions that the frame completes, by network"""
    passed: tuple[LiveFrame, ...] = ()
    """frames since the previous result that no network uses; empty unless `keep_passed` is true"""
    begins: bool = False
    """whether this is the first frame of the stream or the first one after an interruption; the networks are then
    reset"""
    ended: bool = False
    """whether this result follows the end of the source. `frame` is then the last frame again, and `windows` contains
    the predictions for windows that remained at the end"""


@dataclass(frozen=True)
class _Item:
    """A frame between two stages of the pipeline."""

    frame: LiveFrame
    index: int
    """number of the frame, from 0, since the source was opened"""
    opening: int
    """number of times that the source was opened"""
    previous: Image | None
    passed: tuple[LiveFrame, ...]
    inputs: dict[str, torch.Tensor] = field(default_factory=dict)
    """input for each network that uses the frame"""


class Pipeline:
    """Processes a source until its end or until `stop` is called.

    Attributes:
        interruptions: Number of interruptions of the source.
        attempt: Number of attempts to open the source since it was lost; 0 while it is available.
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
        notify: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Set up a pipeline. The source is not opened yet.

        If the networks have a frame rate (`NetworkTrack.fps`), the source is seen at this rate (see `video/rate.py`),
        and frames are counted at this rate.

        Args:
            source: The source of frames.
            streams: The networks.
            queue: Largest number of frames that wait for the networks.
            patience: Number of seconds to wait for a lost live source.
            paced: Whether to read a file at its own frame rate, as if it were a live source.
            keep_passed: Whether to also return frames that no network uses.
            notify: Function that is called with a message when the source is lost or available again.

        Raises:
            SettingsError: The networks have different frame rates.
        """
        rates = dict.fromkeys(stream.fps for stream in streams)
        if len(rates) > 1:
            given = " and ".join(
                "every frame" if one is None else f"{one:g} frames per second" for one in rates
            )
            raise SettingsError(f"the networks see {given}; use runs with the same `model.input.fps`")
        self.fps = next(iter(rates), None)
        self.source = source
        self.streams = list(streams)
        self.patience = patience
        self.paced = paced
        self.keep_passed = keep_passed
        self.notify = notify
        self.interruptions = 0
        self.attempt = 0
        self._read: Inbox[_Item] = Inbox(queue, drop=source.live or paced)
        self._ready: Inbox[_Item] = Inbox(4, drop=False)
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._newest: _Item | None = None
        for stream in self.streams:
            stream.reset()

    @property
    def dropped(self) -> int:
        """Number of frames dropped so far because the networks were too slow."""
        return self._read.dropped

    def stop(self) -> None:
        """Stop the pipeline at once. The method can be called from any thread or from a signal handler."""
        self._stop.set()

    def run(self) -> Iterator[FrameResult]:
        """Yield each frame after the networks have processed it.

        Raises:
            VideoError: The source cannot be opened, or it was lost for longer than `patience`.
        """
        threads = [
            threading.Thread(target=self._guard, args=(work, box), daemon=True, name=work.__name__)
            for work, box in ((self._read_source, self._read), (self._prepare_inputs, self._ready))
        ]
        for thread in threads:
            thread.start()
        try:
            while not self._stop.is_set() and not self._ready.over:
                items = self._ready.take(_CHUNK, timeout=0.2)
                for _, run in groupby(items, key=lambda item: item.opening):
                    yield from self._step(list(run))
            if self._error is None and not self._stop.is_set() and not self.source.live:
                yield from self._finish()
        finally:
            self._stop.set()
            for box in (self._read, self._ready):
                box.close(empty=True)
            for thread in threads:
                thread.join(timeout=1.0)  # a read that hangs ends with the process
        if self._error is not None:
            raise self._error

    def _guard(self, work: Callable[[], None], box: Inbox[_Item]) -> None:
        """Run the work of a thread, store its error for `run`, and close the inbox that the thread fills."""
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised again by `run`
            self._error = self._error or error
        finally:
            box.close()

    def _read_source(self) -> None:
        number, offset, lost, opening = 1, 0.0, None, 0
        while not self._stop.is_set():
            opening += 1
            index, previous = 0, None
            passed: list[LiveFrame] = []
            opened = time.monotonic()
            frame: LiveFrame | None = None
            try:
                for frame in self._seen(self.source.numbered(number, offset)):
                    if index == 0 and lost is not None:
                        gap = time.monotonic() - lost[0]
                        self.notify(
                            f"{self.source.name}: available again after {gap:.1f} s; the networks are reset"
                        )
                        lost, self.attempt = None, 0
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

    def _seen(self, frames: Iterator[LiveFrame]) -> Iterator[LiveFrame]:
        """Yield the frames that the networks see, with the times of their positions."""
        if self.fps is None:
            return frames
        shown = seen_at(((frame.seconds, frame) for frame in frames), self.fps)
        return (replace(frame, seconds=seconds) for seconds, frame in shown)

    def _wait(self, error: VideoError, lost: tuple[float, float] | None, *, first: bool) -> float:
        """Wait before the next attempt to open a lost source, and return the seconds from the stream's start until now.

        Raises:
            VideoError: The source is a file, or it was lost for longer than `patience`.
        """
        if not self.source.live or self.patience <= 0 or lost is None:
            raise error
        since, seconds = lost
        gone = time.monotonic() - since
        if gone > self.patience:
            raise VideoError(
                error.path,
                f"was lost for {gone:.0f} seconds ({error.reason}); check the source, or set a larger `--patience`",
            ) from None
        self.attempt += 1
        if first:
            self.interruptions += 1
            self.notify(f"{error}; waiting up to {self.patience:g} s until the source is available again")
        self._stop.wait(min(_LONGEST_WAIT, 0.5 + gone / 4))
        return seconds + time.monotonic() - since

    def _prepare_inputs(self) -> None:
        while not self._read.over and not self._stop.is_set():
            for item in self._read.take(timeout=0.2):
                for stream in self.streams:
                    if stream.wants(item.index):
                        item.inputs[stream.name] = stream.prepare(item.previous, item.frame.picture)
                if not self._ready.put(item):
                    return

    def _step(self, items: list[_Item]) -> Iterator[FrameResult]:
        """Process frames with the networks. After the source was opened again, the networks are reset first."""
        begins = self._newest is None or self._newest.opening != items[0].opening
        if begins:
            for stream in self.streams:
                stream.reset()
        windows: list[dict[str, WindowLogits]] = [{} for _ in items]
        for stream in self.streams:
            rows = [row for row, item in enumerate(items) if stream.name in item.inputs]
            if rows:
                numbers = [items[row].frame.number for row in rows]
                completed = stream.step(numbers, [items[row].inputs[stream.name] for row in rows])
                for place, window in completed.items():
                    windows[rows[place]][stream.name] = window
        self._newest = items[-1]
        for row, item in enumerate(items):
            yield FrameResult(item.frame, windows[row], item.passed, begins=begins and row == 0)

    def _finish(self) -> Iterator[FrameResult]:
        """Yield the predictions for the windows that remain at the end of a file, in the order of the windows."""
        if self._newest is None:
            return
        windows: dict[int, dict[str, WindowLogits]] = {}
        for stream in self.streams:
            for window in stream.finish():
                windows.setdefault(window.first, {})[stream.name] = window
        for first in sorted(windows):
            yield FrameResult(self._newest.frame, windows[first], ended=True)
