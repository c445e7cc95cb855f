"""One network in a pipeline: frames in, and what it says of which window."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from two_stream.errors import TwoStreamError
from two_stream.runtime.device import autocast
from two_stream.video.decoding.base import Image


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

    def finish(self) -> torch.Tensor:
        """Return the logits `(1, m, K)` of the windows that the end of the stream completes, and forget it."""

    def reset(self) -> None:
        """Forget everything seen."""


@dataclass(frozen=True)
class NetworkTrack:
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
    precision: str = "fp32"
    """autocast type"""

    def wants(self, index: int) -> bool:
        """Whether the frame of this number, from 0 since the source was opened, is one of the network's."""
        index -= int(self.pairs)
        return index >= 0 and index % self.every == 0


@dataclass(frozen=True)
class WindowLogits:
    """What a network says of one window."""

    logits: NDArray[np.float64]
    """`(K,)`"""
    first: int
    """number of the source frame the window begins with"""


class Track:
    """Counts the frames of a network, so that each prediction is known by its window."""

    def __init__(self, stream: NetworkTrack) -> None:
        self.stream = stream
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        self.stream.network.reset()
        self._fed = 0
        self._numbers: deque[int] = deque(maxlen=self.stream.network.delay + 1)

    def warm_up(self, size: tuple[int, int], channels: int) -> None:
        """Send a few frames through, so that the first ones that count find kernels chosen and memory there."""
        for count in (8, 1, 1):
            frames_BCTHW = torch.zeros(1, channels, count, *size, dtype=torch.uint8)
            self._computed(partial(self.stream.network.step, frames_BCTHW.to(self.stream.device)))
        self.reset()

    def step(self, numbers: Sequence[int], pictures: Sequence[torch.Tensor]) -> dict[int, WindowLogits]:
        """Give the network its next frames.

        Args:
            numbers: Of the source frames.
            pictures: What the network sees of them, uint8 `(C, H, W)`.

        Returns:
            What it says, by the place of the frame that completes it.

        Raises:
            TwoStreamError: The network does not keep to its delay and stride.
        """
        stream, network = self.stream, self.stream.network
        frames_BCTHW = torch.stack(list(pictures), dim=1)[None].to(stream.device)
        logits_MK = self._computed(lambda: network.step(frames_BCTHW))
        due = []
        for place, number in enumerate(numbers):
            self._numbers.append(number)
            past = self._fed - network.delay
            self._fed += 1
            if past >= 0 and past % network.stride == 0:
                due.append((place, self._numbers[0]))
        if len(due) != len(logits_MK):
            raise TwoStreamError(
                f"{stream.name}: the network gave {len(logits_MK)} predictions where {len(due)} were due"
            )
        return {place: WindowLogits(row, first) for (place, first), row in zip(due, logits_MK, strict=True)}

    def finish(self) -> list[WindowLogits]:
        """Return what the end of the stream completes; windows begin where frames came, or where they should have."""
        network = self.stream.network
        logits_MK = self._computed(network.finish)
        done = max(0, -(-(self._fed - network.delay) // network.stride))
        held, last = list(self._numbers), self._fed - len(self._numbers)
        found = []
        for place, row in enumerate(logits_MK):
            at = (done + place) * network.stride - last  # among the frames still known by number
            found.append(WindowLogits(row, held[at] if 0 <= at < len(held) else held[-1]))
        return found

    def _computed(self, work: Callable[[], torch.Tensor]) -> NDArray[np.float64]:
        stream = self.stream
        with torch.inference_mode(), autocast(stream.device, stream.precision):
            found: NDArray[np.float64] = work()[0].double().cpu().numpy()
        return found
