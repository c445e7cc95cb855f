"""Decoding, preparing and predicting side by side, so that a prediction is late by what it takes and by no queue.

One thread reads the source, one resizes pictures and computes flow, and the caller's runs the networks. Between them
are inboxes of a few frames. From a live source the oldest frame makes room when the networks do not keep up, and is
counted; reading a file waits.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from two_stream.errors import TwoStreamError, VideoError
from two_stream.streaming.inbox import Inbox
from two_stream.video.base import Image
from two_stream.video.live import LiveFrame, LiveSource

_CHUNK = 8
"""frames that go through the networks at once when so many wait"""
_LONGEST_WAIT = 5.0
"""seconds between two attempts to open a source that is gone"""


class StreamNetwork(Protocol):
    """A network that takes a stream: `StreamRecognizer`, or a clip network over sliding windows."""

    @property
    def delay(self) -> int:
        """Number, from 0, of the frame after which the first prediction is there."""

    @property
    def stride(self) -> int:
        """Frames from one prediction to the next."""

    def step(self, frames_BCTHW: torch.Tensor) -> torch.Tensor:
        """Take the next frames, uint8 `(1, C, n, H, W)`, and return the logits `(1, m, K)` that they complete."""

    def reset(self) -> None:
        """Forget everything seen."""


@dataclass(frozen=True)
class Stream:
    """One network and how frames reach it."""

    name: str
    """`rgb` or `flow`"""
    network: StreamNetwork
    prepare: Callable[[Image | None, Image], torch.Tensor]
    """previous and present picture to what the network sees of them, uint8 `(C, H, W)`"""
    every: int = 1
    """source frames per frame of the network"""
    pairs: bool = False
    """it needs the previous picture"""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def wants(self, index: int) -> bool:
        """Whether the frame of this number, from 0 since the source was opened, is one of the network's."""
        index -= int(self.pairs)
        return index >= 0 and index % self.every == 0


@dataclass(frozen=True)
class Seen:
    """A frame that has gone through the pipeline."""

    frame: LiveFrame
    logits: dict[str, NDArray[np.float64]]
    """`(K,)` of each network that made a prediction with it; mostly of all or of none"""
    passed: tuple[Image, ...] = ()
    """the pictures since the frame before, which no network asked for, when they are kept"""
    begins: bool = False
    """the first frame, or the first after the source was gone: the networks have forgotten what was before"""


@dataclass(frozen=True)
class _Item:
    """A frame on its way; `inputs` holds what each network that wants it sees."""

    frame: LiveFrame
    index: int
    previous: Image | None
    passed: tuple[Image, ...]
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
        streams: Sequence[Stream],
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
            keep_passed: Hand on the pictures between those that networks want.
            said: Told what happens to the source.
        """
        self.source = source
        self.streams = list(streams)
        self.patience = patience
        self.paced = paced
        self.keep_passed = keep_passed
        self.said = said
        self.interruptions = 0
        self._read: Inbox[_Item | None] = Inbox(queue, drop=source.live or paced)
        self._ready: Inbox[_Item | None] = Inbox(2, drop=False)
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._fed = [0] * len(self.streams)
        self._begins = True

    @property
    def dropped(self) -> int:
        """Frames left out so far because the networks were busy."""
        return self._read.dropped

    def stop(self) -> None:
        """Let the pipeline end at once; may be called from any thread or a signal handler."""
        self._stop.set()

    def run(self) -> Iterator[Seen]:
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
                yield from self._predict(self._ready.take(_CHUNK, timeout=0.2))
        finally:
            self._stop.set()
            for box in (self._read, self._ready):
                box.close(empty=True)
            for thread in threads:
                thread.join(timeout=1.0)  # a read that hangs ends with the process
        if self._error is not None:
            raise self._error

    def _guarded(self, work: Callable[[], None], box: Inbox[_Item | None]) -> None:
        """Run a thread's work; keep its error for the caller, and close what it fills."""
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised again by `run`
            self._error = self._error or error
        finally:
            box.close()

    def _reading(self) -> None:
        number, offset, lost = 1, 0.0, None
        while not self._stop.is_set():
            index, previous = 0, None
            passed: list[Image] = []
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
                        item = _Item(frame, index, previous, tuple(passed))
                        passed.clear()
                        if not self._read.put(item):
                            return
                    elif self.keep_passed:
                        passed.append(frame.picture)
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
        self._read.put(None)

    def _preparing(self) -> None:
        while not self._read.over and not self._stop.is_set():
            for item in self._read.take(timeout=0.2):
                if item is not None:
                    for stream in self.streams:
                        if stream.wants(item.index):
                            item.inputs[stream.name] = stream.prepare(item.previous, item.frame.picture)
                if not self._ready.put(item):
                    return

    def _predict(self, items: list[_Item | None]) -> Iterator[Seen]:
        """Send a few frames through the networks; a gap among them makes the networks forget."""
        while items:
            gap = items.index(None) if None in items else len(items)
            run = [item for item in items[:gap] if item is not None]
            if run:
                yield from self._step(run)
            if gap < len(items):
                self._fed, self._begins = [0] * len(self.streams), True
                for stream in self.streams:
                    stream.network.reset()
            items = items[gap + 1 :]

    def _step(self, items: list[_Item]) -> Iterator[Seen]:
        found: list[dict[str, NDArray[np.float64]]] = [{} for _ in items]
        for place, stream in enumerate(self.streams):
            mine = [
                (row, item.inputs[stream.name])
                for row, item in enumerate(items)
                if stream.name in item.inputs
            ]
            if not mine:
                continue
            frames_BCTHW = torch.stack([picture for _, picture in mine], dim=1)[None].to(stream.device)
            with torch.inference_mode():
                logits_MK = stream.network.step(frames_BCTHW)[0].double().cpu().numpy()
            due = [row for at, (row, _) in enumerate(mine) if self._completes(stream, self._fed[place] + at)]
            self._fed[place] += len(mine)
            if len(due) != len(logits_MK):
                raise TwoStreamError(
                    f"{stream.name}: the network gave {len(logits_MK)} predictions where {len(due)} were due"
                )
            for row, logits_K in zip(due, logits_MK, strict=True):
                found[row][stream.name] = logits_K
        for item, logits in zip(items, found, strict=True):
            yield Seen(item.frame, logits, item.passed, self._begins)
            self._begins = False

    @staticmethod
    def _completes(stream: Stream, index: int) -> bool:
        past = index - stream.network.delay
        return past >= 0 and past % stream.network.stride == 0
