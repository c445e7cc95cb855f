"""The parts of a network on a stream: what each keeps of the frames gone by, and what it computes of the new ones.

Every map has time as its third dimension: `(B, C, n, H, W)`, or `(B, D, n)` for tokens, n being however many steps
have come. A cell computes each of its steps once. It runs in two ways that give the same numbers: `push` takes any
number of steps and keeps what it must itself; `StepNetwork` takes always the same number and keeps everything outside.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from two_stream.errors import SettingsError

Start = Literal["zeros", "replicate"]
"""What stands for the frames before the first: every layer's own padding, or its first input again and again."""
TIME = 2
_ROOM = 2
"""A buffer may hold on to a tensor this many times its own length before it is copied out of it."""


class StreamCell(nn.Module, ABC):
    """One node of the network."""

    @abstractmethod
    def reach(self, inputs: list[Reach]) -> Reach:
        """Return how far a step of the output sees, given that of the inputs."""

    @abstractmethod
    def push(self, inputs: list[torch.Tensor | None], last: bool) -> torch.Tensor | None:
        """Take the next steps of every input (None: none) and return those that can be computed now.

        Args:
            inputs: One map per input of the node.
            last: The stream ends here: what stands behind the last step is padding.
        """

    @abstractmethod
    def reset(self) -> None:
        """Forget the stream."""

    def state_size(self) -> int:
        """Return how many numbers are kept from call to call."""
        return 0


class FrameWise(StreamCell):
    """A part that looks at each frame by itself."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function  # a module is filed as a part

    def reach(self, inputs: list[Reach]) -> Reach:
        """Return the input's."""
        return inputs[0]

    def push(self, inputs: list[torch.Tensor | None], last: bool) -> torch.Tensor | None:
        """Apply the part."""
        del last
        x = inputs[0]
        return None if x is None else self.function(x)

    def reset(self) -> None:
        """Nothing is kept."""


class WindowCell(StreamCell):
    """A part that looks at `span` steps at a time and moves on by `step`; `front` steps of padding come first.

    Attributes:
        back: Steps of padding at the end of the stream.
        fill: Value of the padding; minus infinity for max pooling.
        start: Whether padding repeats the first (last) step instead.
    """

    def __init__(
        self,
        span: int,
        step: int = 1,
        *,
        front: int = 0,
        back: int = 0,
        fill: float = 0.0,
        start: Start = "zeros",
    ) -> None:
        super().__init__()
        self.span = span
        self.step = step
        self.front = front
        self.back = back
        self.fill = fill
        self.start = start
        self._kept: torch.Tensor | None = None
        self._begun = False
        self._skip = 0

    @abstractmethod
    def compute(self, x: torch.Tensor) -> torch.Tensor:
        """Return the outputs of `(m - 1) * step + span` inputs: m steps."""

    def reach(self, inputs: list[Reach]) -> Reach:
        """Return the input's, widened by the window."""
        return inputs[0].windowed(self.span, self.step, self.front)

    def padding(self, x: torch.Tensor, steps: int) -> torch.Tensor:
        """Return so many steps of padding beside `x`, one step of a map."""
        shape = list(x.shape)
        shape[TIME] = steps
        if self.start == "replicate":
            return x.expand(shape)
        return x.new_full(shape, self.fill)

    def closed(self, x: torch.Tensor) -> torch.Tensor:
        """Return the last inputs with the padding that stands behind them."""
        if not self.back:
            return x
        return torch.cat((x, self.padding(x.narrow(TIME, x.shape[TIME] - 1, 1), self.back)), TIME)

    def push(self, inputs: list[torch.Tensor | None], last: bool) -> torch.Tensor | None:
        """Return the steps whose window is full now."""
        full = self._joined(inputs[0])
        if full is None:
            return None
        if last:
            full = self.closed(full)
        if self._skip:
            gone = min(self._skip, full.shape[TIME])
            self._skip -= gone
            full = full.narrow(TIME, gone, full.shape[TIME] - gone)
        length = full.shape[TIME]
        count = (length - self.span) // self.step + 1 if length >= self.span else 0
        used = count * self.step
        self._skip += max(0, used - length)
        self._keep(full, min(used, length), own=full is not inputs[0])
        return self.emit(full.narrow(TIME, 0, used - self.step + self.span)) if count else None

    def emit(self, x: torch.Tensor) -> torch.Tensor:
        """Compute for `push`; a cell that must remember something of it does so here."""
        return self.compute(x)

    def _joined(self, x: torch.Tensor | None) -> torch.Tensor | None:
        """Return what is kept and what has come, one behind the other."""
        if x is None:
            return self._kept
        if not self._begun:
            self._begun = True
            if self.front:
                self._kept = self.padding(x.narrow(TIME, 0, 1), self.front)
        return x if self._kept is None else torch.cat((self._kept, x), TIME)

    def _keep(self, full: torch.Tensor, used: int, own: bool) -> None:
        """Keep what comes behind the first `used` steps; copied where the whole is not ours, or much longer."""
        rest = full.shape[TIME] - used
        if rest == 0:
            self._kept = None
            return
        kept = full.narrow(TIME, used, rest)
        self._kept = kept if own and full.shape[TIME] <= _ROOM * rest else kept.clone()

    def reset(self) -> None:
        """Forget the stream."""
        self._kept, self._begun, self._skip = None, False, 0

    def state_size(self) -> int:
        """Return how many numbers are kept."""
        return 0 if self._kept is None else self._kept.numel()


class Join(StreamCell):
    """Maps added, multiplied or put beside each other: what is ahead waits for what is behind."""

    def __init__(self, function: Callable[..., torch.Tensor], what: str) -> None:
        super().__init__()
        self.function = function
        self.what = what
        self._waiting: list[list[torch.Tensor]] = []
        """per input, what has come and not gone, in order"""

    def reach(self, inputs: list[Reach]) -> Reach:
        """Return the widest of the inputs'."""
        return join_reaches(inputs, self.what)

    def push(self, inputs: list[torch.Tensor | None], last: bool) -> torch.Tensor | None:
        """Join as many steps as all inputs have."""
        del last
        if not self._waiting:
            self._waiting = [[] for _ in inputs]
        for queue, x in zip(self._waiting, inputs, strict=True):
            if x is not None:
                queue.append(x)
        count = min(sum(x.shape[TIME] for x in queue) for queue in self._waiting)
        return self.function(*(_taken(queue, count) for queue in self._waiting)) if count else None

    def reset(self) -> None:
        """Forget what waits."""
        self._waiting = []

    def state_size(self) -> int:
        """Return how many numbers wait."""
        return sum(x.numel() for queue in self._waiting for x in queue)


def _taken(queue: list[torch.Tensor], count: int) -> torch.Tensor:
    """Take the first `count` steps out of a queue; nothing is copied where they came as they go."""
    parts: list[torch.Tensor] = []
    while count:
        x = queue.pop(0)
        length = x.shape[TIME]
        if length > count:
            rest = x.narrow(TIME, count, length - count)
            queue.insert(0, rest if length <= _ROOM * (length - count) else rest.clone())
            x = x.narrow(TIME, 0, count)
        parts.append(x)
        count -= x.shape[TIME]
    return parts[0] if len(parts) == 1 else torch.cat(parts, TIME)


@dataclass(frozen=True)
class Reach:
    """Step `i` of a map comes `i * stride` frames into the stream and sees `before` frames back and `after` ahead."""

    stride: int = 1
    """frames per step"""
    before: int = 0
    """frames seen before its own; of the first step they are padding"""
    after: int = 0
    """frames seen after its own: so many must be waited for"""
    endless: bool = False
    """sees everything from the first frame on (an LSTM with its own state)"""

    @property
    def receptive_field(self) -> int | None:
        """Frames that one step sees; None where it sees all there have been."""
        return None if self.endless else self.before + self.after + 1

    def windowed(self, span: int, step: int, front: int) -> Reach:
        """Return the reach behind a window of `span` steps that moves by `step`, with `front` steps of padding."""
        return Reach(
            self.stride * step,
            self.before + front * self.stride,
            self.after + (span - 1 - front) * self.stride,
            self.endless,
        )


def join_reaches(reaches: list[Reach], what: str) -> Reach:
    """Return the reach of maps that are added or put beside each other.

    Raises:
        SettingsError: They have different rates.
    """
    strides = {reach.stride for reach in reaches}
    if len(strides) > 1:
        raise SettingsError(
            f"this network has no stream: {what} joins maps of one step per "
            f"{' and per '.join(map(str, sorted(strides)))} frames"
        )
    return Reach(
        strides.pop(),
        max(reach.before for reach in reaches),
        max(reach.after for reach in reaches),
        any(reach.endless for reach in reaches),
    )
